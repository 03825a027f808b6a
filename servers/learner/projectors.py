"""The learned maps from the student's hidden widths to the teacher's.

Responsible for: having projectors of exactly the shapes that a key describes, their arena, and their way into a snapshot. Refuses:
what `losses.hint.check_projector` refuses.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from servers.learner.arena import Arena
from servers.learner.losses.hint import build_projectors
from servers.learner.state import Leaf

Key = list[Any]
"""[kind, number of projectors, student width, teacher width, generation]; [] is no projectors."""


class Projectors:
    """`modules`: one phi per mapped layer, and one for the embeddings where a term compares them.

    `arena`: None when nothing of them is learned.
    """

    def __init__(self, device: torch.device | None = None) -> None:
        self._device = device or torch.device("cpu")
        self.modules = nn.ModuleList()
        self.arena: Arena | None = None
        self.key: Key = []

    def make(self, key: Key, seed: int) -> None:
        """Become the projectors that `key` describes, with fresh weights; [] drops them."""
        self.modules, self.arena, self.key = nn.ModuleList(), None, []
        if not key:
            return
        kind, count, student_width, teacher_width, _generation = key
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.modules = build_projectors(kind, count, student_width, teacher_width).to(self._device)
        self.key = list(key)
        if kind != "none":
            self.arena = Arena(self.modules)
            self.arena.train(False)

    def capture(self) -> dict[str, Leaf]:
        """Their leaves."""
        return {} if self.arena is None else self.arena.leaves("projector", self.arena.flat)

    def restore(self, key: Key, leaves: Mapping[str, Leaf]) -> None:
        """Inverse of `capture`; `key` travels in the cursor."""
        self.make(key, seed=0)
        if self.arena is not None:
            self.arena.load("projector", self.arena.flat, leaves)
