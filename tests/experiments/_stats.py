"""Statistics of paired runs: bootstrap intervals, exact sign-flip tests, Holm's correction.

Responsible for: what an experiment may say about a difference between two arms that share their seeds. Refuses: fewer than two
pairs, values that are not finite, more pairs than the exact test enumerates.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import NormalDist
from typing import Final

import numpy as np
from numpy.typing import NDArray

RESAMPLES: Final = 20_000
LEVEL: Final = 0.95
RATIO_RESAMPLES: Final = 2_000
PAIRS_MAX: Final = 22
NORMAL: Final = NormalDist()

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Effect:
    """Mean of paired differences with its interval, and the two-sided p of "no difference"."""

    mean: float
    low: float
    high: float
    p: float
    pairs: int

    @property
    def excludes_zero(self) -> bool:
        """Whether the interval lies on one side of 0."""
        return self.low > 0 or self.high < 0


def effect(differences: Sequence[float], *, seed: int = 0, level: float = LEVEL) -> Effect:
    """The effect in paired differences; `seed` draws the resamples."""
    values = _checked(differences)
    low, high = bootstrap(values, seed=seed, level=level)
    return Effect(float(values.mean()), low, high, sign_flip(values), len(values))


def bootstrap(differences: Sequence[float] | Floats, *, seed: int, level: float = LEVEL) -> tuple[float, float]:
    """The BCa interval of the mean (Efron 1987, equations 2.3 and 6.6): bias-corrected, accelerated by the jackknife.

    Differences that are all equal have no spread to resample: the interval is that one point.
    """
    values = _checked(differences)
    n = len(values)
    if float(np.ptp(values)) == 0.0:
        return float(values[0]), float(values[0])
    rng = np.random.default_rng(seed)
    means = values[rng.integers(0, n, size=(RESAMPLES, n))].mean(axis=1)
    below = (np.sum(means < values.mean()) + 0.5 * np.sum(means == values.mean())) / RESAMPLES
    bias = NORMAL.inv_cdf(float(np.clip(below, 1 / (2 * RESAMPLES), 1 - 1 / (2 * RESAMPLES))))
    left_out = (values.sum() - values) / (n - 1)
    gap = left_out.mean() - left_out
    acceleration = float((gap**3).sum() / (6 * (gap**2).sum() ** 1.5))
    ends = []
    for tail in ((1 - level) / 2, (1 + level) / 2):
        z = bias + NORMAL.inv_cdf(tail)
        ends.append(NORMAL.cdf(bias + z / (1 - acceleration * z)))
    low, high = np.quantile(means, ends)
    return float(low), float(high)


def sign_flip(differences: Sequence[float] | Floats) -> float:
    """Two-sided p of "each difference is as likely with the other sign" (Fisher 1935): all 2^n sign patterns, no sampling."""
    values = _checked(differences)
    if len(values) > PAIRS_MAX:
        raise ValueError(
            f"{len(values)} pairs are above {PAIRS_MAX}: the exact test would enumerate 2^{len(values)} patterns"
        )
    sums = np.zeros(1)
    for value in values:
        sums = np.concatenate((sums + value, sums - value))
    slack = 1e-12 * float(np.abs(values).sum())  # sums in another order differ in their last bits
    return float(np.mean(np.abs(sums) >= abs(float(values.sum())) - slack))


def holm(p: Mapping[str, float]) -> dict[str, float]:
    """Adjusted p of each hypothesis of a family (Holm 1979): the k-th smallest times (m - k + 1), never falling, at most 1."""
    adjusted: dict[str, float] = {}
    reached = 0.0
    for rank, name in enumerate(sorted(p, key=lambda key: (p[key], key))):
        reached = max(reached, min(1.0, p[name] * (len(p) - rank)))
        adjusted[name] = reached
    return {name: adjusted[name] for name in p}


def labels_for(counts: Sequence[int], scores: Sequence[float], wanted: float) -> float:
    """The number of labels at which `scores` first reach `wanted`, interpolated over the logarithm of the count.

    What the fewest labels reach gives that count; what is never reached gives infinity.
    """
    if scores[0] >= wanted:
        return float(counts[0])
    for (n, below), (m, above) in pairwise(zip(counts, scores, strict=True)):
        if above >= wanted:
            share = (wanted - below) / (above - below)
            return math.exp(math.log(n) + share * (math.log(m) - math.log(n)))
    return math.inf


def ratio_interval(
    counts: Sequence[int], less: Floats, more: Floats, wanted: Floats, *, seed: int = 0, level: float = LEVEL
) -> tuple[float, float, float]:
    """Labels that the arm `more` needs over labels that `less` needs, for the mean of `wanted`; with a percentile interval over seeds.

    `less`, `more`: scores [seeds, counts]; `wanted`: [seeds]. Seeds are drawn as a whole, so pairing is kept.
    """

    def ratio(rows: NDArray[np.int64]) -> float:
        goal = float(wanted[rows].mean())
        needed, base = (labels_for(counts, list(arm[rows].mean(axis=0)), goal) for arm in (more, less))
        return needed / base if math.isfinite(needed) and math.isfinite(base) else math.inf

    n = len(wanted)
    rng = np.random.default_rng(seed)
    drawn = np.asarray([ratio(rng.integers(0, n, size=n)) for _ in range(RATIO_RESAMPLES)])
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2], method="nearest")
    return ratio(np.arange(n)), float(low), float(high)


def _checked(differences: Sequence[float] | Floats) -> Floats:
    values = np.asarray(differences, dtype=np.float64)
    if values.ndim != 1 or len(values) < 2:
        raise ValueError(f"{values.size} paired differences; an interval needs at least 2")
    if not np.isfinite(values).all():
        raise ValueError("a paired difference is not finite")
    return values
