"""Directions of the last hidden states (Sanh et al. 2019, DistilBERT, section 3).

cosine = weighted mean over content positions of 1 - cos(phi(h_S), h_T) at the last mapped layer; phi as for hints, the identity with
proj = "none".
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from servers.learner.losses.base import KdSettings, Rows, Term


class CosineTerm(Term):
    """cosine * the mean."""

    name = "cosine"
    needs = frozenset({"teacher", "hidden", "projector"})

    def value(self, rows: Rows, kd: KdSettings) -> Tensor:
        """0 to 2."""
        assert rows.hidden_weight is not None, "the engine keeps hidden states when this term is on"
        student = rows.projectors[-1](rows.student_hidden[-1])
        alike = functional.cosine_similarity(student, rows.teacher_hidden[-1], dim=-1)
        return ((1.0 - alike) * rows.hidden_weight).mean()
