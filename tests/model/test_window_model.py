"""The window protocol's model holds in every reachable state, and the checker finds every rule that is taken away."""

from __future__ import annotations

import pytest

from tests.model.checker import check
from tests.model.window import MUTANTS, WindowProtocol


def test_no_commit_is_lost_or_doubled_and_nothing_deadlocks_in_any_reachable_state() -> None:
    verdict = check(WindowProtocol(windows=3, crashes=3))
    assert verdict.problem == "", verdict.path
    assert verdict.states > 1_000, "the model has not become trivial"


@pytest.mark.parametrize("mutant", MUTANTS)
def test_the_checker_finds_a_protocol_without(mutant: str) -> None:
    verdict = check(WindowProtocol(windows=2, crashes=2, mutant=mutant))
    assert verdict.problem, f"{MUTANTS[mutant]}, and nothing was noticed in {verdict.states} states"
    assert verdict.path, "a counterexample is a way there"


def test_an_unfinished_search_is_not_called_checked() -> None:
    with pytest.raises(RuntimeError, match="not checked"):
        check(WindowProtocol(windows=3, crashes=3), states_max=100)
