"""E1: does distillation make up for labels, and does the Observer add anything? scikit-learn's digits, 35 times smaller student.

    make experiment NAME=digits [QUICK=1] [COUNT=seeds] [SECONDS=limit] [PROCS=2]

Arms: cross-entropy, distillation, each with and without mixup; the Observer on top; the Observer with its weights dealt out to the
wrong samples; the Observer without each of its terms. 60 to 1,197 labels, 20 paired seeds, two teachers. Runs are kept in
build/experiment/digits as they finish; the same command goes on. The full variant writes docs/experiments/digits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Final

from tests.experiments import _digits, _digits_report, _gate, _loop
from tests.experiments._digits import (
    ABLATIONS,
    ARMS,
    COUNTS,
    EVERY_ARM,
    SEEDS,
    STEPS,
    TUNED,
    TUNING_SEEDS,
    Arm,
    job,
    trials,
)
from tests.experiments._journal import Job, Journal, Result, key
from tests.experiments._run import Experiment, Stage, main

QUICK_COUNTS: Final = (60, 300)
QUICK_SEEDS: Final = 3
QUICK_STEPS: Final = 300


def groups(quick: bool) -> list[tuple[str, Mapping[str, Arm], Sequence[int], int | None]]:
    """Teacher, arms, counts, first seeds (None: all), in the order in which a run that is cut off should have them."""
    scarce = COUNTS[:2]
    first: list[tuple[str, Mapping[str, Arm], Sequence[int], int | None]] = [
        ("mlp", ARMS, COUNTS, None),
        ("mlp", ABLATIONS, scarce[:1] if quick else scarce, None),
    ]
    if quick:
        return first
    return [first[0], ("patch", ARMS, scarce, 5), first[1], ("patch", ARMS, COUNTS, 5), ("patch", ARMS, COUNTS, None)]


def stages(quick: bool, count: int) -> list[Stage]:
    """Tuning, then the final runs."""
    counts = QUICK_COUNTS if quick else COUNTS
    seeds = SEEDS[: count or (QUICK_SEEDS if quick else len(SEEDS))]
    tuning_seeds = TUNING_SEEDS[:1] if quick else TUNING_SEEDS
    steps = QUICK_STEPS if quick else STEPS

    def tune(_journal: Journal) -> Sequence[Job]:
        return [
            job("tune", "mlp", n, arm, seed, settings, steps)
            for n in counts
            for arm in TUNED
            for settings in trials(arm)
            for seed in tuning_seeds
        ]

    def final(journal: Journal) -> Sequence[Job]:
        chosen = _digits_report.chosen(journal)
        found: dict[str, Job] = {}
        for teacher, arms, some, first in groups(quick):
            for seed, n, arm in product(seeds[:first], (n for n in counts if n in some), arms):
                made = job("final", teacher, n, arm, seed, chosen[EVERY_ARM[arm].tuned, n], steps)
                found.setdefault(key(made), made)
        return list(found.values())

    return [tune, final]


def run(given: Job, folder: Path) -> list[tuple[Job, Result]]:
    """A run, after that of its teacher where that is not there yet."""
    table, stage, teacher, seed = _digits.source(), given["stage"], given["teacher"], given["seed"]
    taught, result = _digits.teacher_of(folder / "teachers", table, teacher, stage, seed)
    done = [(given, _digits.run(given, table, taught))]
    if result is not None:
        done.insert(0, ({"stage": "teach", "for": stage, "teacher": teacher, "seed": seed}, result))
    return done


EXPERIMENT: Final = Experiment(
    name="digits",
    doc=str(__doc__),
    stages=stages,
    run=run,
    report=_digits_report.write,
    facts=lambda quick: {"steps": QUICK_STEPS if quick else STEPS},
    sources=tuple(Path(str(module.__file__)) for module in (_digits, _gate, _loop)),
)

if __name__ == "__main__":
    raise SystemExit(main(EXPERIMENT))
