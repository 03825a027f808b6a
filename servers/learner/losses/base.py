"""What a loss term is, and the settings that weigh the terms.

Objective: L = (1 - mix) * task + mix * tau^2 * KL(p_T^tau || p_S^tau) + alpha * hint.

Responsible for: `KdSettings` with its limits, the rows a term sees, and the shape of a term. Refuses: settings outside their
limits (E2-LIMIT with the value and the limit).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from torch import Tensor

from syscalls import limits
from syscalls.errors import RecurosError

PROJECTORS = ("linear", "none")


@dataclass(frozen=True)
class KdSettings:
    """Weights of the objective. `layer_map`: (student layer, teacher layer) pairs counted from 1; empty means uniform."""

    temperature: float = 2.0
    alpha: float = 1.0
    proj: str = "linear"
    mix: float = 0.5
    layer_map: tuple[tuple[int, int], ...] = ()

    def __post_init__(self) -> None:
        _within("temperature", self.temperature, limits.TEMPERATURE_MIN, limits.TEMPERATURE_MAX)
        _within("alpha", self.alpha, 0.0, limits.ALPHA_MAX)
        _within("mix", self.mix, 0.0, 1.0)
        if self.proj not in PROJECTORS:
            raise RecurosError("E2-LIMIT", f"proj {self.proj!r} is unknown", hint=f"one of {', '.join(PROJECTORS)}")

    def changed(self, **values: Any) -> KdSettings:
        """A copy with the values that are given; keys of other subjects are not ours and are left out."""
        known = {k: v for k, v in values.items() if k in ("temperature", "alpha", "proj", "mix", "layer_map")}
        if "layer_map" in known:
            known["layer_map"] = tuple((int(a), int(b)) for a, b in known["layer_map"])
        return replace(self, **known)


def _within(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:  # also refuses NaN
        raise RecurosError(
            "E2-LIMIT", f"{name} {value} is outside [{low:g}, {high:g}]", hint=f"choose {name} inside it"
        )


@dataclass(frozen=True)
class Rows:
    """One micro-batch, flattened to its valid rows.

    `student`, `teacher`: logits [N, C]; `targets` [N]; `weight` [N], mean 1. `student_hidden`, `teacher_hidden`: per mapped
    layer [M, width] over content positions, `hidden_weight` [M], mean 1. `other`: under mixup the second targets [N] and their shares
    [N]. A field a term does not need may be empty.
    """

    student: Tensor
    targets: Tensor
    weight: Tensor
    teacher: Tensor | None = None
    student_hidden: tuple[Tensor, ...] = ()
    teacher_hidden: tuple[Tensor, ...] = ()
    hidden_weight: Tensor | None = None
    label_smoothing: float = 0.0
    projectors: tuple[Any, ...] = field(default=())
    other: tuple[Tensor, Tensor] | None = None


class Term(Protocol):
    """One term of the objective. A term whose coefficient is 0 is not evaluated, and what only it needs is not computed."""

    name: str
    needs_teacher: bool
    needs_hidden: bool

    def coefficient(self, kd: KdSettings) -> float:
        """The term's weight in the objective."""
        ...

    def value(self, rows: Rows, kd: KdSettings) -> Tensor:
        """The term itself, a scalar, without its coefficient."""
        ...


def unit_mean(weight: Tensor) -> Tensor:
    """Weights scaled to mean 1, so that they move emphasis and not the learning rate; E2-DATA when all are zero."""
    mean = weight.mean()
    if not float(mean) > 0.0:
        raise RecurosError(
            "E2-DATA",
            "the sample weights of a micro-batch sum to nothing",
            hint="gate fewer samples or use larger batches",
        )
    return weight / mean
