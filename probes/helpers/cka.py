"""Unbiased linear CKA, one batch at a time: the three HSIC1 values of a batch are added to the sums of its pair of layers.

    HSIC1(K, L) = [ <K', L'> + 1'K'1 1'L'1 / ((n-1)(n-2)) - 2 (K'1)'(L'1) / (n-2) ] / (n (n-3)),   K' = K with zero diagonal

Source: Song et al. 2012, equation 4. With centred features the row sums of K = X X' vanish, so with k_i = |x_i|^2, l_i = |y_i|^2

    <K', L'> = |X'Y|_F^2 - sum k_i l_i,     K'1 = -k,     L'1 = -l

and nothing of size n x n is made where the features are fewer than the rows.
Refuses: batches under ROWS_MIN rows (counted `short`) and rows that are not finite (the batch counts as `nonfinite`).
"""

from __future__ import annotations

import math
from typing import Final

import torch
from torch import Tensor

ROWS_MIN: Final = 4
ROWS: Final = 256

Sums = tuple[float, ...]
"""xy, xx, yy, batches, rows, short, nonfinite: the row of the map."""
NOTHING: Final[Sums] = (0.0,) * 7


def fold(sums: Sums | None, student: Tensor, teacher: Tensor) -> tuple[Sums, Sums]:
    """The sums with a batch more: student [n, d1] and teacher [n, d2] features of the same rows."""
    xy, xx, yy, batches, rows, short, nonfinite = sums or NOTHING
    if student.shape[0] < ROWS_MIN:
        made = (xy, xx, yy, batches, rows, short + 1, nonfinite)
        return made, made
    values = hsic1(student, teacher)
    if not all(map(math.isfinite, values)):
        made = (xy, xx, yy, batches, rows, short, nonfinite + 1)
        return made, made
    made = (
        xy + values[0],
        xx + values[1],
        yy + values[2],
        batches + 1,
        rows + student.shape[0],
        short,
        nonfinite,
    )
    return made, made


def hsic1(x: Tensor, y: Tensor) -> tuple[float, float, float]:
    """HSIC1 of (x, y), (x, x), (y, y) for [n, d1] and [n, d2] features, n >= 4."""
    n = x.shape[0]
    x, y = _centred(x), _centred(y)
    k, l = torch.linalg.vecdot(x, x), torch.linalg.vecdot(y, y)  # noqa: E741 - K and L are the paper's names
    if max(x.shape[1], y.shape[1]) < n:
        inner = [_square(x.T @ y), _square(x.T @ x), _square(y.T @ y)]
        diagonal = 1.0
    else:
        a, b = ((features @ features.T).fill_diagonal_(0).flatten() for features in (x, y))
        inner = [torch.dot(a, b), torch.dot(a, a), torch.dot(b, b)]
        diagonal = 0.0
    figures = torch.stack([*inner, torch.dot(k, l), torch.dot(k, k), torch.dot(l, l), k.sum(), l.sum()]).tolist()
    products, (k_sum, l_sum) = figures[3:6], figures[6:]
    totals = (k_sum * l_sum, k_sum * k_sum, l_sum * l_sum)
    terms = zip(figures[:3], products, totals, strict=True)
    xy, xx, yy = ((f - diagonal * p + t / ((n - 1) * (n - 2)) - 2 * p / (n - 2)) / (n * (n - 3)) for f, p, t in terms)
    return xy, xx, yy


def _square(matrix: Tensor) -> Tensor:
    flat = matrix.flatten()
    return torch.dot(flat, flat)


def _centred(features: Tensor) -> Tensor:
    """The features less their mean, in float32 (float64 stays): HSIC1 does not change when a common offset is removed.

    Twice, so that the sums of the columns vanish to rounding of what is left and not of the offset. Rows that are alike but for
    rounding become equal, so that a collapsed layer gives exactly 0.
    """
    wide = features if features.dtype == torch.float64 else features.float()
    centred = wide - wide.mean(0)
    centred -= centred.mean(0)
    low, high = torch.aminmax(centred)
    first, last = torch.aminmax(wide)
    within, without = torch.stack((low.abs(), high.abs(), first.abs(), last.abs())).view(2, 2).amax(1).tolist()
    return centred.zero_() if within <= 1e-6 * without else centred
