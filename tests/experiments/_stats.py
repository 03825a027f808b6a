"""Statistics of paired runs: bootstrap intervals, exact sign-flip tests, Holm's correction.

Responsible for: what an experiment may say about a difference between two arms that share their seeds. Refuses: fewer than two
pairs, values that are not finite, more pairs than the exact test enumerates.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Final

import numpy as np
from numpy.typing import NDArray

RESAMPLES: Final = 20_000
LEVEL: Final = 0.95
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


def label_ratio(counts: Sequence[int], lower: Sequence[float], upper: Sequence[float], at: int) -> float:
    """Labels that the better arm needs for what the other reaches with `counts[at]`, as a share of them.

    `lower`, `upper`: scores of the two arms at each count. Between counts scores are interpolated over the logarithm of the count;
    a score that the better arm reaches with its fewest labels gives that count, one that it never reaches gives infinity.
    """
    wanted = lower[at]
    logs = [math.log(n) for n in counts]
    if upper[0] >= wanted:
        return counts[0] / counts[at]
    for i in range(1, len(counts)):
        if upper[i] >= wanted:
            share = (wanted - upper[i - 1]) / (upper[i] - upper[i - 1])
            return math.exp(logs[i - 1] + share * (logs[i] - logs[i - 1])) / counts[at]
    return math.inf


def _checked(differences: Sequence[float] | Floats) -> Floats:
    values = np.asarray(differences, dtype=np.float64)
    if values.ndim != 1 or len(values) < 2:
        raise ValueError(f"{values.size} paired differences; an interval needs at least 2")
    if not np.isfinite(values).all():
        raise ValueError("a paired difference is not finite")
    return values
