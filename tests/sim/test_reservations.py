"""Reservations in a whole runtime: what an operator set survives, reserved servers run, lent time is accounted."""

from __future__ import annotations

import signal
from typing import Any

import pytest
from invariants import check_end, check_ledger, check_positions
from world import MS, S, World, digest, document

from kernel.events import Effect, Kill, Sampled
from kernel.sched import Reservation
from kfs.records import Record, RecordKind


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


def over_budget(policy: str, *, budget_ms: int = 1, **window: int) -> Watched:
    """A world whose windows use far more than their budget."""
    doc = with_server("learner", overrun=policy)
    doc["window"] |= {"budget_ms": budget_ms, **window}
    world = Watched(6, doc)
    up(world)
    return world


class Watched(World):
    """A world that notes signals to servers, and when."""

    def __init__(self, *args: Any, **options: Any) -> None:
        self.signals: list[tuple[int, str, int]] = []
        super().__init__(*args, **options)

    def _perform(self, effect: Effect) -> None:
        if isinstance(effect, Kill):
            self.signals.append((self.now_ns, effect.name, effect.signal))
        super()._perform(effect)


def done(world: World) -> list[Record]:
    """Let the plan end; its commits. Every overrun is counted, and the first is recorded with what was done about it."""
    assert world.run(lambda: world.state is not None and world.state.phase == "done", 300 * S)
    commits = check_ledger(world.disk, built=digest("built"), policies=False)
    assert world.state is not None
    policy = world.state.config.servers["learner"].overrun
    told = [r for r in world.disk.log if r.kind is RecordKind.FAULT and r.args["code"] == "E7-BUDGET"]
    assert told[0].args["message"].startswith(f"overrun, {policy}: window 1 used")
    assert world.state.overruns["learner"] >= len(commits) // 2
    assert world.state.counts["missed"] == 0
    return commits


def test_a_window_over_its_budget_goes_on_where_only_the_deadline_counts() -> None:
    world = over_budget("rollback")
    assert len(done(world)) == 12
    assert not world.signals


def test_a_throttled_window_waits_for_its_next_period_and_commits_by_a_later_deadline() -> None:
    """With a budget of 40 ms in 100 the learner stands still until the next period, and has the deadline of that one."""
    world = over_budget("throttle", budget_ms=20, period_ms=100, deadline_ms=60)
    commits = done(world)
    assert len(commits) == 12
    stops = [at for at, name, number in world.signals if (name, number) == ("learner", signal.SIGSTOP)]
    goes = [at for at, name, number in world.signals if (name, number) == ("learner", signal.SIGCONT)]
    assert len(stops) == len(goes) > 0
    assert all(a < b for a, b in zip(stops, goes, strict=True))
    grants = {r.args["window"]: r for r in world.disk.log if r.kind is RecordKind.WINDOW_GRANT}
    later = [c for c in commits if c.t_mono > grants[c.args["window"]].args["deadline_ns"]]
    assert later, "no window of this seed needed its later deadline"
    assert world.state is not None
    assert not world.state.servers["learner"].stopped


def test_a_postponed_window_goes_on_at_once_with_a_later_deadline() -> None:
    world = over_budget("postpone", budget_ms=5, period_ms=50, deadline_ms=30)
    commits = done(world)
    assert len(commits) == 12
    assert not world.signals
    grants = {r.args["window"]: r for r in world.disk.log if r.kind is RecordKind.WINDOW_GRANT}
    assert [c for c in commits if c.t_mono > grants[c.args["window"]].args["deadline_ns"]]


def test_a_degraded_window_commits_with_the_steps_that_it_has() -> None:
    world = over_budget("degrade")
    commits = done(world)
    assert len(commits) == 12
    assert {1, 2} & {c.args["metrics"]["steps"] for c in commits}
    assert {c.args["steps"] for c in commits} == {4}
    check_positions(commits, world.document)


def test_a_window_that_is_killed_for_its_budget_starts_anew_from_the_base() -> None:
    world = over_budget("kill")
    world.run(lambda: world.state is not None and world.state.servers["learner"].incarnation > 2, 20 * S)
    assert world.state is not None
    assert world.state.committed_window == 0
    assert ("learner", signal.SIGKILL) in {(name, number) for _, name, number in world.signals}
    check_ledger(world.disk, built=digest("built"), policies=False)


@pytest.mark.parametrize("how", ["drain", "now", "death"])
def test_a_throttled_learner_answers_for_its_window_when_it_must(how: str) -> None:
    """Stopped in a long period, it is let go on when the runtime halts; and a killed one leaves no stop behind."""
    world = over_budget("throttle", budget_ms=5, period_ms=20_000, deadline_ms=10_000)
    assert world.run(lambda: world.processes["learner"].stopped, 20 * S)
    if how == "death":
        world.end(world.processes["learner"], -9)
        assert world.run(
            lambda: world.processes["learner"].incarnation == 2 and world.processes["learner"].stopped, 60 * S
        )
    world.operator("shutdown", mode="now" if how == "now" else "drain", reason="")
    assert world.run(lambda: world.exit is not None, 90 * S)
    check_end(world, drained=True)


def test_a_stopped_learner_is_not_killed_for_its_silence() -> None:
    world = over_budget("throttle", budget_ms=5, period_ms=100_000, deadline_ms=90_000)
    assert world.run(lambda: world.processes["learner"].stopped, 20 * S)
    assert not world.run(lambda: world.processes["learner"].incarnation > 1, 90 * S)


def test_a_fair_server_that_stays_in_its_slice_is_slowed_down_then_stopped_in_turns_until_it_speaks() -> None:
    world = Watched(7, document(windows=(2, 8, 2)))
    up(world)
    s = world.state
    assert s is not None
    assert world.run(lambda: s.fair.running("observer") is not None, 20 * S)
    observer = world.processes["observer"]
    observer.stopped = True  # it computes and says nothing
    cpu_ns = s.servers["observer"].spoke_cpu_ns
    for used_s, niced, stopped in (
        (0.9, None, 0),
        (1.1, 19, 0),
        (2.9, 19, 0),
        (3.1, 19, 1),
        (4.9, 19, 1),
        (5.3, 19, 2),
    ):
        world.step(Sampled({"observer": (1, cpu_ns + int(used_s * S))}))
        assert world.niced.get("observer") == niced
        assert sum(number == signal.SIGSTOP for _, _, number in world.signals) == stopped
        if stopped:
            assert world.run(lambda: not s.servers["observer"].stopped, 3 * S)
            observer.stopped = True
    world.signalled(observer, signal.SIGCONT)
    assert world.run(lambda: world.niced["observer"] == 0, 20 * S)
    assert world.run(lambda: s.phase == "done", 120 * S)
    told = [r.args["message"] for r in world.disk.log if r.kind is RecordKind.FAULT and r.args["name"] == "observer"]
    assert "nice 19" in told[0]
    assert "stopped for 2 s" in told[1]
    assert s.servers["observer"].incarnation == 1


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
