"""One training step as a CUDA graph: captured once, replayed with other inputs.

Responsible for: a body without a wait for the device; static tensors for everything that differs from step to step (batch, learning
rate, weights of the terms, temperature), so that a policy's new number needs no new capture; what a replay leaves behind for metrics
and trace. On the CPU `replay` runs the body itself, which is how it is tested without a device.
Refuses: steps that a graph cannot hold (E1-NO with the reason). A replayed step whose loss or gradient is not finite has been made
before anybody could look; its window rolls back.

The gradient's norm is computed on the device in single precision, on the dynamic path on the host in double: parameters of both
paths agree within a tolerance, not bit for bit. The ledger says how many steps of a window were replayed.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Final

import torch
from torch import Tensor

from servers.learner.arena import Arena, FlatAdamW
from servers.learner.losses import KdSettings, Term
from servers.learner.objective import Objective
from servers.learner.phase import Phase
from servers.learner.pruning import Pruning
from servers.learner.roles import Roles
from servers.learner.trace import Seen
from servers.models.model import Batch
from syscalls.errors import RecurosError

CAPTURABLE: Final = frozenset({"task", "kd", "hint", "cosine"})
"""Terms that read nothing but the rows: no second pass, nothing remembered, no choice made on the host."""
WARM_UP: Final = 3


@dataclass(frozen=True)
class Pieces:
    """What a step is made of. A graph holds for exactly these objects: `same` tells whether they still are the engine's."""

    objective: Objective
    roles: Roles
    pruning: Pruning
    trains: Mapping[str, Arena]
    optimizers: Mapping[str, FlatAdamW]
    phase: Phase
    terms: tuple[tuple[Term, float], ...]
    teacher: Arena
    mask: Tensor | None
    clip: float
    kd: KdSettings
    parts: int = 1

    def same(self, other: Pieces) -> bool:
        """Whether the same tensors and the same terms make up the step; coefficients may differ."""
        if [t.name for t, _ in self.terms] != [t.name for t, _ in other.terms]:
            return False
        mappings = all(
            mine.keys() == theirs.keys() and all(mine[k] is theirs[k] for k in mine)
            for mine, theirs in ((self.trains, other.trains), (self.optimizers, other.optimizers))
        )
        alone = ("objective", "roles", "pruning", "phase", "teacher", "mask")
        return mappings and all(getattr(self, name) is getattr(other, name) for name in alone)

    @property
    def why_not(self) -> str:
        """Why this step cannot be captured; empty when it can."""
        names = [term.name for term, _ in self.terms if term.name not in CAPTURABLE]
        if names:
            return f"the term {names[0]} makes choices on the host"
        if self.pruning.schedule:
            return "a pruning schedule changes the mask as it goes"
        return f"batches are cut into {self.parts} parts" if self.parts > 1 else ""

    def key(self, batch: Batch, more: Any) -> str:
        """A digest of what a capture would burn in, "" when there can be none. Equal keys in two windows mean a steady step."""
        if self.why_not:
            return ""
        facts = [
            {name: list(values.shape) for name, values in sorted(batch.items())},
            [term.name for term, _ in self.terms],
            [self.phase.train, self.phase.label_smoothing, self.mask is not None],
            more,
        ]
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


class StepGraph:
    """A captured step. `batch` shows the shapes; temperature and weights of `pieces` are those to begin with."""

    def __init__(self, pieces: Pieces, batch: Batch) -> None:
        self.pieces, kd = pieces, pieces.kd
        self._batch = {name: values.clone() for name, values in batch.items()}
        device = next(iter(batch.values())).device
        self._lr = torch.zeros((), device=device)
        self._temperature = torch.full((), kd.temperature, device=device)
        self._weights = torch.tensor([weight for _, weight in pieces.terms], device=device)
        self._told: tuple[float, ...] = ()
        self._kd = _with_temperature(kd, self._temperature)
        self._numbers = torch.zeros(2 + len(pieces.terms), device=device)
        self._seen: tuple[Tensor, Tensor, Tensor] | None = None
        self._graph = _captured(self, device) if device.type == "cuda" else None

    def takes(self, batch: Batch) -> bool:
        """Whether a batch has the captured shapes."""
        mine = self._batch
        return batch.keys() == mine.keys() and all(batch[n].shape == v.shape for n, v in mine.items())

    def replay(self, batch: Batch, now: Pieces, lr: float) -> list[float]:
        """One step on `batch` with the temperature and weights of `now`: [loss, gradient norm, value of each term]."""
        for name, values in batch.items():
            self._batch[name].copy_(values, non_blocking=True)
        self._lr.fill_(lr)
        told = (now.kd.temperature, *(weight for _, weight in now.terms))
        if told != self._told:
            self._told = told
            self._temperature.fill_(now.kd.temperature)
            self._weights.copy_(torch.tensor(told[1:]))
        if self._graph is None:
            self.body()
        else:
            self._graph.replay()
        numbers: list[float] = self._numbers.tolist()
        return numbers

    def seen(self) -> Seen | None:
        """The rows of the last replay, copied out of the graph's memory."""
        if self._seen is None:
            return None
        student, teacher, targets = (values.clone() for values in self._seen)
        ids = self._batch.get("ids")
        return Seen(student, teacher, targets, torch.full_like(targets, -1) if ids is None else ids.clone())

    def body(self) -> None:
        """The step itself; nothing in it waits for the device."""
        p = self.pieces
        for arena in p.trains.values():
            arena.zero_grad()
        loss, values = self.forward()
        loss.backward()  # type: ignore[no-untyped-call]
        grads = [arena.grad for arena in p.trains.values() if arena.grad is not None]
        norm = torch.stack([grad.dot(grad) for grad in grads]).sum().sqrt()
        if p.clip > 0.0:
            scale = (p.clip / norm).clamp(max=1.0)
            for grad in grads:
                grad.mul_(scale)
        for owner in p.trains:
            p.optimizers[owner].step(self._lr)
        if p.phase.train == "student":
            if p.mask is not None:
                p.roles.student.arena.flat.mul_(p.mask)
            p.roles.follow()
        self._numbers.copy_(torch.cat((torch.stack((loss.detach(), norm)), values)))

    def forward(self) -> tuple[Tensor, Tensor]:
        """The objective and its terms."""
        p = self.pieces
        loss, values, self._seen = p.objective.tensors(self._batch, p.phase, self._kd, p.terms, self._weights)
        return loss, values


def _captured(step: StepGraph, device: torch.device) -> torch.cuda.CUDAGraph:
    """Warm up on a side stream (forward and backward only: no parameter moves), then capture into a private pool."""
    random = torch.cuda.get_rng_state(device)
    try:
        side = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(side):
            for _ in range(WARM_UP):
                step.forward()[0].backward()  # type: ignore[no-untyped-call]
        torch.cuda.current_stream(device).wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            step.body()
    except RuntimeError as error:
        raise RecurosError(
            "E1-NO",
            f"the step cannot be captured: {str(error).splitlines()[0]:.200}",
            hint="it runs on the dynamic path",
        ) from error
    finally:
        torch.cuda.set_rng_state(random, device)
    return graph


def _with_temperature(kd: KdSettings, temperature: Tensor) -> KdSettings:
    """Settings whose temperature is a device tensor: checked before as the number that it holds, and by no limit here."""
    held = copy.copy(kd)
    assert "temperature" in {f.name for f in fields(KdSettings)}
    object.__setattr__(held, "temperature", temperature)
    return held
