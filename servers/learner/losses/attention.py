"""What the terms over attention share: probabilities of both models made comparable, and their divergence.

Responsible for: heads (one by one where both models have as many, else their means), positions (which must be the same), and logarithms
that stay finite. Refuses: attention over different numbers of positions; rows that are no distributions (both E2-MODEL).
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

from syscalls.errors import RecurosError

SMALLEST: Final = 1e-12
"""A probability below this counts as this, so that one underflow is not an infinite divergence."""


def alike(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """[B, heads, T, T] of both -> the same shape; heads are interchangeable, so different numbers are compared by their mean."""
    if student.shape[-2:] != teacher.shape[-2:]:
        raise RecurosError(
            "E2-MODEL",
            f"the student attends over {student.shape[-1]} positions, the teacher over {teacher.shape[-1]}; they cannot be compared",
            hint="give the attention terms weight 0, or two models that cut their input alike",
        )
    if student.shape[1] != teacher.shape[1]:
        return student.mean(1, keepdim=True), teacher.mean(1, keepdim=True)
    return student, teacher


def divergence(student: Tensor, teacher: Tensor, query_share: Tensor) -> Tensor:
    """KL(teacher || student) in nats: mean over heads, weighed over queries by `query_share` [B, T]."""
    student, teacher = alike(student, teacher)
    log_s, log_t = student.clamp_min(SMALLEST).log(), teacher.clamp_min(SMALLEST).log()
    return ((teacher * (log_t - log_s)).sum(-1).mean(1) * query_share).sum()


def require_distribution(probs: Tensor, role: str) -> None:
    """Refuse probabilities that attention dropout has changed: E2-MODEL."""
    low, high = torch.aminmax(probs.detach().sum(-1))
    off = max(abs(float(low) - 1.0), abs(float(high) - 1.0))
    if off > 2e-2:
        raise RecurosError(
            "E2-MODEL",
            f"rows of the {role}'s attention sum to 1 only within {off:.3g}: attention dropout is active",
            hint="set the attention dropout of its config to 0 (attention_dropout, attention_probs_dropout_prob, attn_pdrop)",
        )
