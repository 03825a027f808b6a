"""Short versions of the kernel's campaigns: each runs, finds nothing wrong, and would say so if there were something."""

from __future__ import annotations

from typing import Any

import pytest

from tests.campaign import kernel


def ran(name: str, count: int) -> kernel.Row:
    campaign = next(c for c in kernel.CAMPAIGNS if c.name == name)
    return kernel.run(campaign, count, 1, None)


def test_histories_are_judged_and_some_run_twice() -> None:
    row = ran("histories", 12)
    assert row.count == 12
    assert row.violations == 0, row.found
    assert row.details["repeated"] == 2
    assert row.details["commits"] > 0


def test_admitted_jobs_are_in_proportion_to_histories() -> None:
    row = ran("admitted jobs", 2)
    assert row.count >= 2_000
    assert row.violations == 0, row.found


def test_a_violation_is_counted_and_kept_with_what_reproduces_it() -> None:
    def broken(count: int, seed: int, seconds: float | None, details: dict[str, Any]) -> kernel.Trials:
        yield 1, ""
        yield 2, f"seed {seed}: wrong"

    row = kernel.run(kernel.Campaign("broken", "trials", 1.0, broken), 2, 7, None)
    assert (row.count, row.violations, row.found) == (2, 1, ["seed 7: wrong"])


@pytest.mark.parametrize("seconds", [0.0])
def test_campaigns_that_are_counted_stop_when_their_time_is_over(seconds: float) -> None:
    campaign = next(c for c in kernel.CAMPAIGNS if c.name == "histories")
    assert kernel.run(campaign, 1_000, 1, seconds).count == 1
