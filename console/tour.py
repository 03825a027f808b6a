"""The tour: what a runtime does when things go well, and when they do not, in a scratch run directory.

Responsible for: the steps, each with the commands that anybody could type, the exit status each must have, and a fact that is read
back from the runtime or its ledger and checked. Refuses: to go on when a step does not do what it says; to leave a process behind.
"""

from __future__ import annotations

import io
import os
import shlex
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, TextIO

from console.context import BOLD, PLAIN, Context
from syscalls.errors import RecurosError

APP: Final = "tour"
SPIN: Final = """\
hook("on_kd_step", every=1)

seen = map.array(fields=("rounds",))


def probe(student):
    while True:
        seen["rounds"] += 1
"""
NORMAL: Final = "--budget-ms 4000 --period-ms 5000"
GONE_LIMIT_S: Final = 30.0
RECORD_LIMIT_S: Final = 30.0


@dataclass(frozen=True)
class Step:
    """A chapter: its commands as they would be typed, each with its exit status, what to see, and what is checked."""

    name: str
    title: str
    see: str
    commands: Callable[[Tour], Iterator[tuple[str, int]]]
    fact: Callable[[Tour], str]


@dataclass
class Tour:
    """One tour. `run_one` runs a command line and returns its exit status; `tell` prints."""

    ctx: Context
    run: Path
    run_one: Callable[[list[str], Context], int]
    tell: Callable[[str], None]
    wait_for_enter: Callable[[], None] = lambda: None
    marks: dict[str, Any] = field(default_factory=dict)

    def go(self) -> list[dict[str, Any]]:
        """Every step; E1-NO names the first that did not do what it says."""
        done = []
        with self._own_runtime():
            for number, step in enumerate(STEPS, 1):
                began = time.monotonic()
                self._head(f"{number} of {len(STEPS)}  {step.title}")
                self.tell(f"See: {step.see}\n")
                lines = [self._command(step, line, wanted) for line, wanted in step.commands(self)]
                fact = step.fact(self)
                self.tell(f"\n=> {fact}")
                seconds = round(time.monotonic() - began, 3)
                done.append({"name": step.name, "fact": fact, "seconds": seconds, "commands": lines})
                if number < len(STEPS):
                    self.wait_for_enter()
        return done

    def _head(self, text: str) -> None:
        self.tell(f"\n{BOLD}{text}{PLAIN}" if self.ctx.color else f"\n{text}")

    def _command(self, step: Step, line: str, wanted: int) -> dict[str, Any]:
        self.tell(f"$ {line}")
        words = shlex.split(line)
        if words[0] == "kill":
            os.kill(int(words[-1]), signal.SIGKILL)
            status = 0
        elif words[0] == "flip":
            status = flip(Path(words[1]))
        elif words[0] == "cp":
            shutil.copytree(words[2], words[3])
            status = 0
        else:
            said = _Heard(sys.stderr)
            with redirect_stderr(said):
                status = self.run_one(words[1:], replace(self.ctx, run_option=str(self.run), output="table", flags={}))
            self.marks["error"] = said.text
        if wanted:
            self.tell(f"(exit status {status})")
        if status != wanted:
            raise RecurosError(
                "E1-NO",
                f"step {step.name!r}: `{line}` exited {status}, not {wanted}",
                hint=f"recuros --run {self.run} logs; recuros --run {self.run} explain {status}",
            )
        return {"line": line, "exit": status}

    @contextmanager
    def _own_runtime(self) -> Iterator[None]:
        """Whatever happens on the way: no process of the tour stays."""
        from recuros import holder, wait_gone

        try:
            yield
        finally:
            pid = holder(self.run)
            if pid:
                os.kill(pid, signal.SIGKILL)  # the supervisor; it takes everything along
                wait_gone(self.run, GONE_LIMIT_S)

    def status(self) -> dict[str, Any]:
        """The status map of the tour's runtime."""
        from recuros import connect

        with connect(self.run) as client:
            found: dict[str, Any] = client.syscall("status")["status"]
        return found

    def records(self, kind: str) -> list[Any]:
        """The ledger's records of a kind."""
        from kfs.store import Store

        with Store.open_reader(self.run / "store") as store:
            return [r for r in store.records() if r.kind == kind]


class _Heard(io.TextIOBase):
    """Passes on what is written, and keeps it."""

    def __init__(self, to: TextIO) -> None:
        self._to = to
        self.text = ""

    def write(self, text: str) -> int:
        self.text += text
        return self._to.write(text)

    def flush(self) -> None:
        self._to.flush()

    def isatty(self) -> bool:
        return self._to.isatty()


def flip(path: Path) -> int:
    """Flip the last bit of a file."""
    with path.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        last = file.read(1)[0]
        file.seek(-1, os.SEEK_END)
        file.write(bytes([last ^ 1]))
    return 0


def _must(holds: bool, what: str) -> None:
    if not holds:
        raise RecurosError("E1-NO", f"the tour saw otherwise: {what}", hint="recuros kfs log")


# --- the steps --------------------------------------------------------------------------------------------------------------


def _host(t: Tour) -> Iterator[tuple[str, int]]:
    yield "recuros doctor", 0


def _boot(t: Tour) -> Iterator[tuple[str, int]]:
    yield f"recuros boot {APP} --detach", 0
    yield "recuros ps", 0


def _booted(t: Tour) -> str:
    status = t.status()
    _must(all(s["state"] == "ready" for s in status["servers"]), "not every server is ready")
    return f"kernel and {len(status['servers'])} servers are up, as processes of their own"


def _learning(t: Tour) -> Iterator[tuple[str, int]]:
    yield "recuros wait windows --for 'committed>=6'", 0
    yield "recuros explain window/1", 0
    yield "recuros explain window/6", 0


def _learned(t: Tour) -> str:
    losses = [r.args["metrics"]["loss"] for r in t.records("window.commit")]
    _must(losses[5] < losses[0], f"the loss went from {losses[0]:.3f} to {losses[5]:.3f}")
    return f"the teacher's loss fell from {losses[0]:.3f} to {losses[5]:.3f} in six windows"


def _probing(t: Tour) -> Iterator[tuple[str, int]]:
    yield "recuros wait windows --for 'done>=10'", 0
    yield "recuros probe attach builtin:cka on_kd_step --every 2", 0
    yield "recuros wait probe/1 --for 'fired>=3'", 0
    yield "recuros probe stats 1", 0


def _probed(t: Tour) -> str:
    from recuros import connect

    with connect(t.run) as client:
        summary = client.syscall("probe_read", id=1)["maps"]["summary"]
    value = summary["cka"]
    _must(isinstance(value, float) and -0.1 <= value <= 1.0, f"CKA is {value}")
    return f"student and teacher agree with a CKA of {value:.3f} so far; the step's bits are the same with and without the probe"


def _refusing(t: Tour) -> Iterator[tuple[str, int]]:
    (t.run / "spin.py").write_text(SPIN, encoding="utf-8")
    yield f"recuros probe attach {shlex.quote(str(t.run / 'spin.py'))}", 8


def _refused(t: Tour) -> str:
    probes, said = t.status()["probes"], t.marks["error"]
    _must("spin.py:7:" in said and "while" in said, f"the refusal names no loop: {said}")
    _must(len(probes) == 1, f"{len(probes)} probes are attached")
    return "line 7 is named; nothing was attached, and nobody had to run it to find out"


def _overloading(t: Tour) -> Iterator[tuple[str, int]]:
    yield "recuros sched admit second --dry-run --budget-ms 4000 --period-ms 5000", 6
    yield "recuros sched set --budget-ms 4900 --period-ms 5000", 6


def _overloaded(t: Tour) -> str:
    deadline = time.monotonic() + RECORD_LIMIT_S
    while not (refusals := t.records("sched.refuse")):  # a refusal is answered at once; its record follows
        _must(time.monotonic() < deadline, "the refusal is not in the ledger")
        time.sleep(0.05)
    return f"both were refused with the sum that does not fit; the second one is record {refusals[-1].seq}"


def _missing(t: Tour) -> Iterator[tuple[str, int]]:
    yield "recuros sched set --budget-ms 5 --period-ms 5000 --deadline-ms 5", 0
    yield "recuros wait windows --for 'rolled_back>=1' --timeout 60", 0
    yield f"recuros sched set {NORMAL}", 0
    yield "recuros kfs log --kind window.rollback --limit 1", 0


def _missed(t: Tour) -> str:
    rollbacks = t.records("window.rollback")
    _must(bool(rollbacks) and all(r.args["exact"] for r in rollbacks), "a rollback was not exact")
    return f"{len(rollbacks)} windows rolled back, each to the bits of its base: the digest after is the digest before"


def _killing(t: Tour) -> Iterator[tuple[str, int]]:
    done = t.status()["windows"]["committed"]
    yield f"recuros wait windows --for 'committed>={done + 1}' --timeout 60", 0
    status = t.status()
    pid = next(s["pid"] for s in status["servers"] if s["name"] == "learner")
    t.marks["killed_after"] = status["done_windows"]
    yield f"kill -9 {pid}", 0
    yield "recuros wait server/learner --for 'restarts>=1' --timeout 60", 0
    yield "recuros wait server/learner --for ready --timeout 120", 0
    yield "recuros explain server/learner", 0
    yield f"recuros wait windows --for 'done>={status['done_windows'] + 3}' --timeout 120", 0


def _killed(t: Tour) -> str:
    restarts = [r for r in t.records("restart") if r.args["name"] == "learner"]
    _must(len(restarts) == 1, f"{len(restarts)} restarts")
    return "another process took the learner's place, proved by digest that it holds the last state, and went on"


def _replaying(t: Tour) -> Iterator[tuple[str, int]]:
    yield "recuros halt", 0
    last = t.marks["killed_after"]
    yield f"recuros replay w{last}..w{last + 2}", 0


def _replayed(t: Tour) -> str:
    first = t.marks["killed_after"]
    return f"windows {first} to {first + 2}, before and after the kill, give the same bits again"


def _verifying(t: Tour) -> Iterator[tuple[str, int]]:
    yield "recuros kfs verify", 0


def _verified(t: Tour) -> str:
    return "every object, record and root was recomputed and compared with the signed checkpoint"


def _damaging(t: Tour) -> Iterator[tuple[str, int]]:
    copy = Path(f"{t.run}-damaged")
    shutil.rmtree(copy, ignore_errors=True)
    t.marks["copy"] = copy
    yield f"cp -r {shlex.quote(str(t.run))} {shlex.quote(str(copy))}", 0
    pack = max((copy / "store" / "packs").glob("*.safetensors"), key=lambda p: p.stat().st_size)
    yield f"flip {shlex.quote(str(pack))}", 0
    yield f"recuros kfs verify --run {shlex.quote(str(copy))}", 9


def _damaged(t: Tour) -> str:
    shutil.rmtree(t.marks["copy"], ignore_errors=True)
    return "one flipped bit is found, with the pack, the object and the records that need it; the exit status is 9"


STEPS: Final = (
    Step("doctor", "Can this host run it?", "a line for each fact; no GPU is information and no error.", _host,
         lambda t: "this host can"),
    Step("boot", "Boot", "one kernel, five servers; the learner alone has a reservation (class edf).", _boot, _booted),
    Step("learn", "The loss falls, windows commit", "each window ends in `committed`, with its snapshot and its loss.",
         _learning, _learned),
    Step("probe", "A probe fills while the learner runs", "figures for each pair of layers, from the running step.",
         _probing, _probed),
    Step("refuse", "A program that may never end is refused", "the line of the loop, and why; exit status 8.",
         _refusing, _refused),
    Step("admit", "An overload is refused", "utilisation above 0.95, and who holds it; exit status 6.",
         _overloading, _overloaded),
    Step("miss", "A deadline is missed", "five milliseconds are too few: `exact=True` in the record of the rollback.",
         _missing, _missed),
    Step("kill", "The learner is killed", "status -9, then the next incarnation.", _killing, _killed),
    Step("replay", "Do it again, bit for bit", "`equal` for each window.", _replaying, _replayed),
    Step("verify", "Verify", "`ok`, with the number of records and objects.", _verifying, _verified),
    Step("damage", "Damage a copy", "DAMAGED, and where; exit status 9.", _damaging, _damaged),
)  # fmt: skip
