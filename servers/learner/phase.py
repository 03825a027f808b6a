"""A phase of the plan: what is trained, for how long, with which learning rate.

Responsible for: reading the phase map of a grant, and the learning rate as a pure function of the step, so that resuming needs
no scheduler state. Refuses: unknown roles and schedules, lengths below one step (E2-MANIFEST).
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields
from typing import Any

from syscalls.errors import RecurosError

SCHEDULES = ("cosine", "constant", "cyclic")


@dataclass(frozen=True)
class Phase:
    """`steps_total` steps of training `train` ("teacher": task alone; "student": against the frozen teacher).

    After `warmup_steps` of linear rise, `lr` stays or falls along a cosine to `lr * lr_floor`; "cyclic" does so `cycles` times (snapshot
    ensembles, Huang et al. 2017, equation 2).
    """

    name: str
    index: int
    train: str
    steps_total: int
    lr: float
    schedule: str = "cosine"
    warmup_steps: int = 0
    lr_floor: float = 0.02
    label_smoothing: float = 0.0
    cycles: int = 1

    def lr_at(self, step: int) -> float:
        """The rate of a step, counted from 0 (cosine: Loshchilov and Hutter 2017, equation 5)."""
        if step < self.warmup_steps:
            return self.lr * (step + 1) / (self.warmup_steps + 1)
        if self.schedule == "constant":
            return self.lr
        length = max(1, self.steps_total - self.warmup_steps)
        at = step - self.warmup_steps
        if self.schedule == "cyclic":
            length = -(-length // self.cycles)
            at %= length
        done = min(1.0, at / length)
        return self.lr * (self.lr_floor + (1.0 - self.lr_floor) * 0.5 * (1.0 + math.cos(math.pi * done)))

    def to_map(self) -> dict[str, Any]:
        """Plain values; `phase_of` reads them back."""
        return asdict(self)


def phase_of(values: dict[str, Any]) -> Phase:
    """Read a phase map: `steps_total`, or `windows` times `steps`; keys for other servers are left alone."""
    total = values.get("steps_total")
    if total is None:
        total = int(values.get("windows", 0)) * int(values.get("steps", 0))
    known = {f.name for f in fields(Phase)} & set(values)
    phase = Phase(
        **{
            "name": "",
            "index": 0,
            "train": "student",
            "lr": 1e-3,
            **{k: values[k] for k in known},
            "steps_total": int(total),
        }
    )
    _check(phase)
    return phase


def _check(phase: Phase) -> None:
    if phase.train not in ("teacher", "student"):
        raise RecurosError(
            "E2-MANIFEST", f"phase {phase.name!r}: train = {phase.train!r}", hint='"teacher" or "student"'
        )
    if phase.schedule not in SCHEDULES:
        raise RecurosError(
            "E2-MANIFEST",
            f"phase {phase.name!r}: schedule {phase.schedule!r} is unknown",
            hint=f"one of {', '.join(SCHEDULES)}",
        )
    if not 1 <= phase.cycles <= phase.steps_total:
        raise RecurosError(
            "E2-MANIFEST",
            f"phase {phase.name!r}: {phase.cycles} cycles in {phase.steps_total} steps",
            hint="give each cycle at least one step",
        )
    if phase.steps_total < 1 or not (math.isfinite(phase.lr) and phase.lr > 0):
        raise RecurosError(
            "E2-MANIFEST",
            f"phase {phase.name!r}: {phase.steps_total} steps at lr {phase.lr}",
            hint="give at least one step and a positive lr",
        )
