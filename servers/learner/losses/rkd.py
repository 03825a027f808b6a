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
"""A squared distance below this share of the largest is none, and gives no gradient."""


class RkdDistanceTerm(Term):
    """rkd * sum over layers."""

    name = "rkd"
    needs = frozenset({"teacher", "pooled"})

    def value(self, rows: Rows, kd: KdSettings) -> Tensor:
        """Of pairwise distances over their mean."""
        total = rows.student.new_zeros(())
        for student, teacher, weight in _layers(rows, 2, self.name):
            first, second = _pairs(len(student))
            pair = unit_mean(weight[first] * weight[second])
            apart = functional.smooth_l1_loss(distances(student), distances(teacher), reduction="none")
            total = total + (apart * pair).mean()
        return total


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
    """|x_i - x_j| for i < j over their mean: [n, d] -> [n (n - 1) / 2]."""
    x = x - x.mean(0)
    norms = x.square().sum(1)
    squares = (norms[:, None] + norms[None, :] - 2.0 * (x @ x.T))[_pairs(len(x))]
    floor = squares.detach().max().clamp_min(torch.finfo(x.dtype).tiny / TINY) * TINY
    found = squares.clamp_min(floor).sqrt()
    return found / found.mean()


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
def _pairs(n: int) -> tuple[Tensor, Tensor]:
    first, second = torch.triu_indices(n, n, offset=1).unbind(0)
    return first, second
