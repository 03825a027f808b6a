"""Figures of probe maps and signals over windows, each against an oracle of its own."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from probes import library
from probes.program import Context
from servers.observer.diagnostics import gained, probe_figures, probe_sums
from servers.observer.readers import evenness, looked_figures, signal_to_noise, sums_of
from servers.observer.signals import (
    GENERATIONS_KEPT,
    capacity_ceiling,
    efficiency,
    generation_signals,
    noted,
    window_signals,
)
from servers.observer.trajectory import Trajectory


def report(probe: Any, prog: str) -> dict[str, Any]:
    """One probe's maps as a learner reports them."""
    document = {"maps": {name: held.to_dict() for name, held in probe.maps.items()}, "summary": probe.summary()}
    return {"1": {"program": f"{prog},every=1", "hook": "", "map": document}}


def table(prog: str, name: str, rows: list[dict[str, float]], summary: dict[str, Any] | None = None) -> dict[str, Any]:
    fields = sorted({field for row in rows for field in row})
    held = {"kind": "array", "fields": fields, "rows": [{"values": [row.get(f, 0.0) for f in fields]} for row in rows]}
    return {"1": {"program": prog, "map": {"maps": {name: held}, "summary": summary or {}}}}


def window(now: dict[str, Any], before: dict[str, Any] | None = None) -> dict[str, float | None]:
    return probe_figures(gained(probe_sums(now), probe_sums(before or {})))


def test_relational_losses_are_the_windows_own_and_match_the_probe() -> None:
    probe = library.build("builtin:rkd", every=1)
    torch.manual_seed(1)
    reports, summaries = [{}], []
    for _ in range(2):
        x = torch.randn(24, 5)
        probe.fire(Context("on_kd_step", "on_kd_step", 0, {"hidden": [("1:1", x, x @ torch.randn(5, 8))]}))
        reports.append(report(probe, "builtin:rkd"))
        summaries.append(probe.summary())
    first, second = (window(reports[i + 1], reports[i]) for i in (0, 1))
    for key in ("distance", "angle"):
        assert first[f"rkd_{key}"] == pytest.approx(summaries[0][key], rel=1e-9)
        assert second[f"rkd_{key}"] == pytest.approx(2 * summaries[1][key] - summaries[0][key], rel=1e-6)


def test_gradient_signal_to_noise_is_that_of_known_gradients() -> None:
    rng = np.random.default_rng(0)
    mean = rng.normal(size=50)
    draws = mean + 0.7 * rng.normal(size=(4000, 50))  # independent batches
    pairs = zip(draws[::2], draws[1::2], strict=True)
    product = square = 0.0
    for a, b in pairs:
        product, square = product + a @ b, square + (a @ a + b @ b) / 2
    figures = window(table("builtin:gradnoise", "parameters", [{"pairs": 2000, "product": product, "square": square}]))
    truth = (mean @ mean) / (50 * 0.49)
    assert figures["gradient_snr"] == pytest.approx(truth, rel=0.05)
    assert signal_to_noise(-1.0, 2.0) is None
    assert signal_to_noise(2.0, 2.0) is None


@given(st.lists(st.floats(1e-6, 1e6), min_size=2, max_size=30))
@settings(max_examples=80, deadline=None)
def test_pathway_entropy_is_the_normalised_entropy_of_the_shares(parts: list[float]) -> None:
    from scipy.stats import entropy

    assert evenness(parts) == pytest.approx(entropy(parts) / math.log(len(parts)), rel=1e-9, abs=1e-12)


def test_pathway_entropy_needs_two_parts_and_some_weight() -> None:
    assert evenness([1.0, 1.0, 1.0]) == pytest.approx(1.0)
    assert evenness([5.0, 0.0]) == 0.0
    assert evenness([1.0]) is None
    assert evenness([0.0, 0.0]) is None
    rows = [{"fires": 2, "sumsq": 3.0}, {"fires": 2, "sumsq": 1.0}, {"fires": 0, "sumsq": 0.0}]
    expected = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25)) / math.log(2)
    assert window(table("builtin:gradnorm", "parameters", rows))["pathway_entropy"] == pytest.approx(expected)


def test_movement_is_the_windows_score_and_a_new_map_starts_from_nothing() -> None:
    before = table("builtin:movement", "parameters", [{"firings": 2, "score": 5.0, "weights": 9}])
    now = table("builtin:movement", "parameters", [{"firings": 3, "score": 4.0, "weights": 9}])
    assert window(now, before)["movement"] == pytest.approx(-1.0)
    assert window(before, now)["movement"] == pytest.approx(5.0)
    assert window({})["movement"] is None


def test_attention_entropy_is_the_mean_over_queries() -> None:
    probe = library.build("builtin:attn-entropy", every=1)
    attention = torch.softmax(torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(0)), -1)
    probe.fire(Context("on_attention", "blocks.0.attn", 0, {}, attention=lambda: (attention, "eager")))
    truth = float(-(attention.double() * attention.double().log()).sum(-1).mean())
    assert window(report(probe, "builtin:attn-entropy"))["attention_entropy"] == pytest.approx(truth, rel=1e-5)


def test_looks_are_the_latest_and_what_is_not_finite_or_not_there_is_none() -> None:
    maps = {
        "1": {"program": "builtin:attn-kl,every=1", "map": {"maps": {}, "summary": {"kl": 0.25}}},
        "2": {"program": "builtin:jacobian", "map": {"maps": {}, "summary": {"drift": None}}},
        "3": {"program": "builtin:mahalanobis", "map": {"maps": {}, "summary": {"outliers": 0.1, "distance": 3.0}}},
        "4": {
            "program": "builtin:mahalanobis",
            "map": {"maps": {}, "summary": {"outliers": 0.3, "distance": math.nan}},
        },
        "5": {"program": "builtin:fisher", "map": {"too_large": 9}},
        "6": {"program": "sha256:ab", "map": {"maps": {}, "summary": {"kl": 9.0}}},
        "7": "nonsense",
    }
    found = {name: value for name, value in looked_figures(maps).items() if value is not None}
    assert found == {"attention_kl": 0.25, "outliers": pytest.approx(0.2), "mahalanobis": 3.0}
    assert sums_of(maps) == {}


def test_drift_and_what_the_teacher_knows_beyond_one_class() -> None:
    found = window_signals({"cka": 0.8, "kl": 0.3, "entropy_teacher": 0.6})
    assert found == {"drift": pytest.approx(0.2), "dark_knowledge": 0.6, "dark_gap": pytest.approx(0.5)}
    assert set(window_signals({}).values()) == {None}
    assert window_signals({"kl": 0.3, "entropy_teacher": 0.0})["dark_gap"] is None


@pytest.mark.parametrize(
    ("kl", "expected"),
    [
        ([0.5] * 20, 1.0),  # no nearer, and much to learn
        ([0.5 - 0.0125 * i for i in range(20)], 0.0),  # it falls by half
        ([0.001] * 20, 0.0),  # nothing left to learn
        ([0.5 + 0.01 * i for i in range(20)], 1.0),  # it grows
        ([0.5] * 7, None),
    ],
)
def test_the_capacity_ceiling_is_a_kl_that_no_longer_falls(kl: list[float], expected: float | None) -> None:
    trajectory = Trajectory()
    for i, value in enumerate(kl):
        trajectory.add(i, {"kl": value})
    found = capacity_ceiling(trajectory.series["kl"])
    assert found is None if expected is None else found == pytest.approx(expected)
    assert capacity_ceiling(None) is None


@given(st.lists(st.floats(0.02, 5.0), min_size=8, max_size=30))
@settings(max_examples=60, deadline=None)
def test_the_capacity_ceiling_is_that_of_the_fitted_line(kl: list[float]) -> None:
    trajectory = Trajectory()
    for i, value in enumerate(kl):
        trajectory.add(i, {"kl": value})
    x = np.arange(len(kl))
    line = np.polyval(np.polyfit(x, kl, 1), x)
    expected = 0.0 if line[0] <= 0 else 1 - np.clip((line[0] - line[-1]) / line[0] / 0.1, 0, 1)
    if abs(line[0]) > 1e-6:
        assert capacity_ceiling(trajectory.series["kl"]) == pytest.approx(expected, abs=1e-6)


def test_efficiency_counts_what_was_removed_and_pruned() -> None:
    sizes = {"teacher_params": 3_000_000, "student_params": 1_000_000}
    assert efficiency(0.90, 0.94, sizes, None) == pytest.approx(0.02)
    assert efficiency(0.90, 0.94, sizes, 0.5) == pytest.approx(0.016)
    assert efficiency(0.95, 0.94, sizes, None) == pytest.approx(-0.005)
    assert efficiency(None, 0.94, sizes, None) is None
    assert efficiency(0.9, 0.9, {"teacher_params": 5, "student_params": 5}, None) is None


def test_generations_that_get_worse_or_narrower_are_seen() -> None:
    rows = noted([], 0, None, 1.0)
    assert generation_signals(rows) == {"collapse": None, "diversity": None}
    rows = noted(rows, 0, 0.9, 0.8)
    rows = noted(rows, 1, None, 0.4)
    assert generation_signals(rows) == {"collapse": None, "diversity": pytest.approx(0.5)}
    rows = noted(rows, 1, 0.72, 0.2)
    assert generation_signals(rows) == {"collapse": pytest.approx(0.2), "diversity": pytest.approx(0.25)}
    for generation in range(2, 200):
        rows = noted(rows, generation, 0.9, 0.8)
    assert len(rows) == GENERATIONS_KEPT
    assert rows[0][0] == 0
    assert rows[-1][0] == 199
    assert generation_signals(rows)["collapse"] == 0.0
