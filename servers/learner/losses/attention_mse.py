"""Attention matrices by squared distance, before the softmax (Jiao et al. 2020, TinyBERT, equation 7).

attention_mse = sum over mapped layers of the mean over heads and allowed keys, weighed over queries, of (c_S - c_T)^2, where c are scores
less their mean over the row's keys. A softmax forgets just that mean, so c is read from probabilities: log p less the mean of log p.
Keys that either model does not attend to at all are left out.
"""

from __future__ import annotations

from torch import Tensor

from servers.learner.losses.attention import SMALLEST, alike
from servers.learner.losses.base import KdSettings, Rows, Term


class AttentionMseTerm(Term):
    """attention_mse * sum of mean squares."""

    name = "attention_mse"
    needs = frozenset({"teacher", "attention"})

    def value(self, rows: Rows, kd: KdSettings) -> Tensor:
        """Summed over mapped layers."""
        assert rows.query_share is not None, "the engine keeps attention when this term is on"
        total = rows.student.new_zeros(())
        for pair in zip(rows.student_attention, rows.teacher_attention, strict=True):
            student, teacher = alike(*pair)
            allowed = ((student.detach() > SMALLEST) & (teacher > SMALLEST)).to(student.dtype)
            count = allowed.sum(-1, keepdim=True).clamp_min(1.0)
            apart = _scores(student, allowed, count) - _scores(teacher, allowed, count)
            squares = (apart.square() * allowed).sum(-1) / count[..., 0]
            total = total + (squares.mean(1) * rows.query_share).sum()
        return total


def _scores(probs: Tensor, allowed: Tensor, count: Tensor) -> Tensor:
    logs = probs.clamp_min(SMALLEST).log() * allowed
    return logs - logs.sum(-1, keepdim=True) / count
