from __future__ import annotations

import math
import random
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from probes import fixedmath

SPECIALS = [
    0.0,
    -0.0,
    1.0,
    -1.0,
    math.inf,
    -math.inf,
    math.nan,
    5e-324,
    2.3e-308,
    1.8e308 / 1.01,
    709.78,
    709.79,
    -745.13,
    -745.14,
    710.0,
    -746.0,
    1e300,
]


def same(a: float, b: float) -> bool:
    return (math.isnan(a) and math.isnan(b)) or (a == b and math.copysign(1, a) == math.copysign(1, b))


def exact_exp(x: float) -> Fraction:
    """e^x to about 90 bits: ln 2 taken out exactly enough, then the series."""
    ln2 = sum((Fraction(1, k * 2**k) for k in range(1, 140)), Fraction(0))
    k = round(x / math.log(2))
    r = Fraction(x) - k * ln2
    term = total = Fraction(1)
    for n in range(1, 30):
        term = Fraction(round(term * r / n * 2**120), 2**120)
        total += term
    return total * Fraction(2) ** k


def ulps(got: float, exact: Fraction) -> float:
    return float(abs(Fraction(got) - exact) / Fraction(math.ulp(got)))


def samples(count: int) -> list[float]:
    rng = random.Random(5)
    return [rng.uniform(-700, 700) if n % 2 else rng.uniform(-2, 2) for n in range(count)]


def test_exp_is_within_two_ulp() -> None:
    worst = max(ulps(fixedmath.exp(x), exact_exp(x)) for x in samples(1500))
    assert worst < 1.0, worst  # 2 is promised


def test_log_is_within_two_ulp() -> None:
    # ln x = y (1 + e) where e^y = x: the error of a near result y is (x - e^y) / e^y.
    worst = 0.0
    for x in samples(1500):
        value = math.exp(x)
        y = fixedmath.log(value)
        e = exact_exp(y)
        worst = max(worst, float(abs((Fraction(value) - e) / e) / Fraction(math.ulp(y))))
    assert worst < 1.0, worst


@given(st.floats())
def test_scalar_and_array_agree_bit_for_bit(x: float) -> None:
    assert same(fixedmath.exp(x), float(fixedmath.exp_array(np.array([x]))[0]))
    assert same(fixedmath.log(x), float(fixedmath.log_array(np.array([x]))[0]))


def test_arrays_of_any_length_give_what_scalars_give() -> None:
    x = np.array(SPECIALS * 7 + samples(300))
    for scalar, array in ((fixedmath.exp, fixedmath.exp_array), (fixedmath.log, fixedmath.log_array)):
        assert all(same(scalar(v), w) for v, w in zip(x.tolist(), array(x).tolist(), strict=True))


@pytest.mark.parametrize(
    ("x", "y"), [(math.inf, math.inf), (-math.inf, 0.0), (0.0, 1.0), (-0.0, 1.0), (710.0, math.inf), (-746.0, 0.0)]
)
def test_exp_at_its_edges(x: float, y: float) -> None:
    assert same(fixedmath.exp(x), y)


@pytest.mark.parametrize(
    ("x", "y"), [(0.0, -math.inf), (-0.0, -math.inf), (1.0, 0.0), (math.inf, math.inf), (-1.0, math.nan)]
)
def test_log_at_its_edges(x: float, y: float) -> None:
    assert same(fixedmath.log(x), y)


def test_subnormal_results_and_arguments_are_right() -> None:
    assert fixedmath.exp(-745.13) == 5e-324
    assert fixedmath.log(5e-324) == pytest.approx(-744.4400719213812, rel=1e-16)
