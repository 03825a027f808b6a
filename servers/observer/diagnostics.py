"""Diagnostics of a window: figures from its trace and its probe maps.

Responsible for: calibration, disagreement, entropies and divergence over the traced rows; per-sample moving averages; what
the probe maps gained since the window before. Refuses: rows that are not finite (left out and counted), traces whose columns
differ in length (E2-WIRE). Pure; numpy only.

Entropies and KL are in nats at temperature 1. Figures that are not defined are None, never NaN.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from servers.observer.readers import Figures, Sums, gained_figures, programs, sums_of
from syscalls.errors import RecurosError
from syscalls.pages import Array

BINS: Final = 15
COLUMNS: Final = {
    "id": ("I64", "<i8"),
    "label_ok": ("U8", "u1"),
    "confidence": ("F32", "<f4"),
    "entropy_s": ("F32", "<f4"),
    "entropy_t": ("F32", "<f4"),
    "kl": ("F32", "<f4"),
    "agree": ("U8", "u1"),
}
SAMPLE_MOMENTUM: Final = 0.7
"""Weight of the past in a sample's averages: a sample is seen once an epoch, so this remembers about three epochs."""

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Trace:
    """The traced rows of a window, finite ones only, all columns [N]. `dropped`: rows left out."""

    id: NDArray[np.int64]
    ok: Floats
    confidence: Floats
    entropy_s: Floats
    entropy_t: Floats
    kl: Floats
    agree: Floats
    dropped: int

    def __len__(self) -> int:
        return len(self.id)


def read_trace(arrays: Mapping[str, Array]) -> Trace:
    """Copy the columns out of a trace page; E2-WIRE when one is missing, of another type or of another length."""
    columns: dict[str, NDArray[Any]] = {}
    for name, (dtype, kind) in COLUMNS.items():
        found = arrays.get(name)
        if found is None or found.dtype != dtype or len(found.shape) != 1:
            what = "missing" if found is None else f"{found.dtype} {list(found.shape)}"
            raise RecurosError("E2-WIRE", f"trace column {name!r} is {what}, expected {dtype} [N]")
        columns[name] = np.frombuffer(bytes(found.data), dtype=kind)
    lengths = {name: len(values) for name, values in columns.items()}
    if len(set(lengths.values())) != 1:
        raise RecurosError("E2-WIRE", f"trace columns differ in length: {lengths}")
    figures = [columns[name].astype(np.float64) for name in COLUMNS if name != "id"]
    finite = np.isfinite(np.stack(figures)).all(axis=0)
    ok, confidence, entropy_s, entropy_t, kl, agree = (values[finite] for values in figures)
    ids = columns["id"][finite].astype(np.int64)
    return Trace(ids, ok, confidence, entropy_s, entropy_t, kl, agree, int((~finite).sum()))


def expected_calibration_error(confidence: Floats, ok: Floats) -> float | None:
    """sum_b |hits_b - confidence_b| / n over 15 equal bins (lo, hi] (Guo et al. 2017, equation 3); None without rows."""
    if not len(confidence):
        return None
    bins = np.clip(np.ceil(confidence * BINS) - 1, 0, BINS - 1).astype(np.int64)
    gap = np.bincount(bins, weights=ok - confidence, minlength=BINS)
    return float(np.abs(gap).sum() / len(confidence))


def diagnose(trace: Trace) -> Figures:
    """The window's figures from its rows. `ece` is on rows the student trains on; held-out calibration is `evaluate`'s."""

    def mean(values: Floats) -> float | None:
        return float(values.mean()) if len(values) else None

    agree = mean(trace.agree)
    return {
        "accuracy": mean(trace.ok),
        "confidence": mean(trace.confidence),
        "ece": expected_calibration_error(trace.confidence, trace.ok),
        "disagreement": None if agree is None else 1.0 - agree,
        "entropy_student": mean(trace.entropy_s),
        "entropy_teacher": mean(trace.entropy_t),
        "kl": mean(trace.kl),
        "rows": float(len(trace)),
        "dropped": float(trace.dropped),
    }


PER_SAMPLE: Final = ("disagreement", "entropy", "distance")


class Samples:
    """Per training sample: moving averages of the disagreement with the teacher and of the teacher's entropy, and its distance.

    NaN: not seen yet. `distance` is from the teacher's training data, `threshold` what held-out data rarely exceeds (`ood`); both
    are of one look in a generation.
    """

    def __init__(self, n: int) -> None:
        self.disagreement: Floats = np.full(n, np.nan)
        self.entropy: Floats = np.full(n, np.nan)
        self.distance: Floats = np.full(n, np.nan)
        self.threshold = math.nan

    @property
    def outliers(self) -> NDArray[np.bool_]:
        """Which samples lie beyond the threshold; none before there was a look."""
        return self.distance > self.threshold  # a comparison with NaN is false

    def look(self, distance: Floats, threshold: float) -> None:
        """Take a look's distances, of the first samples, and its threshold."""
        self.grow(len(distance))
        self.distance[: len(distance)] = distance.astype(np.float32)
        self.threshold = threshold

    def grow(self, n: int) -> None:
        """Room for samples that came later."""
        more = n - len(self.entropy)
        if more > 0:
            for name in PER_SAMPLE:
                setattr(self, name, np.concatenate((getattr(self, name), np.full(more, np.nan))))

    @property
    def seen(self) -> NDArray[np.bool_]:
        """Which samples have been traced."""
        return np.isfinite(self.entropy)

    def add(self, trace: Trace) -> None:
        """Fold a window in: each traced sample's mean over its rows, then one step of the moving average."""
        n = len(self.entropy)
        if len(trace) and not 0 <= trace.id.min() <= trace.id.max() < n:
            raise RecurosError("E2-WIRE", f"trace names sample {trace.id.max()}; the training split has {n}")
        rows = np.bincount(trace.id, minlength=n)
        here = rows > 0
        for held, values in ((self.disagreement, 1.0 - trace.agree), (self.entropy, trace.entropy_t)):
            means = np.bincount(trace.id, weights=values, minlength=n)[here] / rows[here]
            before = held[here]
            held[here] = np.where(np.isfinite(before), SAMPLE_MOMENTUM * before + (1 - SAMPLE_MOMENTUM) * means, means)

    def to_map(self) -> dict[str, Any]:
        """Plain values; float32 is what the weights have too."""
        columns: dict[str, Any] = {name: getattr(self, name).astype("<f4").tobytes() for name in PER_SAMPLE}
        if not np.isfinite(self.distance).any():
            del columns["distance"]
        return {**columns, "threshold": None if math.isnan(self.threshold) else self.threshold}

    @classmethod
    def of_map(cls, values: Mapping[str, Any]) -> Samples:
        """Inverse of `to_map`."""
        made = cls(len(values["entropy"]) // 4)
        for name in PER_SAMPLE:
            if name in values:
                setattr(made, name, np.frombuffer(values[name], dtype="<f4").astype(np.float64))
        made.threshold = math.nan if values["threshold"] is None else float(values["threshold"])
        return made

    def settle(self) -> None:
        """Round to what `to_map` keeps, so that a restarted Observer goes on with the very same numbers."""
        for name in PER_SAMPLE:
            setattr(self, name, getattr(self, name).astype(np.float32).astype(np.float64))


def probe_sums(maps: Mapping[str, Any]) -> Sums:
    """The running sums of the built-in probes that are attached: of CKA (a row per layer pair), calibration (one row), and more."""
    found: Sums = sums_of(maps)
    for probe, program, named, _ in programs(maps):
        if program == "cka" and "sums" in named:
            table = named["sums"]
            for i, row in enumerate(table["rows"]):
                cells = map(float, row["values"])
                found[f"{probe}/cka/{i}"] = dict(zip(table["fields"], cells, strict=True))
        elif program == "ece" and "totals" in named:
            cells = map(float, named["totals"]["values"])
            fields = dict(zip(named["totals"]["fields"], cells, strict=True))
            found[f"{probe}/ece/"] = {name: fields[name] for name in ("rows", "correct", "nll", "brier")}
    return found


def gained(now: Sums, before: Sums) -> Sums:
    """What each row gained since the last window; a probe whose maps began anew (a count fell) starts from nothing."""

    def count(fields: Mapping[str, float]) -> float:
        return fields.get("batches", fields.get("rows", 0.0))

    anew = {row.partition("/")[0] for row, fields in now.items() if count(before.get(row, {})) > count(fields)}
    gains = {}
    for row, fields in now.items():
        old = {} if row.partition("/")[0] in anew else before.get(row, {})
        gains[row] = {name: value - old.get(name, 0.0) for name, value in fields.items()}
    return gains


def probe_figures(gains: Sums) -> Figures:
    """`cka` (mean over layer pairs of sum HSIC_xy / sqrt(sum HSIC_xx * sum HSIC_yy), Nguyen et al. 2021), `nll`, `brier`, and `readers`'.

    None where no batch was seen or a sum of HSIC is not positive: unbiased HSIC of few rows can be.
    """
    values, totals = [], {"rows": 0.0, "nll": 0.0, "brier": 0.0}
    for row, sums in gains.items():
        figure = row.split("/", 2)[1]
        if figure == "cka" and sums["batches"] > 0 and sums["xx"] > 0 and sums["yy"] > 0:
            values.append(sums["xy"] / math.sqrt(sums["xx"] * sums["yy"]))
        elif figure == "ece":
            totals = {name: total + sums[name] for name, total in totals.items()}
    figures: Figures = {"cka": sum(values) / len(values) if values else None, **gained_figures(gains)}
    for name in ("nll", "brier"):
        value = totals[name] / totals["rows"] if totals["rows"] > 0 else math.nan
        figures[name] = value if math.isfinite(value) else None
    return figures
