"""Calibration of the student: expected calibration error with NLL and Brier score.

    ECE = sum_b (n_b / n) |accuracy_b - confidence_b| over equal-width bins (lo, hi] of the top probability
    NLL = mean -log p_y;  Brier = mean sum_k (p_k - [k = y])^2

Sources: Guo et al. 2017, equation 3 (15 bins); Brier 1950. A report, not a loss: hard bins give gradients to confidences
only. On `on_kd_step` it sees training rows; held-out calibration is the evaluation task's.
Refuses: rows without a hard label (counted `skipped`).
"""

from __future__ import annotations

from typing import Any

import torch

from probes.library.rows import is_hard, take, valid
from probes.maps import Array
from probes.program import Context, Program

_TOTALS = ("rows", "correct", "nll", "brier", "skipped")


class Ece(Program):
    """Maps: per-bin arrays `count`, `confidence` (sum), `correct`; array `totals` = rows, correct, nll, brier, skipped."""

    def __init__(self, every: int, rows: int, bins: int) -> None:
        self.name = "builtin:ece"
        self.every = every
        self.rows = rows
        self.bins = bins
        self.count, self.confidence, self.correct = Array(bins), Array(bins), Array(bins)
        self.totals = Array(len(_TOTALS))
        self.maps = {
            "count": self.count,
            "confidence": self.confidence,
            "correct": self.correct,
            "totals": self.totals,
        }

    def fire(self, context: Context) -> None:
        """Fold the batch's labelled rows into the bins."""
        logits, labels = context.tensor("student_logits"), context.get("labels")
        if labels is None or not is_hard(logits, labels):
            self.totals.add(_TOTALS.index("skipped"), logits.numel() // logits.shape[-1])
            return
        index = valid(logits, labels, self.rows)
        log_p = torch.log_softmax(take(logits, index, logits.shape[-1]), dim=-1)
        target = labels.reshape(-1) if index is None else labels.reshape(-1)[index]
        p = log_p.exp()
        top, predicted = p.max(dim=-1)
        # (lo, hi]: a confidence on an edge belongs to the bin below it; NaN rows go to the NaN count of each map.
        finite = top.isfinite()
        which = (torch.ceil(top.nan_to_num(0.0) * self.bins).long() - 1).clamp_(0, self.bins - 1)[finite]
        hit = (predicted == target).double()
        for held, weight in ((self.count, torch.ones_like(hit)), (self.confidence, top.double()), (self.correct, hit)):
            held.add_all(torch.bincount(which, weights=weight[finite], minlength=self.bins).tolist())
            held.nans += int((~finite).sum())
        own = log_p.gather(1, target[:, None]).squeeze(1).double()
        # sum_k (p_k - y_k)^2 = sum_k p_k^2 - 2 p_y + 1, without building the one-hot rows.
        brier = p.double().square().sum(-1) - 2 * own.exp() + 1
        sums = torch.stack((hit[finite].sum(), -own[finite].sum(), brier[finite].sum()))
        self.totals.add_all((float(finite.sum()), *sums.tolist(), 0.0))

    def summary(self) -> dict[str, Any]:
        """{"ece", "nll", "brier", "accuracy", "confidence", "rows"}; None until a labelled row was seen."""
        totals = dict(zip(_TOTALS, self.totals.values, strict=True))
        n = totals["rows"]
        if not n:
            empty = dict.fromkeys(("ece", "nll", "brier", "accuracy", "confidence"))
            return {**empty, "rows": 0, "status": "no row with a hard label yet"}
        gaps = (abs(a - b) for a, b in zip(self.correct.values, self.confidence.values, strict=True))
        return {
            "ece": sum(gaps) / n,
            "nll": totals["nll"] / n,
            "brier": totals["brier"] / n,
            "accuracy": totals["correct"] / n,
            "confidence": sum(self.confidence.values) / n,
            "rows": int(n),
            "status": "ok",
        }
