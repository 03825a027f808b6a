"""What the Observer may see of a step: a few numbers per row.

Responsible for: the columns of the trace, sampled to at most 64 rows a step for language models. Refuses: to carry logits,
inputs or parameters.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from servers.learner.state import DTYPES

ROWS_MAX = 64
"""Rows of one step for sequence tasks; a classifier's batch is taken whole."""

# name -> safetensors dtype
COLUMNS: dict[str, str] = {
    "id": "I64",
    "label_ok": "U8",
    "confidence": "F32",
    "entropy_s": "F32",
    "entropy_t": "F32",
    "kl": "F32",
    "agree": "U8",
}

Trace = dict[str, Tensor]


class Seen(NamedTuple):
    """The rows of one step before anything is computed of them: logits [N, C] without their graph; targets and ids [N]."""

    student: Tensor
    teacher: Tensor
    targets: Tensor
    ids: Tensor


@torch.no_grad()
def trace_rows(student: Tensor, teacher: Tensor, targets: Tensor, ids: Tensor) -> Trace:
    """Columns at temperature 1, in nats. student, teacher: logits [N, C]; targets, ids: [N]."""
    both = torch.stack((student.detach(), teacher))
    log_p = torch.log_softmax(both, dim=-1)
    p = log_p.exp()
    top, guess = p.max(dim=-1)
    entropy = -(p * log_p).sum(dim=-1)
    kl = (p[1] * (log_p[1] - log_p[0])).sum(dim=-1)
    return {
        "id": ids,
        "label_ok": (guess[0] == targets).to(torch.uint8),
        "confidence": top[0],
        "entropy_s": entropy[0],
        "entropy_t": entropy[1],
        "kl": kl,
        "agree": (guess[0] == guess[1]).to(torch.uint8),
    }


def strided(count: int, limit: int = ROWS_MAX) -> Tensor:
    """At most `limit` indices spread evenly over `count` rows."""
    step = -(-count // limit)
    return torch.arange(0, count, max(1, step))


def joined(steps: list[Seen | Trace]) -> Trace:
    """The rows of many steps in one table; {} of none. What was only seen is computed here, once for all steps."""
    seen = [step for step in steps if isinstance(step, Seen)]
    tables = [step for step in steps if not isinstance(step, Seen)]
    if seen:
        tables.insert(0, trace_rows(*(torch.cat(column) for column in zip(*seen, strict=True))))
    if not tables:
        return {}
    table = {name: torch.cat([t[name] for t in tables]).cpu().contiguous() for name in COLUMNS}
    assert all(DTYPES[table[name].dtype] == dtype for name, dtype in COLUMNS.items()), "a column changed its dtype"
    return table
