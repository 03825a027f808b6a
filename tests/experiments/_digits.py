"""E1, the runs: which arms there are, what each is given, and how one run is done.

Responsible for: the data each stage may see, the trials every arm is tuned with, and the pairing: the runs of one seed share teacher,
samples, fresh student, order of batches and mixing. Refuses: to hand the test split to tuning (the table it gets has none).

Of 1,797 digits 600 are the test split; tuning sees 1,000 to train on and 197 to judge trials by. The final runs draw n samples
from the 1,000, balanced over classes, or take all 1,197. The Observer's held-out calibration and its gate read the 197, from which no
gradient of the student comes while n < 1,197; with all 1,197 there are none, the gate is open and calibration unknown.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from servers.dataset import digits
from servers.dataset.augment import mixup
from servers.dataset.stream import Stream, permutation
from servers.dataset.table import Columns, Table
from servers.learner.engine import Engine
from servers.models.model import Batch
from tests.experiments._journal import Job, Result
from tests.experiments._loop import Watcher, scored, tensors, train

ALL: Final = 1197
COUNTS: Final = (60, 120, 300, ALL)
SEEDS: Final = tuple(range(20))
TUNING_SEEDS: Final = (1001, 1002, 1003)
STEPS: Final = 1000
BATCH: Final = 64
TEACHERS: Final[dict[str, dict[str, Any]]] = {
    "mlp": {"spec": {"kind": "mlp", "layers": 2, "width": 256}, "steps": 1000, "lr": 3e-3, "label_smoothing": 0.0},
    # The app's: servers/apps/digits.toml, model and first phase.
    "patch": {
        "spec": {"kind": "patch", "layers": 4, "width": 64, "heads": 4},
        "steps": 400,
        "lr": 1.5e-3,
        "label_smoothing": 0.1,
    },
}
STUDENT: Final = {"kind": "mlp", "layers": 1, "width": 32}
OPTIMIZER: Final = {"betas": [0.9, 0.98], "weight_decay": 0.05}
WARMUP_STEPS: Final = 25


@dataclass(frozen=True)
class Arm:
    """`tuned`: the arm whose chosen settings it runs with. `table`: numbers of the Observer's pack; None where none watches."""

    tuned: str
    teacher: bool
    mixed: bool
    table: Mapping[str, float] | None = None
    permuted: bool = False


ARMS: Final = {
    "ce": Arm("ce", teacher=False, mixed=False),
    "ce-mixup": Arm("ce-mixup", teacher=False, mixed=True),
    "kd": Arm("kd", teacher=True, mixed=False),
    "kd-mixup": Arm("kd-mixup", teacher=True, mixed=True),
    "observer": Arm("observer", teacher=True, mixed=True, table={}),
    "observer-permuted": Arm("observer", teacher=True, mixed=True, table={}, permuted=True),
}
NO_BAND: Final = {"drop_low": 0.0, "drop_high": 0.0}
ABLATIONS: Final = {
    "no-disagreement": Arm("observer", teacher=True, mixed=True, table={"weight_gain": 0.0}),
    "no-gate": Arm("observer", teacher=True, mixed=True, table={"ood_most": 0.0}),
    "no-band": Arm("observer", teacher=True, mixed=True, table=NO_BAND),
    "no-schedule": Arm("observer", teacher=True, mixed=True, table={"temperature_step": 0.0}),
}
EVERY_ARM: Final = {**ARMS, **ABLATIONS}
TUNED: Final = tuple(dict.fromkeys(arm.tuned for arm in ARMS.values()))

LRS: Final = (5e-3, 2e-2)
DISTILLED: Final = (
    {"mix": 0.5, "temperature": 2.0},
    {"mix": 0.9, "temperature": 2.0},
    {"mix": 0.9, "temperature": 4.0},
)
OWN: Final[dict[str, tuple[dict[str, float], ...]]] = {
    "ce": ({"weight_decay": 0.0}, {"weight_decay": 0.05}, {"weight_decay": 0.5}),
    "ce-mixup": ({"mixup_alpha": 0.1}, {"mixup_alpha": 0.4}, {"mixup_alpha": 1.0}),
    "kd": DISTILLED,
    "kd-mixup": DISTILLED,
    "observer": DISTILLED,
}
"""What an arm's trials vary besides the learning rate: three settings each."""


def trials(arm: str) -> list[dict[str, float]]:
    """Six settings of an arm: as many as any other's."""
    return [{"lr": lr, **own} for lr in LRS for own in OWN[arm]]


# --- data ---------------------------------------------------------------------------------------------------------------------


@cache
def source() -> Table:
    """The bundled digits in their fixed splits."""
    return digits.load({})


def balanced(labels: NDArray[np.int64], n: int, seed: int) -> NDArray[np.int64]:
    """Positions of n samples, n / 10 of each class, in ascending order; the choice depends on the seed alone."""
    order = permutation(seed, "subset", 0, len(labels))
    chosen = [order[labels[order] == label][: n // 10] for label in range(10)]
    if min(map(len, chosen)) < n // 10:
        raise ValueError(f"{n} balanced samples need {n // 10} of each class")
    return np.sort(np.concatenate(chosen))


def tuning_table(table: Table, n: int, seed: int) -> Table:
    """n training samples and the validation split. No test split: whoever tunes cannot ask for it."""
    held, labels = table.columns("train"), table.columns("train")["labels"]
    rows = balanced(labels, n, seed) if n < len(labels) else np.arange(len(labels))
    return Table({"train": _pick(held, rows), "validation": table.columns("validation")}, table.task, table.classes)


def final_table(table: Table, n: int, seed: int) -> Table:
    """What a final run sees: below 1,197 as in tuning and the test split; at 1,197 everything but test to train on."""
    test = {"test": table.columns("test")}
    if n < ALL:
        return Table({**tuning_table(table, n, seed).splits, **test}, table.task, table.classes)
    return Table({"train": _everything(table), **test}, table.task, table.classes)


def teacher_table(table: Table, stage: str) -> Table:
    """The samples that a teacher learns: tuning's 1,000, or all 1,197 for the final runs."""
    train_split = table.columns("train") if stage == "tune" else _everything(table)
    return Table({"train": train_split}, table.task, table.classes)


def _everything(table: Table) -> Columns:
    parts = [table.columns("train"), table.columns("validation")]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _pick(columns: Columns, rows: NDArray[np.int64]) -> Columns:
    return {name: values[rows] for name, values in columns.items()}


# --- one run --------------------------------------------------------------------------------------------------------------------


def job(stage: str, teacher: str, n: int, arm: str, seed: int, settings: Mapping[str, float], steps: int) -> Job:
    """Everything that a run depends on."""
    return {
        "stage": stage,
        "teacher": teacher,
        "n": n,
        "arm": arm,
        "seed": seed,
        "settings": dict(settings),
        "steps": steps,
    }


def engine_of(teacher: str, seed: int, settings: Mapping[str, float]) -> Engine:
    """Fresh teacher and student; which, depends on the seed alone."""
    given = {"weight_decay": settings.get("weight_decay", OPTIMIZER["weight_decay"])}
    kd = {"alpha": 0.0, "mix": settings.get("mix", 0.5), "temperature": settings.get("temperature", 2.0)}
    spec = {"teacher": TEACHERS[teacher]["spec"], "student": STUDENT, "optimizer": {**OPTIMIZER, **given}, "kd": kd}
    return Engine(spec, seed)


def run_teacher(table: Table, teacher: str, stage: str, seed: int) -> tuple[NDArray[np.float32], Result]:
    """A trained teacher's parameters, and what it took. Scored on validation while tuning, on test for the final runs."""
    recipe = TEACHERS[teacher]
    engine = engine_of(teacher, seed, {})
    stream = Stream(teacher_table(table, stage), seed, BATCH)
    phase = {
        "name": "teach",
        "index": 0,
        "train": "teacher",
        "steps_total": recipe["steps"],
        "lr": recipe["lr"],
        "warmup_steps": WARMUP_STEPS,
        "label_smoothing": recipe["label_smoothing"],
    }
    spent = train(engine, stream, phase)
    judged = tensors(table.columns("validation" if stage == "tune" else "test"))
    scores = engine.evaluate("teacher", judged)
    result = {**_rounded(scores), "cpu_seconds": round(spent.cpu_seconds, 3), "steps": spent.steps}
    return engine.roles["teacher"].arena.flat.numpy().copy(), result


def teacher_of(folder: Path, table: Table, teacher: str, stage: str, seed: int) -> tuple[torch.Tensor, Result | None]:
    """A teacher's parameters from `folder`, trained first where they are not there; then with what that took."""
    path = folder / f"{stage}-{teacher}-{seed}.npy"
    if path.exists():
        return torch.from_numpy(np.load(path, allow_pickle=False)), None
    flat, result = run_teacher(table, teacher, stage, seed)
    folder.mkdir(parents=True, exist_ok=True)
    half = path.with_suffix(f".{id(flat)}.part")
    with half.open("wb") as file:
        np.save(file, flat, allow_pickle=False)
    half.replace(path)
    return torch.from_numpy(flat), result


def run(given: Job, table: Table, taught: torch.Tensor) -> Result:
    """One student: trained to its last step, scored once."""
    n, seed, settings, arm = given["n"], given["seed"], given["settings"], EVERY_ARM[given["arm"]]
    tuning = given["stage"] == "tune"
    seen = tuning_table(table, n, seed) if tuning else final_table(table, n, seed)
    engine = engine_of(given["teacher"], seed, settings if arm.teacher else {**settings, "mix": 0.0})
    engine.roles["teacher"].arena.flat.copy_(taught)
    held = tensors(seen.columns("validation")) if "validation" in seen.splits else None
    watcher = _watcher(arm, engine, seen, seed, held)
    size = seen.size("train")
    augment = mixup(settings.get("mixup_alpha", 1.0)) if arm.mixed else None
    phase = {
        "name": "distil",
        "index": 1,
        "train": "student",
        "steps_total": given["steps"],
        "lr": settings["lr"],
        "warmup_steps": WARMUP_STEPS,
    }
    spent = train(engine, Stream(seen, seed, min(BATCH, size), augment), phase, watcher)
    judged = tensors(seen.columns("validation" if tuning else "test"))
    return {
        **_rounded(scored(engine, judged)),
        "queries": spent.queries,
        "cpu_seconds": round(spent.cpu_seconds, 3),
        **(_rounded(watcher.report()) if watcher else {}),
    }


def _watcher(arm: Arm, engine: Engine, seen: Table, seed: int, held: Batch | None) -> Watcher | None:
    if arm.table is None:
        return None
    size = seen.size("train")
    return Watcher(
        {**tensors(seen.columns("train")), "ids": torch.arange(size)},
        engine.kd.temperature,
        table=arm.table,
        order=permutation(seed, "control", 0, size) if arm.permuted else None,
        validation=held,
    )


def _rounded(values: Mapping[str, float]) -> dict[str, float]:
    return {name: float(f"{value:.6g}") for name, value in values.items()}
