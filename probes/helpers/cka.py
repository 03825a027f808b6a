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
SAME: Final = 1e-12
"""A share of the sum of squares below this, once the mean is taken away, is rounding."""

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
    """HSIC1 of (x, y), (x, x), (y, y) for [n, d1] and [n, d2] features, n >= 4, in float32 (float64 stays)."""
    n, d = x.shape
    both = torch.cat((x, y), dim=1)
    both = both if both.dtype == torch.float64 else both.float()
    raw = (both * both).sum(0)
    # Twice, so that the sums of the columns vanish to rounding of what is left and not of the offset.
    both = both - both.mean(0)
    both -= both.mean(0)
    squares = both * both
    k, l = squares[:, :d].sum(1), squares[:, d:].sum(1)  # noqa: E741 - K and L are the paper's names
    narrow = both.shape[1] < n
    if narrow:
        inner = both.T @ both
        inner *= inner
        blocks = [inner[:d, d:].sum(), inner[:d, :d].sum(), inner[d:, d:].sum()]
    else:
        a, b = ((part @ part.T).fill_diagonal_(0).flatten() for part in (both[:, :d], both[:, d:]))
        blocks = [torch.dot(a, b), torch.dot(a, a), torch.dot(b, b)]
    rest = (torch.dot(k, l), torch.dot(k, k), torch.dot(l, l), k.sum(), l.sum(), raw[:d].sum(), raw[d:].sum())
    figures = torch.stack((*blocks, *rest)).tolist()
    frobenius, products, (k_sum, l_sum, x_raw, y_raw) = figures[:3], figures[3:6], figures[6:]
    totals = (k_sum * l_sum, k_sum * k_sum, l_sum * l_sum)
    terms = zip(frobenius, products, totals, strict=True)
    xy, xx, yy = ((f - narrow * p + t / ((n - 1) * (n - 2)) - 2 * p / (n - 2)) / (n * (n - 3)) for f, p, t in terms)
    # Rows that are alike but for rounding: a collapsed layer is exactly 0.
    x_varies, y_varies = k_sum > SAME * x_raw, l_sum > SAME * y_raw
    return xy * (x_varies and y_varies), xx * x_varies, yy * y_varies
