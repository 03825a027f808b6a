"""The terms of the objective: one file each, one line each in this list, in the order they are summed."""

from __future__ import annotations

from servers.learner.losses.base import KdSettings, Rows, Term, unit_mean
from servers.learner.losses.hint import HintTerm
from servers.learner.losses.kd import KdTerm
from servers.learner.losses.task import TaskTerm

TERMS: tuple[Term, ...] = (TaskTerm(), KdTerm(), HintTerm())

__all__ = ["TERMS", "KdSettings", "Rows", "Term", "unit_mean"]
