"""Predictive entropy of student and teacher, H = -sum_k p_k log p_k in nats (Shannon 1948), at temperature 1.

Means, and histograms of H / log C in 20 bins over [0, 1], so that a mid-entropy band can be chosen from what was seen. Rows whose
label is -100 are left out; a row with NaN counts in the histogram's NaN bin.
"""

from __future__ import annotations

from probes.library.source import ROWS_CHOSEN, Document, Figures, Source, fields, ratio

TEXT = f'''
"""Predictive entropy of student and teacher."""
hook("on_kd_step", every=25)

ROWS = 1024

totals = map.array(fields=("student_rows", "student", "teacher_rows", "teacher"))
student_share = map.linear(0.0, 1.0, 20)
teacher_share = map.linear(0.0, 1.0, 20)


def probe(student, teacher, labels):
{ROWS_CHOSEN}
    # The last bin includes H = log C, which rounding may even exceed.
    scale = log(float(max(student.shape[1], 2)))
    for k in range(min(n, ROWS)):
        i = k * stride % n
        if 0 <= i < student.shape[0] and labels[i] >= 0:
            of_student = entropy_logits(student[i])
            if isfinite(of_student):
                totals["student_rows"] += 1
                totals["student"] += of_student
            student_share.add(min(of_student / scale, 0.9999999999999999))
            of_teacher = entropy_logits(teacher[i])
            if isfinite(of_teacher):
                totals["teacher_rows"] += 1
                totals["teacher"] += of_teacher
            teacher_share.add(min(of_teacher / scale, 0.9999999999999999))
'''


def summary(document: Document) -> Figures:
    """{"student", "teacher"}: mean entropy in nats, or None; "rows"."""
    held = fields(document, "totals")
    return {
        "student": ratio(held["student"], held["student_rows"]),
        "teacher": ratio(held["teacher"], held["teacher_rows"]),
        "rows": int(held["student_rows"]),
    }


SOURCE = Source("entropy", TEXT, summary)
