"""Admission against a scheduler that is simulated tick by tick, and the fair class against the shares it promises."""

from __future__ import annotations

import itertools
import random
from dataclasses import dataclass
from math import lcm

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kernel.sched import FairClass, Reservation, admit

# --- the oracle: EDF on one lane, one tick at a time, written from the definition and not from kernel.sched ------------------


@dataclass
class Task:
    budget: int
    deadline: int
    period: int
    step: int = 0  # a job runs in pieces of this many ticks that nothing interrupts; 0: it can be interrupted anywhere


@dataclass
class Job:
    due: int
    left: int
    step: int
    done_in_step: int = 0


def misses(tasks: list[Task], offsets: list[int], horizon: int, background_step: int = 0) -> int:
    """Deadlines missed when every task releases jobs as often as it may, from its offset on. Background fills idle time in pieces."""
    ready: list[Job] = []
    running: Job | None = None
    background_left = missed = 0
    for now in range(horizon):
        for task, offset in zip(tasks, offsets, strict=True):
            if now >= offset and (now - offset) % task.period == 0:
                ready.append(Job(now + task.deadline, task.budget, task.step))
        missed += sum(job.due <= now for job in ready)
        ready = [job for job in ready if job.due > now]
        if running not in ready:
            running = None
        if background_left == 0 and (running is None or running.step in (0, running.done_in_step)):
            running = min(ready, key=lambda job: job.due, default=None)
            if running is not None:
                running.done_in_step = 0
            elif background_step:
                background_left = background_step
        if background_left:
            background_left -= 1
        elif running is not None:
            running.left -= 1
            running.done_in_step += 1
            if running.left == 0:
                ready.remove(running)
                running = None
    return missed


def reservations(tasks: list[Task]) -> list[Reservation]:
    return [Reservation(f"t{i}", t.budget, t.deadline, t.period, t.step) for i, t in enumerate(tasks)]


def horizon_of(tasks: list[Task]) -> int:
    return 2 * lcm(*(t.period for t in tasks)) + 2 * max(t.period for t in tasks)


def test_preemptive_admission_is_exact_for_every_pair_of_small_tasks() -> None:
    """Synchronous release is the worst case, so refused means that very schedule misses."""
    shapes = [Task(c, d, p) for p in (2, 3, 5) for d in range(1, p + 1) for c in range(1, d + 1)]
    admitted = refused = 0
    for one, two in itertools.combinations_with_replacement(shapes, 2):
        tasks = [one, two]
        ok, witness = admit(reservations(tasks), reserve=0.0)
        late = misses(tasks, [0, 0], horizon_of(tasks))
        assert ok == (late == 0), (tasks, witness)
        admitted, refused = admitted + ok, refused + (not ok)
    assert admitted > 50
    assert refused > 50


@st.composite
def task_sets(draw: st.DrawFn, *, steps: bool) -> list[Task]:
    tasks = []
    for _ in range(draw(st.integers(1, 4))):
        period = draw(st.sampled_from((4, 5, 6, 8, 10, 12)))
        deadline = draw(st.integers(1, period))
        budget = draw(st.integers(1, min(deadline, 4)))
        tasks.append(Task(budget, deadline, period, draw(st.integers(0, budget)) if steps else 0))
    return tasks


@settings(max_examples=150, deadline=None)
@given(task_sets(steps=True), st.integers(0, 2), st.randoms(use_true_random=False))
def test_admitted_sets_never_miss_whatever_the_offsets(tasks: list[Task], background: int, rng: random.Random) -> None:
    ok, _ = admit(reservations(tasks), reserve=0.0, background_step_ns=background)
    if ok:
        horizon = min(2000, horizon_of(tasks))
        for offsets in (
            [0] * len(tasks),
            [rng.randrange(t.period) for t in tasks],
            [rng.randrange(t.period) for t in tasks],
        ):
            assert misses(tasks, offsets, horizon, background) == 0


@settings(max_examples=150, deadline=None)
@given(task_sets(steps=False))
def test_what_is_refused_would_miss(tasks: list[Task]) -> None:
    ok, witness = admit(reservations(tasks), reserve=0.0)
    late = misses(tasks, [0] * len(tasks), min(4000, horizon_of(tasks)))
    assert ok == (late == 0), witness
    if not ok and witness["t_ns"]:
        t = witness["t_ns"]
        demand = sum(((t - x.deadline) // x.period + 1) * x.budget for x in tasks if t >= x.deadline)
        assert demand > t, "the witness does not witness"


def test_a_long_step_of_another_task_can_cost_admission() -> None:
    urgent = Reservation("urgent", 2, 4, 10)
    assert admit([urgent, Reservation("slow", 4, 20, 20, step_ns=2)], reserve=0.0)[0]
    ok, witness = admit([urgent, Reservation("slow", 4, 20, 20, step_ns=3)], reserve=0.0)
    assert not ok
    assert witness["t_ns"] == 4


def test_background_on_the_lane_counts_as_a_task_without_deadline() -> None:
    task = Reservation("replay", 6, 10, 10)
    assert admit([task], background_step_ns=4, reserve=0.0)[0]
    assert not admit([task], background_step_ns=5, reserve=0.0)[0]


def test_a_full_lane_is_admitted_only_without_the_reserve() -> None:
    full = [Reservation("a", 5, 10, 10), Reservation("b", 10, 20, 20)]
    assert admit(full, reserve=0.0)[0]
    ok, witness = admit(full)
    assert not ok
    assert "0.95" in witness["reason"]


def test_a_full_lane_with_short_deadlines_is_judged_within_its_hyperperiod() -> None:
    ms = 1_000_000
    tasks = [Reservation("a", 10 * ms, 15 * ms, 20 * ms), Reservation("b", 20 * ms, 40 * ms, 40 * ms)]
    assert admit(tasks, reserve=0.0)[0]
    assert not admit([tasks[0], Reservation("b", 20 * ms, 25 * ms, 40 * ms)], reserve=0.0)[0]


@pytest.mark.parametrize(
    ("budget", "deadline", "period"), [(0, 1, 1), (-1, 5, 5), (6, 5, 10), (5, 11, 10), (5, 0, 10), (0, 0, 0)]
)
def test_a_reservation_that_makes_no_sense_is_refused(budget: int, deadline: int, period: int) -> None:
    ok, witness = admit([Reservation("x", budget, deadline, period)])
    assert not ok
    assert "budget <= deadline <= period" in witness["reason"]


def test_no_tasks_are_admitted() -> None:
    assert admit([])[0]


def test_a_set_with_too_many_deadlines_is_refused_at_once() -> None:
    tasks = [Reservation("a", 1, 2, 1_000), Reservation("b", 1 << 40, 1 << 50, 1 << 50)]
    ok, witness = admit(tasks)
    assert not ok
    assert "deadlines" in witness["reason"]


# --- the fair class --------------------------------------------------------------------------------------------------------


def served(fair: FairClass) -> dict[str, int]:
    return {row["name"]: row["served_ns"] for row in fair.to_list()}


def drive(
    weights: dict[str, int], slots: int, turns: int, cost: dict[str, tuple[int, int]], seed: int
) -> dict[str, int]:
    """Everybody always has work; jobs take a random time in their server's range. Returns the CPU time of each."""
    rng = random.Random(seed)
    fair = FairClass(weights, slots, 20)
    ends: dict[str, tuple[int, int]] = {}
    now = 0
    for name in weights:
        fair.enqueue(name, 0)
    for turn in range(turns):
        while (picked := fair.pick()) is not None:
            name = picked[0]
            used = rng.randint(*cost[name])
            ends[name] = (now + used, used)
            fair.enqueue(name, turn)
        name = min(ends, key=lambda n: (ends[n], n))
        now, used = ends.pop(name)
        fair.finish(name, used)
    return served(fair)


@settings(max_examples=40, deadline=None)
@given(
    st.dictionaries(st.sampled_from("abcde"), st.integers(1, 8), min_size=2, max_size=5),
    st.integers(0, 1 << 30),
    st.data(),
)
def test_long_run_shares_follow_the_weights(weights: dict[str, int], seed: int, data: st.DataObject) -> None:
    cost = {n: (1, data.draw(st.integers(1, 40))) for n in sorted(weights)}
    got = drive(weights, 1, 3000, cost, seed)
    total, weight = sum(got.values()), sum(weights.values())
    for name, own in weights.items():
        # A share is off by a few jobs at most, however long the run.
        assert abs(got[name] - total * own / weight) <= 2 * len(weights) * 40, (weights, got)


def test_nobody_starves_beside_a_heavy_neighbour() -> None:
    got = drive({"heavy": 1000, "light": 1}, 1, 20_000, {"heavy": (20, 20), "light": (1, 20)}, 1)
    assert got["light"] > 0
    assert got["light"] / got["heavy"] == pytest.approx(1 / 1000, rel=0.5)


def test_slots_limit_how_many_run_at_once_and_each_server_runs_one() -> None:
    fair = FairClass({"a": 1, "b": 1, "c": 1}, 2, 20)
    for name in "abcabc":
        fair.enqueue(name, name)
    first = [fair.pick(), fair.pick()]
    assert len({p[0] for p in first if p}) == 2
    assert fair.pick() is None
    fair.finish("a", 5)
    assert fair.pick() is not None


def test_a_server_that_slept_does_not_collect_more_than_a_bounded_lag() -> None:
    second = 1_000_000_000
    fair = FairClass({"busy": 1, "idle": 1}, 1, 20_000_000)
    for i in range(100):
        fair.enqueue("busy", i)
        assert fair.pick() == ("busy", i)
        fair.finish("busy", second)
    run = 0
    fair.enqueue("idle", "first")
    fair.enqueue("busy", "waits")
    while (picked := fair.pick()) is not None and picked[0] == "idle":
        run += 10_000_000
        fair.finish("idle", 10_000_000)
        fair.enqueue("idle", "more")
    assert picked is not None
    assert run <= 200_000_000, "a sleeper took the lane for longer than its kept lag"


def test_a_yielded_job_goes_on_before_the_next_of_its_server() -> None:
    fair = FairClass({"a": 1}, 1, 20)
    fair.enqueue("a", "first")
    fair.enqueue("a", "second")
    assert fair.pick() == ("a", "first")
    fair.finish("a", 5)
    fair.enqueue("a", "first again", front=True)
    assert fair.pick() == ("a", "first again")


def test_the_jobs_of_a_dead_server_are_given_back_and_its_slot_is_free() -> None:
    fair = FairClass({"a": 1, "b": 1}, 1, 20)
    fair.enqueue("a", 1)
    fair.enqueue("a", 2)
    fair.pick()
    fair.enqueue("b", 3)
    assert fair.clear("a") == [1, 2]
    assert fair.pick() == ("b", 3)
    assert fair.finish("a", 10) is None
