"""Logits and labels as a bounded number of valid rows, the same rows for every tensor of a firing.

Responsible for: flattening [B, C] or [B, T, C] logits to rows, leaving out rows whose label is -100 (padding, as in
PyTorch and Hugging Face losses), and bounding the work by an even, deterministic choice of rows.
Refuses: random choice; a probe draws no random numbers.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

IGNORE_LABEL = -100


def spread(total: int, rows: int, device: torch.device) -> Tensor | None:
    """At most `rows` distinct indices below `total`, spread evenly; None when all are taken.

    Multiples of a stride near total / golden ratio and coprime to `total` (Weyl's sequence), so that the choice does not
    lock on to one position of a fixed-length sequence, as an even stride would.
    """
    if total <= rows:
        return None
    stride = max(1, round(total * 0.6180339887))
    while math.gcd(stride, total) != 1:
        stride += 1
    return torch.arange(rows, device=device) * stride % total


def valid(logits: Tensor, labels: Tensor | None, rows: int) -> Tensor | None:
    """Indices of the rows to take from flattened `logits`, or None for all."""
    total = logits.numel() // logits.shape[-1]
    if is_hard(logits, labels):
        keep = labels.reshape(-1) != IGNORE_LABEL  # type: ignore[union-attr]
        if not bool(keep.all()):
            kept = keep.nonzero().squeeze(1)
            chosen = spread(len(kept), rows, logits.device)
            return kept if chosen is None else kept[chosen]
    return spread(total, rows, logits.device)


def is_hard(logits: Tensor, labels: Tensor | None) -> bool:
    """Whether `labels` are class indices, one per row of `logits` (mixed-up labels are distributions, not indices)."""
    return labels is not None and not labels.is_floating_point() and labels.shape == logits.shape[:-1]


def take(values: Tensor, index: Tensor | None, width: int) -> Tensor:
    """Rows [n, width] in float32 (float64 stays)."""
    flat = values.reshape(-1, width)
    flat = flat if index is None else flat[index]
    return flat if flat.dtype == torch.float64 else flat.float()
