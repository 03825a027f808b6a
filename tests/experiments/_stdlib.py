"""E2, the runs: byte-level language models on the Python standard library's own source.

Responsible for: the pool of 10 MB and its subsets, the models, and how one run is done, with its curve over steps and CPU time.
Refuses: to cut a file between training and held-out data (whole files are held out); to show a final run anything of the test
files before its last step.

The teacher learns the pool once, and every student's subset is drawn from it by the seed. Curves are taken on a sample of validation
files, scores on a sample of test files.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from servers.dataset import code_tree
from servers.dataset.stream import Stream, permutation
from servers.dataset.table import Table
from servers.learner.engine import Engine
from servers.models.evaluate import evaluate
from servers.models.model import Batch
from tests.experiments._journal import Job, Result
from tests.experiments._loop import Spent, scored, tensors, train

CHUNK_BYTES: Final = 128
POOL_KB: Final = 10_240
BATCH: Final = 16
WARMUP_STEPS: Final = 50
POOL_SEED: Final = 20
TEACHER_SEED: Final = 0
EVAL_ROWS: Final = 64
TEACHER_LR: Final = 2e-3
OPTIMIZER: Final = {"betas": [0.9, 0.98]}


def gpt2(layers: int, width: int, heads: int) -> dict[str, Any]:
    """A byte-level GPT-2 without dropout."""
    sizes = {"n_layer": layers, "n_embd": width, "n_head": heads, "vocab_size": 256, "n_positions": CHUNK_BYTES}
    off = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
    config = {"model_type": "gpt2", "bos_token_id": 0, "eos_token_id": 0, **sizes, **off}
    return {"kind": "hf-config", "task": "causal-lm", "attention": "sdpa", "config": config}


TEACHER: Final = gpt2(3, 160, 4)
STUDENT: Final = gpt2(2, 64, 2)


@dataclass(frozen=True)
class Plan:
    """Sizes of a variant. `ratio`: steps of a student that cost as much as one step of distillation. `equal_steps`: steps of a
    student on the whole pool that cost as much as the teacher's training; 0: not run. `curve`: points of a run's curve."""

    teacher_steps: int
    student_steps: int
    tuning_steps: int
    sizes_kb: tuple[int, ...]
    seeds: tuple[int, ...]
    equal_steps: int
    ratio: int = 3
    curve: int = 6
    rows: int = 1024


FULL: Final = Plan(4000, 1500, 500, (32, 128, 512, 1024), tuple(range(5)), equal_steps=24_000)
QUICK: Final = Plan(150, 100, 0, (32, 256), (0, 1), equal_steps=0, curve=3, rows=128)

LRS: Final = (1.5e-3, 4e-3)
OWN: Final[dict[str, tuple[dict[str, float], ...]]] = {
    "ce": ({"weight_decay": 0.05}, {"weight_decay": 0.5}),
    "kd": ({"mix": 0.5, "temperature": 2.0}, {"mix": 0.9, "temperature": 2.0}),
}
DEFAULTS: Final[dict[str, dict[str, float]]] = {"ce": {"lr": 4e-3}, "kd": {"lr": 4e-3, "mix": 0.5, "temperature": 2.0}}
"""Without tuning (the quick variant)."""
TUNED_KB: Final = (32, 512)
"""Sizes that are tuned; a size runs with the settings of the largest of these that is not above it."""
TUNING_SEED: Final = 1001


def trials(arm: str) -> list[dict[str, float]]:
    """Four settings of an arm: as many as the other's."""
    return [{"lr": lr, **own} for lr in LRS for own in OWN[arm]]


# --- data ---------------------------------------------------------------------------------------------------------------------


@cache
def source(rows: int) -> Table:
    """The pool, and samples of `rows` chunks of the held-out files."""
    return pooled(code_tree.load({"tokenizer": "bytes", "seq_len": CHUNK_BYTES}, {}), rows)


def pooled(table: Table, rows: int, pool_kb: int = POOL_KB) -> Table:
    """At most `pool_kb` of the training files' chunks and `rows` chunks of each held-out split, drawn once and for all."""
    most = {"train": pool_kb * 1024 // CHUNK_BYTES, "validation": rows, "test": rows}
    return _thinned(table, most, POOL_SEED)


def subset(table: Table, kb: int, seed: int) -> Table:
    """`kb` of the pool, drawn by the seed; 0: all of it."""
    if kb == 0:
        return table
    most = kb * 1024 // CHUNK_BYTES
    if most > table.size("train"):
        raise ValueError(f"{kb} KB are more than the pool of {table.size('train') * CHUNK_BYTES // 1024} KB")
    return _thinned(table, {"train": most}, seed)


def _thinned(table: Table, most: Mapping[str, int], seed: int) -> Table:
    splits = {}
    for name, columns in table.splits.items():
        size = table.size(name)
        splits[name] = columns
        if name in most and size > most[name]:
            keep = np.sort(permutation(seed, f"subset {name}", 0, size)[: most[name]])
            splits[name] = {column: values[keep] for column, values in columns.items()}
    return Table(splits, table.task, table.classes)


def held_out(table: Table, split: str) -> Batch:
    """A held-out split as one batch."""
    return tensors(table.rows(split, np.arange(table.size(split))))


# --- runs ------------------------------------------------------------------------------------------------------------------------


def job(stage: str, arm: str, kb: int, seed: int, settings: Mapping[str, float], steps: int, curve: int) -> Job:
    """Everything that a run depends on."""
    return {
        "stage": stage,
        "arm": arm,
        "kb": kb,
        "seed": seed,
        "settings": dict(settings),
        "steps": steps,
        "curve": curve,
    }


def engine_of(seed: int, settings: Mapping[str, float], *, distils: bool) -> Engine:
    """Fresh models; which, depends on the seed alone."""
    kd = {
        "alpha": 0.0,
        "mix": settings.get("mix", 0.5) if distils else 0.0,
        "temperature": settings.get("temperature", 2.0),
    }
    decay = {"weight_decay": settings.get("weight_decay", 0.05)}
    return Engine({"teacher": TEACHER, "student": STUDENT, "optimizer": {**OPTIMIZER, **decay}, "kd": kd}, seed)


def teach(folder: Path, table: Table, steps: int, lr: float = TEACHER_LR) -> Result:
    """Train the teacher on the pool and keep its parameters in `folder`; its scores on test files."""
    engine = engine_of(TEACHER_SEED, {}, distils=False)
    spent = train(engine, Stream(table, TEACHER_SEED, BATCH), _phase("teacher", steps, lr))
    scores = evaluate(engine.roles["teacher"].model, held_out(table, "test"), batch=EVAL_ROWS)
    folder.mkdir(parents=True, exist_ok=True)
    half = folder / "teacher.part"
    with half.open("wb") as file:
        np.save(file, engine.roles["teacher"].arena.flat.numpy(), allow_pickle=False)
    half.replace(_path(folder, steps))
    spent_cpu = round(spent.cpu_seconds, 2)
    return {"bpb": scores["bits_per_token"], "accuracy": scores["accuracy"], "cpu_seconds": spent_cpu}


def taught(folder: Path, steps: int) -> torch.Tensor:
    """The parameters that `teach` kept."""
    return torch.from_numpy(np.load(_path(folder, steps), allow_pickle=False))


def _path(folder: Path, steps: int) -> Path:
    return folder / f"teacher-{steps}.npy"


def run(given: Job, table: Table, taught: torch.Tensor) -> Result:
    """One student; the curve is taken on validation files, the scores on test files (a tuning run's on validation)."""
    distils = given["arm"] == "kd"
    engine = engine_of(given["seed"], given["settings"], distils=distils)
    engine.roles["teacher"].arena.flat.copy_(taught)
    seen = subset(table, given["kb"], given["seed"])
    shown = held_out(table, "validation")
    every = max(1, given["steps"] // 25 // given["curve"])
    curve: list[list[float]] = []

    def look(window: int, spent: Spent) -> None:
        if window % every == 0:
            bits = evaluate(engine.roles["student"].model, shown, batch=EVAL_ROWS)["bits_per_token"]
            curve.append([spent.steps, round(spent.cpu_seconds, 2), float(f"{bits:.5g}")])

    phase = _phase("student", given["steps"], given["settings"]["lr"])
    spent = train(engine, Stream(seen, given["seed"], BATCH), phase, after_window=look)
    scores = scored(engine, shown if given["stage"] == "tune" else held_out(table, "test"))
    return {
        "bpb": scores["bits_per_token"],
        "accuracy": scores["accuracy"],
        "agreement": scores["agreement"],
        "kl": scores["kl"],
        "queries": spent.queries,
        "cpu_seconds": round(spent.cpu_seconds, 2),
        "curve": curve,
    }


def _phase(role: str, steps: int, lr: float) -> dict[str, Any]:
    return {
        "name": "teach" if role == "teacher" else "distil",
        "index": 0 if role == "teacher" else 1,
        "train": role,
        "steps_total": steps,
        "lr": lr,
        "warmup_steps": min(WARMUP_STEPS, steps // 4),
    }
