"""How far the student still is from the teacher on the same rows.

    disagreement = share of rows where argmax p_S differs from argmax p_T
    KL = mean over rows of sum_k p_T,k (log p_T,k - log p_S,k), in nats, at temperature 1

Sources: Stanton et al. 2021, equations 6 and 7 (agreement and fidelity); Hinton et al. 2015 for the direction of the KL. Rows whose
KL is not finite count as `nonfinite`, rows labelled -100 are left out. Logits of different class counts are not what the hook
promises: the probe is evicted with both sizes named.
"""

from __future__ import annotations

from probes.library.source import ROWS_CHOSEN, Document, Figures, Source, fields

TEXT = f'''
"""How far the student is from the teacher: different answers, and KL."""
hook("on_kd_step", every=25)

ROWS = 1024

totals = map.array(fields=("rows", "differ", "kl", "nonfinite"))


def probe(student, teacher, labels):
{ROWS_CHOSEN}
    for k in range(min(n, ROWS)):
        i = k * stride % n
        if 0 <= i < student.shape[0] and labels[i] >= 0:
            divergence = kl_logits(teacher[i], student[i])
            if isfinite(divergence):
                totals["rows"] += 1
                totals["kl"] += divergence
                if argmax(student[i]) != argmax(teacher[i]):
                    totals["differ"] += 1
            else:
                totals["nonfinite"] += 1
'''


def summary(document: Document) -> Figures:
    """{"disagreement", "kl", "rows", "status"}; None until a row was seen."""
    held = fields(document, "totals")
    rows = held["rows"]
    if not rows:
        return {"disagreement": None, "kl": None, "rows": 0, "status": "no finite row yet"}
    return {"disagreement": held["differ"] / rows, "kl": held["kl"] / rows, "rows": int(rows), "status": "ok"}


SOURCE = Source("disagreement", TEXT, summary)
