"""The capability protocol's model holds in every reachable state, and the checker finds every rule that is taken away."""

from __future__ import annotations

import pytest

from tests.model.capability import MUTANTS, CapabilityProtocol
from tests.model.checker import check


def test_no_right_is_gained_and_no_call_is_answered_twice_in_any_reachable_state() -> None:
    verdict = check(CapabilityProtocol(caps=3, calls=1, deaths=1, lies=1))
    assert verdict.problem == "", verdict.path
    assert verdict.states > 1_000, "the model has not become trivial"


@pytest.mark.parametrize("mutant", MUTANTS)
def test_the_checker_finds_a_protocol_without(mutant: str) -> None:
    verdict = check(CapabilityProtocol(3, 1, 1, 1, mutant))
    assert verdict.problem, f"{MUTANTS[mutant]}, and nothing was noticed in {verdict.states} states"
    assert verdict.path, "a counterexample is a way there"


def test_a_mutant_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ValueError, match="no mutant 'typo'"):
        CapabilityProtocol(mutant="typo")
