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
    if len(rows) < 2:
        return 0.0
    apart = ~torch.eye(len(rows), dtype=torch.bool)
    s, t = (_distances(x[rows])[apart] for x in (student, teacher))
    return float(_huber(_scaled(s) - _scaled(t)).mean())


def rkd_angle(student: Tensor, teacher: Tensor) -> float:
    """Huber loss between the cosines at j of all triples (i, j, k) of student [n, d] and teacher [n, e]."""
    rows = _chosen(student.shape[0], ANGLE_ROWS_MAX)
    if len(rows) < 3:
        return 0.0
    n = torch.arange(len(rows))
    i, j, k = n[:, None, None], n[None, :, None], n[None, None, :]
    different = (i != j) & (j != k) & (i != k)
    s, t = (_angles(x[rows])[different] for x in (student, teacher))
    return float(_huber(s - t).mean())


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


def _scaled(distances: Tensor) -> Tensor:
    mean = distances.mean()
    return distances / mean if float(mean) != 0.0 else distances


def _angles(rows: Tensor) -> Tensor:
    """cos of the angle at j between rows i and k, [i, j, k]; 0 where two rows coincide."""
    g = _gram(rows)
    own = g.diagonal()
    length = (own[:, None] + own[None, :] - 2 * g).clamp_min(0).sqrt()
    inner = g[:, None, :] - g[:, :, None] - g[None, :, :] + own[None, :, None]
    scale = length[:, :, None] * length[None, :, :]
    return torch.where(scale > 0, inner / scale.clamp_min(torch.finfo(torch.float64).tiny), inner * 0)


def _huber(error: Tensor) -> Tensor:
    size = error.abs()
    return torch.where(size <= 1, size * size / 2, size - 0.5)


INLINE: Final[dict[int, Callable[..., float]]] = {
    HELPER_BY_NAME[f.__name__].nr: f for f in (cosine, rkd_distance, rkd_angle)
}
"""By helper number."""
