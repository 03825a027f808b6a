"""Statistics of the experiments against scipy, and against definitions worked out by brute force."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.experiments import _stats

SAMPLES = {
    "normal": np.random.default_rng(1).normal(0.3, 1.0, 20),
    "skewed": np.random.default_rng(2).exponential(1.0, 20) - 0.4,
    "few": np.asarray([0.213, -0.1071, 0.4029, 0.3333, 0.0517, 0.2411, 0.1043, -0.0219, 0.0891]),
}


@pytest.mark.parametrize("name", SAMPLES)
def test_the_interval_is_that_of_scipy(name: str) -> None:
    values = SAMPLES[name]
    low, high = _stats.bootstrap(values, seed=3)
    theirs = scipy.stats.bootstrap(
        (values,), np.mean, n_resamples=20_000, method="BCa", confidence_level=0.95, rng=np.random.default_rng(4)
    ).confidence_interval
    spread = float(theirs.high - theirs.low)
    # Two sets of 20,000 resamples: the ends differ by the noise of a 2.5 % quantile.
    assert abs(low - theirs.low) < 0.03 * spread
    assert abs(high - theirs.high) < 0.03 * spread


def test_the_interval_covers_as_often_as_it_says() -> None:
    rng = np.random.default_rng(5)
    hits = 0
    for trial in range(200):
        low, high = _stats.bootstrap(rng.normal(1.0, 2.0, 20), seed=trial)
        hits += low <= 1.0 <= high
    assert 0.86 <= hits / 200 <= 0.99  # 95 % nominal; BCa of 20 values is known to cover a little less


@pytest.mark.parametrize("name", SAMPLES)
def test_the_sign_test_is_that_of_scipy(name: str) -> None:
    values = SAMPLES[name][:12]
    theirs = scipy.stats.permutation_test(
        (values,), np.mean, permutation_type="samples", n_resamples=np.inf, vectorized=True
    )
    assert _stats.sign_flip(values) == pytest.approx(theirs.pvalue, abs=1e-12)


def test_the_sign_test_of_twenty_pairs_of_one_sign_is_exact() -> None:
    assert _stats.sign_flip([1.0] * 20) == 2 / 2**20
    assert _stats.sign_flip([0.0] * 5) == 1.0
    with pytest.raises(ValueError, match="23 pairs are above 22"):
        _stats.sign_flip([1.0] * 23)


def closed_testing(p: dict[str, float]) -> dict[str, float]:
    """Holm's adjusted p by its definition: the largest Bonferroni p of any intersection that contains the hypothesis."""
    groups = [g for size in range(1, len(p) + 1) for g in itertools.combinations(p, size)]
    return {name: max(min(1.0, len(g) * min(p[k] for k in g)) for g in groups if name in g) for name in p}


@settings(max_examples=100, deadline=None)
@given(st.dictionaries(st.sampled_from("abcdef"), st.floats(0.0, 1.0), min_size=1))
def test_holm_is_the_closed_test_of_bonferroni(p: dict[str, float]) -> None:
    assert _stats.holm(p) == pytest.approx(closed_testing(p))


def test_an_effect_knows_whether_it_excludes_zero() -> None:
    found = _stats.effect([0.5, 0.6, 0.4, 0.55, 0.45])
    assert found.excludes_zero
    assert found.mean == pytest.approx(0.5)
    assert found.pairs == 5
    assert found.p == 2 / 2**5
    assert not _stats.effect([0.5, -0.6, 0.4, -0.3]).excludes_zero
    constant = _stats.effect([0.25] * 4)
    assert (constant.low, constant.high) == (0.25, 0.25)


@pytest.mark.parametrize(
    ("values", "message"), [([1.0], "at least 2"), ([1.0, math.nan], "not finite"), ([], "0 paired differences")]
)
def test_what_has_no_interval_is_refused(values: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        _stats.effect(values)


def test_labels_needed_are_interpolated_over_the_logarithm() -> None:
    counts = (10, 100, 1000)
    assert _stats.labels_for(counts, (0.5, 0.7, 0.9), 0.6) == pytest.approx(math.sqrt(1000))
    assert _stats.labels_for(counts, (0.5, 0.7, 0.9), 0.9) == pytest.approx(1000)
    assert _stats.labels_for(counts, (0.5, 0.7, 0.9), 0.2) == 10
    assert _stats.labels_for(counts, (0.5, 0.7, 0.9), 0.95) == math.inf


def test_a_ratio_of_labels_has_an_interval_over_whole_seeds() -> None:
    rng = np.random.default_rng(0)
    noise = rng.normal(0, 0.005, (20, 1))
    less = np.asarray([[0.6, 0.8, 0.9]]) + noise
    more = np.asarray([[0.7, 0.85, 0.9]]) + noise
    wanted = np.full(20, 0.8)
    ratio, low, high = _stats.ratio_interval((100, 200, 400), less, more, wanted)
    exact = _stats.labels_for((100, 200, 400), (0.7, 0.85, 0.9), 0.8) / 200
    assert ratio == pytest.approx(exact, abs=0.03)
    assert low <= ratio <= high
    assert high - low < 0.1
