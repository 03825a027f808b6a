"""The store loses nothing and hides nothing: the long runs.

    make campaign PART=kfs [COUNT=states of the power-loss campaign] [SECONDS=for all campaigns together]
    python -m tests.campaign.kfs --only flips --seed 7

Each campaign is a stream of trials; COUNT sets the number of power-loss states, and the other campaigns keep their proportion to it
(100,000 states go with 10,000 kills). One JSON line a campaign in build/campaign/kfs.jsonl; the exit status is 1 when there is a
violation, and each is printed with what reproduces it.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from tests.campaign import _faults, _flips, _fuzz, _kill, _mutants, _power

ROOT: Final = Path(__file__).resolve().parents[2]
RESULTS: Final = ROOT / "build" / "campaign" / "kfs.jsonl"
STATES: Final = 100_000
SHOWN_MAX: Final = 20
# How many trials were made, and what is wrong ("": nothing).
Trials = Iterator[tuple[int, str]]


@dataclass
class Campaign:
    """A stream of trials: its share of COUNT and of SECONDS, and where its details go."""

    name: str
    what: str
    share: float
    trials: Callable[[int, int, dict[str, Any]], Trials]
    time_share: float = 1.0


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
        row = {
            "campaign": self.campaign,
            "count": self.count,
            "violations": self.violations,
            "seconds": round(self.seconds, 1),
            "seed": self.seed,
            "found": self.found,
        }
        return json.dumps(row | self.details)


def power(count: int, seed: int, details: dict[str, Any]) -> Trials:
    """Distinct disk states after a power cut."""
    total = _power.Count()
    with _power.Images() as images:
        for number in itertools.chain(range(-_power.CREATION_CALLS, 0), itertools.count(seed)):
            before = total.states
            log = _power.trace(number, steps=_power.STEPS if number >= 0 else 1)
            for violation in _power.crash_everywhere(log, number, images, total):
                yield total.states, str(violation)
            details |= {"drawn": total.drawn, "traces": details.get("traces", 0) + 1}
            yield total.states, ""
            if total.states >= count or (number >= seed and total.states == before):
                return


def mutants(count: int, seed: int, details: dict[str, Any]) -> Trials:
    """Every barrier out, every order turned round: what is not caught is a violation."""
    details["caught"] = []
    with _power.Images() as images:
        for number, verdict in enumerate(_mutants.judge(max(12, min(60, count)), images, first=seed)):
            if verdict.caught is not None:
                beside = f", together with {verdict.beside}" if verdict.beside else ""
                details["caught"].append(f"{verdict.mutant}{beside}: {str(verdict.caught).splitlines()[0]}")
            yield number + 1, "" if verdict.caught else f"{verdict.mutant}: not caught in {verdict.states} states"


def kill(count: int, seed: int, details: dict[str, Any]) -> Trials:
    """Writers killed with kill -9."""
    return _kill.kills(count, seed)


def _on_a_victim(trials: Callable[[_flips.Victim], Trials]) -> Trials:
    victim = _flips.Victim()
    try:
        yield from trials(victim)
    finally:
        victim.close()


def flips(count: int, seed: int, details: dict[str, Any]) -> Trials:
    """Bits flipped in a store."""
    return _on_a_victim(lambda victim: _flips.flips(victim, count, seed))


def forgeries(count: int, seed: int, details: dict[str, Any]) -> Trials:
    """Records forged with valid checksums."""
    return _on_a_victim(lambda victim: _flips.forgeries(victim, count, seed))


def whole_files(count: int, seed: int, details: dict[str, Any]) -> Trials:
    """Files swapped, deleted, put back, of another version; a clock that jumps."""
    return _on_a_victim(_flips.whole_files)


def faults(count: int, seed: int, details: dict[str, Any]) -> Trials:
    """ENOSPC and EIO at every call."""
    return _faults.faults()


def fuzz(count: int, seed: int, details: dict[str, Any]) -> Trials:
    """Inputs to decoders."""
    return _fuzz.fuzz(count, seed)


CAMPAIGNS: Final = (
    Campaign("power loss", "distinct disk states opened", 1.0, power, 4.0),
    Campaign("barriers removed", "mutants, each to be caught", 0.0005, mutants, 2.0),
    Campaign("kill -9", "writers killed", 0.1, kill, 4.0),
    Campaign("bit flips", "bits, each to be found and located", 0.2, flips),
    Campaign("forged records", "forgeries, each to be found and located", 0.02, forgeries),
    Campaign("whole files", "kinds of tampering", 0, whole_files),
    Campaign("full and failing disks", "failing calls", 0, faults),
    Campaign("decoder fuzzing", "inputs", 10.0, fuzz),
)


def run(campaign: Campaign, states: int, seed: int, seconds: float | None) -> Row:
    """One campaign until its count, or its share of the time, is reached."""
    row = Row(campaign.name, seed=seed)
    began = time.monotonic()
    trials = campaign.trials(max(1, round(states * campaign.share)), seed, row.details)
    for count, violation in trials:
        row.count = count
        if violation:
            row.violations += 1
            if row.violations <= SHOWN_MAX:
                row.found.append(violation)
                print(f"VIOLATION {campaign.name}: {violation}", flush=True)
        row.seconds = time.monotonic() - began
        if seconds is not None and row.seconds >= seconds:
            break
    getattr(trials, "close", lambda: None)()
    row.seconds = time.monotonic() - began
    return row


def main() -> int:
    """Run them; 1 when anything was violated."""
    parser = argparse.ArgumentParser(prog="python -m tests.campaign.kfs")
    parser.add_argument("--count", type=int, default=STATES, help="power-loss states; the others in proportion")
    parser.add_argument("--seconds", type=float, help="for all campaigns together; each stops when its share is over")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", default="", help="campaigns whose name contains this")
    options = parser.parse_args()
    chosen = [campaign for campaign in CAMPAIGNS if options.only in campaign.name]
    if not chosen:
        parser.error(f"--only {options.only}: there are {', '.join(c.name for c in CAMPAIGNS)}")
    shares = sum(campaign.time_share for campaign in chosen)
    rows = []
    for campaign in chosen:
        seconds = None if options.seconds is None else options.seconds * campaign.time_share / shares
        row = run(campaign, options.count, options.seed, seconds)
        rows.append(row)
        print(
            f"{row.campaign:<24} {row.count:>9,} {campaign.what:<42} {row.violations:>4} violations {row.seconds:>8.1f} s",
            flush=True,
        )
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    RESULTS.write_text("".join(row.to_json() + "\n" for row in rows), encoding="utf-8")
    print(f"{len(rows)} rows in {RESULTS.relative_to(ROOT)}")
    if violated := [row for row in rows if row.violations]:
        names = " ".join(f"--only '{row.campaign}'" for row in violated)
        print(f"again: python -m tests.campaign.kfs {names} --seed {options.seed} --count {options.count}")
    return 1 if violated else 0


if __name__ == "__main__":
    sys.exit(main())
