"""What the maps of the built-in probes amount to in one window.

Responsible for: per program, the running sums that a window gains on, or the latest look at a window's end; and the figures made
of them. Refuses: programs that are no built-ins (they go by their digest, and only their owner knows what they count). Pure; standard
library only. A figure that is not defined is None, never NaN.

    rkd_distance, rkd_angle   relational losses, mean over mapped pairs (Park et al. 2019)
    gradient_snr              |G|^2 / (tr(S) / B), signal over noise of the gradient (McCandlish et al. 2018)
    movement                  -sum g w: above 0 weights grow (Sanh et al. 2020)
    attention_entropy         mean entropy of attention rows, nats (Clark et al. 2019)
    pathway_entropy           H(p) / log n, p the parameters' shares of the squared gradient: 1, all learn alike; 0, one alone does
    attention_kl              KL of the student's attention from the teacher's
    ewc_distance              how far the student moved since its generation began, weighted by Fisher information
    fisher_trace              trace of the empirical Fisher information
    jacobian_drift            relative distance of both models' Jacobians
    outliers, mahalanobis     share of rows beyond the held-out threshold, and the mean distance (Lee et al. 2018)
    credibility               mean conformal p-value of the rows (Papernot and McDaniel 2018)
    sparsity                  share of weights that are zero
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, Final

Figures = dict[str, "float | None"]
Sums = dict[str, dict[str, float]]

# program -> (map, the field that counts, the fields that are sums)
TABLES: Final[dict[str, tuple[str, str, tuple[str, ...]]]] = {
    "rkd": ("pairs", "firings", ("distance", "angle")),
    "gradnorm": ("parameters", "fires", ("sumsq",)),
    "gradnoise": ("parameters", "pairs", ("product", "square")),
    "movement": ("parameters", "firings", ("score",)),
}
# program -> {figure: name in its summary}
LOOKS: Final[dict[str, dict[str, str]]] = {
    "attn-kl": {"attention_kl": "kl"},
    "ewc": {"ewc_distance": "penalty"},
    "fisher": {"fisher_trace": "trace"},
    "jacobian": {"jacobian_drift": "drift"},
    "mahalanobis": {"outliers": "outliers", "mahalanobis": "distance"},
    "deep-knn": {"credibility": "credibility"},
    "sparsity": {"sparsity": "sparsity"},
}


def programs(maps: Mapping[str, Any]) -> Iterator[tuple[str, str, Mapping[str, Any], Mapping[str, Any]]]:
    """(probe id, name of the built-in, its maps, its summary) of each built-in whose maps are here."""
    for probe, entry in maps.items():
        if isinstance(entry, Mapping) and str(entry.get("program", "")).startswith("builtin:"):
            document = entry.get("map") or {}
            name = str(entry["program"]).removeprefix("builtin:").partition(",")[0]
            yield str(probe), name, document.get("maps") or document, document.get("summary") or {}


def sums_of(maps: Mapping[str, Any]) -> Sums:
    """Running sums by "probe id/program/row"; "batches" counts what a row saw."""
    found: Sums = {}
    for probe, name, named, _ in programs(maps):
        if name in TABLES and TABLES[name][0] in named:
            table, count, fields = TABLES[name]
            columns = named[table]["fields"]
            for i, row in enumerate(named[table]["rows"]):
                cells = dict(zip(columns, map(float, row["values"]), strict=True))
                found[f"{probe}/{name}/{i}"] = {"batches": cells[count], **{field: cells[field] for field in fields}}
        elif name == "attn-entropy" and {"queries", "entropies"} <= set(named):
            totals = [
                math.fsum(float(v) for row in named[m]["rows"] for v in row["values"]) for m in ("queries", "entropies")
            ]
            found[f"{probe}/attn-entropy/"] = {"batches": totals[0], "entropy": totals[1]}
    return found


def gained_figures(gains: Sums) -> Figures:
    """Figures of what the rows gained in a window."""
    rows: dict[str, list[dict[str, float]]] = {}
    for key, sums in gains.items():
        if sums.get("batches", 0.0) > 0:
            rows.setdefault(key.split("/", 2)[1], []).append(sums)
    noise, moved, seen = rows.get("gradnoise", []), rows.get("movement", []), rows.get("attn-entropy", [])
    return {
        "rkd_distance": _mean([r["distance"] / r["batches"] for r in rows.get("rkd", [])]),
        "rkd_angle": _mean([r["angle"] / r["batches"] for r in rows.get("rkd", [])]),
        "gradient_snr": signal_to_noise(sum(r["product"] for r in noise), sum(r["square"] for r in noise)),
        "movement": sum(r["score"] for r in moved) if moved else None,
        "attention_entropy": sum(r["entropy"] for r in seen) / sum(r["batches"] for r in seen) if seen else None,
        "pathway_entropy": evenness([r["sumsq"] for r in rows.get("gradnorm", [])]),
    }


def looked_figures(maps: Mapping[str, Any]) -> Figures:
    """Figures of the latest look, mean over probes of one program."""
    found: dict[str, list[float]] = {figure: [] for names in LOOKS.values() for figure in names}
    for _, name, _, summary in programs(maps):
        for figure, key in LOOKS.get(name, {}).items():
            value = summary.get(key)
            if isinstance(value, int | float) and math.isfinite(value):
                found[figure].append(float(value))
    return {figure: _mean(values) for figure, values in found.items()}


def signal_to_noise(product: float, square: float) -> float | None:
    """product / (square - product); None where the signal is lost in the noise, or there is none."""
    noise = square - product
    return product / noise if product > 0 and noise > 0 else None


def evenness(parts: list[float]) -> float | None:
    """Entropy of the shares over that of equal shares, in [0, 1] (Pielou 1966); None below two parts or without any weight."""
    total = math.fsum(parts)
    if len(parts) < 2 or not total > 0 or not math.isfinite(total):
        return None
    shares = [part / total for part in parts if part > 0]
    return -math.fsum(p * math.log(p) for p in shares) / math.log(len(parts))


def _mean(values: list[float]) -> float | None:
    there = [value for value in values if math.isfinite(value)]
    return math.fsum(there) / len(there) if there else None
