"""Predictive entropy of student and teacher, H = -sum_k p_k log p_k in nats (Shannon 1948), at temperature 1.

Means, and histograms of H / log C in 20 bins over [0, 1], so that a mid-entropy band can be chosen from what was seen.
Refuses: nothing it is given; without teacher logits it reports the student alone.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from probes.library.rows import take, valid
from probes.maps import Array, Histogram
from probes.program import Context, Program

SIDES = ("student", "teacher")
BINS = 20


class Entropy(Program):
    """Maps: array `totals` = student rows, student sum, teacher rows, teacher sum; histograms `student`, `teacher`."""

    def __init__(self, every: int, rows: int) -> None:
        self.name = "builtin:entropy"
        self.every = every
        self.rows = rows
        self.totals = Array(4)
        self.histograms = {side: Histogram(BINS, 0.0, 1.0) for side in SIDES}
        self.maps = {"totals": self.totals, **self.histograms}

    def fire(self, context: Context) -> None:
        """Fold the batch's valid rows into the totals and histograms."""
        student = context.tensor("student_logits")
        index = valid(student, context.get("labels"), self.rows)
        self._fold(0, student, index)
        teacher = context.get("teacher_logits")
        if teacher is not None:
            self._fold(1, teacher, index)

    def _fold(self, side: int, logits: Tensor, index: Tensor | None) -> None:
        width = logits.shape[-1]
        entropy = entropy_of(take(logits, index, width))
        finite = entropy.isfinite()
        self.totals.add(2 * side, float(finite.sum()))
        self.totals.add(2 * side + 1, float(entropy[finite].double().sum()))
        # The last bin includes H = log C, which rounding may even exceed.
        share = entropy[finite] / math.log(max(width, 2))
        which = (share * BINS).long().clamp_(0, BINS - 1)
        counts = torch.bincount(which, minlength=BINS).tolist()
        self.histograms[SIDES[side]].add_counts(counts, nans=len(entropy) - len(which))

    def summary(self) -> dict[str, Any]:
        """{"student", "teacher"}: mean entropy in nats, or None; "rows"."""
        student_rows, student, teacher_rows, teacher = self.totals.values
        return {
            "student": student / student_rows if student_rows else None,
            "teacher": teacher / teacher_rows if teacher_rows else None,
            "rows": int(student_rows),
        }


def entropy_of(logits: Tensor) -> Tensor:
    """Entropy in nats of each row of [n, C] logits."""
    log_p = torch.log_softmax(logits, dim=-1)
    # p log p is 0 at p = 0, where the product of 0 and -inf would be NaN.
    return -(log_p.exp() * log_p.clamp(min=torch.finfo(log_p.dtype).min)).sum(-1)
