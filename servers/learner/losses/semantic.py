"""A constraint on the answers as a loss: the semantic loss of a class mask and of implications from labels.

semantic = mean over valid rows of w_i * -log sum over c in A(y_i) of p_S,c, with A(y) the classes that the constraint leaves to a row
of label y: those of the mask, and where y implies a set, those of it only. For one answer a row this is the exact semantic loss,
-log of the weighted count of the worlds that satisfy the constraint (Xu et al. 2018, definition 1): the worlds are the classes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from servers.learner.losses.base import KdSettings, Rows, Term


class SemanticTerm(Term):
    """semantic * the mean."""

    name = "semantic"
    needs = frozenset()

    def coefficient(self, kd: KdSettings) -> float:
        """The constraint's weight; nothing without a constraint."""
        return kd.semantic if kd.allow or kd.implies else 0.0

    def value(self, rows: Rows, kd: KdSettings) -> Tensor:
        """Weighted mean in nats."""
        log_p = torch.log_softmax(rows.student, dim=-1)
        allowed = allowed_classes(rows.targets, log_p.shape[-1], kd)
        inside = torch.logsumexp(log_p.masked_fill(~allowed, -torch.inf), dim=-1)
        return -(inside * rows.weight).mean()


def allowed_classes(targets: Tensor, classes: int, kd: KdSettings) -> Tensor:
    """Which classes are left to each row: bool [N, C]."""
    mask = torch.ones(classes, dtype=torch.bool)
    if kd.allow:
        mask = torch.zeros(classes, dtype=torch.bool)
        mask[list(kd.allow)] = True
    allowed = mask.expand(len(targets), classes).clone()
    for label, implied in kd.implies:
        only = torch.zeros(classes, dtype=torch.bool)
        only[list(implied)] = True
        allowed[targets == label] &= only
    return allowed
