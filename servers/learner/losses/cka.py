"""Centred kernel alignment between mapped hidden states.

cka = sum over mapped layers of 1 - CKA, CKA = s_xy / sqrt(s_xx s_yy), where s are moving averages over batches of the unbiased HSIC
(Song et al. 2012, equation 4; Nguyen et al. 2021, equation 3) of linear kernels: zero diagonals, U-centring, sums first and one
division. The biased form of independent features is near 1 where a batch is smaller than the width, and an average of ratios is not
a ratio of averages.

The gradient is that of the ratio of the averages: its outer derivatives are taken at the averages, its inner ones at this batch.
Responsible for: at most ROWS_MAX rows of a batch, evenly spread. Refuses: fewer than ROWS_MIN rows (E2-DATA). A non-positive
denominator (a collapsed layer, mostly) gives 1 - 0 without a gradient, and is counted in `cka_undefined`.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

from servers.learner.losses.base import KdSettings, Rows, Term
from syscalls.errors import RecurosError

ROWS_MIN: Final = 4
ROWS_MAX: Final = 256
MOMENTUM: Final = 0.9
"""Share of the sums that one step keeps."""
SUMS: Final = "cka/sums"
"""F64 [layers, 4]: the decayed sums of HSIC xy, xx, yy, and of their weights."""


class CkaTerm(Term):
    """cka * sum of 1 - CKA."""

    name = "cka"
    needs = frozenset({"teacher", "hidden"})

    def value(self, rows: Rows, kd: KdSettings) -> Tensor:
        """Summed over mapped layers; 0 when every pair is alike up to rotation and scale."""
        now = hsic(
            torch.stack([_few(s) for s in rows.student_hidden]), torch.stack([_few(t) for t in rows.teacher_hidden])
        )
        known = rows.memory.get(SUMS)
        before = now.new_zeros((len(now), 4), dtype=torch.float64)
        if known is not None and known.shape == before.shape:
            before = known.to(before.device)
        sums = before * MOMENTUM
        sums[:, :3] += now.detach().double()
        sums[:, 3] += 1.0
        rows.memory.stage(SUMS, sums)
        average = (sums[:, :3] / sums[:, 3:]).to(now.dtype)
        xy, xx, yy = (average + (now - now.detach())).unbind(1)
        defined = (average[:, 1] > 0) & (average[:, 2] > 0)
        safe = torch.where(defined, xx * yy, torch.ones_like(xx))
        cka = torch.where(defined, xy * safe.rsqrt(), torch.zeros_like(xy))
        rows.reports["cka_undefined"] = float((~defined).sum())
        return (1.0 - cka).sum()


def _few(hidden: Tensor) -> Tensor:
    """At most ROWS_MAX rows, evenly spread."""
    count = len(hidden)
    if count < ROWS_MIN:
        raise RecurosError(
            "E2-DATA",
            f"cka needs at least {ROWS_MIN} positions a micro-batch, this one has {count}",
            hint="use larger batches, or cka = 0",
        )
    return hidden[:: -(-count // ROWS_MAX)] if count > ROWS_MAX else hidden


def hsic(x: Tensor, y: Tensor) -> Tensor:
    """Unbiased HSIC of (x, y), (x, x), (y, y) with linear kernels: [layers, n, d1], [layers, n, d2] -> [layers, 3]; n >= 4.

    HSIC(K, L) = [<K~, L~> + 1'K~1 1'L~1 / ((n-1)(n-2)) - 2 (K~1)'(L~1) / (n-2)] / (n (n-3)), K~ = K with zero diagonal. Centred
    features, which change nothing else, make the row sums of K vanish: K~1 is minus the diagonal.
    """
    n = x.shape[1]
    x, y = _centred(x), _centred(y)
    diagonals = torch.stack((x.square().sum(2), y.square().sum(2)), dim=1)  # [layers, 2, n]
    products = diagonals @ diagonals.transpose(1, 2)  # k'k, k'l, l'l
    sums = diagonals.sum(2)
    if x.shape[2] + y.shape[2] < n:
        xt, yt = x.transpose(1, 2), y.transpose(1, 2)
        inner = torch.stack([(a @ b).square().sum((1, 2)) for a, b in ((xt, y), (xt, x), (yt, y))], dim=1)
        inner = inner - _three(products)
    else:
        away = 1.0 - torch.eye(n, dtype=x.dtype, device=x.device)
        gram_x, gram_y = (x @ x.transpose(1, 2)) * away, (y @ y.transpose(1, 2)) * away
        inner = torch.stack(
            [(a * b).sum((1, 2)) for a, b in ((gram_x, gram_y), (gram_x, gram_x), (gram_y, gram_y))], dim=1
        )
    totals = _three(sums[:, :, None] * sums[:, None, :])
    return (inner + totals / ((n - 1) * (n - 2)) - 2.0 * _three(products) / (n - 2)) / (n * (n - 3))


def _three(pairs: Tensor) -> Tensor:
    """The entries (x, y), (x, x), (y, y) of [layers, 2, 2]: [layers, 3]."""
    return torch.stack((pairs[:, 0, 1], pairs[:, 0, 0], pairs[:, 1, 1]), dim=1)


def _centred(x: Tensor) -> Tensor:
    """Columns of mean 0; twice, so that what is left is rounding of what varies and not of a large offset."""
    x = x - x.mean(1, keepdim=True)
    return x - x.mean(1, keepdim=True)
