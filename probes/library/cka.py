"""Unbiased linear CKA between student and teacher hidden states, streamed over batches.

    K = X X^T, L = Y Y^T;  HSIC1(K, L) = sum_ij K~_ij L~_ij / (n (n - 3)),  K~ = U-centred K with zero diagonal
    CKA = sum_b HSIC1(K_b, L_b) / sqrt(sum_b HSIC1(K_b, K_b) * sum_b HSIC1(L_b, L_b))

Sources: Song et al. 2012, equation 4 (HSIC1); Szekely and Rizzo 2014 (U-centring); Nguyen, Raghu and Kornblith 2021,
section 3 (sums over minibatches, one division). The biased estimator is useless here: independent Gaussians at n = 32,
d = 384 score 0.92. The sums are made by `probes.helpers.cka`; a sum of HSIC1 that is not positive makes the value None with a
status, never NaN.
"""

from __future__ import annotations

import math

from probes.library.source import Document, Figures, Source, mean_of, table

TEXT = '''
"""Unbiased linear CKA of each mapped pair of layers."""
hook("on_kd_step", every=25)

sums = map.results("cka")


def probe(hs, ht):
    cka(hs, ht, into=sums)
'''


def summary(document: Document) -> Figures:
    """{"cka": mean over pairs with a value, or None, "pairs": {name: {"cka", "status"}}}."""
    pairs = {name: value_of(row) for name, row in table(document, "sums").items()}
    return {"cka": mean_of([pair["cka"] for pair in pairs.values()]), "pairs": pairs}


def value_of(sums: dict[str, float]) -> Figures:
    """The one division, or None with the reason that there is none."""
    if not sums["batches"]:
        return {"cka": None, "status": "no batch of 4 finite rows yet"}
    if sums["xx"] <= 0 or sums["yy"] <= 0:
        side = "student" if sums["xx"] <= 0 else "teacher"
        return {"cka": None, "status": f"the {side}'s HSIC is not positive: its rows do not vary beyond noise"}
    return {"cka": sums["xy"] / math.sqrt(sums["xx"] * sums["yy"]), "status": "ok"}


SOURCE = Source("cka", TEXT, summary)
