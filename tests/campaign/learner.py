"""Killed at random, resumed, and bit-identical: the long runs of the learner.

    make campaign PART=learner [COUNT=kills of each campaign] [SECONDS=for both together]
    python -m tests.campaign.learner --only engine --seed 7

`engine kills`: a process with every term of the objective and every kind of pruning on, killed at random steps; each state that it comes
back to and each that it keeps must be the one of a run that nobody killed. `runtime kills`: the learner server of a live runtime,
killed at random moments of the digits plan; what the plan ends with must be what an undisturbed one ends with, bit for bit.
One JSON line a campaign in build/campaign/learner.jsonl; the exit status is 1 when there is a violation.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import recuros
from kfs.records import RecordKind
from kfs.store import Store

ROOT: Final = Path(__file__).resolve().parents[2]
RESULTS: Final = ROOT / "build" / "campaign" / "learner.jsonl"
KILLS: Final = 100
STEPS_A_KILL: Final = 6
KILLS_A_RUN: Final = 4
"""A server that dies more often than five times a minute is given up."""
WAIT_S: Final = 300.0
PARTS: Final = ("student", "teacher", "ema", "optimizer", "rng")
Trials = Iterator[tuple[int, str]]
"""How many kills there were, and what is wrong ("": nothing)."""


@dataclass
class Row:
    """One line of the results."""

    campaign: str
    count: int = 0
    violations: int = 0
    seconds: float = 0.0
    seed: int = 0
    found: list[str] = field(default_factory=list)
    details: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> str:
        """As it is kept."""
        row = {"campaign": self.campaign, "count": self.count, "violations": self.violations}
        more = {"seconds": round(self.seconds, 1), "seed": self.seed, "found": self.found}
        return json.dumps(row | more | self.details)


# The engine


def life(folder: Path, steps: int, die_after: int | None = None, delay_s: float = 0.0) -> list[list[str]]:
    """One process's lines; killed once it has said `die_after` steps and `delay_s` have passed."""
    command = [sys.executable, "-m", "tests.campaign._learner_child", str(folder), str(steps)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert process.stdout is not None
    lines, done = [], 0
    for line in process.stdout:
        lines.append(line.split())
        done += line.startswith("step")
        if done == die_after and process.poll() is None:
            time.sleep(delay_s)  # where inside the next step it dies
            process.send_signal(signal.SIGKILL)
            die_after = None
    if process.wait() not in (0, -signal.SIGKILL):
        raise RuntimeError(f"the child ended with {process.returncode}")
    return [line for line in lines if len(line) > 1]


def engine_kills(count: int, seed: int, details: dict[str, Any]) -> Trials:
    """A chain of lives over one plan, each state compared with the one of an undisturbed run."""
    rng = random.Random(seed)
    steps = count * STEPS_A_KILL
    with tempfile.TemporaryDirectory(prefix="recuros-campaign-") as name:
        straight, folder = Path(name) / "straight", Path(name) / "killed"
        straight.mkdir()
        folder.mkdir()
        want = {line[1]: line[2] for line in life(straight, steps) if line[0] == "kept"}
        details |= {"steps": steps, "states_compared": 0}
        for kill in range(1, count + 1):
            lines = life(folder, steps, rng.randint(1, 2 * STEPS_A_KILL), rng.random() * 0.05)
            yield kill, _compared(lines, want, details)
            if any(line[1] == str(steps) for line in lines if line[0] == "kept"):
                (folder / "kept").unlink()  # the plan is over before the kills are: once more from its beginning
        lines = life(folder, steps)
        wrong = _compared(lines, want, details)
        if lines[-1][:2] != ["kept", str(steps)]:
            wrong = f"the last life did not end the plan: {lines[-1]}"
        yield count, wrong


def _compared(lines: list[list[str]], want: dict[str, str], details: dict[str, Any]) -> str:
    for line in lines:
        if line[0] in ("kept", "back"):
            details["states_compared"] += 1
            if want[line[1]] != line[2]:
                return f"step {line[1]}: {line[0]} {line[2]}, undisturbed {want[line[1]]}"
    return ""


# The runtime


def manifest(folder: Path) -> Path:
    """The digits app, 3 + 6 + 4 windows, with terms that remember things."""
    text = (ROOT / "servers" / "apps" / "digits.toml").read_text(encoding="utf-8")
    for old, new in {
        "windows = 16": "windows = 3",
        "windows = 20": "windows = 6",
        "windows = 8": "windows = 4",
        "warmup-steps = 25": "warmup-steps = 5",
        "steps = 25": "steps = 10",
        "eval-every = 10": "eval-every = 0",
        "mix = 0.9": "mix = 0.9\ncka = 0.2\newc = 1e-3\nrkd = 0.1",
    }.items():
        if old not in text:
            raise RuntimeError(f"digits.toml no longer says {old!r}")
        text = text.replace(old, new)
    path = folder / "manifest.toml"
    path.write_text(text, encoding="utf-8")
    return path


def outcome(run: Path) -> dict[str, str]:
    """Object ids of everything that learning changed, in the last committed snapshot."""
    with Store.open_reader(run / "store") as store:
        last = [r for r in store.records() if r.kind is RecordKind.WINDOW_COMMIT][-1].result_snap or ""
        return {p: i for p, i in store.snapshot(last).items() if p.split("/")[0] in (*PARTS, "loss", "projector")}


def runtime_kills(count: int, seed: int, details: dict[str, Any]) -> Trials:
    """Runs of a few kills each."""
    rng = random.Random(seed)
    with tempfile.TemporaryDirectory(prefix="recuros-campaign-") as name:
        folder = Path(name)
        path = manifest(folder)
        with recuros.boot(config=path, run=folder / "whole") as runtime:
            runtime.wait_for("done", WAIT_S)
        want = outcome(folder / "whole")
        details["tensors"] = len(want)
        kills = runs = 0
        while kills < count:
            runs += 1
            run = folder / f"run{runs}"
            with recuros.boot(config=path, run=run) as runtime:
                for _ in range(min(KILLS_A_RUN, count - kills)):
                    kills += _kill_learner(runtime, rng.random())
                runtime.wait_for("done", WAIT_S)
            got = outcome(run)
            differing = [p for p in want if got.get(p) != want[p]] + [p for p in got if p not in want]
            details["runs"] = runs
            yield kills, f"run {runs}: {len(differing)} tensors differ, first {differing[0]}" if differing else ""


def _kill_learner(runtime: recuros.Runtime, when: float) -> int:
    """SIGKILL within its next window or two, if there still are any; 1 when somebody died."""
    deadline = time.monotonic() + WAIT_S
    while time.monotonic() < deadline:
        status = runtime.status()
        learner = next(s for s in status["servers"] if s["name"] == "learner")
        if status["state"] == "done":
            return 0
        if learner["state"] == "ready" and status["window"]:
            time.sleep(when * 0.5)  # a random moment of the windows that follow
            try:
                os.kill(learner["pid"], signal.SIGKILL)
            except ProcessLookupError:
                return 0
            return int(_waited(runtime, learner["incarnation"], deadline))
        time.sleep(0.02)  # the poll's period
    raise RuntimeError("no window began")


def _waited(runtime: recuros.Runtime, old: int, deadline: float) -> bool:
    while time.monotonic() < deadline:
        status = runtime.status()
        learner = next(s for s in status["servers"] if s["name"] == "learner")
        if learner["incarnation"] > old and learner["state"] == "ready":
            return True
        if status["state"] == "done":
            return True
        time.sleep(0.05)  # the poll's period
    raise RuntimeError("the learner did not come back")


CAMPAIGNS: Final[dict[str, Callable[[int, int, dict[str, Any]], Trials]]] = {
    "engine kills": engine_kills,
    "runtime kills": runtime_kills,
}


def run(name: str, count: int, seed: int, seconds: float | None) -> Row:
    """One campaign until its count, or its time, is reached."""
    row, began = Row(name, seed=seed), time.monotonic()
    trials = CAMPAIGNS[name](count, seed, row.details)
    for done, violation in trials:
        row.count = done
        if violation:
            row.violations += 1
            row.found.append(violation)
            print(f"VIOLATION {name}: {violation}", flush=True)
        if seconds is not None and time.monotonic() - began >= seconds:
            break
    getattr(trials, "close", lambda: None)()
    row.seconds = time.monotonic() - began
    return row


def main() -> int:
    """Run them; 1 when anything was violated."""
    parser = argparse.ArgumentParser(prog="python -m tests.campaign.learner")
    parser.add_argument("--count", type=int, default=KILLS, help="kills of each campaign")
    parser.add_argument("--seconds", type=float, help="for both together; each stops when its share is over")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", default="", help="campaigns whose name contains this")
    options = parser.parse_args()
    chosen = [name for name in CAMPAIGNS if options.only in name]
    if not chosen:
        parser.error(f"--only {options.only}: there are {', '.join(CAMPAIGNS)}")
    rows = []
    for name in chosen:
        rows.append(run(name, max(1, options.count), options.seed, options.seconds and options.seconds / len(chosen)))
        row = rows[-1]
        print(f"{name:<16} {row.count:>6,} kills {row.violations:>4} violations {row.seconds:>8.1f} s", flush=True)
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    RESULTS.write_text("".join(row.to_json() + "\n" for row in rows), encoding="utf-8")
    print(f"{len(rows)} rows in {RESULTS.relative_to(ROOT)}")
    if any(row.violations for row in rows):
        print(f"again: python -m tests.campaign.learner --seed {options.seed} --count {options.count}")
    return int(any(row.violations for row in rows))


if __name__ == "__main__":
    sys.exit(main())
