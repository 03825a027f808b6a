"""Teacher and student, the student's moving average, and how one becomes the other.

Responsible for: the two roles and their arenas; swaps; capture and restore of both and of the average; on a device, one teacher at a time,
and none between windows where `offload` asks for it. Refuses: a swap of a mode that it does not know.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, nn

from servers.learner.arena import Arena, joined_name
from servers.learner.state import Leaf, blob_of, value_of
from servers.models.model import Model
from servers.models.registry import build
from servers.models.structure import Pick
from syscalls.errors import RecurosError
from syscalls.limits import SWAP_MODES

ROLES: Final = ("teacher", "student")
HOST: Final = torch.device("cpu")
ARCHITECTURES: Final = "policy/roles/state"


@dataclass
class Role:
    """A model, its arena, and a version that changes whenever its tensors may have."""

    model: Model
    arena: Arena
    version: int = 0


def _arena(model: Model) -> Arena:
    """A model's parameters; of a frozen one nothing is state, so that it has an empty one."""
    return Arena(nn.Module() if model.frozen else model.module)


def _move(role: Role, device: torch.device) -> None:
    role.arena.move(device)
    for buffer in role.model.module.buffers():
        buffer.data = buffer.data.to(device)


class Carry:
    """Takes a buffer of one arena's layout over into another's, part by part."""

    def __init__(self, old: Arena, new: Arena, picks: Mapping[str, list[Pick]]) -> None:
        self._old, self._new, self._picks = old, new, picks

    def __call__(self, flat: Tensor) -> Tensor:
        """The picked parts, laid out anew."""
        made = torch.zeros(self._new.flat.shape, dtype=flat.dtype, device=flat.device)
        views = {slot.path: view for slot, view in zip(self._old.slots, self._old.views(flat), strict=True)}
        for slot, target in zip(self._new.slots, self._new.views(made), strict=True):
            source = views[slot.path]
            for _, axis, places in self._picks.get(joined_name(slot.path), []):
                source = source.index_select(axis, places.to(source.device))
            target.copy_(source)
        return made


class Roles:
    """`held`: role -> model and arena. `ema`: the student's moving average, laid out as its arena."""

    def __init__(
        self,
        models: Mapping[str, Model],
        momentum: float,
        device: torch.device = torch.device("cpu"),  # noqa: B008
        offload: bool = False,
    ) -> None:
        self._device, self.offload = device, offload
        self._rests = False
        for model in models.values():
            model.place(device)
        self.held = {name: Role(model, _arena(model)) for name, model in models.items()}
        self.momentum = momentum
        self.ema = self.student.arena.flat.clone()
        self._cache: dict[str, tuple[int, dict[str, Leaf]]] = {}
        for role in self.held.values():
            role.arena.train(False)

    @property
    def teacher(self) -> Role:
        """Who is imitated."""
        return self.held["teacher"]

    @property
    def student(self) -> Role:
        """Who imitates."""
        return self.held["student"]

    def rest(self) -> None:
        """Lay a teacher that nothing trains into host memory, if that was asked for; `fetch` brings it back."""
        if self.offload and not self._rests and not self.teacher.model.frozen and self.teacher.arena.grad is None:
            _move(self.teacher, HOST)
            self._rests = True

    def fetch(self) -> None:
        """Have the teacher on the device, for whoever is about to run or change it."""
        if self._rests:
            self._rests = False
            _move(self.teacher, self._device)

    def follow(self) -> None:
        """One step of the moving average."""
        self.ema.lerp_(self.student.arena.flat, 1.0 - self.momentum)

    def promote(self, mode: str) -> None:
        """teacher := the student's moving average ("ema"), or the student as it stands."""
        if mode not in SWAP_MODES:
            raise RecurosError("E2-LIMIT", f"swap mode {mode!r} is unknown", hint=f"one of {', '.join(SWAP_MODES)}")
        self.fetch()
        student = self.student
        self._reshape("teacher", student.model.architecture)
        teacher = self.teacher
        teacher.arena.flat.copy_(self.ema if mode == "ema" else student.arena.flat)
        for name, buffer in teacher.arena.buffers.items():
            buffer.copy_(student.arena.buffers[name])
        teacher.version += 1

    def renew(self, seed: int) -> None:
        """A new student of the same architecture, and an average that starts at it."""
        student = self.student
        fresh = Arena(self._build(student.model.architecture, seed).module)
        student.arena.flat.copy_(fresh.flat)
        for name, buffer in student.arena.buffers.items():
            buffer.copy_(fresh.buffers[name])
        student.version += 1
        self.ema.copy_(fresh.flat)

    def averaged(self) -> Model:
        """A model of its own with the moving average for weights."""
        model = self._build(self.student.model.architecture, 0)
        Arena(model.module).flat.copy_(self.ema)
        return model

    def _build(self, architecture: dict[str, Any], seed: int) -> Model:
        model = build(architecture, seed)
        model.place(self._device)
        return model

    def shrink(self, architecture: dict[str, Any], picks: Mapping[str, list[Pick]]) -> Carry:
        """Give the student an architecture that has only a part of each tensor; returns what does the same to other buffers."""
        old = self.student
        model = self._build(architecture, 0)
        new = Role(model, Arena(model.module), old.version + 1)
        carry = Carry(old.arena, new.arena, picks)
        new.arena.flat.copy_(carry(old.arena.flat))
        for name, buffer in new.arena.buffers.items():
            buffer.copy_(old.arena.buffers[name])
        self.ema = carry(self.ema)
        self.held["student"] = new
        new.arena.train(False)
        return carry

    def _reshape(self, role: str, architecture: dict[str, Any]) -> None:
        """Give the role this architecture; its weights are whatever the builder made of seed 0 until they are written."""
        if self.held[role].model.architecture != architecture:
            if role == "teacher" and self._device != HOST and not self.held[role].model.frozen:
                self.held[role].arena.train(False)
                _move(self.held[role], HOST)  # the old one and the new one are not on the device at one time
            model = self._build(architecture, 0)
            self.held[role] = Role(model, _arena(model), self.held[role].version + 1)
            self.held[role].arena.train(False)

    # State

    def capture(self) -> dict[str, Leaf]:
        """Leaves of both roles and the average. What did not change since the last capture is the same leaf."""
        leaves: dict[str, Leaf] = {}
        for name, role in self.held.items():
            leaves.update(self._cached(name, role.version, role.arena, role.arena.flat))
            leaves.update(role.arena.buffer_leaves(name) if role.arena.buffers else {})
        leaves.update(self._cached("ema", self.student.version, self.student.arena, self.ema))
        leaves[ARCHITECTURES] = blob_of({name: role.model.architecture for name, role in self.held.items()})
        return leaves

    def restore(self, leaves: Mapping[str, Leaf]) -> None:
        """Inverse of `capture`."""
        architectures = value_of(leaves, ARCHITECTURES)
        self.fetch()
        self._cache.clear()
        for name in ROLES:
            self._reshape(name, architectures[name])
            role = self.held[name]
            role.arena.load(name, role.arena.flat, leaves)
            role.arena.load_buffers(name, leaves)
            role.version += 1
        self.ema = torch.zeros_like(self.student.arena.flat)
        self.student.arena.load("ema", self.ema, leaves)

    def _cached(self, role: str, version: int, arena: Arena, flat: Tensor) -> dict[str, Leaf]:
        known = self._cache.get(role)
        if known is None or known[0] != version:
            known = self._cache[role] = (version, arena.leaves(role, flat))
        return known[1]
