"""Cross-entropy with the labels.

task = mean over valid rows of w_i * CE_i, with weights of mean 1 inside the batch; optional label smoothing (Szegedy et al.
2016, section 7). Under mixup CE_i = (1 - s_i) CE(y_i) + s_i CE(y'_i) (Zhang et al. 2018, section 2). Needs neither teacher nor
hidden states.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from servers.learner.losses.base import KdSettings, Rows, Term


class TaskTerm(Term):
    """(1 - mix) * factor * task."""

    name = "task"
    needs = frozenset()

    def coefficient(self, kd: KdSettings) -> float:
        """1 - mix, times the task's own factor."""
        return (1.0 - kd.mix) * kd.task

    def value(self, rows: Rows, kd: KdSettings) -> Tensor:
        """Weighted mean cross-entropy in nats."""
        loss = _entropy(rows, rows.targets)
        if rows.other is not None:
            targets, share = rows.other
            loss = loss * (1.0 - share) + _entropy(rows, targets) * share
        return (loss * rows.weight).mean()


def _entropy(rows: Rows, targets: Tensor) -> Tensor:
    return functional.cross_entropy(rows.student, targets, reduction="none", label_smoothing=rows.label_smoothing)
