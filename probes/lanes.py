"""The reductions of oBPF over doubles, in their one order, with numpy.

Responsible for: element k added into lane k mod 64 in order, lanes beginning at +0 and folded 32, 16, 8, 4, 2, 1 apart; ENTROPY as
0 - the sum, so that nothing gives +0; the terms of KL, ENTROPYL and KLL summed in the same lanes, exp and log by `probes.fixedmath`.
Refuses: nothing; each takes a contiguous array of doubles in C order, empty ones too, under numpy's errstate of its caller.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from probes import fixedmath
from probes.isa import LANES

Doubles = NDArray[np.float64]


def lane_sum(x: Doubles) -> float:
    """The sum of doubles in the order of the instruction table."""
    whole = x.size // LANES * LANES
    lanes = np.zeros(LANES)
    if whole:
        # numpy adds along the first axis row by row; the pairwise order is for the contiguous axis only.
        lanes += np.add.reduce(x[:whole].reshape(-1, LANES), axis=0)
    lanes[: x.size - whole] += x[whole:]
    stride = LANES // 2
    while stride:
        lanes = lanes[:stride] + lanes[stride:]
        stride //= 2
    return float(lanes[0])


def least(x: Doubles) -> float:
    """MIN."""
    if not x.size:
        return math.inf
    found = float(x.min())
    return found if found != 0.0 else (-0.0 if np.signbit(x[x == 0.0]).any() else 0.0)


def greatest(x: Doubles) -> float:
    """MAX."""
    return -least(-x)


def absmax(x: Doubles) -> float:
    """ABSMAX."""
    return float(np.abs(x).max()) if x.size else 0.0


def argmax(x: Doubles) -> int:
    """ARGMAX."""
    number = x[~np.isnan(x)]
    return int(np.flatnonzero(x == number.max())[0]) if number.size else 0


def entropy(p: Doubles) -> float:
    """ENTROPY."""
    return 0.0 - lane_sum(np.where(p <= 0.0, 0.0, p * fixedmath.log_array(p)))


def kl(a: Doubles, b: Doubles) -> float:
    """KL."""
    terms = np.where(b <= 0.0, math.inf, a * (fixedmath.log_array(a) - fixedmath.log_array(b)))
    return lane_sum(np.where(a <= 0.0, 0.0, terms))


def lse(x: Doubles) -> float:
    """LSE."""
    m = greatest(x)
    return m + fixedmath.log(lane_sum(fixedmath.exp_array(x - m))) if math.isfinite(m) else m


def entropy_logits(x: Doubles) -> float:
    """ENTROPYL."""
    whole = lse(x)
    weights = fixedmath.exp_array(x - whole)
    return whole - lane_sum(np.where(weights == 0.0, 0.0, weights * x))


def kl_logits(a: Doubles, b: Doubles) -> float:
    """KLL."""
    da, db = a - lse(a), b - lse(b)
    weights = fixedmath.exp_array(da)
    return lane_sum(np.where(weights == 0.0, 0.0, weights * (da - db)))


def mean(x: Doubles) -> float:
    """MEAN."""
    return lane_sum(x) / x.size if x.size else math.nan
