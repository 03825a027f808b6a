"""The choice between a captured step and the dynamic one, step by step, and how often each ran.

Responsible for: letting a graph go the moment the step is no longer the captured one (swap, prune, restore, another phase, another
term); the dynamic path for single steps that only differ by themselves: a probe is due, or the batch has another shape. So attaching
or detaching a probe costs no capture. Refuses: to replay what it has not compared.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from servers.learner.graphs import Pieces, StepGraph
from servers.learner.objective import StepMetrics, not_finite
from servers.models.model import Batch
from syscalls.errors import RecurosError


class GraphPath:
    """`graph`: the captured step, None while there is none."""

    def __init__(self) -> None:
        self.graph: StepGraph | None = None
        self._told: dict[str, Any] = {"replayed": 0, "dynamic": 0}

    def capture(self, pieces: Pieces, batch: Batch) -> None:
        """Capture the step; E1-NO with the reason when that cannot be done."""
        self.graph = None
        if reason := pieces.why_not:
            raise RecurosError("E1-NO", f"the step cannot be captured: {reason}", hint="it runs on the dynamic path")
        self.graph = StepGraph(pieces, batch)
        self._told["captured"] = True

    def drop(self, reason: str = "") -> None:
        """Take the dynamic path from here on; a reason is counted as a fallback."""
        self.graph = None
        if reason:
            self._told["fallback"] = reason

    def take(self) -> dict[str, Any]:
        """What happened since this was last asked: steps `replayed` and `dynamic`, `captured`, `fallback`."""
        told, self._told = self._told, {"replayed": 0, "dynamic": 0}
        return told

    def step(
        self, pieces_of: Callable[[], Pieces | None], batch: Batch, lr: float, step: int, due: bool
    ) -> StepMetrics | None:
        """Replay this step; None when it must take the dynamic path. `due`: a probe fires in it, which a replay would not do."""
        if self.graph is None:
            self._told["dynamic"] += 1
            return None
        pieces = pieces_of()
        if pieces is None or pieces.why_not or not self.graph.pieces.same(pieces):
            self.drop("the step changed since the capture")
        if self.graph is None or pieces is None or due or not self.graph.takes(batch):
            self._told["dynamic"] += 1
            return None
        loss, norm, *values = self.graph.replay(batch, pieces, lr)
        named = {term.name: value for (term, _), value in zip(pieces.terms, values, strict=True)}
        for what, value in (*named.items(), ("sum of terms", loss), ("gradient", norm)):
            if not math.isfinite(value):
                raise not_finite(step, what, value, "it was replayed from a graph, and its window rolls back")
        seen = self.graph.seen()
        count = len(next(iter(batch.values()))) if seen is None else len(seen.targets)
        self._told["replayed"] += 1
        return StepMetrics(step, loss, norm, lr, count, named, seen)
