"""Activation watch: RMS, largest magnitude and non-finite count of each layer's output.

    rms = sqrt(sum x^2 / n) over the values of every firing

Source: Zhang and Sennrich 2019, equation 4 (RMS). A firing with a value that is not finite counts such values and enters no sum:
to look for the others would take a loop over the elements, whose cost is proved whether it runs or not. A firing without an element counts
as `empty`.
"""

from __future__ import annotations

import math

from probes.library.source import Document, Figures, Source, table

TEXT = '''
"""Size of each layer's output: RMS, largest magnitude, values that are not finite."""
hook("on_forward", every=25)

layers = map.array(per_site=True, fields=("count", "sumsq", "absmax", "nonfinite", "empty", "last_rms", "last_absmax"))


def probe(x):
    if x.size == 0:
        layers["empty"] += 1
        return
    bad = count_nonfinite(x)
    if bad > 0:
        layers["nonfinite"] += bad
        return
    square = sumsq(x)
    largest = absmax(x)
    layers["count"] += x.size
    layers["sumsq"] += square
    layers.raise_to("absmax", largest)
    layers["last_rms"] = sqrt(square / x.size)
    layers["last_absmax"] = largest
'''


def summary(document: Document) -> Figures:
    """{"layers": {name: {"rms", "absmax", "nonfinite"}}, "nonfinite": total}."""
    layers = {}
    for name, row in table(document, "layers").items():
        rms = math.sqrt(row["sumsq"] / row["count"]) if row["count"] else None
        layers[name] = {"rms": rms, "absmax": row["absmax"], "nonfinite": int(row["nonfinite"])}
    return {"layers": layers, "nonfinite": sum(layer["nonfinite"] for layer in layers.values())}


SOURCE = Source("rms", TEXT, summary)
