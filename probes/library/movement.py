"""Movement score of each parameter: whether training moves its weights away from zero or towards it.

    S = - sum over firings and weights of g_ij w_ij

Source: Sanh, Wolf and Rush 2020, equation 3 (per weight; here summed over the weights of a parameter). Positive: under gradient
descent the weights grow in magnitude; the lower, the better a candidate for pruning. `mean` is per weight and firing.
"""

from __future__ import annotations

from probes.library.source import Document, Figures, Source, table

TEXT = '''
"""Movement score: whether each parameter's weights grow or shrink."""
hook("on_grad", every=25)

parameters = map.array(per_site=True, fields=("firings", "score", "weights", "nonfinite"))


def probe(grad, param):
    score = -dot(grad, param)
    if isfinite(score):
        parameters["firings"] += 1
        parameters["score"] += score
        parameters["weights"] = grad.size
    else:
        parameters["nonfinite"] += 1
'''


def summary(document: Document) -> Figures:
    """{"score": total, "lowest": name or None, "nonfinite", "parameters": {name: {"score", "mean"}}}."""
    found = {name: row for name, row in table(document, "parameters").items() if row["firings"]}
    parameters = {
        name: {"score": row["score"], "mean": row["score"] / (row["firings"] * row["weights"])}
        for name, row in found.items()
    }
    return {
        "score": sum(row["score"] for row in parameters.values()) if parameters else None,
        "lowest": min(parameters, key=lambda name: parameters[name]["mean"], default=None),
        "nonfinite": int(sum(row["nonfinite"] for row in table(document, "parameters").values())),
        "parameters": parameters,
    }


SOURCE = Source("movement", TEXT, summary)
