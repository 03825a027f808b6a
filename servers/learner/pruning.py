"""Pruning of the student: what goes, when, and the mask that holds from then on.

    magnitude   the smallest weights, at once
    movement    S -= lr * dL/dW * W from a tenth of the schedule on; over its last third the share rises by a cubic to the target, and what
                has the lowest signed S is zero (Sanh, Wolf and Rush 2020, equations 3 and 6): weights that move away from zero stay
    l0          gates over heads and neurons are learned (`gates`); at the schedule's end the least open ones go
    heads       named heads, or those whose output weights are smallest, at once

Afterwards distillation goes on with what is left (the refit). Heads and neurons are removed from models that can be smaller, and zeroed
where they cannot; weights are zeroed. Responsible for: schedule, scores, gates, mask and their way into a snapshot.
Refuses: shares outside their bounds, heads that are not there, a second schedule beside one that runs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import torch
from torch import Tensor

from servers.learner.arena import Arena, joined_name
from servers.learner.gates import Gates
from servers.learner.roles import Carry, Role, Roles
from servers.learner.state import Leaf, copy_into, leaf_of
from servers.models.structure import Units, removable, smaller, structure_of
from syscalls import masks
from syscalls.errors import RecurosError

MASK: Final = "mask/student/flat"
SCORES: Final = "mask/movement/scores"
WARMUP: Final = 0.1
RAMP: Final = 1.0 / 3.0
RAMP_EVERY: Final = 5
"""Steps between two choices of the mask while the share rises."""
STEPS_SHARE: Final = 0.8
"""Of what is left of the phase, where a schedule has no length of its own: the rest refits."""


class Pruning:
    """`mask`: 1 where a weight is kept, 0 where it is pruned; None while nothing is. `schedule`: of movement or l0, while it runs.

    `removed`: heads, neurons and parameters that the student's architecture has lost in this run.
    """

    def __init__(self) -> None:
        self.removed = {"heads": 0, "neurons": 0, "parameters": 0}
        self.mask: Tensor | None = None
        self.schedule: dict[str, Any] = {}
        self.scores: Tensor | None = None
        self.gates: Gates | None = None
        self.gate_arena: Arena | None = None

    def begin(self, spec: Mapping[str, Any], roles: Roles, steps_left: int) -> Carry | None:
        """Prune at once, or begin a schedule. Returns what became of the arena's layout, if that changed."""
        spec = masks.checked(spec)
        if self.schedule:
            done, steps = self.schedule["done"], self.schedule["steps"]
            raise RecurosError(
                "E2-USAGE",
                f"pruning by {self.schedule['method']} is at step {done} of {steps}",
                hint="prune again when it is done",
            )
        if spec["method"] == "magnitude":
            self._zero_lowest(roles, roles.student.arena.flat.abs(), spec["target"])
            return None
        if spec["method"] == "heads":
            units = _units(roles.student)
            return self._cut(roles, units, _heads_kept(roles.student, units, spec))
        units = _units(roles.student) if spec["method"] == "l0" else []
        steps = int(spec.get("steps", max(masks.STEPS_MIN, int(STEPS_SHARE * steps_left))))
        self.schedule = {"weight": 1.0, **spec, "steps": steps, "done": 0}
        if spec["method"] == "movement":
            self.scores = torch.zeros_like(roles.student.arena.flat)
        else:
            self._make_gates(roles.student, units)
        return None

    def draw(self) -> None:
        """Before a step's forward pass."""
        if self.gates is not None:
            self.gates.draw()

    def penalty(self) -> Tensor | None:
        """What gates add to the loss."""
        if self.gates is None:
            return None
        return self.gates.penalty(self.schedule["target"], self.schedule["weight"])

    def score(self, student: Role, lr: float) -> None:
        """Before an update, with the gradients it is made of."""
        grad = student.arena.grad
        if self.scores is not None and grad is not None and self.schedule["done"] >= WARMUP * self.schedule["steps"]:
            self.scores.addcmul_(grad, student.arena.flat, value=-lr)

    def hold(self, roles: Roles) -> Carry | None:
        """After an update: what is pruned stays zero, and the schedule goes on."""
        carry = None
        if self.schedule:
            self.schedule["done"] += 1
            carry = self._advance(roles)
        if self.mask is not None:
            roles.student.arena.flat.mul_(self.mask)
        return carry

    def _advance(self, roles: Roles) -> Carry | None:
        done, steps, target = (self.schedule[k] for k in ("done", "steps", "target"))
        last = done >= steps
        if self.scores is not None:
            share = movement_share(done / steps, target)
            if last or (share > 0.0 and done % RAMP_EVERY == 0):
                self._zero_lowest(roles, self.scores, share)
            if last:
                self.schedule, self.scores = {}, None
            return None
        return self._open_for_good(roles) if last else None

    # What goes

    def _zero_lowest(self, roles: Roles, scores: Tensor, share: float) -> None:
        """Zero the `share` of the student's matrix weights with the lowest scores; ties go by place. Anything else is kept."""
        if not 0.0 <= share < 1.0:
            raise RecurosError("E2-LIMIT", f"sparsity {share} is outside [0, 1)", hint="choose a share such as 0.5")
        student = roles.student
        candidates = torch.zeros_like(student.arena.flat, dtype=torch.bool)
        for view in student.arena.views(candidates):
            view.fill_(view.dim() > 1)
        places = candidates.nonzero()[:, 0]
        count = int(share * len(places))
        self.mask = None
        if count:
            self.mask = torch.ones_like(student.arena.flat)
            self.mask[places[torch.argsort(scores[places], stable=True)[:count]]] = 0.0
        self._apply(roles)

    def _apply(self, roles: Roles) -> None:
        if self.mask is not None:
            roles.student.arena.flat.mul_(self.mask)
            roles.ema.mul_(self.mask)
        roles.student.version += 1

    def _open_for_good(self, roles: Roles) -> Carry | None:
        """The end of l0: open gates become a part of the weights that read them, the least open units go."""
        assert self.gates is not None
        units, gates = self.gates.units, self.gates
        gates.remove()
        keep = _most_open([a.detach() for a in gates.log_a], units, self.schedule["target"])
        for flat in (roles.student.arena.flat, roles.ema):
            views = _named(roles.student.arena, flat)
            for unit, z in zip(units, gates.settled(), strict=True):
                name, axis = unit.reads
                wide = z.repeat_interleave(unit.size)
                views[name].mul_(wide if axis == 1 else wide[:, None])
        self.schedule, self.gates, self.gate_arena = {}, None, None
        return self._cut(roles, units, keep)

    def _cut(self, roles: Roles, units: list[Units], keep: list[Tensor]) -> Carry | None:
        """Zero every unit that is not in `keep`, and remove those that this kind of model can do without."""
        student = roles.student
        mask = torch.ones_like(student.arena.flat) if self.mask is None else self.mask
        views = _named(student.arena, mask)
        for unit, kept in zip(units, keep, strict=True):
            gone = torch.tensor([i for i in range(unit.count) if i not in set(kept.tolist())], dtype=torch.int64)
            for name, axis, places in unit.picks(gone) if len(gone) else ():
                views[name].index_fill_(axis, places.to(mask.device), 0.0)
        self.mask = mask
        self._apply(roles)
        left = removable(student.model, units, keep)
        if left is None:
            return None
        carry = roles.shrink(*smaller(student.model, units, left))
        for unit, kept in zip(units, left, strict=True):
            self.removed[unit.kind] += unit.count - len(kept)
        self.removed["parameters"] += student.model.param_count - roles.student.model.param_count
        self.mask = carry(mask)
        # Padding of the new layout is zero in the mask and in everything else.
        if all(bool(view.all()) for view in roles.student.arena.views(self.mask)):
            self.mask = None
        return carry

    def settle(self, roles: Roles) -> Carry | None:
        """Before the student is promoted: gates that are still learned end here, since a teacher has none."""
        return None if self.gates is None else self._open_for_good(roles)

    def clear(self) -> None:
        """A new student has nothing pruned."""
        if self.gates is not None:
            self.gates.remove()
        self.mask, self.schedule, self.scores, self.gates, self.gate_arena = None, {}, None, None, None

    # What there is to see

    def matrices(self, student: Role) -> list[tuple[str, Tensor, Tensor]]:
        """Name, mask and values of each matrix of the student."""
        arena = student.arena
        mask = torch.ones_like(arena.flat) if self.mask is None else self.mask
        rows = zip(arena.slots, arena.views(mask), arena.views(arena.flat), strict=True)
        return [(slot.path, kept, values) for slot, kept, values in rows if len(slot.shape) > 1]

    def sparsity(self, student: Role) -> float:
        """Share of the student's parameters that the mask holds at zero."""
        if self.mask is None:
            return 0.0
        views = student.arena.views(self.mask)
        return 1.0 - sum(float(v.sum()) for v in views) / sum(v.numel() for v in views)

    # State

    def capture(self) -> dict[str, Leaf]:
        """Mask, scores and gates, where there are any; schedule and counts travel in the cursor."""
        leaves: dict[str, Leaf] = {}
        if self.mask is not None:
            leaves[MASK] = leaf_of(self.mask.to(torch.uint8))
        if self.scores is not None:
            leaves[SCORES] = leaf_of(self.scores)
        if self.gate_arena is not None:
            leaves.update(self.gate_arena.leaves("gate", self.gate_arena.flat))
        return leaves

    def to_map(self) -> dict[str, Any]:
        """The part of the state that is no tensor."""
        return {"schedule": self.schedule, "removed": self.removed}

    def restore(self, state: Mapping[str, Any], student: Role, leaves: Mapping[str, Leaf]) -> None:
        """Inverse of `capture` and `to_map`."""
        self.clear()
        self.schedule, self.removed = dict(state["schedule"]), dict(state["removed"])
        shape = student.arena.flat
        if MASK in leaves:
            mask = torch.zeros(shape.shape, dtype=torch.uint8)
            copy_into(mask, leaves, MASK)
            self.mask = mask.to(shape)
        if self.schedule.get("method") == "movement":
            self.scores = torch.zeros_like(shape)
            copy_into(self.scores, leaves, SCORES)
        elif self.schedule:
            self._make_gates(student, structure_of(student.model))
            assert self.gate_arena is not None
            self.gate_arena.load("gate", self.gate_arena.flat, leaves)

    def _make_gates(self, student: Role, units: list[Units]) -> None:
        self.gates = Gates(units).to(student.arena.flat.device)
        self.gate_arena = Arena(self.gates)
        self.gate_arena.train(False)
        self.gates.install(student.model.module)


def _units(student: Role) -> list[Units]:
    """The student's units; that they are not known is the fault of who asked (E2-USAGE), and nothing is changed."""
    try:
        return structure_of(student.model)
    except RecurosError as error:
        raise RecurosError("E2-USAGE", f"rl_prune: {error.message}", hint=error.hint) from error


def movement_share(done: float, target: float) -> float:
    """Share that is pruned when `done` of the schedule is over: 0, then a cubic over the last third up to the target."""
    left = min(1.0, max(0.0, (1.0 - done) / RAMP))
    return target * (1.0 - left**3)


def _named(arena: Arena, flat: Tensor) -> dict[str, Tensor]:
    return {joined_name(slot.path): view for slot, view in zip(arena.slots, arena.views(flat), strict=True)}


def _heads_kept(student: Role, units: list[Units], spec: Mapping[str, Any]) -> list[Tensor]:
    """Indices of the units that stay: of heads those not named, or not among the weakest; of neurons all."""
    gone: set[tuple[int, int]]
    if "heads" in spec:
        gone = {(layer, head - 1) for layer, head in spec["heads"]}
        counts = {u.layer: u.count for u in units if u.kind == "heads"}
        for layer, head in sorted(gone):
            if head >= counts.get(layer, 0):
                raise RecurosError(
                    "E2-USAGE",
                    f"rl_prune: layer {layer} has no head {head + 1}",
                    hint="the student's layers have "
                    + ", ".join(f"{n}: {c}" for n, c in sorted(counts.items()))
                    + " heads",
                )
        for layer, count in counts.items():
            if sum(at == layer for at, _ in gone) == count:
                raise RecurosError(
                    "E2-USAGE", f"rl_prune: no head would be left in layer {layer}", hint="leave one head a layer"
                )
        return [
            torch.tensor([i for i in range(u.count) if u.kind != "heads" or (u.layer, i) not in gone]) for u in units
        ]
    views = _named(student.arena, student.arena.flat)
    strength = [
        views[u.reads[0]].movedim(u.reads[1], 0).reshape(u.count, -1).norm(dim=1)
        if u.kind == "heads"
        else torch.ones(u.count)
        for u in units
    ]
    return _most_open(strength, units, spec["target"], kinds=("heads",))


def _most_open(
    strength: list[Tensor], units: list[Units], target: float, kinds: tuple[str, ...] = ("heads", "neurons")
) -> list[Tensor]:
    """Of each kind leave out int(target * all) units of the lowest strength; each layer keeps its strongest one."""
    gone: list[set[int]] = [set() for _ in units]
    for kind in kinds:
        rows = [
            (float(value), number, i)
            for number, (unit, values) in enumerate(zip(units, strength, strict=True))
            if unit.kind == kind
            for i, value in enumerate(values)
        ]
        wanted = int(target * len(rows))
        for _, number, i in sorted(rows):
            if wanted == 0:
                break
            if len(gone[number]) < units[number].count - 1:
                gone[number].add(i)
                wanted -= 1
    return [torch.tensor([i for i in range(u.count) if i not in out]) for u, out in zip(units, gone, strict=True)]
