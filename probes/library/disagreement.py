"""How far the student still is from the teacher on the same rows.

    disagreement = share of rows where argmax p_S differs from argmax p_T
    KL = mean over rows of sum_k p_T,k (log p_T,k - log p_S,k), in nats, at temperature 1

Sources: Stanton et al. 2021, equations 6 and 7 (agreement and fidelity); Hinton et al. 2015 for the direction of the KL.
Refuses: student and teacher with different class counts (it is evicted with both sizes named).
"""

from __future__ import annotations

from typing import Any

import torch

from probes.library.rows import take, valid
from probes.maps import Array
from probes.program import Context, Program


class Disagreement(Program):
    """Map `totals`: rows, differing rows, sum of KL. Rows with a NaN count in the map's NaNs."""

    def __init__(self, every: int, rows: int) -> None:
        self.name = "builtin:disagreement"
        self.every = every
        self.rows = rows
        self.totals = Array(3)
        self.maps = {"totals": self.totals}

    def fire(self, context: Context) -> None:
        """Fold the batch's valid rows into the totals."""
        student, teacher = context.tensor("student_logits"), context.tensor("teacher_logits")
        if student.shape != teacher.shape:
            raise ValueError(f"student logits {tuple(student.shape)} against teacher logits {tuple(teacher.shape)}")
        index = valid(student, context.get("labels"), self.rows)
        width = student.shape[-1]
        log_s = torch.log_softmax(take(student, index, width), dim=-1)
        log_t = torch.log_softmax(take(teacher, index, width), dim=-1)
        p_t = log_t.exp()
        # A class that the teacher excludes (p = 0, log p = -inf) adds nothing; as a plain product it would be NaN.
        kl = torch.where(p_t == 0, 0, p_t * (log_t - log_s)).double().sum(-1)
        finite = kl.isfinite()
        differ = (log_s.argmax(-1) != log_t.argmax(-1))[finite]
        counts = torch.stack((finite.sum(), differ.sum())).tolist()
        self.totals.add_all((*counts, float(kl[finite].sum())))
        self.totals.nans += len(kl) - counts[0]

    def summary(self) -> dict[str, Any]:
        """{"disagreement", "kl", "rows"}; None until a row was seen."""
        rows, differ, kl = self.totals.values
        if not rows:
            return {"disagreement": None, "kl": None, "rows": 0, "status": "no finite row yet"}
        return {"disagreement": differ / rows, "kl": kl / rows, "rows": int(rows), "status": "ok"}
