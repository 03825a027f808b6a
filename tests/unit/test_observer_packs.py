"""Policy packs: their rules as cases, and the bounds as properties."""

from __future__ import annotations

import typing
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from servers import manifest_tables
from servers.observer.diagnostics import Samples
from servers.observer.packs import PACKS, pack_of, starter
from servers.observer.policy import Decision, Evidence, HeldOut, bounded_weights, check, numbers_of
from servers.observer.trajectory import Trajectory
from syscalls.errors import RecurosError


def evidence(
    *,
    temperature: float = 2.0,
    ece: list[float] | None = None,
    student: float | None = 0.5,
    teacher: float | None = 0.5,
    window: int = 10,
    changed_at: int = 0,
    samples: Samples | None = None,
    gate: dict[str, float] | None = None,
) -> Evidence:
    held_out = HeldOut()
    for value in ece or []:
        held_out.add(value, 0.9)
    figures = {"entropy_student": student, "entropy_teacher": teacher}
    return Evidence(window, figures, Trajectory(), held_out, samples or Samples(4), temperature, changed_at, gate or {})


CASES: list[tuple[str, dict[str, Any], dict[str, float], float]] = [
    ("nothing to act on", {}, {}, 2.0),
    ("one evaluation has no average", {"ece": [0.9]}, {}, 2.0),
    ("ECE 11 % over its average", {"ece": [0.10, 0.111]}, {}, 2.2),
    ("ECE 9 % over its average", {"ece": [0.10, 0.109]}, {}, 2.0),
    ("ECE over the average of many", {"ece": [0.10, 0.20, 0.122]}, {}, 2.2),  # average 0.11
    ("ECE under the average of many", {"ece": [0.10, 0.20, 0.120]}, {}, 2.0),
    ("ECE falls", {"ece": [0.10, 0.05]}, {}, 2.0),
    ("not above 4", {"temperature": 3.9, "ece": [0.1, 0.2]}, {}, 4.0),
    ("already at 4", {"temperature": 4.0, "ece": [0.1, 0.2]}, {}, 4.0),
    ("student entropy 11 % over the teacher's", {"student": 0.556}, {}, 1.8),
    ("student entropy 9 % over the teacher's", {"student": 0.545}, {}, 2.0),
    ("student entropy below", {"student": 0.1}, {}, 2.0),
    ("not below 1", {"temperature": 1.05, "student": 0.9}, {}, 1.0),
    ("calibration comes first", {"ece": [0.1, 0.2], "student": 0.9}, {}, 2.2),
    ("no figure, no change", {"student": None}, {}, 2.0),
    ("the last change cannot be seen yet", {"ece": [0.1, 0.2], "changed_at": 8}, {}, 2.0),
    ("the last change can be seen", {"ece": [0.1, 0.2], "changed_at": 7}, {}, 2.2),
    ("another step", {"ece": [0.1, 0.2]}, {"temperature-step": 0.5}, 3.0),
    ("another rise", {"ece": [0.1, 0.2]}, {"ece-rise": 2.0}, 2.0),
    ("another excess", {"student": 0.9}, {"entropy_excess": 1.0}, 2.0),
    ("another limit", {"ece": [0.1, 0.2]}, {"temperature-max": 2.1}, 2.1),
]


@pytest.mark.parametrize(("name", "given_evidence", "table", "expected"), CASES, ids=[c[0] for c in CASES])
def test_starter_moves_the_temperature_by_its_rules(
    name: str, given_evidence: dict[str, Any], table: dict[str, float], expected: float
) -> None:
    numbers = numbers_of(starter.PACK, table)
    decision = starter.decide(evidence(**given_evidence), numbers)
    assert decision.settings["temperature"] == pytest.approx(expected)
    assert bool(decision.reasons) == (expected != given_evidence.get("temperature", 2.0))


@pytest.mark.parametrize(
    ("student", "teacher", "expected"),
    [(0.90, 0.95, None), (0.95, 0.94, None), (0.95, 0.92, 0.1), (None, 0.5, None)],
)
def test_a_teacher_that_is_worse_than_its_student_is_listened_to_less(
    student: float | None, teacher: float, expected: float | None
) -> None:
    made = evidence()
    made.held_out.add(0.1, 0.9, student, teacher)
    decision = starter.decide(made, numbers_of(starter.PACK, {}))
    assert decision.settings.get("mix") == expected
    assert any("the teacher has" in reason for reason in decision.reasons) == (expected is not None)
    assert "mix" not in starter.decide(made, numbers_of(starter.PACK, {"worse-mix": 1.0})).settings


def seen(disagreement: list[float], entropy: list[float]) -> Samples:
    samples = Samples(len(entropy))
    samples.disagreement = np.asarray(disagreement, dtype=np.float64)
    samples.entropy = np.asarray(entropy, dtype=np.float64)
    return samples


def test_starter_weighs_disagreement_inside_the_band() -> None:
    entropy = [float(i) for i in range(20)]
    disagreement = [0.0] * 10 + [1.0] * 10
    weights = starter.weights_of(seen(disagreement, entropy), numbers_of(starter.PACK, {"band-floor": 0.25}), {})
    assert weights is not None
    # Raw: 1 without and 1 + 1 / 0.5 = 3 with disagreement, a quarter of it for the two lowest and the two highest entropies.
    raw = np.asarray([0.25] * 2 + [1.0] * 8 + [3.0] * 8 + [0.75] * 2)
    scale = weights[5]
    assert weights == pytest.approx(np.clip(raw * scale, 0.25, 4.0), rel=1e-5)
    assert weights.mean() == pytest.approx(1.0, rel=1e-6)


def test_starter_treats_unseen_samples_as_the_mean_and_knows_none_at_first() -> None:
    numbers = numbers_of(starter.PACK, {})
    assert starter.weights_of(Samples(5), numbers, {}) is None
    nan = float("nan")
    weights = starter.weights_of(seen([0.0, 1.0, nan], [0.5, 0.6, nan]), numbers, {})
    assert weights is not None
    assert weights[2] == pytest.approx((weights[0] + weights[1]) / 2, rel=1e-5)


def test_a_gate_and_a_floor_of_zero_leave_samples_out_entirely() -> None:
    samples = seen([0.5] * 10, [float(i) for i in range(10)])
    kept = numbers_of(starter.PACK, {"band-floor": 0.25})
    gated = starter.weights_of(samples, kept, {"drop_low": 0.2, "drop_high": 0.1})
    assert gated is not None
    assert np.flatnonzero(gated == 0).tolist() == [0, 1, 9]
    assert gated[gated > 0].mean() == pytest.approx(1.0, rel=1e-6)
    floored = starter.weights_of(samples, numbers_of(starter.PACK, {}), {})
    assert floored is not None
    assert np.flatnonzero(floored == 0).tolist() == [0, 9]


@given(raw=st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=50), low=st.floats(0.0, 1.0), high=st.floats(1.0, 50.0))
@settings(max_examples=200, deadline=None)
def test_bounded_weights_keep_bounds_mean_and_order(raw: list[float], low: float, high: float) -> None:
    values = np.asarray(raw)
    weights = bounded_weights(values, low, high)
    assert weights.mean() == pytest.approx(1.0, rel=1e-9)
    assert weights.min() >= low
    assert weights.max() <= high
    order = np.argsort(values)
    assert (np.diff(weights[order]) >= 0).all()


@given(
    data=st.lists(
        st.tuples(st.one_of(st.just(float("nan")), st.floats(0, 3)), st.floats(0, 1)), min_size=1, max_size=40
    ),
    low=st.floats(0, 0.45),
    high=st.floats(0, 0.45),
)
@settings(max_examples=150, deadline=None)
def test_every_decision_of_starter_keeps_its_bounds(data: list[tuple[float, float]], low: float, high: float) -> None:
    entropy = [e for e, _ in data]
    disagreement = [d if e == e else e for e, d in data]  # noqa: PLR0124 - NaN means unseen in both
    for gate in ({}, {"drop_low": low, "drop_high": high}):
        made = evidence(samples=seen(disagreement, entropy), gate=gate, student=0.9, ece=[0.1, 0.3])
        numbers = numbers_of(starter.PACK, {})
        check(starter.decide(made, numbers), numbers, gate)


@pytest.mark.parametrize(
    ("decision", "message"),
    [
        (Decision({"temperature": 4.5}), "temperature 4.5"),
        (Decision({"mix": float("nan")}), "mix nan is outside 0..1"),
        (Decision({"prune": 0.99}), r"prune 0.99 is outside 0..0.95"),
        (Decision({"swap": "magic"}), "swap 'magic' is none of ema"),
        (Decision({"stop": 2}), r"stop 2 is outside 0..1"),
        (Decision({"learning_rate": 1.0}), "a policy cannot set 'learning_rate'"),
        (Decision({}, order=np.asarray([np.inf], dtype=np.float32)), "place in the curriculum is not finite"),
        (Decision({}, np.asarray([0.1, 1.9], dtype=np.float32)), "sample weight 0.1 is outside 0.25..4"),
        (Decision({}, np.asarray([0.0, 2.0], dtype=np.float32)), "sample weight 0 is outside"),
        (Decision({}, np.asarray([5.0], dtype=np.float32)), "sample weight 5 is outside"),
        (Decision({}, np.asarray([np.nan], dtype=np.float32)), "sample weight nan is outside"),
    ],
)
def test_a_decision_outside_its_bounds_is_refused(decision: Decision, message: str) -> None:
    with pytest.raises(RecurosError, match=message):
        check(decision, numbers_of(starter.PACK, {"band-floor": 0.25, "ood-most": 0}), {})


def test_static_never_changes_anything() -> None:
    decision = pack_of("static").decide(evidence(ece=[0.1, 0.9], student=3.0, samples=seen([1, 0], [0, 1])), {})
    assert decision == Decision()


@pytest.mark.parametrize(
    ("table", "message", "hint"),
    [
        ({"temperature-stp": 0.2}, "has no number 'temperature_stp'", "did you mean temperature_step"),
        ({"cooldown": 0}, "cooldown = 0 is outside 1..10000", "windows between two changes"),
        ({"ece_rise": "much"}, "ece_rise = 'much'", "default 0.1"),
        ({"weight_max": True}, "weight_max = True", ""),
    ],
)
def test_numbers_outside_their_limits_are_refused(table: dict[str, Any], message: str, hint: str) -> None:
    with pytest.raises(RecurosError, match=message) as caught:
        numbers_of(starter.PACK, {"pack": "starter", **table})
    assert caught.value.code == "E2-MANIFEST"
    assert hint in caught.value.hint


def test_packs_are_an_explicit_list() -> None:
    tables = typing.get_args(manifest_tables.Policy.model_fields["pack"].annotation)
    assert list(PACKS) == list(tables)
    with pytest.raises(RecurosError, match="'magic' is unknown"):
        pack_of("magic")


def test_the_reference_page_is_that_of_the_packs() -> None:
    from servers.observer import pack_doc

    assert pack_doc.PAGE.read_text(encoding="utf-8") == pack_doc.page(), "run: python -m servers.observer.pack_doc"
