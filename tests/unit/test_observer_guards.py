"""Rules that act on what the trajectory says: collapse over generations, a temperature rule that costs accuracy, probe cadence."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from kernel.policy import check_policy
from kfs.objects import object_id
from servers.observer import rules
from servers.observer.diagnostics import Samples, Trace
from servers.observer.packs import starter
from servers.observer.policy import Decision, check, numbers_of
from servers.observer.state import State, decide, decode_evidence, encode_evidence, fold, settings_of
from syscalls.errors import RecurosError


def snapshot(number: int) -> str:
    return object_id("U8", (1,), bytes([number]))


class Run:
    """Windows of a run as the Observer sees them, and what `starter` decides on each."""

    def __init__(self, **numbers: float) -> None:
        self.numbers = numbers_of(starter.PACK, numbers)
        self.state = State(2.0, 2.0, Samples(4))
        self.window = 0
        self.decided: list[Decision] = []

    def step(self, generation: int = 0, *, kl: float = 0.5, student: float = 0.4, cka: float | None = None) -> Decision:
        """One window, and the state once more through its own encoding, as after a restart."""
        self.window += 1
        rows = np.ones(4)
        trace = Trace(np.arange(4), rows, 0.9 * rows, student * rows, 0.4 * rows, kl * rows, rows, 0)
        before = self.state.origin()
        figures = fold(self.state, self.window, trace, {"generation": generation, "temperature": 2.0}, {})
        if cka is not None:
            self.state.trajectory.add(self.window, {"cka": cka})
        made = decide(self.state, starter.PACK, self.numbers, figures, {})
        check_policy({**settings_of(self.state, made, figures), "weights": 0})
        self.state = decode_evidence(encode_evidence(self.state, "", figures, made, self.numbers, before))
        self.decided.append(made)
        return made

    def evaluate(self, accuracy: float, number: int = 0, ece: float = 0.05) -> None:
        self.state.held_out.add(ece, 0.9, accuracy, accuracy, snapshot(number))


def test_a_collapse_goes_back_to_the_last_good_generation_a_bounded_number_of_times_and_then_holds_swaps() -> None:
    run = Run(**{"collapse-most": 0.1, "collapse-evaluations": 2, "collapse-restores": 1})
    for generation, accuracy in enumerate((0.95, 0.97, 0.90)):
        run.step(generation)
        run.evaluate(accuracy, generation)
        assert not run.step(generation).settings.keys() & {"restore", "hold"}
    run.step(3)
    run.evaluate(0.80, 3)
    assert "restore" not in run.step(3).settings  # one evaluation is none
    run.evaluate(0.79, 4)
    made = run.step(3)
    assert made.settings["restore"] == snapshot(2)  # 0.90 is within a tenth of 0.97
    assert "back to generation 2 (0.9000): held-out accuracy 0.7900 after 0.9700" in made.reasons[-1]
    assert "restore" not in run.step(3).settings  # once
    assert run.state.held_out.count != 0
    run.step(
        3
    )  # from here on the learner is in the earlier state: what was known of the samples and the scores is another's
    assert (run.state.held_out.count, run.state.guards.restored_at) == (0, -1)
    run.evaluate(0.70)
    assert not run.step(3).settings.keys() & {"restore", "hold"}
    run.evaluate(0.70)
    made = run.step(3)
    assert made.settings["hold"] == 1
    assert "1 returns have not helped" in made.reasons[-1]
    assert run.step(3).settings["hold"] == 1
    run.evaluate(0.96)
    assert "hold" not in run.step(3).settings  # it has recovered


def test_a_generation_whose_first_evaluation_comes_after_its_last_window_is_known_all_the_same() -> None:
    run = Run()
    run.step(0)
    run.evaluate(0.9, 7)
    run.step(1)
    assert run.state.generations[0][1:] == [0.9, pytest.approx(0.4), snapshot(7)]


def test_a_collapse_without_a_known_good_snapshot_only_holds() -> None:
    run = Run(**{"collapse-evaluations": 1})
    run.step(0)
    run.state.held_out.add(0.05, 0.9, 0.95, 0.95)  # of no snapshot
    run.step(1)
    run.evaluate(0.5)
    made = run.step(1)
    assert "restore" not in made.settings
    assert made.settings["hold"] == 1
    assert "swap" not in made.settings
    assert "no snapshot of a good generation" in made.reasons[-1]


def test_nothing_is_watched_at_zero_or_in_one_generation() -> None:
    for numbers, generation in (({"collapse-most": 0.0}, 1), ({}, 0)):
        run = Run(**{"collapse-evaluations": 1.0, **numbers})
        run.step(0)
        run.evaluate(0.95, 1)
        run.step(generation)
        run.evaluate(0.2, 2)
        assert not run.step(generation).settings.keys() & {"restore", "hold"}


# --- the temperature rule ---------------------------------------------------------------------------------------------


def moved(guard: float, accuracy: float) -> Run:
    """A run whose rule lowers the temperature once, and an evaluation after that took effect."""
    run = Run(**{"temperature-guard": guard})
    run.evaluate(0.9)
    assert run.step(student=0.6).settings["temperature"] == pytest.approx(1.8)
    run.evaluate(0.5)  # of a window before the move applies: it says nothing of it
    run.step(student=0.6)
    run.step(student=0.6)
    run.evaluate(accuracy)
    return run


def test_a_move_that_costs_accuracy_is_taken_back_and_ends_the_rule_for_the_generation() -> None:
    run = moved(0.02, 0.85)
    made = run.step(student=0.6)
    assert run.state.temperature == 2.0
    assert "temperature 1.800 -> 2.000: held-out accuracy 0.8500 after 0.9000" in made.reasons[0]
    for _ in range(8):
        run.step(student=0.6)
    assert run.state.temperature == 2.0
    run.step(1, student=0.6)
    assert run.state.temperature == pytest.approx(1.8)  # another generation may try


@pytest.mark.parametrize(("guard", "accuracy"), [(0.0, 0.5), (0.02, 0.89)])
def test_without_a_guard_or_a_loss_the_rule_goes_on_as_the_numbers_say(guard: float, accuracy: float) -> None:
    run = moved(guard, accuracy)
    assert run.step(student=0.6).settings["temperature"] == pytest.approx(1.62)


# --- probe cadence ----------------------------------------------------------------------------------------------------


def test_probes_fire_less_often_while_figures_are_steady_and_at_once_as_attached_when_they_move() -> None:
    run = Run(**{"cadence-most": 4, "cadence-steady": 0.05})
    cadences = [run.step(kl=0.5, cka=0.8).settings["cadence"] for _ in range(24)]
    assert cadences == [1] * 7 + [2] * 8 + [4] * 9
    made = run.step(kl=0.6)
    assert made.settings["cadence"] == 1
    assert "figures moved by" in made.reasons[0]
    assert "cadence" not in Run().step().settings  # off by default


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"cadence": 65}, r"cadence.* 65 is outside"),
        ({"cadence": 0}, "cadence"),
        ({"hold": 2}, "hold"),
        ({"restore": "best"}, "no root id"),
    ],
)
def test_bounds_of_what_these_rules_set_are_checked_twice(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(RecurosError, match=message):
        check(Decision(settings), {}, {})
    with pytest.raises(RecurosError, match=message):
        check_policy(settings)


def test_half_a_cadence_is_refused() -> None:
    with pytest.raises(RecurosError, match="cadence"):
        check_policy({"cadence": 1.5})


def test_the_numbers_of_these_rules_are_in_the_pack() -> None:
    assert {*rules.COLLAPSE, *rules.CADENCE, "temperature_guard"} <= starter.PACK.numbers.keys()
