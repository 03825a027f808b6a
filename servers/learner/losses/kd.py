"""Distillation of the teacher's distribution.

kd = tau^2 * mean over valid rows of w_i * sum_c p_T,c (log p_T,c - log p_S,c), both softmaxes at temperature tau (Hinton et
al. 2015, section 2). Summed over classes, averaged over valid rows only: dividing by the number of classes, or by
padding too, or dropping tau^2, changes the gradient by one to three orders of magnitude.
"""

from __future__ import annotations

import torch
from torch import Tensor

from servers.learner.losses.base import KdSettings, Rows, Term


class KdTerm(Term):
    """mix * tau^2 * KL(p_T || p_S)."""

    name = "kd"
    needs = frozenset({"teacher"})

    def coefficient(self, kd: KdSettings) -> float:
        """The mix."""
        return kd.mix

    def value(self, rows: Rows, kd: KdSettings) -> Tensor:
        """Weighted mean divergence in nats, times tau squared."""
        assert rows.teacher is not None, "the engine runs the teacher when this term is on"
        return (kl_rows(rows.teacher, rows.student, kd.temperature) * rows.weight).mean() * kd.temperature**2


def kl_rows(teacher: Tensor, student: Tensor, temperature: float) -> Tensor:
    """KL(p_T^tau || p_S^tau) of each row, in nats; logits [N, C] -> [N]."""
    log_t = torch.log_softmax(teacher / temperature, dim=-1)
    log_s = torch.log_softmax(student / temperature, dim=-1)
    return torch.nn.functional.kl_div(log_s, log_t, reduction="none", log_target=True).sum(dim=-1)
