"""How far a layer's outputs have gone from those at the time of attaching: Mahalanobis distance, and deep nearest neighbours.

Sources and formulas: `probes.helpers.outliers`, which makes the figures: the first 512 rows of each layer are the reference, the next 256
set the threshold and the p-values, and only later rows are scored. A credibility near 0.5 and 2.5 % of outliers are what no change
looks like.
"""

from __future__ import annotations

from probes.library.source import Document, Figures, Source, mean_of, ratio, table

_TEXT = '''
"""{doc} of a layer's outputs to its first ones."""
hook("on_forward", every=25)

layers = map.results("{name}")


def probe(x):
    {name}(x, into=layers)
'''


def of_mahalanobis(document: Document) -> Figures:
    """{"distance", "outliers": means over layers, "layers": {name: {"distance", "threshold", "outliers", "rows"}}}.

    `outliers`: share of the scored rows beyond the threshold. None until a row was scored.
    """
    layers = {
        name: {
            "distance": row["distance"] if row["rows"] else None,
            "threshold": row["threshold"] or None,
            "outliers": ratio(row["outliers"], row["rows"]),
            "rows": int(row["rows"]),
        }
        for name, row in _scored(document).items()
    }
    return {key: mean_of([layer[key] for layer in layers.values()]) for key in ("distance", "outliers")} | {
        "layers": layers
    }


def of_deep_knn(document: Document) -> Figures:
    """{"distance", "credibility": means over layers, "layers": {name: {"distance", "credibility", "rows"}}}."""
    layers = {
        name: {key: row[key] if row["rows"] else None for key in ("distance", "credibility")}
        | {"rows": int(row["rows"])}
        for name, row in _scored(document).items()
    }
    return {key: mean_of([layer[key] for layer in layers.values()]) for key in ("distance", "credibility")} | {
        "layers": layers
    }


def _scored(document: Document) -> dict[str, dict[str, float]]:
    return table(document, "layers")


MAHALANOBIS = Source("mahalanobis", _TEXT.format(name="mahalanobis", doc="Mahalanobis distance"), of_mahalanobis)
DEEP_KNN = Source("deep-knn", _TEXT.format(name="deep_knn", doc="Distance to nearest neighbours"), of_deep_knn)
