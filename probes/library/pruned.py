"""What a pruning took away: the share of weights that the masks leave out, and whether the weights under them are zero.

    pruned = 1 - sum mask / #mask     leaked = #{mask = 0, w != 0}

Source: Han et al. 2015, section 3 (masks by magnitude). `leaked` must be 0: a pruned weight that is not zero still acts.
"""

from __future__ import annotations

from probes.library.source import Document, Figures, Source, fields, ratio

TEXT = '''
"""Share of pruned weights, and pruned weights that are not zero."""
hook("on_prune")

totals = map.array(fields=("matrices", "weights", "kept", "leaked", "step", "prunings", "target"))


def probe(mask, param):
    if totals["matrices"] == 0 or totals["step"] != step:
        totals["prunings"] += 1
        totals["matrices"] = 0
        totals["weights"] = 0
        totals["kept"] = 0
        totals["leaked"] = 0
    totals["step"] = step
    totals["target"] = sparsity
    totals["matrices"] += 1
    totals["weights"] += mask.size
    kept = count_gt(mask, 0.5)
    totals["kept"] += kept
    if kept < mask.size:
        leaked = 0
        for i in range(mask.shape[0]):
            for j in range(mask.shape[1]):
                if mask[i, j] <= 0.5 and param[i, j] != 0:
                    leaked += 1
        totals["leaked"] += leaked
'''


def summary(document: Document) -> Figures:
    """{"pruned", "leaked", "matrices", "weights", "step", "prunings", "target"} of the latest pruning; None before one."""
    held = fields(document, "totals")
    if not held["matrices"]:
        return {"pruned": None, "prunings": 0, "status": "nothing was pruned yet"}
    kept = ratio(held["kept"], held["weights"])
    counts = {name: int(held[name]) for name in ("leaked", "matrices", "weights", "step", "prunings")}
    return {"pruned": None if kept is None else 1 - kept, **counts, "target": held["target"], "status": "ok"}


SOURCE = Source("pruned", TEXT, summary)
