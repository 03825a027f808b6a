"""Embedding outputs by squared distance (Jiao et al. 2020, TinyBERT, equation 9).

embedding = weighted mean over content positions and teacher width of (phi(e_S) - e_T)^2, phi learned, or the identity with proj = "none".
"""

from __future__ import annotations

from torch import Tensor

from servers.learner.losses.base import KdSettings, Rows, Term


class EmbeddingTerm(Term):
    """embedding * the mean square."""

    name = "embedding"
    needs = frozenset({"teacher", "hidden", "projector", "embedding"})

    def value(self, rows: Rows, kd: KdSettings) -> Tensor:
        """A mean over width, as for hints."""
        assert rows.embeddings is not None, "the engine keeps embeddings when this term is on"
        assert rows.hidden_weight is not None
        student, teacher = rows.embeddings
        squared: Tensor = (teacher - rows.embedding_projector(student)).square().mean(dim=-1)
        return (squared * rows.hidden_weight).mean()
