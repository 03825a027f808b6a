"""SVCCA and PWCCA over a reservoir of the latest rows of a pair of layers.

    X, Y: centred features [n, d];  U_x, U_y: orthonormal bases of the kept directions;  rho = singular values of U_x' U_y
    SVCCA = mean of rho          PWCCA = sum_i a_i rho_i / sum_i a_i,   a_i = sum_j |<h_i, x_j>|,   h_i = columns of U_x W

Sources: Raghu et al. 2017, section 2 (directions that hold 99 % of each side's variance); Morcos, Raghu and Bengio 2018, equation 3,
W the left singular vectors of U_x' U_y, x_j the student's features. PWCCA keeps every direction that is not noise.
Bounds: ROWS rows, the figure made anew after FRESH of them; DIRECTIONS directions of a side, the strongest; above WIDTH features these
are found by a block power iteration from a fixed start (Halko, Martinsson and Tropp 2011, algorithm 4.4).
Refuses: fewer than ROWS_PER_DIRECTION rows for each direction, where noise correlates too; the figure is then 0, which no figure is.
"""

from __future__ import annotations

from collections import deque
from typing import Final

import torch
from torch import Tensor

from probes.helpers.rows import finite

ROWS: Final = 1024
ROWS_TAKEN: Final = 128
"""Of one firing."""
FRESH: Final = 256
"""New rows after which the figure is made anew."""
DIRECTIONS: Final = 96
WIDTH: Final = 256
ROWS_PER_DIRECTION: Final = 10
VARIANCE_KEPT: Final = 0.99
NOISE: Final = 1e-10
"""A direction with less of the strongest one's variance is rounding."""

_SPECTRA: deque[tuple[Tensor, tuple[Tensor, Tensor, Tensor]]] = deque(maxlen=8)
"""Of four pairs of layers; at most 16 MB."""

Reservoir = tuple[Tensor, Tensor, int, float]
"""Student rows [n, d1], teacher rows [n, d2], how many of them are newer than the figure, the figure (0: none yet)."""


def svcca(held: Reservoir | None, student: Tensor, teacher: Tensor) -> tuple[Reservoir, tuple[float, float]]:
    """The reservoir with these rows too, and (SVCCA or 0, rows held)."""
    return _folded(held, student, teacher, weighted=False)


def pwcca(held: Reservoir | None, student: Tensor, teacher: Tensor) -> tuple[Reservoir, tuple[float, float]]:
    """The reservoir with these rows too, and (PWCCA or 0, rows held)."""
    return _folded(held, student, teacher, weighted=True)


def compare(x: Tensor, y: Tensor, *, weighted: bool) -> float:
    """PWCCA if `weighted`, else SVCCA, of [n, d1] and [n, d2] rows; 0 where there are too few of them."""
    kept = NOISE if weighted else 1 - VARIANCE_KEPT
    x, y = (features - features.mean(0) for features in (x.double(), y.double()))
    of_x, of_y = (directions(features, kept, all_above=weighted) for features in (x, y))
    most = max(of_x.shape[1], of_y.shape[1])
    if not most or not min(of_x.shape[1], of_y.shape[1]) or x.shape[0] < ROWS_PER_DIRECTION * most:
        return 0.0
    left, rho, _ = torch.linalg.svd(of_x.T @ of_y, full_matrices=False)
    rho = rho.clamp(max=1.0)
    if not weighted:
        return float(rho.mean())
    weights = ((of_x @ left).T @ x).abs().sum(1)
    return float((weights * rho).sum() / weights.sum())


def directions(centred: Tensor, kept: float, *, all_above: bool) -> Tensor:
    """Orthonormal basis [n, k] of the strongest directions of [n, d].

    `all_above`: those with more than `kept` of the strongest one's variance; else as few as leave out at most `kept` of the whole.
    """
    basis, values, vectors = _spectrum(centred)
    if float(values[0]) <= 0:
        return centred[:, :0]
    if all_above:
        count = int((values > kept * values[0]).sum())
    else:
        total = centred.square().sum()
        count = int((values.cumsum(0) < (1 - kept) * total).sum()) + 1
    count = min(count, DIRECTIONS, int((values > NOISE * values[0]).sum()))
    made: Tensor = basis @ vectors[:, :count] / values[:count].sqrt()
    return made


def _spectrum(centred: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Features [n, w] to take directions of, and the eigenvalues, largest first, and eigenvectors of their products.

    The two figures of a pair of layers are made of the same rows, one after the other: the second finds here what the first worked out.
    """
    for rows, found in _SPECTRA:
        if rows.shape == centred.shape and torch.equal(rows, centred):
            return found
    basis = centred if centred.shape[1] <= WIDTH else centred @ _range(centred)
    values, vectors = torch.linalg.eigh(basis.T @ basis)
    found = basis, values.flip(0).clamp(min=0), vectors.flip(1)
    _SPECTRA.append((centred, found))
    return found


def _range(centred: Tensor) -> Tensor:
    """Orthonormal basis [d, 2 DIRECTIONS] of nearly the strongest right directions."""
    start = torch.Generator().manual_seed(0)
    block = torch.randn(centred.shape[1], 2 * DIRECTIONS, generator=start, dtype=torch.float64)
    for _ in range(2):
        block = torch.linalg.qr(centred.T @ (centred @ block)).Q
    return block


def _folded(
    held: Reservoir | None, student: Tensor, teacher: Tensor, *, weighted: bool
) -> tuple[Reservoir, tuple[float, float]]:
    both = finite(torch.cat((student.float(), teacher.float()), dim=1)).float()
    x, y = both[:, : student.shape[1]], both[:, student.shape[1] :]
    fresh, figure = x.shape[0], 0.0
    if held is not None and (held[0].shape[1], held[1].shape[1]) == (x.shape[1], y.shape[1]):
        x, y = torch.cat((held[0], x))[-ROWS:], torch.cat((held[1], y))[-ROWS:]
        fresh, figure = fresh + held[2], held[3]
    if fresh >= FRESH or not figure:
        figure, fresh = compare(x, y, weighted=weighted), 0
    return (x, y, fresh, figure), (figure, float(x.shape[0]))
