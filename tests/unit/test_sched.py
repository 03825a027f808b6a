"""Admission against a scheduler that is simulated tick by tick, and the fair class against the shares it promises."""

from __future__ import annotations

import itertools
import random
from dataclasses import dataclass
from fractions import Fraction
from math import lcm

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kernel.sched import LAG_KEPT_NS, Admission, FairClass, Reservation, admit

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


def enumerated(tasks: list[Reservation], background: int) -> tuple[bool, int]:
    """The definition: every absolute deadline up to one hyperperiod after the longest relative deadline, one by one."""
    if sum(Fraction(r.budget_ns, r.period_ns) for r in tasks) > 1:
        return False, 0
    end = max(r.deadline_ns for r in tasks) + lcm(*(r.period_ns for r in tasks))
    for t in sorted({t for r in tasks for t in range(r.deadline_ns, end + 1, r.period_ns)}):
        demand = sum(((t - r.deadline_ns) // r.period_ns + 1) * r.budget_ns for r in tasks if r.deadline_ns <= t)
        if demand + max([background, *(r.step_ns for r in tasks if r.deadline_ns > t)]) > t:
            return False, t
    return True, 0


@settings(max_examples=400, deadline=None)
@given(task_sets(steps=True), st.integers(0, 3))
def test_the_search_for_the_worst_point_decides_as_testing_every_point_does(tasks: list[Task], background: int) -> None:
    rs = reservations(tasks)
    ok, witness = admit(rs, reserve=0.0, background_step_ns=background)
    assert ok == enumerated(rs, background)[0], witness
    t, need = witness["t_ns"], witness["demand_ns"]
    if t:
        demand = sum(((t - r.deadline_ns) // r.period_ns + 1) * r.budget_ns for r in rs if r.deadline_ns <= t)
        assert need == demand + max([background, *(r.step_ns for r in rs if r.deadline_ns > t)])
        assert (need <= t) == ok, "the witness does not witness"


@pytest.mark.parametrize("background", [0, 1])
def test_a_lane_that_is_exactly_full_is_decided_in_whole_numbers(background: int) -> None:
    """1/3 + 1/7 + 11/21 is 1 in rationals and more or less than 1 in floats."""
    tasks = [Reservation("a", 10, 30, 30), Reservation("b", 10, 70, 70), Reservation("c", 110, 210, 210)]
    assert admit(tasks, reserve=0.0, background_step_ns=background)[0] == (background == 0)
    assert not admit([*tasks, Reservation("d", 1, 10**12, 10**12)], reserve=0.0)[0]


def random_set(rng: random.Random, n: int, usage: float) -> list[Reservation]:
    """n reservations in nanoseconds with periods over three orders of magnitude."""
    shares = [rng.random() for _ in range(n)]
    tasks = []
    for i, share in enumerate(shares):
        period = int(10 ** rng.uniform(6, 9))
        budget = max(1, int(period * usage * share / sum(shares)))
        tasks.append(Reservation(f"t{i}", budget, rng.randint(max(budget, period // 2), period), period, budget // 8))
    return tasks


def test_a_decision_can_be_taken_in_slices_and_is_the_same() -> None:
    tasks = random_set(random.Random(4), 64, 0.9)
    decision, slices = Admission(tasks), 1
    while not decision.go_on(100):
        slices += 1
    assert decision.result == admit(tasks)
    assert slices > 2


def test_a_search_without_end_is_refused_at_its_bound() -> None:
    tasks = [Reservation(f"t{i}", 10**9 - i, 3 * (10**9 - i), 3 * (10**9 - i), 0) for i in (0, 12, 30)]
    tasks[0] = Reservation("t0", 10**9 - 1, 3 * 10**9, 3 * 10**9)
    decision = Admission(tasks, reserve=0.0, evaluations_max=3)
    while not decision.go_on():
        pass
    assert decision.result is not None
    assert not decision.result[0]
    assert "within 3 points" in decision.result[1]["reason"]


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


class ScannedFairClass:
    """The same class by its definition: every decision looks at every server. The oracle of the heaps."""

    def __init__(self, weights: dict[str, int], slots: int, slice_ns: int) -> None:
        self.weight, self.slots, self.slice_ns, self.now = weights, slots, slice_ns, 0.0
        self.eligible = dict.fromkeys(weights, 0.0)
        self.queue: dict[str, list[int]] = {n: [] for n in weights}
        self.running: dict[str, int] = {}

    def enqueue(self, name: str, job: int, front: bool) -> None:
        if not self.queue[name] and name not in self.running:
            self.eligible[name] = max(self.eligible[name], self.now - LAG_KEPT_NS / self.weight[name])
        self.queue[name].insert(0 if front else len(self.queue[name]), job)

    def pick(self) -> tuple[str, int] | None:
        waiting = [n for n in self.weight if self.queue[n] and n not in self.running]
        if len(self.running) >= self.slots or not waiting:
            return None
        if all(self.eligible[n] > self.now for n in waiting):
            self.now = min(self.eligible[n] for n in waiting)
        ready = [n for n in waiting if self.eligible[n] <= self.now]
        name = min(ready, key=lambda n: (self.eligible[n] + self.slice_ns / self.weight[n], n))
        self.running[name] = self.queue[name].pop(0)
        return name, self.running[name]

    def finish(self, name: str, cpu_ns: int) -> int | None:
        job = self.running.pop(name, None)
        self.eligible[name] += cpu_ns / self.weight[name]
        active = sum(w for n, w in self.weight.items() if self.queue[n] or n in self.running)
        self.now += cpu_ns / (active or self.weight[name])
        return job

    def clear(self, name: str) -> None:
        self.running.pop(name, None)
        self.queue[name] = []


@settings(max_examples=150, deadline=None)
@given(
    st.dictionaries(st.sampled_from("abcdef"), st.integers(1, 8), min_size=1, max_size=6),
    st.integers(1, 3),
    st.lists(
        st.tuples(st.sampled_from("epppfffc"), st.integers(0, 5), st.integers(0, 200_000_000), st.booleans()),
        max_size=120,
    ),
)
def test_the_heaps_decide_as_a_look_at_every_server_does(
    weights: dict[str, int], slots: int, moves: list[tuple[str, int, int, bool]]
) -> None:
    heaps, scanned = FairClass(weights, slots, 20_000_000), ScannedFairClass(weights, slots, 20_000_000)
    names = sorted(weights)
    for number, (move, who, cost, front) in enumerate(moves):
        name = names[who % len(names)]
        if move == "e":
            heaps.enqueue(name, number, front=front)
            scanned.enqueue(name, number, front)
        elif move == "p":
            assert heaps.pick() == scanned.pick()
        elif move == "f":
            heaps_job, scanned_job = heaps.finish(name, cost), scanned.finish(name, cost)
            assert heaps_job == scanned_job
            heaps.enqueue(name, number)
            scanned.enqueue(name, number, False)
        else:
            heaps.clear(name)
            scanned.clear(name)
