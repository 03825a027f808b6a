"""Reservations in a whole runtime: what an operator set survives, reserved servers run, lent time is accounted."""

from __future__ import annotations

from typing import Any

import pytest
from invariants import check_ledger
from world import MS, S, World, digest, document

from kernel.sched import Reservation
from kfs.records import RecordKind


def up(world: World) -> None:
    world.boot()
    assert world.run(lambda: world.state is not None and world.state.phase == "running", 10 * S)
    world.hello()


def stop(world: World) -> None:
    world.signal()
    assert world.run(lambda: world.exit is not None, 60 * S)
    world.power_cut()


def with_server(name: str, **keys: Any) -> dict[str, Any]:
    doc = document(windows=(2, 8, 2))
    next(s for s in doc["servers"] if s["name"] == name).update(keys)
    return doc


@pytest.mark.parametrize("committed", [0, 3])
def test_a_schedule_that_an_operator_set_survives_a_halt(committed: int) -> None:
    world = World(1, document(windows=(2, 20)))
    up(world)
    world.run(lambda: world.state is not None and world.state.committed_window >= committed, 20 * S)
    call = world.operator("rl_schedule", window={"budget_ms": 300, "period_ms": 500}, deadline=450)
    assert world.run(lambda: ("operator:7.1", call) in world.answers, 5 * S)
    set_ = Reservation("replay", 300 * MS, 450 * MS, 500 * MS)
    for _ in range(2):
        stop(world)
        up(world)
        assert world.state is not None
        assert world.state.reservation == set_
        assert world.state.cbs["learner"].reservation == set_
    stop(world)
    world.document["window"]["budget_ms"] = 250
    up(world)
    assert world.state is not None
    assert world.state.reservation.budget_ns == 250 * MS, "a manifest that was changed since has the last word"


def test_what_was_asked_for_before_the_first_commit_survives_a_crash() -> None:
    world = World(2, document(windows=(2, 4)))
    up(world)
    calls = [
        world.operator("rl_set_kd", temperature=3.0),
        world.operator("rl_gate_samples", criteria={"drop_low": 0.1}),
    ]
    assert world.run(lambda: all(("operator:7.1", c) in world.answers for c in calls), 5 * S)
    assert world.state is not None
    assert not world.state.committed, "this seed commits too early to show anything"
    world.power_cut()
    up(world)
    assert world.state is not None
    assert world.state.kd["temperature"] == 3.0
    assert world.state.gate == {"drop_low": 0.1}
    assert world.run(lambda: world.state is not None and world.state.phase == "done", 120 * S)
    check_ledger(world.disk, built=digest("built"), policies=False)


@pytest.mark.parametrize("policy", ["throttle", "postpone"])
def test_servers_with_reservations_finish_a_plan_and_their_overruns_are_told(policy: str) -> None:
    doc = with_server("dataset", budget_ms=1, period_ms=100, overrun=policy)
    next(s for s in doc["servers"] if s["name"] == "observer").update(budget_ms=30, period_ms=100, deadline_ms=90)
    world = World(3, doc)
    up(world)
    assert world.run(lambda: world.state is not None and world.state.phase == "done", 300 * S)
    check_ledger(world.disk, built=digest("built"), policies=False)
    assert world.state is not None
    dataset = world.state.cbs["dataset"]
    assert dataset.used_ns > 0
    assert dataset.overruns > 0
    assert (dataset.postponed > 0) == (policy == "postpone")
    told = [r for r in world.disk.log if r.kind is RecordKind.FAULT and r.args["code"] == "E7-BUDGET"]
    assert 0 < len(told) <= 20
    names = {r.args["name"] for r in world.disk.log if r.kind is RecordKind.SCHED_ADMIT}
    assert names == {"replay", "dataset", "observer"}
    assert all(s.lent == 0 for s in world.state.cbs.values())
    assert world.state.cbs["learner"].lent_ns > 0, "the archivist's work for the learner was not charged"


def test_a_server_whose_overrun_kills_is_replaced() -> None:
    world = World(4, with_server("dataset", budget_ms=1, period_ms=100, overrun="kill"))
    up(world)
    world.run(lambda: world.state is not None and world.state.servers["dataset"].incarnation > 1, 20 * S)
    faults = [r for r in world.disk.log if r.kind is RecordKind.FAULT and r.args["name"] == "dataset"]
    assert faults
    assert "kill" in faults[0].args["message"]


@pytest.mark.parametrize("policy", ["rollback", "kill"])
def test_a_window_over_its_budget_ends_as_its_policy_says(policy: str) -> None:
    doc = with_server("learner", overrun=policy)
    doc["window"]["budget_ms"] = 1
    world = World(6, doc)
    up(world)
    world.run(lambda: world.state is not None and world.state.committed_window >= 2, 20 * S)
    assert world.state is not None
    killed = [r for r in world.disk.log if r.kind is RecordKind.FAULT and r.args["code"] == "E7-BUDGET"]
    assert bool(killed) == (policy == "kill")
    assert (world.state.servers["learner"].incarnation > 1) == (policy == "kill")
    assert (world.state.committed_window >= 2) == (policy == "rollback"), (
        "on time is on time where only the deadline counts"
    )
    check_ledger(world.disk, built=digest("built"), policies=False)


def test_reservations_that_do_not_fit_together_fail_the_boot_with_the_witness() -> None:
    doc = with_server("dataset", budget_ms=60, period_ms=100)
    next(s for s in doc["servers"] if s["name"] == "observer").update(budget_ms=50, period_ms=100)
    world = World(5, doc)
    world.boot()
    world.run(lambda: world.exit is not None, 5 * S)
    assert world.state is not None
    assert world.state.error is not None
    assert world.state.error[0] == "E6-ADMIT"
    assert "utilisation" in world.state.error[1]
