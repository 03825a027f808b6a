"""Attention transfer.

at = sum over mapped layers of KL(A_T || A_S), mean over heads, weighed mean over content queries (the direction and averaging of Wang
et al. 2020, MiniLM, equation 5, at every mapped layer). Models with different numbers of heads are compared by the mean of their heads.
"""

from __future__ import annotations

from torch import Tensor

from servers.learner.losses.attention import divergence
from servers.learner.losses.base import KdSettings, Rows, Term


class AttentionTerm(Term):
    """at * sum of divergences."""

    name = "at"
    needs = frozenset({"teacher", "attention"})

    def value(self, rows: Rows, kd: KdSettings) -> Tensor:
        """Nats, summed over mapped layers."""
        assert rows.query_share is not None, "the engine keeps attention when this term is on"
        total = rows.student.new_zeros(())
        for student, teacher in zip(rows.student_attention, rows.teacher_attention, strict=True):
            total = total + divergence(student, teacher, rows.query_share)
        return total
