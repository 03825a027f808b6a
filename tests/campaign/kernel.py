"""The kernel keeps its word: histories, models, admitted jobs and a live soak, the long runs.

    make campaign PART=kernel [COUNT=histories] [SECONDS=for all campaigns together]
    python -m tests.campaign.kernel --only histories --seed 7

Each campaign is a stream of trials; COUNT sets the number of simulated histories, and the others keep their proportion to it (1,000
histories go with 1,000,000 jobs and 15 minutes of soak) or, as the models, are run whole. One JSON line a campaign in
build/campaign/kernel.jsonl; the exit status is 1 when there is a violation, and each is printed with what reproduces it.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tests.campaign import _edf, _soak
from tests.campaign.kfs import Row
from tests.model.__main__ import MODELS, Case
from tests.model.checker import check

ROOT: Final = Path(__file__).resolve().parents[2]
RESULTS: Final = ROOT / "build" / "campaign" / "kernel.jsonl"
HISTORIES: Final = 1_000
SOAK_S: Final = 900
REPEATED_EVERY: Final = 10
"""One history in so many is run twice: the same seed must give the same ledger, byte for byte."""
SHOWN_MAX: Final = 20
Trials = Iterator[tuple[int, str]]
"""How many trials were made, and what is wrong ("": nothing)."""


@dataclass(frozen=True)
class Campaign:
    """A stream of trials: its share of COUNT, and of SECONDS. `trials` gets its count, the seed, its seconds and where details go."""

    name: str
    what: str
    share: float
    trials: Callable[[int, int, float | None, dict[str, Any]], Trials]
    time_share: float = 1.0
    whole: bool = False
    """It keeps its time itself: what it ends with is a part of what it shows."""


def histories(count: int, seed: int, seconds: float | None, details: dict[str, Any]) -> Trials:
    """Simulated histories, each judged; some are run twice."""
    sys.path.insert(0, str(ROOT / "tests" / "sim"))
    import histories as simulated

    details |= {"steps": 0, "boots": 0, "commits": 0, "misses": 0, "direct": 0, "repeated": 0}
    for number in range(count):
        at = seed - 1 + number
        again = f"again: python -m tests.sim --first {at} --seeds 1 --stop"
        try:
            outcome = simulated.run(at)
            if number % REPEATED_EVERY == 0:
                details["repeated"] += 1
                if simulated.run(at) != outcome:
                    yield number + 1, f"seed {at}: two runs, two ledgers; {again}"
        except Exception as error:  # noqa: BLE001 - whatever a history raises is its result
            yield number + 1, f"seed {at}: {type(error).__name__}: {error}; {again}"
            continue
        for name in ("steps", "boots", "commits", "misses", "direct"):
            details[name] += getattr(outcome, name)
        yield number + 1, ""


def models(count: int, seed: int, seconds: float | None, details: dict[str, Any]) -> Trials:
    """Every reachable state of each model."""
    for name, model in MODELS.items():
        details[name] = 0
        for case in model.full:
            verdict = check(case.model(""))
            details[name] += verdict.states
            yield sum(details.values()), _told(name, case, verdict.problem, verdict.path)


def mutants(count: int, seed: int, seconds: float | None, details: dict[str, Any]) -> Trials:
    """Every model with each of its rules taken away in turn: the checker must find something wrong."""
    details["found"] = {}
    number = 0
    for name, model in MODELS.items():
        for mutant in model.mutants:
            number += 1
            verdict = check(model.small.model(mutant))
            details["found"][f"{name}: {mutant}"] = verdict.problem
            yield (
                number,
                "" if verdict.problem else f"{name} without {mutant!r}: nothing found in {verdict.states} states",
            )


def _told(name: str, case: Case, problem: str, path: list[str]) -> str:
    return f"{name} {case.sizes}: {problem}, after {' / '.join(path)}" if problem else ""


def jobs(count: int, seed: int, seconds: float | None, details: dict[str, Any]) -> Trials:
    """Jobs of admitted sets."""
    return _edf.campaign(count, seed, details)


def live(count: int, seed: int, seconds: float | None, details: dict[str, Any]) -> Trials:
    """A live runtime; `count` is its seconds where nothing else says so."""
    return _soak.soak(float(count) if seconds is None else seconds, seed, details)


CAMPAIGNS: Final = (
    Campaign("histories", "seeds, each judged", 1.0, histories, 4.0),
    Campaign("models", "states, each judged", 0, models, whole=True),
    Campaign("model mutants", "mutants, each to be found", 0, mutants, whole=True),
    Campaign("admitted jobs", "jobs, none may be late", 1_000.0, jobs, 4.0),
    Campaign("live soak", "kills, hangs and floods", SOAK_S / HISTORIES, live, 8.0, whole=True),
)


def run(campaign: Campaign, histories_count: int, seed: int, seconds: float | None) -> Row:
    """One campaign until its count, or its share of the time, is reached."""
    row = Row(campaign.name, seed=seed)
    began = time.monotonic()
    trials = campaign.trials(max(1, round(histories_count * campaign.share)), seed, seconds, row.details)
    for count, violation in trials:
        row.count = count
        if violation:
            row.violations += 1
            if row.violations <= SHOWN_MAX:
                row.found.append(violation)
                print(f"VIOLATION {campaign.name}: {violation}", flush=True)
        if seconds is not None and not campaign.whole and time.monotonic() - began >= seconds:
            break
    getattr(trials, "close", lambda: None)()
    row.seconds = time.monotonic() - began
    return row


def main() -> int:
    """Run them; 1 when anything was violated."""
    parser = argparse.ArgumentParser(prog="python -m tests.campaign.kernel")
    parser.add_argument("--count", type=int, default=HISTORIES, help="simulated histories; the others in proportion")
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
            f"{row.campaign:<16} {row.count:>11,} {campaign.what:<28} {row.violations:>4} violations {row.seconds:>8.1f} s",
            flush=True,
        )
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    RESULTS.write_text("".join(row.to_json() + "\n" for row in rows), encoding="utf-8")
    print(f"{len(rows)} rows in {RESULTS.relative_to(ROOT)}")
    if violated := [row for row in rows if row.violations]:
        names = " ".join(f"--only '{row.campaign}'" for row in violated)
        print(f"again: python -m tests.campaign.kernel {names} --seed {options.seed} --count {options.count}")
    return 1 if violated else 0


if __name__ == "__main__":
    sys.exit(main())
