"""The model as a helper at a window's end may see it: to run, not to change.

Responsible for: `Subject`, what the learner hands out, and `examining`, under which every look at it happens: evaluation mode, a fork
of the random generator, no hook of any probe. Afterwards modes are as before, no gradient was accumulated and no random number of
the run was drawn, so that a run with such looks has the very same bits as one without (a test compares them).
Refuses: to hand out optimizers, arenas and masks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

Batch = Mapping[str, Tensor]
Rows = tuple[Tensor, Tensor]
"""Logits [n, classes] of the rows that have a target, and the targets [n]."""


@dataclass(frozen=True, slots=True)
class Subject:
    """`modules`: by role ("student", "teacher"); `forward(role, batch)`: its rows; `batch`: the last one that was trained on.

    `quiet()`: a context in which no probe fires. `pairs`: mapped layers (student's, teacher's) counted from 1; `generation`: of roles;
    `teacher_version`: another one whenever the teacher's weights may be others.
    """

    modules: Mapping[str, nn.Module]
    forward: Callable[[str, Batch], Rows]
    batch: Batch
    quiet: Callable[[], AbstractContextManager[None]]
    pairs: tuple[tuple[int, int], ...] = ()
    generation: int = 0
    teacher_version: int = 0

    @property
    def trained(self) -> list[Tensor]:
        """The student's parameters that learn; none while another role does."""
        return [p for p in self.modules["student"].parameters() if p.requires_grad]

    def some(self, most: int) -> dict[str, Tensor]:
        """At most `most` samples of the batch at even distances, copied, as one batch."""
        size = min((len(column) for column in self.batch.values()), default=0)
        taken = min(size, most)
        at = torch.tensor([n * size // taken for n in range(taken)], dtype=torch.int64)
        return {name: column.index_select(0, at.to(column.device)) for name, column in self.batch.items()}

    def samples(self, most: int) -> list[dict[str, Tensor]]:
        """At most `most` samples of the batch at even distances, each a batch of one."""
        size = min((len(column) for column in self.batch.values()), default=0)
        taken = min(size, most)
        at = [n * size // taken for n in range(taken)]
        return [{name: column[i : i + 1] for name, column in self.batch.items()} for i in at]


@contextmanager
def examining(modules: Iterable[nn.Module], quiet: Callable[[], AbstractContextManager[None]]) -> Iterator[None]:
    """Look at models; everything is put back as it was, also when the look raises. `quiet` as in `Subject`."""
    roots = list(modules)
    modes = {module: module.training for root in roots for module in root.modules()}
    with quiet(), torch.random.fork_rng(devices=[]), torch.enable_grad():
        for root in roots:
            root.eval()
        try:
            yield
        finally:
            for module, training in modes.items():
                module.training = training
