"""Relational distillation losses of each mapped pair of layers: do the student's rows lie to each other as the teacher's do?

    distance = mean over pairs (i, j) of huber(|t_i - t_j| / mu_t - |s_i - s_j| / mu_s),  mu: mean distance of its side
    angle = mean over triplets (i, j, k) of huber(cos at t_j - cos at s_j)

Source: Park et al. 2019, equations 4 to 9 (huber with delta 1). At most 64 rows for distances and 32 for angles, evenly chosen.
"""

from __future__ import annotations

from probes.library.source import Document, Figures, Source, mean_of, ratio, table

TEXT = '''
"""Relational distillation: distances and angles between rows."""
hook("on_kd_step", every=25)

pairs = map.array(per_site=True, fields=("firings", "distance", "angle", "nonfinite"))


def probe(hs, ht):
    distance = rkd_distance(hs, ht)
    angle = rkd_angle(hs, ht)
    if isfinite(distance) and isfinite(angle):
        pairs["firings"] += 1
        pairs["distance"] += distance
        pairs["angle"] += angle
    else:
        pairs["nonfinite"] += 1
'''


def summary(document: Document) -> Figures:
    """{"distance", "angle": means over pairs, "pairs": {name: {"distance", "angle"}}}; None where nothing was seen."""
    pairs = {
        name: {key: ratio(row[key], row["firings"]) for key in ("distance", "angle")}
        for name, row in table(document, "pairs").items()
    }
    return {key: mean_of([pair[key] for pair in pairs.values()]) for key in ("distance", "angle")} | {"pairs": pairs}


SOURCE = Source("rkd", TEXT, summary)
