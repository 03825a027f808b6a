"""A constant bandwidth server against the demand that admission reckons with, whatever its client does."""

from __future__ import annotations

import heapq
import random

from hypothesis import given, settings
from hypothesis import strategies as st

from kernel.cbs import Cbs, EdfQueue
from kernel.sched import Reservation, demand_ns


def chunks(server: Cbs, moves: list[tuple[int, int, int]]) -> list[tuple[int, int, int]]:
    """(may run from, deadline, CPU used) of a client that sleeps, runs alone for a while in small steps, and wakes at its worst."""
    now, used = 0, []
    for sleep, want, lag in moves:
        now += sleep
        arrival = now
        if not server.wake(now):
            now = max(now, server.throttled_until_ns)
            assert server.replenish(now)
            arrival = now
        left = want
        while left:
            used.append((arrival, server.deadline_ns, 1))
            now, left = now + 1, left - 1
            if server.charge(1) and left:
                now = max(now, server.throttled_until_ns) + lag
                assert server.replenish(now)
                arrival = now
    return used


def demands(used: list[tuple[int, int, int]]) -> list[tuple[int, int]]:
    """(length, demand) of every interval that begins where work may begin and ends at a deadline."""
    starts, ends = {a for a, _, _ in used}, {d for _, d, _ in used}
    return [
        (end - start, sum(c for a, d, c in used if a >= start and d <= end))
        for start in starts
        for end in ends
        if end > start
    ]


MOVES = st.lists(st.tuples(st.integers(0, 12), st.integers(1, 6), st.integers(0, 2)), min_size=1, max_size=12)


@settings(max_examples=300, deadline=None)
@given(st.integers(1, 4), st.integers(0, 5), st.integers(1, 5), MOVES)
def test_with_a_short_deadline_demand_never_exceeds_the_demand_bound(
    budget: int, more: int, gap: int, moves: list[tuple[int, int, int]]
) -> None:
    r = Reservation("r", budget, budget + more, budget + more + gap)
    for length, demand in demands(chunks(Cbs(r), moves)):
        assert demand <= demand_ns([r], length), (r, length)


@settings(max_examples=300, deadline=None)
@given(st.integers(1, 4), st.integers(0, 6), MOVES)
def test_with_deadline_and_period_alike_demand_never_exceeds_the_bandwidth(
    budget: int, more: int, moves: list[tuple[int, int, int]]
) -> None:
    r = Reservation("r", budget, budget + more, budget + more)
    for length, demand in demands(chunks(Cbs(r), moves)):
        assert demand * r.period_ns <= r.budget_ns * length, (r, length)


def test_a_client_that_suspends_early_is_throttled_to_its_next_period() -> None:
    """The simple rule would give it a new deadline and a full budget each time it wakes between deadline and period."""
    server = Cbs(Reservation("r", 2, 3, 10))
    assert server.wake(100)
    assert not server.charge(1)
    assert not server.wake(104)
    assert server.throttled_until_ns == 110
    assert not server.replenish(109)
    assert server.replenish(110)
    assert (server.left_ns, server.deadline_ns) == (2, 113)


def test_an_overrun_is_paid_back_from_later_budgets() -> None:
    server = Cbs(Reservation("r", 2, 10, 10))
    assert server.wake(0)
    assert server.charge(5)
    assert server.overruns == 1
    assert not server.replenish(10), "three units over: the next budget of two is spent already"
    assert server.throttled_until_ns == 20
    assert server.replenish(20)
    assert server.left_ns == 1


def test_a_budget_that_is_lent_is_not_replenished_before_it_is_back() -> None:
    server = Cbs(Reservation("r", 2, 10, 10))
    assert server.wake(0)
    server.lend()
    assert server.charge(2, lent=True)
    assert not server.replenish(10)
    assert not server.wake(15)
    server.give_back()
    assert server.replenish(15)
    assert server.left_ns == 2
    assert server.lent_ns == 2


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("adr"), st.sampled_from("vwxyz"), st.integers(0, 9)), max_size=60))
def test_the_queue_gives_the_earliest_deadline_first(moves: list[tuple[str, str, int]]) -> None:
    queue, held = EdfQueue(), dict[str, int]()
    for move, name, deadline in moves:
        if move == "a":
            queue.push(name, deadline)
            held[name] = deadline
        elif move == "d":
            queue.remove(name)
            held.pop(name, None)
        else:
            expected = min(held, key=lambda n: (held[n], n), default=None)
            assert queue.pop() == expected
            held.pop(expected or "", None)
        assert len(queue) == len(held)


def test_servers_of_an_admitted_set_meet_every_deadline_whatever_their_clients_ask_for() -> None:
    """EDF over servers on one lane, tick by tick: clients ask for more than they reserved, and nobody is late by it."""
    for seed in range(60):
        rng = random.Random(seed)
        periods = [rng.choice((6, 8, 12)) for _ in range(3)]
        servers = {f"s{i}": Cbs(Reservation(f"s{i}", rng.randint(1, p // 3), p, p)) for i, p in enumerate(periods)}
        wants = dict.fromkeys(servers, 0)
        for now in range(600):
            for name, server in servers.items():
                server.replenish(now)
                if rng.random() < 0.2:
                    idle, wants[name] = not wants[name], wants[name] + rng.randint(1, 9)
                    if idle:
                        server.wake(now)
            ready = [(s.deadline_ns, n) for n, s in servers.items() if wants[n] and not s.throttled_until_ns]
            if ready:
                deadline, name = heapq.nsmallest(1, ready)[0]
                assert now < deadline, (seed, now)
                wants[name] -= 1
                servers[name].charge(1)
