"""Gradient noise: how much of a parameter's gradient is the batch's and how much is the loss's.

    |G|^2 ~ mean of g_t . g_t'     tr(S) / B ~ mean of |g_t|^2 - |G|^2     noise = (tr(S) / B) / |G|^2

g_t and g_t' are gradients of two successive firings: independent batches of B samples at nearly the same parameters, so the product's
mean has no noise in it. `noise` is the simple noise scale in units of the batch (McCandlish et al. 2018, equation 2.9 and appendix A.1,
with the product in place of a second batch size). The figures are of at most 64 evenly chosen elements of each parameter, whose
last values a map holds: an estimate over many parameters, not a figure of one. Every step by default; a longer cadence lets the
parameters move between the two gradients, which looks like noise.
"""

from __future__ import annotations

from probes.library.source import Document, Figures, Source, table

TEXT = '''
"""Gradient noise scale, from the products of successive gradients."""
hook("on_grad", every=1)

ELEMENTS = 64

before = map.array(ELEMENTS, per_site=True, label="element")
parameters = map.array(per_site=True, fields=("pairs", "product", "square", "nonfinite", "firings"))


def probe(grad):
    if count_nonfinite(grad) > 0:
        parameters["nonfinite"] += 1
        return
    size = grad.size
    taken = min(size, ELEMENTS)
    product = 0.0
    square = 0.0
    for k in range(ELEMENTS):
        if k < taken:
            at = k * size // taken
            i = at // grad.shape[1]
            j = at % grad.shape[1]
            if 0 <= i < grad.shape[0] and 0 <= j < grad.shape[1]:
                value = grad[i, j]
                old = before[k]
                product += value * old
                square += (value * value + old * old) / 2
                before[k] = value
    if parameters["firings"] > 0:
        parameters["pairs"] += 1
        parameters["product"] += product
        parameters["square"] += square
    parameters["firings"] += 1
'''


def summary(document: Document) -> Figures:
    """{"noise", "signal", "total", "pairs", "parameters": {name: noise}}; None where the signal is lost in the noise."""
    found = table(document, "parameters")
    noise = {name: _noise(row["product"], row["square"]) for name, row in found.items()}
    product = sum(row["product"] for row in found.values())
    square = sum(row["square"] for row in found.values())
    pairs = max((row["pairs"] for row in found.values()), default=0.0)
    return {
        "noise": _noise(product, square),
        "signal": product / pairs if pairs else None,
        "total": square / pairs if pairs else None,
        "pairs": int(pairs),
        "nonfinite": int(sum(row["nonfinite"] for row in found.values())),
        "parameters": noise,
    }


def _noise(product: float, square: float) -> float | None:
    return (square - product) / product if product > 0 else None


SOURCE = Source("gradnoise", TEXT, summary)
