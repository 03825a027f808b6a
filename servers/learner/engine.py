"""The learner's engine: roles, the objective, the update, and the whole of its state.

Responsible for: one micro-step at a time, deterministic on one thread; capture and bit-exact restore of {weights, optimizer,
RNG, EMA, counters, policy} at any step. What a step minimises is `objective`, who teaches whom `roles`, what is cut away `pruning`.
No IPC and no clock: the server owns those.
Refuses: a loss or gradient that is not finite, before any parameter is touched (E7-LOSS naming step and term).

Layout of a snapshot (kfs.snapshot: role/module/tensor):
    student/, teacher/, ema/, projector/    one leaf per parameter (and persistent buffer)
    optimizer/OWNER/exp_avg, exp_avg_sq     moments of the current phase, in the owner's arena layout
    mask/student/flat, mask/movement/scores, gate/  pruning: the mask in force, scores or gates of a schedule that runs
    loss/TERM/NAME                          what a term remembers: sums of CKA, anchor and Fisher information of EWC
    rng/torch/state, rng/engine/state       generator states (rng/cuda/state as well, on such a device)
    cursor/engine/state                     counters and the phase (JSON)
    policy/kd/state, policy/roles/state     settings in force; architectures (JSON)
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn

from kfs.snapshot import TreeCache, build_tree
from probes.hooks import Dispatcher
from servers.learner.arena import Arena, FlatAdamW
from servers.learner.gates import RATE
from servers.learner.graph_path import GraphPath
from servers.learner.graphs import Pieces
from servers.learner.losses import STEERED, TERMS, KdSettings
from servers.learner.losses.ewc import anchor_at
from servers.learner.losses.hint import check_projector
from servers.learner.objective import TASK_ONLY, Objective, StepMetrics, check_terms, due_terms, layer_map, not_finite
from servers.learner.parts import accumulate
from servers.learner.phase import Phase, phase_of
from servers.learner.projectors import Projectors
from servers.learner.pruning import Pruning
from servers.learner.roles import Carry, Role, Roles
from servers.learner.state import Leaf, blob_of, copy_into, leaf_of, tensor_of, value_of
from servers.learner.teacher_cache import TeacherCache
from servers.models.evaluate import evaluate
from servers.models.model import Batch, Model
from servers.models.registry import build, check_pair
from syscalls.errors import RecurosError

PARTS_MAX = 64

__all__ = ["Engine", "StepMetrics", "deterministic"]


class Engine:
    """Teacher and student in one process.

    `spec`: {"teacher": model spec, "student": model spec, "optimizer": {"weight_decay", "betas", "eps"}, "clip": largest
    gradient norm (0: off), "ema": momentum, "kd": KdSettings values, "device": a torch device, the CPU when absent}. Two engines
    of one spec and seed start with the same digest.
    """

    def __init__(self, spec: dict[str, Any], seed: int, dispatcher: Dispatcher | None = None) -> None:
        deterministic(int(spec.get("threads", 1)))
        self.device = torch.device(str(spec.get("device", "cpu")))
        self._parts = 1
        torch.manual_seed(seed)
        self._generator = torch.Generator().manual_seed(seed)
        self._dispatcher = dispatcher
        self._adamw = _adamw_settings(dict(spec.get("optimizer", {})))
        self._clip = float(spec.get("clip", 1.0))
        self._kd = KdSettings().changed(**dict(spec.get("kd", {})))
        self._policy: dict[str, Any] = {}
        self._in_force: tuple[KdSettings, dict[str, Any], KdSettings] | None = None
        self.phase: Phase | None = None
        self.phase_step = self.step = self.generation = 0
        self.pruned = False  # whether the last step ended a pruning schedule
        models = {"teacher": build(dict(spec["teacher"]), self._draw())}
        models["student"] = build(_same_task(spec["student"], models["teacher"]), self._draw())
        check_pair(models["teacher"], models["student"], spec["teacher"], spec["student"])
        if models["student"].frozen:
            raise RecurosError("E2-MODEL", "a student in 8 or 4 bits cannot be trained", hint='load = "float32"')
        offload = bool(spec.get("offload_teacher")) and self.device.type != "cpu"
        self._roles = Roles(models, float(spec.get("ema", 0.99)), self.device, offload)
        self._pruning = Pruning()
        self._projectors = Projectors(self.device)
        self._objective = Objective(self._roles, self._projectors, dispatcher, seed)
        self._optimizers: dict[str, FlatAdamW] = {}
        self._trees: TreeCache = {}
        self._hooked: dict[str, tuple[nn.Module, bool]] = {}
        self.path = GraphPath()
        self._set_modes()

    @property
    def roles(self) -> dict[str, Role]:
        """Role -> model and arena, as they are now."""
        return self._roles.held

    def keep_teacher_outputs(self, cache: TeacherCache | None) -> None:
        """Serve the frozen teacher's outputs from `cache` where inputs repeat; None computes them each time."""
        self._objective.cache = cache

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

    @property
    def kd_now(self) -> KdSettings:
        """`kd` at this step of the phase."""
        return self.kd if self.phase is None else self.kd.annealed(self.phase_step, self.phase.steps_total)

    def set_kd(
        self, temperature: float = -1.0, alpha: float = -1.0, proj: str = "", mix: float = -1.0, **terms: Any
    ) -> None:
        """Change the operator's settings; -1 or "" keeps one, and what is no setting is left alone. They travel in the snapshot.

        `terms`: weights of further terms, by name, or such a map under the name "terms".
        """
        given = {"temperature": temperature, "alpha": alpha, "mix": mix, **terms, **dict(terms.get("terms") or {})}
        values: dict[str, Any] = {k: v for k, v in given.items() if k in STEERED and v != -1.0}
        if proj:
            values["proj"] = proj
        before = self._kd
        self._kd = before.changed(**values)
        try:
            self._fit_projectors()
        except RecurosError:
            self._kd = before
            raise

    def constrain(
        self, allow: Sequence[int] = (), forbid: Sequence[int] = (), implies: Any = (), weight: float = 1.0
    ) -> None:
        """Put a constraint on the student's answers in the place of the one before; without a mask and implications there is none.

        Refuses, E2-LIMIT, classes that the model does not have and constraints that leave a row nothing.
        """
        classes = self.roles["student"].model.num_classes
        left = set(allow or range(classes)) - set(forbid)
        named = {*allow, *forbid, *(c for a, b in implies for c in (a, *b))}
        if any(not 0 <= c < classes for c in named):
            raise RecurosError("E2-LIMIT", f"the constraint names class {max(named)}; the model has {classes}, from 0")
        rows = [left, *(left & set(b) for _, b in implies)]
        if not all(rows):
            raise RecurosError("E2-LIMIT", "the constraint leaves a row no class", hint="allow more classes")
        mask = sorted(left) if allow or forbid else []
        self._kd = self._kd.changed(allow=mask, implies=implies, semantic=weight)

    def apply_policy(self, settings: Mapping[str, Any]) -> None:
        """Put the policy in force for this window: {} is none; keys that are not loss settings are left alone."""
        kept = {k: v for k, v in settings.items() if k in STEERED}
        self._kd.changed(**kept)
        before, self._policy = self._policy, kept
        try:
            self._fit_projectors()
        except RecurosError:
            self._policy = before
            raise

    @property
    def place(self) -> dict[str, int]:
        """Where the phase is, in steps, and how many it has."""
        return {} if self.phase is None else {"phase_step": self.phase_step, "phase_steps": self.phase.steps_total}

    def begin(self, phase: dict[str, Any], kd: dict[str, Any] | None = None) -> None:
        """Start a phase at its first step with a fresh optimizer; `kd` changes the operator's settings."""
        found = phase_of(phase)
        if self.roles[found.train].model.frozen:
            raise RecurosError(
                "E2-MODEL",
                f"phase {found.name!r} trains the {found.train}, which is loaded in 8 or 4 bits and cannot be trained",
                hint='load = "float32", or phases with train = "student" only',
            )
        self.phase = found
        self.phase_step = 0
        self._objective.memory.forget("cka")
        if kd:
            self._kd = self._kd.changed(**kd)
        self._enter_phase()

    @property
    def micro_batches(self) -> int:
        """Parts that each batch is cut into."""
        return self._parts

    def cut_batches(self, parts: int) -> None:
        """Cut batches into at least so many parts from here on, and in every state that follows from this one."""
        if not 1 <= parts <= PARTS_MAX:
            raise RecurosError(
                "E2-LIMIT", f"{parts} parts are outside [1, {PARTS_MAX}]", hint="[device] micro-batches-max"
            )
        self._parts = max(self._parts, parts)

    @property
    def state_bytes(self) -> int:
        """Bytes that parameters, gradients, moments and averages take on the device; activations are not in it."""
        arenas = [role.arena for role in self.roles.values()]
        if self._projectors.arena is not None:
            arenas.append(self._projectors.arena)
        held = sum(a.flat.nbytes * (1 if a.grad is None else 4) for a in arenas)
        return held + self._roles.ema.nbytes

    def is_in(self, phase: dict[str, Any]) -> bool:
        """Whether `phase` is the one running."""
        return self.phase is not None and (self.phase.index, self.phase.name) == (phase_of(phase).index, phase["name"])

    # One step

    def micro_step(self, batch: Batch) -> StepMetrics:
        """One update of the role that the phase trains. E7-LOSS leaves every parameter as it was."""
        if self.phase is None:
            raise RecurosError("E2-USAGE", "no phase has begun", hint="call begin(phase) first")
        batch = {name: _aligned(values).to(self.device) for name, values in batch.items()}
        if self._dispatcher is not None:
            self._dispatcher.step(self.step)
        trains, lr = self._trainable(), self.phase.lr_at(self.phase_step)
        due = self._dispatcher is not None and self._dispatcher.due
        if (done := self.path.step(self._pieces, batch, lr, self.step, due)) is not None:
            self.roles[self.phase.train].version += 1
            self.step += 1
            self.phase_step += 1
            return done
        for arena in trains.values():
            arena.zero_grad()
        try:
            metrics = self._backward(batch, self.phase, self.kd_now)
            norm = math.sqrt(sum(float(a.grad.dot(a.grad)) for a in trains.values() if a.grad is not None))
            if not math.isfinite(norm):
                raise not_finite(self.step, "gradient", norm)
        except RecurosError:
            self._objective.memory.discard()
            raise
        self._update(trains, norm, lr)
        self._objective.memory.commit()
        self.step += 1
        self.phase_step += 1
        return StepMetrics(metrics.step, metrics.loss, norm, lr, metrics.count, metrics.terms, metrics.trace)

    def skip(self, steps: int) -> None:
        """Leave micro-steps of the phase out, as a window that was cut short does: the schedule goes on where the plan does."""
        self.phase_step += steps

    # The same step from a graph

    def graph_key(self, batch: Batch) -> str:
        """A digest of everything that a captured step has burnt in; "" when this step cannot be captured. Numbers that policies
        change are not in it."""
        pieces = self._pieces()
        facts = [{name: role.model.architecture for name, role in self.roles.items()}, self._projectors.key]
        return "" if pieces is None else pieces.key(batch, facts)

    def capture_step(self, batch: Batch) -> None:
        """Capture the step on batches of this shape; E1-NO with the reason when that cannot be done."""
        pieces = self._pieces()
        if pieces is None:
            raise RecurosError(
                "E1-NO", "the step cannot be captured: no phase has begun", hint="call begin(phase) first"
            )
        self.path.capture(pieces, {name: values.to(self.device) for name, values in batch.items()})

    def _pieces(self) -> Pieces | None:
        if self.phase is None or self._roles.teacher.model.frozen or self._roles.offload:
            return None
        kd = self.kd_now if self.phase.train == "student" else TASK_ONLY
        return Pieces(
            objective=self._objective,
            roles=self._roles,
            pruning=self._pruning,
            trains=self._trainable(),
            optimizers=self._optimizers,
            phase=self.phase,
            kd=kd,
            terms=tuple(due_terms(kd, self.phase_step)),
            teacher=self._roles.teacher.arena,
            mask=self._pruning.mask,
            clip=self._clip,
            parts=self._parts,
        )

    def _backward(self, batch: Batch, phase: Phase, kd: KdSettings) -> StepMetrics:
        """Gradients of the objective, in one part or several."""

        def loss_of(part: Batch) -> tuple[Tensor, StepMetrics]:
            return self._objective.loss(part, phase, kd, self.step, self.phase_step)

        if phase.train == "student":
            self._pruning.draw()
        if self._parts == 1:
            loss, metrics = loss_of(batch)
            loss.backward()  # type: ignore[no-untyped-call]
        else:
            metrics = accumulate(loss_of, batch, self._parts)
        if phase.train == "student" and (penalty := self._pruning.penalty()) is not None:
            penalty.backward()  # type: ignore[no-untyped-call]
            metrics.terms["l0"] = float(penalty.detach())
        return metrics

    def _update(self, trains: dict[str, Arena], norm: float, lr: float) -> None:
        scale = self._clip / norm if 0.0 < self._clip < norm else 1.0
        assert self.phase is not None
        for arena in trains.values():
            if scale != 1.0 and arena.grad is not None:
                arena.grad.mul_(scale)
        if self.phase.train == "student":
            self._pruning.score(self._roles.student, lr)
        for owner in trains:
            self._optimizers[owner].step(RATE if owner == "gate" else lr)
        self.roles[self.phase.train].version += 1
        if self.phase.train == "student":
            running = bool(self._pruning.schedule)
            self._follow_layout(self._pruning.hold(self._roles))
            self._roles.follow()
            self.pruned = running and not self._pruning.schedule

    # Roles

    def swap(self, mode: str) -> None:
        """Make the student the next teacher.

        "ema": teacher := the student's moving average, the student goes on (self-distillation). "snapshot": teacher := the student
        as it stands, the student goes on (snapshot distillation, Yang et al. 2019). "checkpoint": teacher := the student, and the
        student starts anew from a drawn seed (born-again networks, Furlanello et al. 2018). A declared layer map is given up for the
        uniform one, since the teacher's layers are others now.
        """
        if self.phase is not None and self.phase.train == "teacher":
            raise RecurosError(
                "E2-USAGE",
                f"phase {self.phase.name!r} still trains the teacher; there is no student to promote",
                hint="swap in a distillation phase",
            )
        self._follow_layout(self._pruning.settle(self._roles))
        self._roles.promote(mode)
        self._kd = self._kd.changed(layer_map=())
        memory = self._objective.memory
        memory.forget("cka")
        memory.forget("ewc")
        if mode == "checkpoint":
            self._roles.renew(self._draw())
            self._pruning.clear()
            if "student" in self._optimizers:
                self._optimizers["student"] = FlatAdamW(self._roles.student.arena, **self._adamw)
        elif self.kd.ewc > 0.0:
            anchor_at(memory, self._roles.student.arena.parameters)
        self.generation += 1
        self._fit_projectors()
        self._set_modes()

    def prune(self, spec: float | Mapping[str, Any]) -> None:
        """Prune as `syscalls.masks` describes, at once or from the next step on; a number is a share by magnitude."""
        given = dict(spec) if isinstance(spec, Mapping) else {"method": "magnitude", "target": spec}
        left = 0 if self.phase is None else self.phase.steps_total - self.phase_step
        self._follow_layout(self._pruning.begin(given, self._roles, left))
        self._set_modes()
        if self._pruning.gate_arena is not None and "gate" not in self._optimizers:
            self._optimizers["gate"] = FlatAdamW(self._pruning.gate_arena, **self._adamw)

    def _follow_layout(self, carry: Carry | None) -> None:
        """After a cut: moments move with the weights that are left, and gates that are done are forgotten."""
        if self._pruning.gate_arena is None:
            self._optimizers.pop("gate", None)
        if carry is None:
            return
        self._objective.memory.forget("ewc")
        self._set_modes()
        if (old := self._optimizers.get("student")) is not None:
            new = self._optimizers["student"] = FlatAdamW(self._roles.student.arena, **self._adamw)
            new.exp_avg.copy_(carry(old.exp_avg))
            new.exp_avg_sq.copy_(carry(old.exp_avg_sq))
            new.steps = old.steps

    @property
    def sparsity(self) -> float:
        """Share of the student's parameters that a mask holds at zero."""
        return self._pruning.sparsity(self._roles.student)

    def pruned_matrices(self) -> list[tuple[str, Tensor, Tensor]]:
        """Name, mask (1 where a weight is kept, 0 where it is pruned) and values of each matrix of the student."""
        return self._pruning.matrices(self._roles.student)

    def param_count(self, role: str) -> int:
        """Parameters of a role's model."""
        return self.roles[role].model.param_count

    def rest(self) -> None:
        """Between windows: what the device need not hold leaves it."""
        self._roles.rest()

    def fetch(self) -> None:
        """Both roles on the device."""
        self._roles.fetch()

    def evaluate(self, role: str, arrays: Batch) -> dict[str, float]:
        """Scores of "teacher", "student" or "ema" on a whole split; draws nothing and changes nothing."""
        self.fetch()
        if role == "ema":
            return evaluate(self._roles.averaged(), arrays)
        with self._dispatcher.quiet() if self._dispatcher is not None else nullcontext():
            return evaluate(self.roles[role].model, arrays)

    # State

    def capture(self) -> dict[str, Leaf]:
        """The whole state as path -> leaf. What did not change since the last capture is the same leaf, not copied again."""
        leaves = {**self._roles.capture(), **self._projectors.capture(), **self._pruning.capture()}
        for owner, optimizer in self._optimizers.items():
            leaves[f"optimizer/{owner}/exp_avg"] = leaf_of(optimizer.exp_avg)
            leaves[f"optimizer/{owner}/exp_avg_sq"] = leaf_of(optimizer.exp_avg_sq)
        leaves.update({f"loss/{name}": leaf_of(value) for name, value in self._objective.memory.kept.items()})
        leaves["rng/torch/state"] = leaf_of(torch.get_rng_state())
        leaves["rng/engine/state"] = leaf_of(self._generator.get_state())
        if self.device.type == "cuda":
            leaves["rng/cuda/state"] = leaf_of(torch.cuda.get_rng_state(self.device))
        leaves["cursor/engine/state"] = blob_of(self._cursor())
        leaves["policy/kd/state"] = blob_of({"kd": asdict(self._kd), "policy": self._policy})
        return leaves

    def digest(self) -> str:
        """The root id of the snapshot of this state, from its bytes as they are now."""
        return self.root_of(self.capture())

    def root_of(self, leaves: Mapping[str, Leaf]) -> str:
        """The root id of captured leaves."""
        return build_tree({path: leaf.id for path, leaf in leaves.items()}, self._trees)[0]

    def restore(self, leaves: Mapping[str, Leaf]) -> None:
        """Become the captured state, bit for bit, in this process or a fresh one built from the same spec."""
        cursor = value_of(leaves, "cursor/engine/state")
        settings = value_of(leaves, "policy/kd/state")
        self._kd = KdSettings().changed(**settings["kd"])
        self._policy = dict(settings["policy"])
        self.step, self.phase_step, self.generation = cursor["step"], cursor["phase_step"], cursor["generation"]
        self._parts = int(cursor.get("parts", 1))
        self.phase = None if cursor["phase"] is None else phase_of(cursor["phase"])
        self._roles.restore(leaves)
        self._pruning.restore(cursor["pruning"], self._roles.student, leaves)
        self._projectors.restore(cursor["projectors"], leaves)
        self._objective.memory.discard()
        kept = {
            path.removeprefix("loss/"): tensor_of(leaf).to(self.device)
            for path, leaf in leaves.items()
            if path.startswith("loss/")
        }
        self._objective.memory.kept = kept
        self._restore_optimizers(cursor["optimizers"], leaves)
        self._restore_generators(leaves)

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
        if self.device.type == "cuda":
            state = torch.cuda.get_rng_state(self.device)
            copy_into(state, leaves, "rng/cuda/state")
            torch.cuda.set_rng_state(state, self.device)

    def _cursor(self) -> dict[str, Any]:
        return {
            "step": self.step,
            "phase_step": self.phase_step,
            "generation": self.generation,
            "phase": None if self.phase is None else self.phase.to_map(),
            "projectors": self._projectors.key,
            "pruning": self._pruning.to_map(),
            "optimizers": {owner: optimizer.steps for owner, optimizer in self._optimizers.items()},
            **({"parts": self._parts} if self._parts > 1 else {}),
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
            if on and name == "teacher":
                self._roles.fetch()
            role.model.module.train(on)
            if on != (role.arena.grad is not None):
                role.arena.train(on)
            if self._dispatcher is not None and self._hooked.get(name) != (role.model.module, on):
                self._dispatcher.install(name, role.model.module)
                self._hooked[name] = (role.model.module, on)
        for arena in (self._projectors.arena, self._pruning.gate_arena):
            if arena is not None and (trains == "student") != (arena.grad is not None):
                arena.train(trains == "student")

    def _trainable(self) -> dict[str, Arena]:
        """Owner -> arena of everything the phase updates."""
        if self.phase is None:
            return {}
        owners = {self.phase.train: self.roles[self.phase.train].arena}
        if self.phase.train == "student":
            more = {"projector": self._projectors.arena, "gate": self._pruning.gate_arena}
            owners |= {owner: arena for owner, arena in more.items() if arena is not None}
        return owners

    @property
    def pair_names(self) -> list[str]:
        """Names of the pairs of layers that `on_kd_step` hands out."""
        return [f"{student}:{teacher}" for student, teacher in layer_map(self.kd, self._roles)]

    def _fit_projectors(self) -> None:
        """Have projectors exactly while a distillation phase has terms that use them, of the shapes that the roles have now."""
        student, teacher = (self.roles[name].model.hidden_width for name in ("student", "teacher"))
        kd = self.kd
        key: list[Any] = []
        on = [term for term in TERMS if term.coefficient(kd) > 0.0]
        needs = frozenset[str]().union(*(term.needs for term in on))
        distils = self.phase is not None and self.phase.train == "student"
        if distils:
            check_terms(on, self._roles)
        if distils and "projector" in needs:
            count = len(layer_map(kd, self._roles)) + ("embedding" in needs)
            key = [kd.proj, count, student, teacher, self.generation]
        if key == self._projectors.key:
            return
        if key:
            check_projector(kd.proj, student, teacher)
        self._optimizers.pop("projector", None)
        self._projectors.make(key, self._draw() if key else 0)
        if key:
            self._set_modes()
            if self._projectors.arena is not None:
                self._optimizers["projector"] = FlatAdamW(self._projectors.arena, **self._adamw)

    def _draw(self) -> int:
        """A seed from the engine's own generator."""
        return int(torch.randint(0, 2**31 - 1, (), generator=self._generator))


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
