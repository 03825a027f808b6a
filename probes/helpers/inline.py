"""The helpers that run inside the step: small, bounded, without a random number.

Responsible for: `cosine`, `rkd_distance` and `rkd_angle` of two views, computed in double on the device of their first one.
Refuses: to write into a view, and to look at more rows than it declares; longer views are sampled at even distances.

Source of the two losses: Park, Kim, Lu and Cho 2019, Relational Knowledge Distillation, equations 4 to 8, with the Huber loss of
equation 6; means are over ordered pairs, or triples, of different rows. Fewer rows than that takes, or rows that all coincide,
give a potential of 0.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import torch
from torch import Tensor

from probes.isa_helpers import HELPER_BY_NAME

DISTANCE_ROWS_MAX: Final = 64
ANGLE_ROWS_MAX: Final = 32


def cosine(a: Tensor, b: Tensor) -> float:
    """Cosine of the angle between two vectors [n]; 0 when one is 0 or empty."""
    x, y = a.double(), b.double()
    dot, xx, yy = torch.stack((x @ y, x @ x, y @ y)).tolist()
    return dot / (xx**0.5 * yy**0.5) if xx != 0.0 and yy != 0.0 else 0.0


def rkd_distance(student: Tensor, teacher: Tensor) -> float:
    """Huber loss between the pairwise distances of student [n, d] and teacher [n, e], each divided by its mean."""
    rows = _chosen(student.shape[0], DISTANCE_ROWS_MAX)
    n = len(rows)
    if n < 2:
        return 0.0
    # A row is at distance 0 from itself on both sides: it adds nothing to the sums, and is not counted.
    pairs = n * (n - 1)
    s, t = (_scaled(_distances(x[rows]), pairs) for x in (student, teacher))
    return float(_huber(s.sub_(t)).sum()) / pairs


def rkd_angle(student: Tensor, teacher: Tensor) -> float:
    """Huber loss between the cosines at j of all triples (i, j, k) of student [n, d] and teacher [n, e]."""
    rows = _chosen(student.shape[0], ANGLE_ROWS_MAX)
    n = len(rows)
    if n < 3:
        return 0.0
    s, t = (_angles(x[rows]) for x in (student, teacher))
    error = s.sub_(t)
    error.diagonal(dim1=0, dim2=2).zero_()  # i = k; where j is one of the two, the cosine is 0 on both sides
    return float(_huber(error).sum()) / (n * (n - 1) * (n - 2))


def _chosen(count: int, most: int) -> list[int]:
    """At most `most` rows at even distances."""
    taken = min(count, most)
    return [n * count // taken for n in range(taken)]


def _gram(rows: Tensor) -> Tensor:
    x = rows.double().cpu()
    # Distances and angles do not see a common shift; without it the differences below would cancel away.
    x = x - x.mean(dim=0)
    return x @ x.T


def _distances(rows: Tensor) -> Tensor:
    x = rows.double().cpu()
    return torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist")


def _scaled(distances: Tensor, pairs: int) -> Tensor:
    mean = float(distances.sum()) / pairs
    return distances.div_(mean) if mean != 0.0 else distances


def _angles(rows: Tensor) -> Tensor:
    """cos of the angle at j between rows i and k, [i, j, k]; 0 where two rows coincide, and so where i or k is j."""
    g = _gram(rows)
    own = g.diagonal()
    length = (own[:, None] + own[None, :]).sub_(g, alpha=2).clamp_min_(0).sqrt_()
    length.fill_diagonal_(0)
    inner = (g[:, None, :] - g[:, :, None]).sub_(g[None, :, :]).add_(own[None, :, None])
    scale = length[:, :, None] * length[None, :, :]
    none = scale == 0
    return inner.div_(scale.masked_fill_(none, 1.0)).masked_fill_(none, 0.0)


def _huber(error: Tensor) -> Tensor:
    # size - 1/2 beyond 1, half the square within: clipped * (size - clipped / 2) is both.
    size = error.abs_()
    clipped = size.clamp_max(1.0)
    return size.sub_(clipped, alpha=0.5).mul_(clipped)


INLINE: Final[dict[int, Callable[..., float]]] = {
    HELPER_BY_NAME[f.__name__].nr: f for f in (cosine, rkd_distance, rkd_angle)
}
"""By helper number."""
