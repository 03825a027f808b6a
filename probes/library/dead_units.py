"""Dead units: outputs of a layer that never rose above a threshold in any row seen.

    dead = share of the units j with max over all rows and firings of x_j <= threshold

Source: Lu et al. 2019, section 2 (dying ReLU: a unit whose output is constant over the data). At most 256 units of a layer are
looked at, evenly chosen; the same ones at every firing.
"""

from __future__ import annotations

from probes.library.source import Document, Figures, Source, mean_of, rows, table

TEXT = '''
"""Units of a layer that never rose above a threshold."""
hook("on_forward", every=25)

THRESHOLD = 0.0
UNITS = 256

alive = map.array(UNITS, per_site=True, label="unit")
layers = map.array(per_site=True, fields=("firings", "rows", "units", "silent"))


def probe(x):
    units = min(x.shape[1], UNITS)
    silent = 0
    for u in range(UNITS):
        if u < units:
            j = u * x.shape[1] // units
            if 0 <= j < x.shape[1]:
                if count_gt(x[..., j], THRESHOLD) > 0:
                    alive[u] = 1
                else:
                    silent += 1
    layers["firings"] += 1
    layers["rows"] += x.shape[0]
    layers["units"] = units
    layers["silent"] += silent
'''


def summary(document: Document) -> Figures:
    """{"dead": mean share over layers, "layers": {name: {"dead", "units", "silent"}}}.

    `silent`: mean share of units that were silent within one firing, which a small batch makes large.
    """
    alive = {name: sum(row) for name, row in rows(document, "alive")}
    layers = {}
    for name, row in table(document, "layers").items():
        units, firings = row["units"], row["firings"]
        dead = 1 - alive.get(name, 0.0) / units if units else None
        silent = row["silent"] / (units * firings) if units else None
        layers[name] = {"dead": dead, "units": int(units), "silent": silent}
    return {"dead": mean_of([layer["dead"] for layer in layers.values()]), "layers": layers}


SOURCE = Source("dead-units", TEXT, summary)
