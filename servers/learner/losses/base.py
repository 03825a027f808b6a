"""What a loss term is, the settings that weigh the terms, and what a term may look at.

Objective: L = (1 - mix) * factor * task + mix * tau^2 * KL(p_T^tau || p_S^tau) + alpha * hint + the sum of the other terms, each
times its weight.

Responsible for: `KdSettings` with its limits, the rows a term sees, and the shape of a term. Refuses: settings outside their
limits and cadences of terms that are not there (E2-LIMIT with the value and the limit).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, fields, replace
from typing import Any, ClassVar, Final

import torch
from torch import Tensor

from servers.models.model import Batch, Model
from syscalls import limits
from syscalls.errors import RecurosError

PROJECTORS = ("linear", "none")
WEIGHTS: Final = limits.TERMS


@dataclass(frozen=True)
class KdSettings:
    """Weights of the objective. `layer_map`: (student layer, teacher layer) pairs counted from 1; empty means uniform.

    `every`: (term, steps) pairs; a term with cadence k enters every k-th step, k times as heavy, so that its weight keeps its meaning.
    `alpha_floor`: see `annealed`.
    """

    temperature: float = 2.0
    alpha: float = 1.0
    proj: str = "linear"
    mix: float = 0.5
    layer_map: tuple[tuple[int, int], ...] = ()
    alpha_floor: float = 1.0
    task: float = 1.0
    cka: float = 0.0
    at: float = 0.0
    rkd: float = 0.0
    rkd_angle: float = 0.0
    ewc: float = 0.0
    jacobian: float = 0.0
    calibration: float = 0.0
    cosine: float = 0.0
    embedding: float = 0.0
    attention_mse: float = 0.0
    minilm_at: float = 0.0
    minilm_vr: float = 0.0
    semantic: float = 0.0
    allow: tuple[int, ...] = ()
    implies: tuple[tuple[int, tuple[int, ...]], ...] = ()
    every: tuple[tuple[str, int], ...] = ()

    def __post_init__(self) -> None:
        _within("temperature", self.temperature, limits.TEMPERATURE_MIN, limits.TEMPERATURE_MAX)
        _within("alpha", self.alpha, 0.0, limits.ALPHA_MAX)
        _within("mix", self.mix, 0.0, 1.0)
        _within("alpha_floor", self.alpha_floor, 0.0, 1.0)
        for name in WEIGHTS:
            _within(name, getattr(self, name), 0.0, limits.TERM_WEIGHT_MAX)
        if self.proj not in PROJECTORS:
            raise RecurosError("E2-LIMIT", f"proj {self.proj!r} is unknown", hint=f"one of {', '.join(PROJECTORS)}")
        for name, steps in self.every:
            if name not in WEIGHTS:
                raise RecurosError(
                    "E2-LIMIT", f"every: no term is called {name!r}", hint=f"terms with a cadence: {', '.join(WEIGHTS)}"
                )
            _within(f"every.{name}", steps, 1, limits.TERM_EVERY_MAX)

    def annealed(self, step: int, steps: int) -> KdSettings:
        """The settings at a step of a phase: alpha falls along half a cosine to `alpha_floor` of itself (1: it stays)."""
        if self.alpha_floor == 1.0:
            return self
        left = 0.5 * (1.0 + math.cos(math.pi * min(1.0, step / max(1, steps))))
        return replace(self, alpha=self.alpha * (self.alpha_floor + (1.0 - self.alpha_floor) * left))

    def changed(self, **values: Any) -> KdSettings:
        """A copy with the values that are given; keys of other subjects are not ours and are left out."""
        known = {k: v for k, v in values.items() if k in SETTINGS}
        if "layer_map" in known:
            known["layer_map"] = tuple((int(a), int(b)) for a, b in known["layer_map"])
        if "allow" in known:
            known["allow"] = tuple(int(c) for c in known["allow"])
        if "implies" in known:
            known["implies"] = tuple((int(a), tuple(int(c) for c in b)) for a, b in known["implies"])
        if "every" in known:
            pairs = known["every"].items() if isinstance(known["every"], Mapping) else known["every"]
            known["every"] = tuple(sorted((str(name), int(steps)) for name, steps in pairs))
        return replace(self, **known)


SETTINGS: Final = frozenset(f.name for f in fields(KdSettings))
STEERED: Final = ("temperature", "alpha", "mix", "proj", *WEIGHTS)
"""What an operator and a policy may change while a run goes on."""


def _within(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:  # also refuses NaN
        raise RecurosError(
            "E2-LIMIT", f"{name} {value} is outside [{low:g}, {high:g}]", hint=f"choose {name} inside it"
        )


class Memory:
    """What terms remember from step to step (`term/name` -> tensor). A step's changes count once the step was made."""

    def __init__(self) -> None:
        self.kept: dict[str, Tensor] = {}
        self._staged: dict[str, Tensor] = {}

    def get(self, name: str) -> Tensor | None:
        """The tensor, as this step has left it so far; or None."""
        return self._staged.get(name, self.kept.get(name))

    def stage(self, name: str, value: Tensor) -> None:
        """Remember this, if the step is made."""
        self._staged[name] = value.detach()

    def commit(self) -> None:
        """The step was made."""
        self.kept.update(self._staged)
        self._staged = {}

    def discard(self) -> None:
        """The step was not made."""
        self._staged = {}

    def forget(self, term: str) -> None:
        """Drop everything of a term."""
        self.kept = {k: v for k, v in self.kept.items() if not k.startswith(f"{term}/")}


@dataclass(frozen=True)
class Look:
    """The models themselves, for terms that run or differentiate them again: EWC and Jacobian drift.

    `parameters`: the student's, in arena order. `quiet`: a context in which no probe fires. `seed`: of this step.
    """

    student: Model
    teacher: Model
    parameters: list[Tensor]
    batch: Batch
    quiet: Callable[[], AbstractContextManager[None]]
    seed: int

    def generator(self) -> torch.Generator:
        """Random numbers that depend on run and step alone, so that nothing of them is state."""
        return torch.Generator().manual_seed(self.seed)


@dataclass(frozen=True)
class Rows:
    """One micro-batch, flattened to its valid rows. A field that no term of the step needs may be empty.

    `student`, `teacher`: logits [N, C]; `targets` [N]; `weight` [N], mean 1. `other`: under mixup the second targets [N] and their
    shares [N]. `student_hidden`, `teacher_hidden`: per mapped layer [M, width] over content positions, `hidden_weight` [M], mean 1;
    `student_pooled`, `teacher_pooled`: their means over each sample's content [B, width], `sample_weight` [B], mean 1.
    `embeddings`: of both, as one more pair of hidden states. `student_attention`, `teacher_attention`: per mapped layer
    [B, heads, T, T]; `last_attention`, `last_values`: (student's, teacher's) of the last layers, values [B, heads, T, d];
    `query_share` [B, T]: what each content position weighs, sum 1. `reports`: what a term has to say beside its value.
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
    student_pooled: tuple[Tensor, ...] = ()
    teacher_pooled: tuple[Tensor, ...] = ()
    sample_weight: Tensor | None = None
    embeddings: tuple[Tensor, Tensor] | None = None
    embedding_projector: Any = None
    student_attention: tuple[Tensor, ...] = ()
    teacher_attention: tuple[Tensor, ...] = ()
    last_attention: tuple[Tensor, Tensor] | None = None
    last_values: tuple[Tensor, Tensor] | None = None
    query_share: Tensor | None = None
    memory: Memory = field(default_factory=Memory)
    look: Look | None = None
    reports: dict[str, float] = field(default_factory=dict)


class Term(ABC):
    """One term of the objective. A term whose coefficient is 0 is not evaluated, and what only it needs is not computed.

    `needs`: of "teacher", "hidden", "pooled", "projector", "embedding", "attention", "values", "look", "numbers".
    """

    name: ClassVar[str]
    needs: ClassVar[frozenset[str]]

    def coefficient(self, kd: KdSettings) -> float:
        """The term's weight in the objective."""
        return float(getattr(kd, self.name))

    @abstractmethod
    def value(self, rows: Rows, kd: KdSettings) -> Tensor:
        """The term itself, a scalar, without its coefficient."""


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
