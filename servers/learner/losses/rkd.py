"""Relational distillation (Park et al. 2019): how samples lie to each other, in each model's own space.

rkd = sum over mapped layers of the weighted mean over pairs of huber(d_S(i, j) - d_T(i, j)), d = |x_i - x_j| over its mean (equations 4 to
6). rkd_angle = the same over ordered triples of the cosines of the angle at j (equations 7 to 9). x are hidden states of a sample,
averaged over its content; huber turns linear at 1. A pair weighs w_i w_j, a triple the product of three, each scaled to mean 1.

Features are centred before distances are taken from their Gram matrix: at an offset of 300 single precision would otherwise be off by
percents. Refuses: fewer than two samples, three for angles (E2-DATA). Of a larger batch SAMPLES_MAX are taken, evenly spread: angles
grow with the cube.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Final

import torch
from torch import Tensor
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
        pair = torch.outer(weight, weight) * _upper(len(weight), weight.dtype, weight.device)
        apart = [
            functional.smooth_l1_loss(distances(student), distances(teacher), reduction="none")
            for student, teacher, _ in layers
        ]
        return (sum(apart[1:], start=apart[0]) * pair).sum() / _mass(pair)


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


def distances(x: Tensor) -> Tensor:
    """|x_i - x_j| over the mean of those with i < j: [n, d] -> [n, n]; the diagonal means nothing.

    Whole matrices: picking pairs out of them would cost more than it saves.
    """
    x = x - x.mean(0)
    gram = x @ x.T
    norms = gram.diagonal()
    floor = float(norms.detach().sum()) * TINY + torch.finfo(x.dtype).tiny
    found = (norms[:, None] + norms[None, :] - 2.0 * gram).clamp_min(floor).sqrt()
    n = len(x)
    return found * (n * (n - 1) / 2) / (found * _upper(n, x.dtype, x.device)).sum()


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


@lru_cache(maxsize=8)
def _upper(n: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """1 where i < j."""
    return torch.ones((n, n), dtype=dtype, device=device).triu(1)


def _mass(pair: Tensor) -> Tensor:
    """Their sum; E2-DATA when nothing weighs anything, as for `unit_mean`."""
    total = pair.sum()
    if not float(total) > 0.0:
        unit_mean(total[None])
    return total
