"""What single parts of a step cost, and what keeping the teacher's outputs saves: rows that need no runtime.

Shares are of a 100 ms step: milliseconds of the part are milliseconds in a hundred. Each is measured forward and backward where it has
a gradient, at the sizes that the table names. The cache rows run two engines in turns on the same data; their parameters must be equal.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from servers.learner.engine import Engine
from servers.learner.losses import KdSettings, Rows
from servers.learner.losses.cka import CkaTerm
from servers.learner.losses.rkd import RkdDistanceTerm
from servers.learner.teacher_cache import TeacherCache
from servers.models.evaluate import binned, ece_of
from tests.bench._plain import training_data
from tests.bench._rows import Rows as Table

STEP_MS = 100.0
PAIR: dict[str, Any] = {
    "teacher": {"kind": "patch", "layers": 6, "width": 96, "heads": 4},
    "student": {"kind": "patch", "layers": 4, "width": 64, "heads": 4},
}
CACHED: dict[str, Any] = {
    "teacher": {"kind": "patch", "layers": 6, "width": 64, "heads": 4},
    "student": {"kind": "patch", "layers": 2, "width": 20, "heads": 4},
    "kd": {"mix": 0.9, "alpha": 1.0},
}
PHASE = {"name": "distil", "index": 0, "train": "student", "steps_total": 1_000_000, "lr": 1e-3, "schedule": "constant"}
BATCH = 50
EPOCH = 1000 // BATCH


def timed(work: Callable[[], object], rounds: int) -> list[float]:
    """Milliseconds of each of `rounds` runs, after a few that do not count."""
    for _ in range(3):
        work()
    found = []
    for _ in range(rounds):
        started_ns = time.perf_counter_ns()
        work()
        found.append((time.perf_counter_ns() - started_ns) / 1e6)
    return found


def shares(rows: Table, rounds: int) -> None:
    """EMA, movement, ECE, CKA and RKD-D against a step of 100 ms."""
    engine = Engine(PAIR, 7)
    engine.begin(PHASE)
    count = engine.param_count("student")
    engine.prune({"method": "movement", "target": 0.5, "steps": 1_000_000})
    engine._pruning.schedule["done"] = 200_000  # past the warm-up
    student = engine.roles["student"]
    g = torch.Generator().manual_seed(1)
    confidence = torch.rand(128, generator=g)
    hit = (torch.rand(128, generator=g) < confidence).float()
    hidden = [torch.randn(256, 64, generator=g).requires_grad_() for _ in range(4)]
    theirs = [torch.randn(256, 96, generator=g) for _ in range(4)]
    pooled = torch.randn(64, 64, generator=g).requires_grad_()
    target = torch.randn(64, 96, generator=g)
    base = {"student": torch.zeros(1, 2), "targets": torch.zeros(1).long(), "weight": torch.ones(1)}
    kd, cka, rkd = KdSettings(), CkaTerm(), RkdDistanceTerm()
    cka_rows = Rows(**base, student_hidden=tuple(hidden), teacher_hidden=tuple(theirs))  # type: ignore[arg-type]
    rkd_rows = Rows(**base, student_pooled=(pooled,), teacher_pooled=(target,), sample_weight=torch.ones(64))  # type: ignore[arg-type]
    parts: dict[str, tuple[Callable[[], object], str]] = {
        f"moving average of {count:,} parameters": (engine._roles.follow, "<= 0.1"),
        f"movement scores of {count:,} parameters": (lambda: engine._pruning.score(student, 1e-3), "<= 0.2"),
        "ECE of 128 samples": (lambda: ece_of(binned(confidence, hit)), "<= 1"),
        "CKA of 256 rows and 4 layers, with its gradient": (lambda: cka.value(cka_rows, kd).backward(), "<= 1.5"),
        "distances between 64 samples (RKD-D), with their gradient": (
            lambda: rkd.value(rkd_rows, kd).backward(),
            "<= 0.2",
        ),
    }
    for name, (work, limit) in parts.items():
        rows.add(f"share of a 100 ms step: {name}", [100 * ms / STEP_MS for ms in timed(work, rounds)], limit, unit="%")


def teacher_cache(rows: Table, rounds: int) -> None:
    """Epochs with and without, in turns, and what a teacher that costs nothing would give."""
    images, labels = training_data()

    def batch_at(step: int) -> dict[str, Tensor]:
        epoch, place = divmod(step, EPOCH)
        order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(epoch))
        ids = order[place * BATCH : (place + 1) * BATCH]
        return {"ids": ids, "x": images[ids], "labels": labels[ids]}

    def epoch_of(engine: Engine) -> float:
        started_ns = time.perf_counter_ns()
        for _ in range(EPOCH):
            engine.micro_step(batch_at(engine.step))
        return (time.perf_counter_ns() - started_ns) / 1e6

    plain, cached = Engine(CACHED, 7), Engine(CACHED, 7)
    cache = TeacherCache("bench", 1 << 28)
    for engine in (plain, cached):
        engine.begin(PHASE)
    cached.keep_teacher_outputs(cache)
    for engine in (plain, cached):
        epoch_of(engine)
        epoch_of(engine)
    cache.served()
    gains, steps = [], []
    for number in range(rounds):
        pair = [(epoch_of(engine), engine) for engine in ((plain, cached) if number % 2 else (cached, plain))]
        times = {id(engine): ms for ms, engine in pair}
        gains.append(times[id(plain)] / times[id(cached)])
        steps.append(times[id(plain)] / EPOCH)
    served = cache.served()
    batch = batch_at(0)
    with torch.no_grad():
        forward = statistics.median(
            timed(lambda: plain.roles["teacher"].model.forward(batch, need_hidden=True), 20 * rounds)
        )
    step = statistics.median(steps)
    note = f"batches of {BATCH}, {served} of {rounds * EPOCH} served; a step without takes {step:.1f} ms, the teacher {forward:.1f}"
    rows.add("teacher cache: steps/s with / without", gains, ">= 2.3", peer="the same engine without it", note=note)
    rows.add("teacher cache: bound, a teacher that costs nothing", step / max(1e-9, step - forward))
    rows.add("teacher cache: parameters equal, bit for bit", cached.digest() == plain.digest(), "== True")
