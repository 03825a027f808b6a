"""Entropy of attention: for each layer and head, the mean over queries of H = -sum_k a_k log a_k, in nats.

Source: Clark et al. 2019, section 3.2. Low: the head looks at few tokens; log(keys): it looks at all alike. The first 128 heads
of a layer are kept.
"""

from __future__ import annotations

from probes.library.source import Document, Figures, Source, ratio, rows

TEXT = '''
"""Entropy of attention, for each head."""
hook("on_attention", every=25)

HEADS = 128

queries = map.array(HEADS, per_site=True, label="head")
entropies = map.array(HEADS, per_site=True, label="head")


def probe(attn):
    for h in range(attn.shape[1]):
        if h < HEADS:
            total = entropy(attn[:, h])
            if isfinite(total):
                queries[h] += attn.shape[0] * attn.shape[2]
                entropies[h] += total
'''


def summary(document: Document) -> Figures:
    """{"layers": {name: {"path", "heads": [mean entropy in nats]}}}; `path`: how the probabilities were read last, where that is known."""
    paths = document.get("paths") or {}
    entropies = dict(rows(document, "entropies"))
    layers = {}
    for name, seen in rows(document, "queries"):
        heads = max((h + 1 for h, count in enumerate(seen) if count), default=0)
        if heads:
            means = [ratio(entropies[name][h], seen[h]) for h in range(heads)]
            layers[name] = {"path": paths.get(name, ""), "heads": means}
    return {"layers": layers}


SOURCE = Source("attn-entropy", TEXT, summary)
