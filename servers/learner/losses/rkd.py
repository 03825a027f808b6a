"""Relational distillation (Park et al. 2019): how samples lie to each other, in each model's own space.

rkd = sum over mapped layers of the weighted mean over pairs of huber(d_S(i, j) - d_T(i, j)), d = |x_i - x_j| over its mean (equations 4 to
6). rkd_angle = the same over ordered triples of the cosines of the angle at j (equations 7 to 9). x are hidden states of a sample,
averaged over its content; huber turns linear at 1. A pair weighs w_i w_j, a triple the product of three, each scaled to mean 1.

Features are centred before distances are taken from their Gram matrix: at an offset of 300 single precision would otherwise be off by
percents. Refuses: fewer than two samples, three for angles (E2-DATA). Of a larger batch SAMPLES_MAX are taken, evenly spread: angles
grow with the cube.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from servers.learner.losses.base import KdSettings, Rows, Term, unit_mean
from syscalls.errors import RecurosError

SAMPLES_MAX: Final = 64
TINY: Final = 1e-12
"""A squared distance below this share of the sum of squares is none, and gives no gradient."""


class RkdDistanceTerm(Term):
    """rkd * sum over layers."""

    name = "rkd"
    needs = frozenset({"teacher", "pooled"})

    def value(self, rows: Rows, kd: KdSettings) -> Tensor:
        """Of pairwise distances over their mean."""
        layers = _layers(rows, 2, self.name)
        weight = layers[0][2]
        pair = torch.outer(weight, weight).fill_diagonal_(0.0)
        pair /= _mass(pair)
        apply: Callable[..., Tensor] = _Apart.apply
        found = [apply(student, distances(teacher), pair) for student, teacher, _ in layers]
        total: Tensor = sum(found[1:], start=found[0])
        return total


class _Apart(torch.autograd.Function):
    """sum over i != j of pair_ij * huber(d_ij / mean d - target_ij), d the distances of the rows of x [n, d].

    The gradient is written out: a dozen small operations, where autograd would record and undo thirty. With h' = clamp to [-1, 1] and
    M = n (n - 1): dL/dd_ij = pair_ij h'_ij / mean - sum(pair h' d) / (mean^2 M), and dd_ij/dx_i = (x_i - x_j) / d_ij.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, target: Tensor, pair: Tensor) -> Tensor:
        """The loss, and the gradient by x for later."""
        x, apart, inverse = _measured(x)
        n = len(x)
        mean = apart.sum() / (n * (n - 1))
        error = (apart / mean).sub_(target)
        loss = (functional.huber_loss(error, torch.zeros_like(error), reduction="none") * pair).sum()
        pull = error.clamp_(-1.0, 1.0).mul_(pair)
        common = (pull * apart).sum() / (mean * (n * (n - 1))) / mean
        pull = pull.div_(mean).sub_(common).mul_(inverse)
        ctx.save_for_backward((x * pull.sum(1, keepdim=True) - pull @ x).mul_(2.0))
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        """Scaled."""
        (made,) = ctx.saved_tensors
        return grad * made, None, None


class RkdAngleTerm(Term):
    """rkd_angle * sum over layers."""

    name = "rkd_angle"
    needs = frozenset({"teacher", "pooled"})

    def value(self, rows: Rows, kd: KdSettings) -> Tensor:
        """Of cosines of angles."""
        total = rows.student.new_zeros(())
        for student, teacher, weight in _layers(rows, 3, self.name):
            n = len(student)
            other = ~torch.eye(n, dtype=torch.bool, device=student.device)
            distinct = other[:, :, None] & other[:, None, :] & other[None, :, :]  # [j, i, k]: the angle at j
            triple = unit_mean((weight[:, None, None] * weight[None, :, None] * weight[None, None, :])[distinct])
            apart = functional.smooth_l1_loss(cosines(student)[distinct], cosines(teacher)[distinct], reduction="none")
            total = total + (apart * triple).mean()
        return total


@torch.no_grad()
def distances(x: Tensor) -> Tensor:
    """|x_i - x_j| over the mean of those of different rows: [n, d] -> [n, n], without a gradient."""
    _, apart, _ = _measured(x)
    n = len(x)
    return apart * (n * (n - 1) / apart.sum())


def _measured(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Centred rows, their distances [n, n], and the inverses of these; 0 on the diagonal, and for rows that coincide no inverse.

    Whole matrices: picking pairs out of them would cost more than it saves.
    """
    x = x - x.mean(0)
    squared = x @ x.T
    norms = squared.diagonal().clone()
    floor = float(norms.sum()) * TINY + torch.finfo(x.dtype).tiny
    squared.mul_(-2.0).add_(norms).add_(norms[:, None])
    near = squared <= floor
    apart = squared.clamp_min_(floor).sqrt_()
    inverse = apart.reciprocal().masked_fill_(near, 0.0).fill_diagonal_(0.0)
    return x, apart.fill_diagonal_(0.0), inverse


def cosines(x: Tensor) -> Tensor:
    """cos of the angle at j between i and k: [n, d] -> [n (j), n (i), n (k)]; 0 where two of them coincide."""
    apart = x[None, :, :] - x[:, None, :]
    unit = functional.normalize(apart, dim=-1)
    return unit @ unit.transpose(1, 2)


def _layers(rows: Rows, least: int, name: str) -> list[tuple[Tensor, Tensor, Tensor]]:
    assert rows.sample_weight is not None, "the engine keeps pooled states when this term is on"
    count = len(rows.sample_weight)
    if count < least:
        raise RecurosError(
            "E2-DATA",
            f"{name} needs at least {least} samples a micro-batch, this one has {count}",
            hint=f"use larger batches, or {name} = 0",
        )
    step = -(-count // SAMPLES_MAX)
    pairs = zip(rows.student_pooled, rows.teacher_pooled, strict=True)
    return [(student[::step], teacher[::step], rows.sample_weight[::step]) for student, teacher in pairs]


def _mass(pair: Tensor) -> Tensor:
    """Their sum; E2-DATA when nothing weighs anything, as for `unit_mean`."""
    total = pair.sum()
    if not float(total) > 0.0:
        unit_mean(total[None])
    return total
