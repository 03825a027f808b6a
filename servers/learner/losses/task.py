"""Cross-entropy with the labels.

task = mean over valid rows of w_i * CE_i, with weights of mean 1 inside the batch; optional label smoothing (Szegedy et al.
2016, section 7). Needs neither teacher nor hidden states.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from servers.learner.losses.base import KdSettings, Rows


class TaskTerm:
    """(1 - mix) * task."""

    name = "task"
    needs_teacher = False
    needs_hidden = False

    def coefficient(self, kd: KdSettings) -> float:
        """1 - mix."""
        return 1.0 - kd.mix

    def value(self, rows: Rows, kd: KdSettings) -> Tensor:
        """Weighted mean cross-entropy in nats."""
        loss = functional.cross_entropy(
            rows.student, rows.targets, reduction="none", label_smoothing=rows.label_smoothing
        )
        return (loss * rows.weight).mean()
