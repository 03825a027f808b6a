"""A batch in several parts: gradients add up over the parts, so that a batch that does not fit memory still makes one update.

Responsible for: cutting, and the weights that make the sum of the parts' means the mean of the whole. Sums are in another order than
those of the whole batch, so the last bits differ; the number of parts is in the ledger. Terms that compare samples with each other
(CKA, relational distances) see the samples of their part only. Refuses: parts without a sample.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
from torch import Tensor

from servers.learner.objective import StepMetrics
from servers.learner.trace import Seen
from servers.models.model import Batch

Loss = Callable[[Batch], tuple[Tensor, StepMetrics]]


def cut(batch: Batch, parts: int) -> Iterator[tuple[Batch, float]]:
    """At most `parts` parts of a batch, each with its share of the sample weights."""
    count = next(iter(batch.values())).shape[0]
    weight = batch.get("weight")
    total = float(count if weight is None else weight.sum())
    size = -(-count // parts)
    for start in range(0, count, size):
        part = {name: values[start : start + size] for name, values in batch.items()}
        mass = float(part["weight"].sum()) if weight is not None else min(size, count - start)
        yield part, mass / total


def accumulate(loss_of: Loss, batch: Batch, parts: int) -> StepMetrics:
    """Gradients of the whole batch's objective, part by part; metrics as if it had been one."""
    done: list[tuple[float, StepMetrics]] = []
    for part, share in cut(batch, parts):
        loss, metrics = loss_of(part)
        (loss * share).backward()  # type: ignore[no-untyped-call]
        done.append((share, metrics))
    first = done[0][1]
    names = {name for _, m in done for name in m.terms}
    return replace(
        first,
        loss=sum(share * m.loss for share, m in done),
        count=sum(m.count for _, m in done),
        terms={name: sum(share * m.terms.get(name, 0.0) for share, m in done) for name in sorted(names)},
        trace=_joined([m for _, m in done]),
    )


def _joined(done: list[StepMetrics]) -> Seen | dict[str, Tensor] | None:
    """One trace of all parts."""
    seen = [m.trace for m in done if isinstance(m.trace, Seen)]
    if seen:
        return Seen(*(torch.cat(column) for column in zip(*seen, strict=True)))
    tables = [m.trace for m in done if isinstance(m.trace, dict)]
    return {name: torch.cat([t[name] for t in tables]) for name in tables[0]} if tables else None
