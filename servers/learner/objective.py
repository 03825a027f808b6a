"""The objective of one micro-batch: both models' outputs, the terms that are on, and what else is seen of the step.

Responsible for: running the student and, only where something needs it, the teacher; the rows that terms work on; the weighted sum
of terms with each checked to be finite; what probes and the trace get. Refuses: a term that is not finite (E7-LOSS).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from probes.hooks import Dispatcher
from servers.learner.losses import TERMS, KdSettings, Look, Memory, Rows, Term, unit_mean
from servers.learner.losses.attention import require_distribution
from servers.learner.losses.hint import checked_map
from servers.learner.phase import Phase
from servers.learner.projectors import Projectors
from servers.learner.roles import Roles
from servers.learner.teacher_cache import TeacherCache
from servers.learner.trace import Seen, Trace, strided, trace_rows
from servers.models.model import Batch, Model, Output, valid_rows
from syscalls.errors import RecurosError

LACKING = {"attention": "attention", "values": "value vectors of attention", "numbers": "inputs of numbers"}
TASK_ONLY = KdSettings(mix=0.0, alpha=0.0)


@dataclass(frozen=True)
class StepMetrics:
    """What one micro-step did. `terms`: values without their coefficients. `trace`: None when no teacher ran; see `joined`."""

    step: int
    loss: float
    grad_norm: float
    lr: float
    count: int
    terms: dict[str, float] = field(default_factory=dict)
    trace: Seen | Trace | None = None


def layer_map(kd: KdSettings, roles: Roles) -> tuple[tuple[int, int], ...]:
    """(student layer, teacher layer) pairs in force."""
    return checked_map(kd.layer_map, roles.student.model.num_layers, roles.teacher.model.num_layers)


def not_finite(step: int, what: str, value: float, then: str = "no parameter was changed") -> RecurosError:
    """The refusal of a step that would damage parameters."""
    return RecurosError(
        "E7-LOSS",
        f"step {step}: the {what} is {value}; {then}",
        hint="lower the learning rate, or look for non-finite inputs in the batch",
        details={"step": step, "term": what},
    )


@lru_cache(maxsize=16)
def _on(kd: KdSettings) -> tuple[tuple[Term, float, int], ...]:
    """The terms that are on: coefficient when due, and cadence. One that comes every k-th step is k times as heavy then."""
    every = dict(kd.every)
    rows = ((term, term.coefficient(kd), every.get(term.name, 1)) for term in TERMS)
    return tuple((term, coefficient * cadence, cadence) for term, coefficient, cadence in rows if coefficient != 0.0)


def due_terms(kd: KdSettings, phase_step: int) -> list[tuple[Term, float]]:
    """The terms of this step, each with its coefficient."""
    return [(term, coefficient) for term, coefficient, cadence in _on(kd) if phase_step % cadence == 0]


def check_terms(on: list[Term], roles: Roles) -> None:
    """Refuse terms that need what a model cannot give: E2-LIMIT naming term, need and role."""
    for term in on:
        for name, role in roles.held.items():
            if missing := sorted(term.needs & role.model.lacks):
                raise RecurosError(
                    "E2-LIMIT",
                    f"{term.name} needs {LACKING[missing[0]]}, which the {name} ({role.model.architecture['kind']}) does not give",
                    hint=f'{term.name} = 0, or another model; of Hugging Face models attention = "eager" gives attention',
                )


class Objective:
    """L of a batch under given settings.

    `memory`: what terms remember between steps; part of the state. `cache`: where the teacher's outputs are kept, if anywhere; it changes
    no bit, so it is no part of it.
    """

    def __init__(self, roles: Roles, projectors: Projectors, dispatcher: Dispatcher | None, seed: int) -> None:
        self._roles = roles
        self._projectors = projectors
        self._dispatcher = dispatcher
        self._seed = seed
        self.memory = Memory()
        self.cache: TeacherCache | None = None

    def loss(
        self, batch: Batch, phase: Phase, settings: KdSettings, step: int, phase_step: int
    ) -> tuple[Tensor, StepMetrics]:
        """The objective of this batch, checked to be finite, with its parts."""
        kd = settings if phase.train == "student" else TASK_ONLY
        terms = due_terms(kd, phase_step)
        needs = frozenset[str]().union(*(term.needs for term, _ in terms))
        fires = phase.train == "student" and self._dispatcher is not None and self._dispatcher.wants("on_kd_step")
        asked = {
            "need_hidden": fires or bool(needs & {"hidden", "pooled"}),
            "need_attention": "attention" in needs,
            "need_values": "values" in needs,
        }
        asked = {name: True for name, wanted in asked.items() if wanted}
        model = self._roles.held[phase.train].model
        out = model.forward(batch, **asked)
        teacher = self._teach(batch, asked, settings) if fires or "teacher" in needs else None
        rows = self._rows(model, batch, out, teacher, kd, phase.label_smoothing, needs, step)
        values = [term.value(rows, kd) for term, _ in terms]
        weighed = [c * v for (_, c), v in zip(terms, values, strict=True)]
        loss = sum(weighed[1:], start=weighed[0]) if weighed else rows.student.new_zeros(())
        numbers = torch.stack([loss, *values]).detach().tolist()
        _check_finite(terms, numbers, step)
        if fires and teacher is not None:
            self._fire_kd_step(rows, out, teacher, batch, settings)
        trace = None if teacher is None or rows.teacher is None else _trace(rows, out, batch)
        named = {term.name: value for (term, _), value in zip(terms, numbers[1:], strict=True)} | rows.reports
        return loss, StepMetrics(step, numbers[0], 0.0, 0.0, rows.targets.numel(), named, trace)

    def _teach(self, batch: Batch, asked: dict[str, bool], kd: KdSettings) -> Output:
        """The teacher's output, computed or as it was kept."""
        role = self._roles.teacher

        def compute() -> Output:
            self._roles.fetch()
            with torch.no_grad():
                return role.model.forward(batch, **asked)

        watched = self._dispatcher is not None and self._dispatcher.watches("teacher")
        if self.cache is None:
            return compute()
        layers = frozenset([t for _, t in layer_map(kd, self._roles)] + [role.model.num_layers])
        if kd.embedding:
            layers |= {0}
        # A program that watches the teacher wants to see it run; what it gave is kept all the same.
        return self.cache.output(role, batch, layers, asked, compute, serve=not watched)

    def tensors(
        self, batch: Batch, phase: Phase, kd: KdSettings, terms: Sequence[tuple[Term, float]], weights: Tensor
    ) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor, Tensor] | None]:
        """As `loss`, with nothing read back: the objective under device `weights`, the terms, and (student, teacher, targets) rows."""
        needs = frozenset[str]().union(*(term.needs for term, _ in terms))
        asked = {"need_hidden": True} if needs & {"hidden", "pooled"} else {}
        model = self._roles.held[phase.train].model
        out = model.forward(batch, **asked)
        teacher: Output | None = None
        if "teacher" in needs:
            with torch.no_grad():
                teacher = self._roles.teacher.model.forward(batch, **asked)
        rows = self._rows(model, batch, out, teacher, kd, phase.label_smoothing, needs, 0)
        values = torch.stack([term.value(rows, kd) for term, _ in terms])
        seen = None if rows.teacher is None else (rows.student.detach(), rows.teacher, rows.targets)
        return (values * weights).sum(), values.detach(), seen

    def _rows(
        self,
        model: Model,
        batch: Batch,
        out: Output,
        teacher: Output | None,
        kd: KdSettings,
        smoothing: float,
        needs: frozenset[str],
        step: int,
    ) -> Rows:
        rows = Rows(
            student=valid_rows(out.logits, out.valid_mask),
            targets=_valid(model.targets(batch), out.valid_mask),
            weight=_spread(batch, out.logits, out.valid_mask),
            teacher=None if teacher is None else valid_rows(teacher.logits, out.valid_mask),
            label_smoothing=smoothing,
            other=_other(batch),
            memory=self.memory,
            look=self._look(batch, step) if "look" in needs else None,
        )
        if teacher is None or not needs & {"hidden", "pooled", "attention", "values"}:
            return rows
        pairs = layer_map(kd, self._roles)
        more: dict[str, Any] = {}
        if needs & {"hidden", "pooled"}:
            _check_positions(out, teacher)
        if "hidden" in needs:
            more["student_hidden"] = tuple(valid_rows(out.hidden[s], out.hidden_mask) for s, _ in pairs)
            more["teacher_hidden"] = tuple(valid_rows(teacher.hidden[t], out.hidden_mask) for _, t in pairs)
            more["hidden_weight"] = _spread(batch, out.hidden[0], out.hidden_mask)
        if "projector" in needs:
            more["projectors"] = tuple(self._projectors.modules)[: len(pairs)]
        if "embedding" in needs:
            more["embeddings"] = tuple(valid_rows(o.hidden[0], out.hidden_mask) for o in (out, teacher))
            more["embedding_projector"] = self._projectors.modules[-1]
        if "pooled" in needs:
            more["student_pooled"] = tuple(_pooled(out.hidden[s], out.hidden_mask) for s, _ in pairs)
            more["teacher_pooled"] = tuple(_pooled(teacher.hidden[t], out.hidden_mask) for _, t in pairs)
            more["sample_weight"] = _sample_weight(batch, out)
        if needs & {"attention", "values"}:
            more |= _attention(batch, out, teacher, pairs)
        return replace(rows, **more)

    def _look(self, batch: Batch, step: int) -> Look:
        """Seeds differ from step to step and from run to run, and are functions of both: nothing of them is state."""
        self._roles.fetch()
        student = self._roles.student
        quiet = self._dispatcher.quiet if self._dispatcher is not None else nullcontext
        seed = (self._seed * 1_000_003 + step) % (1 << 63)
        return Look(student.model, self._roles.teacher.model, list(student.arena.parameters), batch, quiet, seed)

    def _fire_kd_step(self, rows: Rows, out: Output, teacher: Output, batch: Batch, kd: KdSettings) -> None:
        assert self._dispatcher is not None
        assert rows.teacher is not None
        pairs = [(f"{s}:{t}", out.hidden[s].detach(), teacher.hidden[t]) for s, t in layer_map(kd, self._roles)]
        self._dispatcher.fire(
            "on_kd_step",
            student_logits=rows.student.detach(),
            teacher_logits=rows.teacher,
            labels=rows.targets,
            ids=_row_ids(rows, out, batch),
            hidden=pairs,
            temperature=kd.temperature,
        )


def _valid(values: Tensor, mask: Tensor | None) -> Tensor:
    """As `valid_rows`, of numbers [B, ...] instead of rows."""
    return values.reshape(-1) if mask is None else valid_rows(values[..., None], mask)[:, 0]


def _check_finite(terms: list[tuple[Term, float]], numbers: list[float], step: int) -> None:
    for (term, _), value in zip(terms, numbers[1:], strict=True):
        if not math.isfinite(value):
            raise not_finite(step, term.name, value)
    if not math.isfinite(numbers[0]):
        raise not_finite(step, "sum of terms", numbers[0])


def _check_positions(out: Output, teacher: Output) -> None:
    mine, theirs = out.hidden[0].shape[:2], teacher.hidden[0].shape[:2]
    if mine != theirs:
        raise RecurosError(
            "E2-MODEL",
            f"hint: the student has {mine[0] * mine[1]} hidden positions in this batch, the teacher {theirs[0] * theirs[1]};"
            " they cannot be paired",
            hint="weight 0 for hint (alpha) and every other term over hidden states, or two models that cut their input alike",
        )


def _pooled(hidden: Tensor, mask: Tensor | None) -> Tensor:
    """Means over content: [B, T, width] -> [B, width]."""
    if mask is None:
        return hidden.mean(1)
    content = mask[..., None].to(hidden.dtype)
    return (hidden * content).sum(1) / content.sum(1).clamp_min(1.0)


def _sample_weight(batch: Batch, out: Output) -> Tensor:
    weight = batch.get("weight")
    return out.logits.new_ones(len(out.logits)) if weight is None else unit_mean(weight)


def _attention(batch: Batch, out: Output, teacher: Output, pairs: tuple[tuple[int, int], ...]) -> dict[str, Any]:
    """Attention of mapped layers and of the last ones, and what each query weighs."""
    made: dict[str, Any] = {}
    example = out.attention[-1] if out.attention else out.values
    assert example is not None
    share = example.new_ones((example.shape[0], example.shape[2]))
    if out.hidden_mask is not None:
        share = share * out.hidden_mask
    if "weight" in batch:
        share = share * batch["weight"][:, None]
    made["query_share"] = unit_mean(share) / share.numel()
    if out.attention:
        require_distribution(out.attention[-1], "student")
        made["student_attention"] = tuple(out.attention[s - 1] for s, _ in pairs)
        made["teacher_attention"] = tuple(teacher.attention[t - 1] for _, t in pairs)
        made["last_attention"] = (out.attention[-1], teacher.attention[-1])
    if out.values is not None and teacher.values is not None:
        made["last_values"] = (out.values, teacher.values)
    return made


def _trace(rows: Rows, out: Output, batch: Batch) -> Seen | Trace:
    """A classifier's few logits are kept until the window's end; a vocabulary's are too many and are used at once."""
    assert rows.teacher is not None
    ids = _row_ids(rows, out, batch)
    if out.logits.dim() == 2:
        return Seen(rows.student.detach(), rows.teacher, rows.targets, ids)
    pick = strided(rows.targets.numel())
    return trace_rows(rows.student.detach()[pick], rows.teacher[pick], rows.targets[pick], ids[pick])


def _row_ids(rows: Rows, out: Output, batch: Batch) -> Tensor:
    """The sample id of each valid row; -1 where the dataset gives none."""
    ids = batch.get("ids")
    if ids is None:
        return torch.full_like(rows.targets, -1)
    if out.logits.dim() == 2:
        return ids
    return valid_rows(ids[:, None, None].expand(*out.logits.shape[:2], 1), out.valid_mask)[:, 0]


def _spread(batch: Batch, values: Tensor, mask: Tensor | None) -> Tensor:
    """Sample weights [B] spread over the valid rows of `values` [B, ..., W], scaled to mean 1: [N]."""
    weight = batch.get("weight")
    shape = values.shape[:-1]
    if weight is None:
        return values.new_ones(int(mask.sum()) if mask is not None else math.prod(shape))
    if len(shape) == 1 and mask is None:
        return unit_mean(weight)
    wide = weight.reshape(-1, *[1] * (len(shape) - 1)).expand(shape)
    return unit_mean(valid_rows(wide[..., None], mask)[:, 0])


def _other(batch: Batch) -> tuple[Tensor, Tensor] | None:
    """Second targets and their shares, where the batch was mixed."""
    return (batch["labels_other"], batch["share_other"]) if "share_other" in batch else None
