"""NaN watch: where and when values that are not finite first appeared in a layer's output.

    event = a firing with a NaN or an infinity among its values (IEEE 754: neither is finite)

The cheapest of the activation probes: one count over the values.
"""

from __future__ import annotations

from probes.library.source import Document, Figures, Source, table

TEXT = '''
"""Where and when a layer's output stopped being finite."""
hook("on_forward", every=1)

layers = map.array(per_site=True, fields=("firings", "events", "values", "first_step", "last_step"))
events = map.ring(256)


def probe(x):
    layers["firings"] += 1
    bad = count_nonfinite(x)
    if bad > 0:
        if layers["events"] == 0:
            layers["first_step"] = step
        layers["events"] += 1
        layers["values"] += bad
        layers["last_step"] = step
        events.emit(site, bad)
'''


def summary(document: Document) -> Figures:
    """{"events": total, "first": {"layer", "step"} or None, "layers": {name: {...}}} of the layers with an event."""
    hit = {name: row for name, row in table(document, "layers").items() if row["events"]}
    first = min(hit, key=lambda name: hit[name]["first_step"], default=None)
    return {
        "events": int(sum(row["events"] for row in hit.values())),
        "first": None if first is None else {"layer": first, "step": int(hit[first]["first_step"])},
        "layers": {name: {key: int(value) for key, value in row.items()} for name, row in hit.items()},
    }


SOURCE = Source("nan-watch", TEXT, summary)
