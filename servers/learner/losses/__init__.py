"""The terms of the objective: one file each, one line each in this list, in the order they are summed."""

from __future__ import annotations

from servers.learner.losses.at import AttentionTerm
from servers.learner.losses.attention_mse import AttentionMseTerm
from servers.learner.losses.base import STEERED, WEIGHTS, KdSettings, Look, Memory, Rows, Term, unit_mean
from servers.learner.losses.calibration import CalibrationTerm
from servers.learner.losses.cka import CkaTerm
from servers.learner.losses.cosine import CosineTerm
from servers.learner.losses.embedding import EmbeddingTerm
from servers.learner.losses.ewc import EwcTerm
from servers.learner.losses.hint import HintTerm
from servers.learner.losses.jacobian import JacobianTerm
from servers.learner.losses.kd import KdTerm
from servers.learner.losses.minilm import LastAttentionTerm, ValueRelationTerm
from servers.learner.losses.rkd import RkdAngleTerm, RkdDistanceTerm
from servers.learner.losses.semantic import SemanticTerm
from servers.learner.losses.task import TaskTerm

TERMS: tuple[Term, ...] = (
    TaskTerm(),
    KdTerm(),
    HintTerm(),
    CkaTerm(),
    AttentionTerm(),
    RkdDistanceTerm(),
    RkdAngleTerm(),
    EwcTerm(),
    JacobianTerm(),
    CalibrationTerm(),
    CosineTerm(),
    EmbeddingTerm(),
    AttentionMseTerm(),
    LastAttentionTerm(),
    ValueRelationTerm(),
    SemanticTerm(),
)

__all__ = ["STEERED", "TERMS", "WEIGHTS", "KdSettings", "Look", "Memory", "Rows", "Term", "unit_mean"]
