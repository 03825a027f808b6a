"""Which rows of a view a helper takes, so that what is copied and computed is bounded.

Responsible for: an even, fixed choice, the same for every view of a call. Refuses: random choice; a helper draws no random number.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor


@lru_cache(maxsize=64)
def spread(total: int, rows: int) -> Tensor | None:
    """At most `rows` distinct indices below `total`, spread evenly; None when all are taken.

    Multiples of a stride near total / golden ratio and coprime to `total` (Weyl's sequence), so that the choice does not
    lock on to one position of a fixed-length sequence, as an even stride would. The sources of the built-ins do the same.
    """
    if total <= rows:
        return None
    stride = max(1, int(total * 0.6180339887 + 0.5))
    while math.gcd(stride, total) != 1:
        stride += 1
    return torch.arange(rows) * stride % total


def take(views: tuple[Tensor, ...], rows: int) -> tuple[Tensor, ...]:
    """The same at most `rows` rows of each view [n, ...]; the views themselves when they have no more."""
    index = spread(views[0].shape[0], rows) if views else None
    return views if index is None else tuple(view.detach().index_select(0, index.to(view.device)) for view in views)


def columns(x: Tensor, most: int) -> Tensor:
    """At most `most` columns of [n, d] at even distances."""
    width = x.shape[1]
    return x if width <= most else x[:, torch.arange(most) * width // most]


def finite(x: Tensor) -> Tensor:
    """The rows of [n, d] without a NaN or an infinity, in double on the CPU."""
    wide = x.detach().to("cpu", torch.float64)
    keep = wide.isfinite().all(dim=1)
    return wide if bool(keep.all()) else wide[keep]
