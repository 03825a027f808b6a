"""The two terms of MiniLM (Wang et al. 2020), over the last layers only.

minilm_at = KL(A_T || A_S), mean over heads, weighed over queries (equation 5).
minilm_vr = KL(V_T || V_S) of value relations softmax(V V' / sqrt(d)) (equations 6 and 7), the same averages. Where the models have
different numbers of heads, values are cut anew into as many relation heads as divide both widths (Wang et al. 2021, MiniLMv2, section 3.1).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from servers.learner.losses.attention import divergence
from servers.learner.losses.base import KdSettings, Rows, Term


class LastAttentionTerm(Term):
    """minilm_at * KL of the last layers' attention."""

    name = "minilm_at"
    needs = frozenset({"teacher", "attention"})

    def value(self, rows: Rows, kd: KdSettings) -> Tensor:
        """Nats."""
        assert rows.last_attention is not None, "the engine keeps attention when this term is on"
        assert rows.query_share is not None
        return divergence(*rows.last_attention, rows.query_share)


class ValueRelationTerm(Term):
    """minilm_vr * KL of the last layers' value relations."""

    name = "minilm_vr"
    needs = frozenset({"teacher", "values"})

    def value(self, rows: Rows, kd: KdSettings) -> Tensor:
        """Nats."""
        assert rows.last_values is not None, "the engine keeps values when this term is on"
        assert rows.query_share is not None
        student, teacher = same_heads(*rows.last_values)
        hidden = rows.query_share == 0
        return divergence(relation(student, hidden), relation(teacher, hidden), rows.query_share)


def relation(values: Tensor, hidden: Tensor) -> Tensor:
    """softmax(V V' / sqrt(d)) over content: values [B, heads, T, d], `hidden` [B, T] true where a position is none -> [B, heads, T, T]."""
    scores = values @ values.transpose(-2, -1) / math.sqrt(values.shape[-1])
    return torch.softmax(scores.masked_fill(hidden[:, None, None, :], -1e9), dim=-1)


def same_heads(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Values of as many heads: as they are, or cut anew into the largest number up to the student's that divides both widths."""
    if student.shape[1] == teacher.shape[1]:
        return student, teacher
    widths = [v.shape[1] * v.shape[3] for v in (student, teacher)]
    heads = next(h for h in range(student.shape[1], 0, -1) if all(width % h == 0 for width in widths))
    return _cut(student, heads), _cut(teacher, heads)


def _cut(values: Tensor, heads: int) -> Tensor:
    batch, old, tokens, size = values.shape
    return values.transpose(1, 2).reshape(batch, tokens, heads, old * size // heads).transpose(1, 2)
