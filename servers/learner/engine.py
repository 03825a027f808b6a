"""The learner's engine: roles, the objective, the update, and the whole of its state.

Responsible for: one micro-step at a time, deterministic on one thread; capture and bit-exact restore of {weights, optimizer,
RNG, EMA, counters, policy} at any step; role swaps and pruning. No IPC and no clock: the server owns those.
Refuses: a loss or gradient that is not finite, before any parameter is touched (E7-LOSS naming step and term).

Layout of a snapshot (kfs.snapshot: role/module/tensor):
    student/, teacher/, ema/, projector/    one leaf per parameter (and persistent buffer)
    optimizer/OWNER/exp_avg, exp_avg_sq     moments of the current phase, in the owner's arena layout
    mask/student/flat                       pruning mask, when there is one
    rng/torch/state, rng/engine/state       generator states
    cursor/engine/state                     counters and the phase (JSON)
    policy/kd/state, policy/roles/state     settings in force; architectures (JSON)
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from kfs.snapshot import TreeCache, build_tree
from probes.hooks import Dispatcher
from servers.learner.arena import Arena, FlatAdamW
from servers.learner.losses import TERMS, KdSettings, Rows, Term, unit_mean
from servers.learner.losses.hint import build_projectors, check_projector, checked_map
from servers.learner.phase import Phase, phase_of
from servers.learner.state import Leaf, blob_of, copy_into, leaf_of, value_of
from servers.learner.trace import Seen, Trace, strided, trace_rows
from servers.models.evaluate import evaluate
from servers.models.model import Batch, Model, Output, valid_rows
from servers.models.registry import build, check_pair
from syscalls.errors import RecurosError

ROLES = ("teacher", "student")
SWAPS = ("ema", "checkpoint")
TASK_ONLY = KdSettings(mix=0.0, alpha=0.0)


@dataclass
class Role:
    """A model, its arena, and a version that changes whenever its tensors may have."""

    model: Model
    arena: Arena
    version: int = 0


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


class Engine:
    """Teacher and student in one process.

    `spec`: {"teacher": model spec, "student": model spec, "optimizer": {"weight_decay", "betas", "eps"}, "clip": largest
    gradient norm (0: off), "ema": momentum, "kd": KdSettings values}. Two engines of one spec and seed start with the same digest.
    """

    def __init__(self, spec: dict[str, Any], seed: int, dispatcher: Dispatcher | None = None) -> None:
        deterministic(int(spec.get("threads", 1)))
        torch.manual_seed(seed)
        self._generator = torch.Generator().manual_seed(seed)
        self._dispatcher = dispatcher
        self._adamw = _adamw_settings(dict(spec.get("optimizer", {})))
        self._clip = float(spec.get("clip", 1.0))
        self._momentum = float(spec.get("ema", 0.99))
        self._kd = KdSettings().changed(**dict(spec.get("kd", {})))
        self._policy: dict[str, Any] = {}
        self._in_force: tuple[KdSettings, dict[str, Any], KdSettings] | None = None
        self.phase: Phase | None = None
        self.phase_step = self.step = self.generation = 0
        models = {"teacher": build(dict(spec["teacher"]), self._draw())}
        models["student"] = build(_same_task(spec["student"], models["teacher"]), self._draw())
        check_pair(models["teacher"], models["student"], spec["teacher"], spec["student"])
        self.roles = {role: Role(model, Arena(model.module)) for role, model in models.items()}
        self._ema = self.roles["student"].arena.flat.clone()
        self._mask: Tensor | None = None
        self._projectors = nn.ModuleList()
        self._projector_arena: Arena | None = None
        self._projector_key: list[Any] = []
        self._optimizers: dict[str, FlatAdamW] = {}
        self._cache: dict[str, tuple[int, dict[str, Leaf]]] = {}
        self._trees: TreeCache = {}
        self._hooked: dict[str, tuple[nn.Module, bool]] = {}
        for role in self.roles.values():
            role.arena.train(False)
        self._set_modes()

    # Settings

    @property
    def kd(self) -> KdSettings:
        """The settings in force: the operator's, with the policy's on top."""
        known = self._in_force
        if (
            known is None or known[0] is not self._kd or known[1] is not self._policy
        ):  # both are replaced, never changed
            known = self._in_force = (self._kd, self._policy, self._kd.changed(**self._policy))
        return known[2]

    def set_kd(
        self, temperature: float = -1.0, alpha: float = -1.0, proj: str = "", mix: float = -1.0, **_others: Any
    ) -> None:
        """Change the operator's settings; -1 or "" keeps one. They last until changed and travel in the snapshot."""
        given = {"temperature": temperature, "alpha": alpha, "mix": mix}
        values: dict[str, Any] = {k: v for k, v in given.items() if v != -1.0}
        if proj:
            values["proj"] = proj
        before = self._kd
        self._kd = before.changed(**values)
        try:
            self._fit_projectors()
        except RecurosError:
            self._kd = before
            raise

    def apply_policy(self, settings: Mapping[str, Any]) -> None:
        """Put the policy in force for this window: {} is none; keys that are not loss settings are left alone."""
        kept = {k: v for k, v in settings.items() if k in ("temperature", "alpha", "mix", "proj")}
        self._kd.changed(**kept)
        before, self._policy = self._policy, kept
        try:
            self._fit_projectors()
        except RecurosError:
            self._policy = before
            raise

    def begin(self, phase: dict[str, Any], kd: dict[str, Any] | None = None) -> None:
        """Start a phase at its first step with a fresh optimizer; `kd` changes the operator's settings."""
        self.phase = phase_of(phase)
        self.phase_step = 0
        if kd:
            self._kd = self._kd.changed(**kd)
        self._enter_phase()

    def is_in(self, phase: dict[str, Any]) -> bool:
        """Whether `phase` is the one running."""
        return self.phase is not None and (self.phase.index, self.phase.name) == (phase_of(phase).index, phase["name"])

    # One step

    def micro_step(self, batch: Batch) -> StepMetrics:
        """One update of the role that the phase trains. E7-LOSS leaves every parameter as it was."""
        if self.phase is None:
            raise RecurosError("E2-USAGE", "no phase has begun", hint="call begin(phase) first")
        batch = {name: _aligned(values) for name, values in batch.items()}
        if self._dispatcher is not None:
            self._dispatcher.step(self.step)
        trains = self._trainable()
        for arena in trains.values():
            arena.zero_grad()
        loss, metrics = self._loss(batch, self.phase)
        loss.backward()  # type: ignore[no-untyped-call]
        norm = math.sqrt(sum(float(a.grad.dot(a.grad)) for a in trains.values() if a.grad is not None))
        if not math.isfinite(norm):
            raise self._not_finite("gradient", norm)
        lr = self.phase.lr_at(self.phase_step)
        self._update(trains, norm, lr)
        done = StepMetrics(self.step, metrics.loss, norm, lr, metrics.count, metrics.terms, metrics.trace)
        self.step += 1
        self.phase_step += 1
        return done

    def _loss(self, batch: Batch, phase: Phase) -> tuple[Tensor, StepMetrics]:
        """The objective of this batch, checked to be finite, with its parts."""
        kd = self.kd if phase.train == "student" else TASK_ONLY
        terms = [(term, term.coefficient(kd)) for term in TERMS if term.coefficient(kd) != 0.0]
        fires = phase.train == "student" and self._dispatcher is not None and self._dispatcher.wants("on_kd_step")
        needs_hidden = fires or any(t.needs_hidden for t, _ in terms)
        model = self.roles[phase.train].model
        out = model.forward(batch, need_hidden=needs_hidden)
        teacher: Output | None = None
        if fires or any(t.needs_teacher for t, _ in terms):
            with torch.no_grad():
                teacher = self.roles["teacher"].model.forward(batch, need_hidden=needs_hidden)
        rows = self._rows(model, batch, out, teacher, phase.label_smoothing)
        values = [term.value(rows, kd) for term, _ in terms]
        loss = sum((c * v for (_, c), v in zip(terms, values, strict=True)), start=torch.zeros(()))
        numbers = torch.stack([loss, *values]).detach().tolist()
        self._check_finite(terms, numbers)
        if fires and teacher is not None:
            self._fire_kd_step(rows, out, teacher, batch)
        trace = None if teacher is None or rows.teacher is None else self._trace(rows, out, batch)
        named = {term.name: value for (term, _), value in zip(terms, numbers[1:], strict=True)}
        return loss, StepMetrics(self.step, numbers[0], 0.0, 0.0, rows.targets.numel(), named, trace)

    def _rows(self, model: Model, batch: Batch, out: Output, teacher: Output | None, smoothing: float) -> Rows:
        targets = valid_rows(model.targets(batch)[..., None], out.valid_mask)[:, 0]
        weight = _spread(batch, out.logits, out.valid_mask)
        rows = Rows(
            student=valid_rows(out.logits, out.valid_mask),
            targets=targets,
            weight=weight,
            teacher=None if teacher is None else valid_rows(teacher.logits, out.valid_mask),
            label_smoothing=smoothing,
            other=_other(batch),
        )
        if teacher is None or self.kd.alpha == 0.0 or not self._projectors:
            return rows
        pairs = self._layer_map()
        return Rows(
            student=rows.student,
            targets=targets,
            weight=weight,
            teacher=rows.teacher,
            student_hidden=tuple(valid_rows(out.hidden[s], out.hidden_mask) for s, _ in pairs),
            teacher_hidden=tuple(valid_rows(teacher.hidden[t], out.hidden_mask) for _, t in pairs),
            hidden_weight=_spread(batch, out.hidden[0], out.hidden_mask),
            label_smoothing=smoothing,
            projectors=tuple(self._projectors),
            other=rows.other,
        )

    def _check_finite(self, terms: list[tuple[Term, float]], numbers: list[float]) -> None:
        for (term, _), value in zip(terms, numbers[1:], strict=True):
            if not math.isfinite(value):
                raise self._not_finite(term.name, value)
        if not math.isfinite(numbers[0]):
            raise self._not_finite("sum of terms", numbers[0])

    def _not_finite(self, what: str, value: float) -> RecurosError:
        return RecurosError(
            "E7-LOSS",
            f"step {self.step}: the {what} is {value}; no parameter was changed",
            hint="lower the learning rate, or look for non-finite inputs in the batch",
            details={"step": self.step, "term": what},
        )

    def _update(self, trains: dict[str, Arena], norm: float, lr: float) -> None:
        scale = self._clip / norm if 0.0 < self._clip < norm else 1.0
        for owner, arena in trains.items():
            if scale != 1.0 and arena.grad is not None:
                arena.grad.mul_(scale)
            self._optimizers[owner].step(lr)
        assert self.phase is not None
        self.roles[self.phase.train].version += 1
        if self.phase.train == "student":
            student = self.roles["student"].arena.flat
            if self._mask is not None:
                student.mul_(self._mask)
            self._ema.lerp_(student, 1.0 - self._momentum)

    def _fire_kd_step(self, rows: Rows, out: Output, teacher: Output, batch: Batch) -> None:
        assert self._dispatcher is not None
        assert rows.teacher is not None
        pairs = [(f"{s}:{t}", out.hidden[s].detach(), teacher.hidden[t]) for s, t in self._layer_map()]
        self._dispatcher.fire(
            "on_kd_step",
            student_logits=rows.student.detach(),
            teacher_logits=rows.teacher,
            labels=rows.targets,
            ids=self._row_ids(rows, out, batch),
            hidden=pairs,
            temperature=self.kd.temperature,
        )

    def _trace(self, rows: Rows, out: Output, batch: Batch) -> Seen | Trace:
        """A classifier's few logits are kept until the window's end; a vocabulary's are too many and are used at once."""
        assert rows.teacher is not None
        ids = self._row_ids(rows, out, batch)
        if out.logits.dim() == 2:
            return Seen(rows.student.detach(), rows.teacher, rows.targets, ids)
        pick = strided(rows.targets.numel())
        return trace_rows(rows.student.detach()[pick], rows.teacher[pick], rows.targets[pick], ids[pick])

    @staticmethod
    def _row_ids(rows: Rows, out: Output, batch: Batch) -> Tensor:
        """The sample id of each valid row; -1 where the dataset gives none."""
        ids = batch.get("ids")
        if ids is None:
            return torch.full_like(rows.targets, -1)
        if out.logits.dim() == 2:
            return ids
        return valid_rows(ids[:, None, None].expand(*out.logits.shape[:2], 1), out.valid_mask)[:, 0]

    # Roles

    def swap(self, mode: str) -> None:
        """Make the student the next teacher.

        "ema": teacher := the student's moving average, the student goes on (self-distillation). "checkpoint": teacher :=
        the student, and the student starts anew from a drawn seed (born-again networks, Furlanello et al. 2018). A
        declared layer map is given up for the uniform one, since the teacher's layers are others now.
        """
        if mode not in SWAPS:
            raise RecurosError("E2-LIMIT", f"swap mode {mode!r} is unknown", hint=f"one of {', '.join(SWAPS)}")
        if self.phase is not None and self.phase.train == "teacher":
            raise RecurosError(
                "E2-USAGE",
                f"phase {self.phase.name!r} still trains the teacher; there is no student to promote",
                hint="swap in a distillation phase",
            )
        student = self.roles["student"]
        source = self._ema if mode == "ema" else student.arena.flat
        self._reshape("teacher", student.model.architecture)
        teacher = self.roles["teacher"]
        teacher.arena.flat.copy_(source)
        for name, buffer in teacher.arena.buffers.items():
            buffer.copy_(student.arena.buffers[name])
        teacher.version += 1
        self._kd = self._kd.changed(layer_map=())
        if mode == "checkpoint":
            self._renew_student()
        self.generation += 1
        self._fit_projectors()
        self._set_modes()

    def _renew_student(self) -> None:
        student = self.roles["student"]
        fresh = Arena(build(student.model.architecture, self._draw()).module)
        student.arena.flat.copy_(fresh.flat)
        for name, buffer in student.arena.buffers.items():
            buffer.copy_(fresh.buffers[name])
        student.version += 1
        self._ema.copy_(fresh.flat)
        self._mask = None
        if "student" in self._optimizers:
            self._optimizers["student"] = FlatAdamW(student.arena, **self._adamw)

    def _reshape(self, role: str, architecture: dict[str, Any]) -> None:
        """Give the role this architecture; its weights are whatever the builder made of seed 0 until they are written."""
        if self.roles[role].model.architecture != architecture:
            model = build(architecture, 0)
            self.roles[role] = Role(model, Arena(model.module), self.roles[role].version + 1)
            self.roles[role].arena.train(False)

    def prune(self, sparsity: float) -> None:
        """Zero the smallest `sparsity` of the student's matrix weights by magnitude; the mask holds from then on."""
        if not 0.0 <= sparsity < 1.0:
            raise RecurosError("E2-LIMIT", f"sparsity {sparsity} is outside [0, 1)", hint="choose a share such as 0.5")
        role = self.roles["student"]
        candidates = torch.zeros_like(role.arena.flat, dtype=torch.bool)
        for view in role.arena.views(candidates):
            view.fill_(view.dim() > 1)
        magnitudes = role.arena.flat.abs()[candidates]
        count = int(sparsity * magnitudes.numel())
        mask = torch.ones_like(role.arena.flat)
        if count:
            order = torch.argsort(magnitudes, stable=True)[:count]
            mask[candidates.nonzero()[:, 0][order]] = 0.0
        self._mask = mask if count else None
        role.arena.flat.mul_(mask)
        self._ema.mul_(mask)
        role.version += 1

    def pruned_matrices(self) -> list[tuple[str, Tensor, Tensor]]:
        """Name, mask (1 where a weight is kept, 0 where it is pruned) and values of each matrix of the student."""
        arena = self.roles["student"].arena
        mask = torch.ones_like(arena.flat) if self._mask is None else self._mask
        rows = zip(arena.slots, arena.views(mask), arena.views(arena.flat), strict=True)
        return [(slot.path, kept, values) for slot, kept, values in rows if len(slot.shape) > 1]

    def param_count(self, role: str) -> int:
        """Parameters of a role's model."""
        return self.roles[role].model.param_count

    def evaluate(self, role: str, arrays: Batch) -> dict[str, float]:
        """Scores of "teacher", "student" or "ema" on a whole split; draws nothing and changes nothing."""
        if role != "ema":
            with self._dispatcher.quiet() if self._dispatcher is not None else nullcontext():
                return evaluate(self.roles[role].model, arrays)
        model = build(self.roles["student"].model.architecture, 0)
        Arena(model.module).flat.copy_(self._ema)
        return evaluate(model, arrays)

    # State

    def capture(self) -> dict[str, Leaf]:
        """The whole state as path -> leaf. What did not change since the last capture is the same leaf, not copied again."""
        leaves: dict[str, Leaf] = {}
        for name, role in self.roles.items():
            leaves.update(self._cached(name, role.version, role.arena, role.arena.flat))
            leaves.update(role.arena.buffer_leaves(name) if role.arena.buffers else {})
        leaves.update(self._cached("ema", self.roles["student"].version, self.roles["student"].arena, self._ema))
        if self._projector_arena is not None:
            leaves.update(self._projector_arena.leaves("projector", self._projector_arena.flat))
        for owner, optimizer in self._optimizers.items():
            leaves[f"optimizer/{owner}/exp_avg"] = leaf_of(optimizer.exp_avg)
            leaves[f"optimizer/{owner}/exp_avg_sq"] = leaf_of(optimizer.exp_avg_sq)
        if self._mask is not None:
            leaves["mask/student/flat"] = leaf_of(self._mask.to(torch.uint8))
        leaves["rng/torch/state"] = leaf_of(torch.get_rng_state())
        leaves["rng/engine/state"] = leaf_of(self._generator.get_state())
        leaves["cursor/engine/state"] = blob_of(self._cursor())
        leaves["policy/kd/state"] = blob_of({"kd": asdict(self._kd), "policy": self._policy})
        leaves["policy/roles/state"] = blob_of({n: r.model.architecture for n, r in self.roles.items()})
        return leaves

    def digest(self) -> str:
        """The root id of the snapshot of this state, from its bytes as they are now."""
        return self.root_of(self.capture())

    def root_of(self, leaves: Mapping[str, Leaf]) -> str:
        """The root id of captured leaves."""
        return build_tree({path: leaf.id for path, leaf in leaves.items()}, self._trees)[0]

    def restore(self, leaves: Mapping[str, Leaf]) -> None:
        """Become the captured state, bit for bit, in this process or a fresh one built from the same spec."""
        architectures = value_of(leaves, "policy/roles/state")
        cursor = value_of(leaves, "cursor/engine/state")
        settings = value_of(leaves, "policy/kd/state")
        self._kd = KdSettings().changed(**settings["kd"])
        self._policy = dict(settings["policy"])
        self.step, self.phase_step, self.generation = cursor["step"], cursor["phase_step"], cursor["generation"]
        self.phase = None if cursor["phase"] is None else phase_of(cursor["phase"])
        self._cache.clear()
        for name in ROLES:
            self._reshape(name, architectures[name])
            role = self.roles[name]
            role.arena.load(name, role.arena.flat, leaves)
            role.arena.load_buffers(name, leaves)
            role.version += 1
        student = self.roles["student"].arena
        self._ema = torch.zeros_like(student.flat)
        student.load("ema", self._ema, leaves)
        self._mask = None
        if "mask/student/flat" in leaves:
            self._mask = torch.zeros(student.flat.shape, dtype=torch.uint8)
            copy_into(self._mask, leaves, "mask/student/flat")
            self._mask = self._mask.to(student.flat.dtype)
        self._restore_projectors(cursor["projectors"], leaves)
        self._restore_optimizers(cursor["optimizers"], leaves)
        self._restore_generators(leaves)

    def _restore_projectors(self, key: list[Any], leaves: Mapping[str, Leaf]) -> None:
        self._drop_projectors()
        if key:
            self._make_projectors(key, seed=0)
            if self._projector_arena is not None:
                self._projector_arena.load("projector", self._projector_arena.flat, leaves)

    def _restore_optimizers(self, steps: dict[str, int], leaves: Mapping[str, Leaf]) -> None:
        self._optimizers = {}
        self._set_modes()
        for owner, arena in self._trainable().items():
            optimizer = self._optimizers[owner] = FlatAdamW(arena, **self._adamw)
            copy_into(optimizer.exp_avg, leaves, f"optimizer/{owner}/exp_avg")
            copy_into(optimizer.exp_avg_sq, leaves, f"optimizer/{owner}/exp_avg_sq")
            optimizer.steps = steps[owner]

    def _restore_generators(self, leaves: Mapping[str, Leaf]) -> None:
        for path, set_state, current in (
            ("rng/torch/state", torch.set_rng_state, torch.get_rng_state()),
            ("rng/engine/state", self._generator.set_state, self._generator.get_state()),
        ):
            copy_into(current, leaves, path)
            set_state(current)

    def _cached(self, role: str, version: int, arena: Arena, flat: Tensor) -> dict[str, Leaf]:
        known = self._cache.get(role)
        if known is None or known[0] != version:
            known = self._cache[role] = (version, arena.leaves(role, flat))
        return known[1]

    def _cursor(self) -> dict[str, Any]:
        return {
            "step": self.step,
            "phase_step": self.phase_step,
            "generation": self.generation,
            "phase": None if self.phase is None else self.phase.to_map(),
            "projectors": self._projector_key,
            "optimizers": {owner: optimizer.steps for owner, optimizer in self._optimizers.items()},
        }

    # Phases and projectors

    def _enter_phase(self) -> None:
        self._optimizers = {}
        self._set_modes()
        self._fit_projectors()
        for owner, arena in self._trainable().items():
            self._optimizers[owner] = FlatAdamW(arena, **self._adamw)

    def _set_modes(self) -> None:
        """Make exactly the phase's role trainable. A role that stays so keeps its gradients, which its optimizer views."""
        trains = "" if self.phase is None else self.phase.train
        for name, role in self.roles.items():
            on = name == trains
            role.model.module.train(on)
            if on != (role.arena.grad is not None):
                role.arena.train(on)
            if self._dispatcher is not None and self._hooked.get(name) != (role.model.module, on):
                self._dispatcher.install(name, role.model.module)
                self._hooked[name] = (role.model.module, on)
        if self._projector_arena is not None and (trains == "student") != (self._projector_arena.grad is not None):
            self._projector_arena.train(trains == "student")

    def _trainable(self) -> dict[str, Arena]:
        """Owner -> arena of everything the phase updates."""
        if self.phase is None:
            return {}
        owners = {self.phase.train: self.roles[self.phase.train].arena}
        if self.phase.train == "student" and self._projector_arena is not None:
            owners["projector"] = self._projector_arena
        return owners

    @property
    def pair_names(self) -> list[str]:
        """Names of the pairs of layers that `on_kd_step` hands out."""
        return [f"{student}:{teacher}" for student, teacher in self._layer_map()]

    def _layer_map(self) -> tuple[tuple[int, int], ...]:
        student, teacher = (self.roles[r].model.num_layers for r in ("student", "teacher"))
        return checked_map(self.kd.layer_map, student, teacher)

    def _fit_projectors(self) -> None:
        """Have projectors exactly while a distillation phase uses hints, of the shapes that the roles have now."""
        student, teacher = self.roles["student"].model, self.roles["teacher"].model
        kd = self.kd
        key: list[Any] = []
        if self.phase is not None and self.phase.train == "student" and kd.alpha > 0.0:
            key = [kd.proj, len(self._layer_map()), student.hidden_width, teacher.hidden_width, self.generation]
        if key == self._projector_key:
            return
        if key:
            check_projector(kd.proj, student.hidden_width, teacher.hidden_width)
        self._drop_projectors()
        if key:
            self._make_projectors(key, self._draw())
            self._set_modes()
            if self._projector_arena is not None:
                self._optimizers["projector"] = FlatAdamW(self._projector_arena, **self._adamw)

    def _make_projectors(self, key: list[Any], seed: int) -> None:
        proj, count, student_width, teacher_width, _ = key
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self._projectors = build_projectors(proj, count, student_width, teacher_width)
        self._projector_key = list(key)
        if proj != "none":
            self._projector_arena = Arena(self._projectors)
            self._projector_arena.train(False)

    def _drop_projectors(self) -> None:
        self._projectors, self._projector_arena, self._projector_key = nn.ModuleList(), None, []
        self._optimizers.pop("projector", None)

    def _draw(self) -> int:
        """A seed from the engine's own generator."""
        return int(torch.randint(0, 2**31 - 1, (), generator=self._generator))


def _spread(batch: Batch, values: Tensor, mask: Tensor | None) -> Tensor:
    """Sample weights [B] spread over the valid rows of `values` [B, ..., W], scaled to mean 1: [N]."""
    weight = batch.get("weight")
    shape = values.shape[:-1]
    if weight is None:
        return torch.ones(int(mask.sum()) if mask is not None else math.prod(shape))
    wide = weight.reshape(-1, *[1] * (len(shape) - 1)).expand(shape)
    return unit_mean(valid_rows(wide[..., None], mask)[:, 0])


def _other(batch: Batch) -> tuple[Tensor, Tensor] | None:
    """Second targets and their shares, where the batch was mixed."""
    return (batch["labels_other"], batch["share_other"]) if "share_other" in batch else None


def _aligned(values: Tensor) -> Tensor:
    """The tensor at a 64-byte boundary: vector kernels choose their path by alignment, and the last bit with it."""
    return values if values.data_ptr() % 64 == 0 else values.clone()


def _same_task(spec: dict[str, Any], teacher: Model) -> dict[str, Any]:
    """A student made from a config does what its teacher does, unless the spec says what it is for."""
    return {"task": teacher.task, **spec} if spec.get("kind") == "hf-config" else dict(spec)


def _adamw_settings(values: dict[str, Any]) -> dict[str, Any]:
    """FlatAdamW's keywords from the manifest's table."""
    keywords: dict[str, Any] = {k: float(values[k]) for k in ("weight_decay", "eps") if k in values}
    if "betas" in values:
        first, second = values["betas"]
        keywords["betas"] = (float(first), float(second))
    return keywords


def deterministic(threads: int) -> None:
    """One thread and deterministic kernels, for this process."""
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
