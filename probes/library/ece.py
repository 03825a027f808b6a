"""Calibration of the student: expected calibration error with NLL and Brier score.

    ECE = sum_b (n_b / n) |accuracy_b - confidence_b| over equal-width bins (lo, hi] of the top probability
    NLL = mean -log p_y;  Brier = mean sum_k (p_k - [k = y])^2

Sources: Guo et al. 2017, equation 3 (15 bins); Brier 1950. A report, not a loss: hard bins give gradients to confidences
only. On `on_kd_step` it sees training rows; held-out calibration is the evaluation task's. Rows without a hard label count as `skipped`,
rows with NaN as `nonfinite`.
"""

from __future__ import annotations

from probes.library.source import ROWS_CHOSEN, Document, Figures, Source, fields, values

TEXT = f'''
"""Calibration of the student: reliability bins, NLL, Brier score."""
hook("on_kd_step", every=25)

ROWS = 1024
BINS = 15

count = map.array(BINS, label="bin")
confidence = map.array(BINS, label="bin")
correct = map.array(BINS, label="bin")
totals = map.array(fields=("rows", "correct", "nll", "brier", "skipped", "nonfinite"))


def probe(student, labels):
{ROWS_CHOSEN}
    for k in range(min(n, ROWS)):
        i = k * stride % n
        if 0 <= i < student.shape[0]:
            label = int(labels[i])
            row = student[i]
            if 0 <= label < row.shape[0]:
                own = row[label]
                whole = lse(row)
                top = exp(max(row) - whole)
                if isfinite(top) and isfinite(own - whole):
                    square = 0.0
                    for c in range(row.shape[0]):
                        p = exp(row[c] - whole)
                        square += p * p
                    hit = float(argmax(row) == label)
                    # (lo, hi]: a confidence on an edge belongs to the bin below it.
                    which = clip(-int(floor(-top * BINS)) - 1, 0, BINS - 1)
                    count[which] += 1
                    confidence[which] += top
                    correct[which] += hit
                    totals["rows"] += 1
                    totals["correct"] += hit
                    totals["nll"] += whole - own
                    # sum_k (p_k - y_k)^2 = sum_k p_k^2 - 2 p_y + 1
                    totals["brier"] += square - 2 * exp(own - whole) + 1
                else:
                    totals["nonfinite"] += 1
            else:
                totals["skipped"] += 1
'''


def summary(document: Document) -> Figures:
    """{"ece", "nll", "brier", "accuracy", "confidence", "rows"}; None until a labelled row was seen."""
    totals = fields(document, "totals")
    n = totals["rows"]
    if not n:
        empty = dict.fromkeys(("ece", "nll", "brier", "accuracy", "confidence"))
        return {**empty, "rows": 0, "status": "no row with a hard label yet"}
    confidence = values(document, "confidence")
    gaps = (abs(a - b) for a, b in zip(values(document, "correct"), confidence, strict=True))
    return {
        "ece": sum(gaps) / n,
        "nll": totals["nll"] / n,
        "brier": totals["brier"] / n,
        "accuracy": totals["correct"] / n,
        "confidence": sum(confidence) / n,
        "rows": int(n),
        "status": "ok",
    }


SOURCE = Source("ece", TEXT, summary)
