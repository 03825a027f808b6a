"""Pruning of the student: a mask over its arena that holds from then on.

Responsible for: choosing what goes, zeroing it in student and average, and the mask's way into a snapshot. Refuses: a sparsity
outside [0, 1).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from servers.learner.roles import Role, Roles
from servers.learner.state import Leaf, copy_into, leaf_of
from syscalls.errors import RecurosError

MASK = "mask/student/flat"


class Pruning:
    """The mask in force: 1 where a weight is kept, 0 where it is pruned; None while nothing is."""

    def __init__(self) -> None:
        self.mask: Tensor | None = None

    def magnitude(self, roles: Roles, sparsity: float) -> None:
        """Zero the smallest `sparsity` of the student's matrix weights by magnitude."""
        if not 0.0 <= sparsity < 1.0:
            raise RecurosError("E2-LIMIT", f"sparsity {sparsity} is outside [0, 1)", hint="choose a share such as 0.5")
        student = roles.student
        candidates = torch.zeros_like(student.arena.flat, dtype=torch.bool)
        for view in student.arena.views(candidates):
            view.fill_(view.dim() > 1)
        magnitudes = student.arena.flat.abs()[candidates]
        count = int(sparsity * magnitudes.numel())
        mask = torch.ones_like(student.arena.flat)
        if count:
            order = torch.argsort(magnitudes, stable=True)[:count]
            mask[candidates.nonzero()[:, 0][order]] = 0.0
        self.mask = mask if count else None
        student.arena.flat.mul_(mask)
        roles.ema.mul_(mask)
        student.version += 1

    def hold(self, student: Role) -> None:
        """After an update: what is pruned stays zero."""
        if self.mask is not None:
            student.arena.flat.mul_(self.mask)

    def clear(self) -> None:
        """A new student has nothing pruned."""
        self.mask = None

    def matrices(self, student: Role) -> list[tuple[str, Tensor, Tensor]]:
        """Name, mask and values of each matrix of the student."""
        arena = student.arena
        mask = torch.ones_like(arena.flat) if self.mask is None else self.mask
        rows = zip(arena.slots, arena.views(mask), arena.views(arena.flat), strict=True)
        return [(slot.path, kept, values) for slot, kept, values in rows if len(slot.shape) > 1]

    def capture(self) -> dict[str, Leaf]:
        """The mask as a leaf, when there is one."""
        return {} if self.mask is None else {MASK: leaf_of(self.mask.to(torch.uint8))}

    def restore(self, student: Role, leaves: Mapping[str, Leaf]) -> None:
        """Inverse of `capture`."""
        self.mask = None
        if MASK in leaves:
            mask = torch.zeros(student.arena.flat.shape, dtype=torch.uint8)
            copy_into(mask, leaves, MASK)
            self.mask = mask.to(student.arena.flat)
