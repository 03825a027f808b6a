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

from collections.abc import Callable
from typing import Any, Final

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

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

    The gradient is by x only: y is a teacher's.
    """
    apply: Callable[..., Tensor] = _Hsic.apply
    return apply(x, y)


class _Hsic(torch.autograd.Function):
    """HSIC(K, L) = [<K~, L~> + 1'K~1 1'L~1 / ((n-1)(n-2)) - 2 (K~1)'(L~1) / (n-2)] / (n (n-3)), K~ = K with zero diagonal.

    Centred features, which change nothing else, make the row sums of K vanish: K~1 is minus the diagonal k, k_i = |x_i|^2. Where features
    are fewer than rows, <K~, L~> = |X'Y|_F^2 - k'l. The gradient is written out, since it is one product where autograd would make three:
    d|X'Y|^2/dX = 2 Y Y'X, d|X'X|^2/dX = 4 X X'X, d<K~, L~>/dX = 2 L~ X, dk_i/dx_i = 2 x_i; centring takes the column means away.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor) -> Tensor:
        """[layers, 3]."""
        n, d = x.shape[1:]
        x, y = _centred(x), _centred(y)
        diagonals = torch.stack((x.square().sum(2), y.square().sum(2)), dim=1)  # [layers, 2, n]
        products = diagonals @ diagonals.transpose(1, 2)  # k'k, k'l, l'l
        sums = diagonals.sum(2)
        narrow = d + y.shape[2] < n
        if narrow:
            xt = x.transpose(1, 2)
            first, second = xt @ x, y.transpose(1, 2) @ x  # X'X, Y'X
            third = y.transpose(1, 2) @ y
            inner = torch.stack([_square(second), _square(first), _square(third)], dim=1) - _three(products)
        else:
            first, second = (_gram(z) for z in (x, y))
            inner = torch.stack([_dot(first, second), _dot(first, first), _dot(second, second)], dim=1)
        totals = _three(sums[:, :, None] * sums[:, None, :])
        ctx.save_for_backward(x, y, first, second, diagonals, sums)
        ctx.narrow = narrow
        return (inner + totals / ((n - 1) * (n - 2)) - 2.0 * _three(products) / (n - 2)) / (n * (n - 3))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        """By x."""
        x, y, first, second, diagonals, sums = ctx.saved_tensors
        n = x.shape[1]
        scale = 2.0 / (n * (n - 3))
        by_y, by_x = (grad[:, 0] * scale)[:, None, None], (grad[:, 1] * (2.0 * scale))[:, None, None]
        if ctx.narrow:
            made = torch.baddbmm(y @ (second * by_y), x, first * by_x)
        else:
            made = (second * by_y + first * by_x) @ x
        share = 2.0 / (n - 2) + (1.0 if ctx.narrow else 0.0)
        own = sums / ((n - 1) * (n - 2))
        factor = by_y[:, 0] * (own[:, 1:] - share * diagonals[:, 1]) + by_x[:, 0] * (
            own[:, :1] - share * diagonals[:, 0]
        )
        made.addcmul_(x, factor[:, :, None])
        return made.sub_(made.mean(1, keepdim=True)), None


def _gram(x: Tensor) -> Tensor:
    """X X' with zero diagonal."""
    made = x @ x.transpose(1, 2)
    made.diagonal(dim1=1, dim2=2).zero_()
    return made


def _square(x: Tensor) -> Tensor:
    return _dot(x, x)


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """Sum of products, per layer."""
    a, b = a.flatten(1), b.flatten(1)
    found: Tensor = torch.linalg.vecdot(a, b)
    return found


def _three(pairs: Tensor) -> Tensor:
    """The entries (x, y), (x, x), (y, y) of [layers, 2, 2]: [layers, 3]."""
    return torch.stack((pairs[:, 0, 1], pairs[:, 0, 0], pairs[:, 1, 1]), dim=1)


def _centred(x: Tensor) -> Tensor:
    """Columns of mean 0; twice, so that what is left is rounding of what varies and not of a large offset."""
    x = x - x.mean(1, keepdim=True)
    return x - x.mean(1, keepdim=True)
