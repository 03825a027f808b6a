"""The short version of the campaign of simulated jobs: admitted sets never miss, and without the blocking term they would."""

from __future__ import annotations

from kernel.sched import Reservation
from tests.campaign import _edf


def test_admitted_jobs_are_never_late_and_those_admitted_without_blocking_are() -> None:
    result = _edf.run(count=20_000, seed=1)
    assert result.jobs >= 20_000
    assert result.misses == 0, result.found
    assert not result.found
    assert result.full_sets > 0, "no set filled the lane"
    assert result.control_sets_that_missed > result.control_sets // 2


def test_the_simulated_lane_itself_sees_a_job_that_a_micro_step_made_late() -> None:
    urgent, slow = Reservation("urgent", 2, 4, 10, 2), Reservation("slow", 4, 20, 20, 4)
    assert _edf.simulate([urgent, slow], [0, 0], 100, None) == (100, 0)
    jobs, missed = _edf.simulate([urgent, slow], [1, 0], 100, None)
    assert jobs == 100
    assert missed > 0


def test_a_drawn_full_set_is_full_in_whole_numbers() -> None:
    from fractions import Fraction
    from random import Random

    for seed in range(50):
        tasks = _edf._full(Random(seed), 5)
        assert sum(Fraction(r.budget_ns, r.period_ns) for r in tasks) == 1
