"""Shared rules, the packs of papers against their papers' rules, refusals, and the in-distribution gate."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from servers.learner.losses import TERMS, KdSettings
from servers.observer import rules
from servers.observer.diagnostics import Samples
from servers.observer.ood import LEAST_HELD_OUT, fit, outlying
from servers.observer.packs import PACKS, pack_of, starter
from servers.observer.policy import Decision, Evidence, HeldOut, Pack, Progress, check, numbers_of
from servers.observer.state import State, decide, decode_evidence, encode_evidence, settings_of
from servers.observer.trajectory import Trajectory
from syscalls import limits
from syscalls.errors import RecurosError

PAPERS = ("distilbert", "tinybert", "minilm", "born-again", "snapshot")


def at(step: int, total: int = 100, passes: int = 0, epoch: float = 2.0) -> Progress:
    return Progress(step, total, 5, passes, epoch, step + 5)


def evidence(progress: Progress | None, kl: list[float] | None = None, samples: Samples | None = None) -> Evidence:
    trajectory = Trajectory()
    for i, value in enumerate(kl or []):
        trajectory.add(i, {"kl": value})
    return Evidence(9, {}, trajectory, HeldOut(), samples or Samples(4), 2.0, 0, {}, progress)


def objective(settings: dict[str, Any]) -> dict[str, float]:
    """The coefficient of every term that is on, as the learner sums them."""
    kd = KdSettings().changed(**settings)
    return {term.name: term.coefficient(kd) for term in TERMS if term.coefficient(kd) != 0.0}


def test_the_prune_ramp_is_cubic_over_the_last_third_less_the_refit() -> None:
    numbers = numbers_of(starter.PACK, {"prune-target": 0.6, "refit-epochs": 5})
    asked = {}
    for step in range(5, 101, 5):
        settings, _ = rules.prune_ramp(evidence(at(step)), numbers)
        if settings:
            asked[step + 5] = settings["prune"]
    start, end = 200 / 3, 100 - 5 * 2.0  # refit: five epochs of two steps
    expected = {
        s: 0.6 * (1 - (1 - min(1.0, (s - start) / (end - start))) ** 3) for s in range(70, 100, 5) if s - 5 < end
    }
    assert asked == pytest.approx(expected)
    assert asked[90] == pytest.approx(0.6)
    assert max(asked) == 90  # afterwards the mask holds
    assert rules.prune_ramp(evidence(None), numbers) == rules.NOTHING
    assert rules.prune_ramp(evidence(at(90)), numbers_of(starter.PACK, {})) == rules.NOTHING


def test_a_phase_too_short_for_ramp_and_refit_is_pruned_at_once() -> None:
    numbers = numbers_of(starter.PACK, {"prune-target": 0.5, "refit-epochs": 50})
    asked = [rules.prune_ramp(evidence(at(step)), numbers)[0] for step in (55, 60, 65, 70)]
    assert asked == [{}, {}, {"prune": 0.5}, {}]


@pytest.mark.parametrize(
    ("progress", "every", "expected"),
    [
        (at(100, passes=2), 2, {"swap": "ema"}),
        (at(100, passes=4), 2, {"swap": "ema"}),
        (at(100, passes=1), 2, {}),
        (at(95, passes=2), 2, {}),
        (at(100, passes=2), 0, {}),
        (None, 2, {}),
    ],
)
def test_roles_are_swapped_after_every_so_many_passes(
    progress: Progress | None, every: int, expected: dict[str, str]
) -> None:
    assert rules.swap(evidence(progress), {"swap_every": every}, "ema")[0] == expected


@pytest.mark.parametrize(
    ("kl", "step", "expected"),
    [
        ([0.5] * 8, 60, {"stop": 1}),
        ([0.5] * 4 + [0.496] * 4, 60, {"stop": 1}),  # a fall of 0.8 %
        ([0.5] * 4 + [0.49] * 4, 60, {}),
        ([0.5] * 7, 60, {}),
        ([0.5] * 8, 35, {}),  # part of the history is another phase's
        ([0.5] * 8, 95, {}),  # it ends by itself
    ],
)
def test_a_plateau_of_the_kl_ends_the_phase(kl: list[float], step: int, expected: dict[str, int]) -> None:
    numbers = numbers_of(starter.PACK, {"plateau-windows": 4})
    assert rules.plateau(evidence(at(step), kl), numbers)[0] == expected
    assert rules.plateau(evidence(at(step), kl), numbers_of(starter.PACK, {})) == rules.NOTHING


def test_a_curriculum_orders_by_entropy_and_disagreement() -> None:
    samples = Samples(5)
    samples.entropy[:4] = [0.1, 0.4, 0.2, 0.3]
    samples.disagreement[:4] = [0.0, 1.0, 0.5, 0.2]
    easy = rules.curriculum(samples, {"curriculum": 1.0})
    assert easy is not None
    assert np.argsort(easy).tolist() == [0, 4, 2, 3, 1] or easy.tolist() == pytest.approx([0, 1, 0.5, 0.5, 0.5])
    hard = rules.curriculum(samples, {"curriculum": -1.0})
    assert hard is not None
    assert (hard == -easy).all()
    assert rules.curriculum(samples, {"curriculum": 0.0}) is None
    assert rules.curriculum(Samples(5), {"curriculum": 1.0}) is None


# --- packs of papers -------------------------------------------------------------------------------------------------


def test_distilbert_is_5_kd_2_task_1_cosine_at_temperature_2() -> None:
    decision = pack_of("distilbert").decide(evidence(None), numbers_of(pack_of("distilbert"), {}))
    assert decision.settings["temperature"] == 2.0
    assert objective(decision.settings) == pytest.approx({"kd": 5 / 7, "task": 2 / 7, "cosine": 1 / 7})


@pytest.mark.parametrize("step", [5, 40, 45, 60, 95])
def test_tinybert_learns_the_insides_first_and_the_answers_second(step: int) -> None:
    decision = pack_of("tinybert").decide(evidence(at(step)), numbers_of(pack_of("tinybert"), {}))
    if step + 5 < 50 or step == 95:  # at the end of a pass the next one begins
        assert objective(decision.settings) == {"hint": 1.0, "embedding": 1.0, "attention_mse": 1.0}
    else:
        assert objective(decision.settings) == {"kd": 1.0}
        assert decision.settings["temperature"] == 1.0


def test_minilm_looks_at_the_last_layers_attention_and_values_only() -> None:
    decision = pack_of("minilm").decide(evidence(at(50)), numbers_of(pack_of("minilm"), {}))
    names = {term.name for term in TERMS if term.coefficient(KdSettings().changed(**decision.settings)) != 0.0}
    assert len(names) == 2
    assert objective(decision.settings) == {name: 1.0 for name in names}
    assert {k for k, v in decision.settings.items() if v} == {"minilm_at", "minilm_vr"}


@pytest.mark.parametrize(("name", "mode", "tau"), [("born-again", "checkpoint", 1.0), ("snapshot", "snapshot", 2.0)])
def test_generations_follow_each_other_pass_by_pass(name: str, mode: str, tau: float) -> None:
    pack = pack_of(name)
    numbers = numbers_of(pack, {})
    middle, end = (pack.decide(evidence(at(step, passes=1)), numbers) for step in (50, 100))
    assert objective(middle.settings) == pytest.approx({"task": 0.5, "kd": 0.5})
    assert middle.settings["temperature"] == tau
    assert "swap" not in middle.settings
    assert end.settings["swap"] == mode


@pytest.mark.parametrize("name", PACKS)
def test_every_decision_of_every_pack_keeps_its_bounds_and_names_terms_that_exist(name: str) -> None:
    pack = pack_of(name)
    for table in ({}, {n.replace("_", "-"): v.high for n, v in pack.numbers.items() if v.high < 1e3}):
        numbers = numbers_of(pack, table)
        for step in range(5, 101, 5):
            decision = check(pack.decide(evidence(at(step, passes=2), [0.5] * 31), numbers), numbers, {})
            KdSettings().changed(**decision.settings)
            assert set(decision.settings) <= {
                "temperature",
                "mix",
                "alpha",
                "output",
                "prune",
                "swap",
                "stop",
                "cadence",
                *limits.TERMS,
            }


@pytest.mark.parametrize("name", PAPERS)
def test_a_pack_of_a_paper_names_it(name: str) -> None:
    import sys

    module = sys.modules[pack_of(name).decide.__module__]
    assert module.__doc__ is not None
    assert "et al. 20" in module.__doc__ or "2019, section 2" in module.__doc__


# --- refusals --------------------------------------------------------------------------------------------------------


def test_a_pack_outside_its_bounds_is_refused_recorded_and_changes_nothing() -> None:
    wild = Pack("wild", lambda _e, _n: Decision({"temperature": 9.0, "mix": 0.5}, reasons=("why not",)), {})
    state = State(2.0, 2.0, Samples(3), window=4)
    decision = decide(state, wild, {}, {}, {})
    assert decision.settings == {}
    assert decision.refused == "temperature 9.0 is outside 1..4"
    assert state.temperature == 2.0
    assert settings_of(state, decision, {"kl": 0.1}) == {
        "refused": "temperature 9.0 is outside 1..4",
        "evidence": {"kl": 0.1, "why": "why not"},
    }


# --- the in-distribution gate ----------------------------------------------------------------------------------------


def clusters(n: int, seed: int, width: int = 6) -> tuple[Any, Any]:
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % 3
    scale = np.asarray([1.0, 0.2, 3.0, 1.0, 0.5, 2.0])[:width]
    return rng.normal(size=(n, width)) * scale + labels[:, None] * 4.0, labels


def test_distances_are_those_of_the_definition() -> None:
    from sklearn.covariance import LedoitWolf

    x, labels = clusters(90, 0)
    other, _ = clusters(20, 1)
    means = [x[labels == c].mean(0) for c in range(3)]
    centred = np.concatenate([x[labels == c] - means[c] for c in range(3)])
    inverse = np.linalg.inv(LedoitWolf(assume_centered=True).fit(centred).covariance_)
    expected = [min(float((row - m) @ inverse @ (row - m)) for m in means) for row in other]
    assert fit(x, labels)(other) == pytest.approx(expected, rel=1e-4)


def test_good_samples_stay_and_strange_ones_go() -> None:
    x, labels = clusters(400, 2)
    held_out, _ = clusters(200, 3)
    strange = np.arange(7, 400, 20)
    x[strange] += 25.0 * np.random.default_rng(0).choice([-1.0, 1.0], size=(len(strange), 6))
    distance, threshold = outlying(x, labels, held_out)
    outside = distance > threshold
    assert outside[strange].all()
    assert (
        outside.mean() < 0.05 + 0.06
    )  # few of the good ones: not the fifth and more that a fit on its own samples drops
    samples = Samples(400)
    samples.look(distance, threshold)
    assert (samples.outliers == (distance.astype(np.float32) > threshold)).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("few", "a class has 1 samples to fit"),
        ("nan", "features are not finite"),
        ("constant", "the same for every sample"),
        ("held out", "5 held-out samples give no threshold"),
    ],
)
def test_too_little_to_judge_by_is_a_coded_error(change: str, message: str) -> None:
    x, labels = clusters(60, 4)
    held_out = clusters(LEAST_HELD_OUT, 5)[0]
    if change == "few":
        labels = np.where(np.arange(60) < 2, 7, 0)
    elif change == "nan":
        x[3, 2] = np.nan
    elif change == "constant":
        x = np.ones_like(x)
    else:
        held_out = held_out[:5]
    with pytest.raises(RecurosError, match=message) as caught:
        outlying(x, labels, held_out)
    assert caught.value.code == "E2-DATA"


def test_a_singular_covariance_is_shrunk_and_not_fatal() -> None:
    x, labels = clusters(60, 6)
    x = np.concatenate((x, x[:, :2], np.zeros((60, 3))), axis=1)  # copies and constants: rank 6 of 11
    distance, threshold = outlying(x, labels, x[:LEAST_HELD_OUT])
    assert np.isfinite(distance).all()
    assert np.isfinite(threshold)


def test_starter_leaves_outliers_out_but_never_most_of_the_data() -> None:
    samples = Samples(20)
    samples.entropy[:] = np.linspace(0.1, 1.0, 20)
    samples.disagreement[:] = 0.5
    samples.look(np.where(np.arange(20) == 10, 9.0, 1.0), 5.0)
    weights = starter.weights_of(samples, numbers_of(starter.PACK, {}), {})
    assert weights is not None
    assert np.flatnonzero(weights == 0).tolist() == [0, 1, 10, 18, 19]
    samples.look(np.full(20, 9.0), 5.0)
    weights = starter.weights_of(samples, numbers_of(starter.PACK, {}), {})
    assert weights is not None
    assert np.flatnonzero(weights == 0).tolist() == [0, 1, 18, 19]


def test_a_look_is_told_by_the_next_evidence_and_taken_up_from_it() -> None:
    state = State(2.0, 2.0, Samples(3), window=1)
    first = encode_evidence(state, "", {}, Decision(), {}, state.origin())
    again = decode_evidence(first)
    state.look(np.asarray([1.0, 2.0, 9.0]), 5.0)
    origin = state.origin()
    again.look_again(origin)
    assert again.to_map() == state.to_map()
    assert again.samples.outliers.tolist() == [False, False, True]
    encode_evidence(state, "", {}, Decision(), {}, origin)
    assert "look" not in state.origin()
    assert "look" in replace(again, looked=True).origin()
