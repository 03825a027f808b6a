"""E1: does distillation make up for labels, and does the Observer add anything? scikit-learn's digits, 35 times smaller student.

    make experiment NAME=digits [QUICK=1] [COUNT=seeds] [SECONDS=limit] [PROCS=2]

Arms: cross-entropy, distillation, each with and without mixup; the Observer on top; the Observer with its weights dealt out to the
wrong samples; the Observer without each of its terms. 60 to 1,197 labels, 20 paired seeds, two teachers. Runs are kept in
build/experiment/digits as they finish; the same command goes on. The full variant writes docs/experiments/digits.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any, Final

from servers.observer import ood
from servers.observer.packs import pack_of
from servers.observer.policy import numbers_of
from tests.experiments import _digits, _digits_report, _loop
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
SCARCE: Final = 120
"""Up to so many labels the samples that are drawn matter most, and a trial is run with every tuning seed; above, with the first."""


Group = tuple[str, Mapping[str, Arm], Sequence[int], slice]


def groups(quick: bool) -> list[Group]:
    """Teacher, arms, counts, seeds, in the order in which a run that is cut off should have them: some of everything, then all."""
    some, few, every = slice(0, 12), slice(0, 5), slice(None)
    scarce = COUNTS[:2]
    if quick:
        return [("mlp", ARMS, COUNTS, every), ("mlp", ABLATIONS, scarce[:1], every)]
    return [
        ("mlp", ARMS, COUNTS, some),
        ("mlp", ABLATIONS, scarce[:1], some),
        ("patch", ARMS, scarce[:1], few),
        ("mlp", ARMS, COUNTS, every),
        ("mlp", ABLATIONS, scarce, every),
        ("patch", ARMS, COUNTS, few),
        ("patch", ARMS, COUNTS, every),
    ]


def stages(quick: bool, count: int) -> list[Stage]:
    """Tuning, then the final runs."""
    counts = QUICK_COUNTS if quick else COUNTS
    seeds = SEEDS[: count or (QUICK_SEEDS if quick else len(SEEDS))]
    steps = QUICK_STEPS if quick else STEPS

    def tune(_journal: Journal) -> Sequence[Job]:
        return [
            job("tune", "mlp", n, arm, seed, settings, steps)
            for n in counts
            for arm in TUNED
            for settings in trials(arm)
            for seed in TUNING_SEEDS[: 1 if quick or n > SCARCE else None]
        ]

    def final(journal: Journal) -> Sequence[Job]:
        chosen = _digits_report.chosen(journal)
        found: dict[str, Job] = {}
        for teacher, arms, some, which in groups(quick):
            for seed, n, arm in product(seeds[which], (n for n in counts if n in some), arms):
                made = job("final", teacher, n, arm, seed, chosen[EVERY_ARM[arm].tuned, n], steps)
                found.setdefault(key(made), made)
        return list(found.values())

    return [tune, final]


def run(given: Job, folder: Path) -> Iterator[tuple[Job, Result]]:
    """That of its teacher where it is not there yet, kept before the run itself begins; then the run."""
    table, stage, teacher, seed = _digits.source(), given["stage"], given["teacher"], given["seed"]
    taught, result = _digits.teacher_of(folder / "teachers", table, teacher, stage, seed)
    if result is not None:
        yield {"stage": "teach", "for": stage, "teacher": teacher, "seed": seed}, result
    yield given, _digits.run(given, table, taught)


def facts(quick: bool) -> dict[str, Any]:
    """What the page says of the setup."""
    numbers = numbers_of(pack_of("starter"), ARMS["observer"].table or {})
    told = (
        "weight_gain",
        "drop_low",
        "drop_high",
        "band_floor",
        "weight_min",
        "weight_max",
        "temperature_step",
        "ood_most",
    )
    return {
        "steps": QUICK_STEPS if quick else STEPS,
        "starter": {name: numbers[name] for name in told},
        "gate_quantile": ood.QUANTILE,
    }


EXPERIMENT: Final = Experiment(
    name="digits",
    doc=str(__doc__),
    stages=stages,
    run=run,
    report=_digits_report.write,
    facts=facts,
    sources=tuple(Path(str(module.__file__)) for module in (_digits, _loop)),
)

if __name__ == "__main__":
    raise SystemExit(main(EXPERIMENT))
