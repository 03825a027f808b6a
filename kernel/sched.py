"""Time: exact EDF admission for reservations, and a weighted-fair class for everything else.

Reservations (Q, D, P) are admitted per lane by the processor-demand test with the blocking term B(t), the longest
non-preemptible micro-step among tasks whose deadline lies beyond t (Baruah, Rosier, Howell 1990; blocking as in
Baruah 2005, "The limited-preemption uniprocessor scheduling of sporadic task systems"). The points are searched
backwards (QPA: Zhang, Burns 2009, "Schedulability analysis for real-time systems with EDF scheduling"), and the search
can be cut into slices. The fair class picks, among servers that wait, the eligible one with the earliest virtual
deadline (EEVDF: Stoica, Abdel-Wahab 1995) and charges CPU time; a decision costs the logarithm of their number.

Refuses: reservations that do not fit, with the witness (t, demand).
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from fractions import Fraction
from heapq import heappop, heappush
from math import lcm
from typing import Any

from syscalls import limits

RESERVE = 0.05
EVALUATIONS_MAX = 100_000
TERMS_PER_SLICE = 4_000
"""Terms of demand sums in one slice of admission: under half a millisecond, so that a slice keeps below one on a slow machine."""
LAG_KEPT_NS = 100_000_000


@dataclass(frozen=True)
class Reservation:
    """Budget, relative deadline and period of a lane's task; `step_ns` is its longest non-preemptible micro-step."""

    name: str
    budget_ns: int
    deadline_ns: int
    period_ns: int
    step_ns: int = 0

    @property
    def utilisation(self) -> float:
        """Q / P."""
        return self.budget_ns / self.period_ns

    @property
    def times(self) -> tuple[int, int, int]:
        """Q, D, P in nanoseconds."""
        return self.budget_ns, self.deadline_ns, self.period_ns


def demand_ns(tasks: list[Reservation], t: int) -> int:
    """Demand bound of sporadic tasks in an interval of length t: sum of (floor((t - D) / P) + 1) * C over D <= t."""
    return sum(((t - r.deadline_ns) // r.period_ns + 1) * r.budget_ns for r in tasks if t >= r.deadline_ns)


def blocking_ns(tasks: list[Reservation], t: int, background_step_ns: int) -> int:
    """B(t): the longest micro-step of a task with a later deadline; background on the lane counts with D = infinity."""
    return max([background_step_ns, *(r.step_ns for r in tasks if r.deadline_ns > t)])


class Admission:
    """The decision on one lane, in slices: `go_on` until `result` is there.

    Exact for sporadic tasks under EDF with non-preemptible micro-steps: h(t) + B(t) <= t at every absolute deadline t. B only falls
    at relative deadlines, so between two of them h + B rises with t and QPA holds there: from t it goes on at h(t) + B(t), since
    every point in between asks for no more. Evaluations are at most `evaluations_max`; a set that needs more is refused.
    """

    def __init__(
        self,
        tasks: list[Reservation],
        *,
        reserve: float = RESERVE,
        background_step_ns: int = 0,
        evaluations_max: int = EVALUATIONS_MAX,
    ) -> None:
        self._tasks = sorted(tasks, key=lambda r: r.deadline_ns)
        self._reserve = reserve
        self._background_ns = background_step_ns
        self._evaluations_max = evaluations_max
        self._deadlines = [r.deadline_ns for r in self._tasks]
        self._rows = [(r.deadline_ns, r.period_ns, r.budget_ns) for r in self._tasks]
        self._usage = 0.0
        self._tightest = (1 << 62, 0, 0)
        self._search = self._decide()
        self.evaluations = 0
        self.result: tuple[bool, dict[str, Any]] | None = None

    def go_on(self, terms_max: int = TERMS_PER_SLICE) -> bool:
        """Work for about `terms_max` terms (a tenth of a microsecond each); whether the decision is there."""
        terms = 0
        while self.result is None and terms < terms_max:
            try:
                terms += next(self._search)
            except StopIteration as end:
                self.result = end.value
        return self.result is not None

    def _decide(self) -> Generator[int, None, tuple[bool, dict[str, Any]]]:
        if (refused := self._shape()) is not None:
            return refused
        if not self._tasks:
            return True, {"utilisation": 0.0, "t_ns": 0, "demand_ns": 0}
        yield len(self._tasks)
        bound = yield from self._bound()
        if bound is None:
            return self._refused(f"no decision within {self._evaluations_max} points", self._deadlines[-1], 0)
        if bound < 0:
            return self._full()
        high = max(bound, self._deadlines[-1]) + 1
        for low, blocking in self._levels():
            t = self._deadline_before(high)
            yield len(self._rows)
            while t >= low:
                need = self._demand(t) + blocking
                yield len(self._rows)
                self._tightest = min(self._tightest, (t - need, t, need))
                if need > t:
                    at = self._deadline_before(t + 1)
                    need = self._demand(at) + blocking_ns(self._tasks, at, self._background_ns)
                    return self._refused(f"demand {need} ns > {at} ns", at, need)
                self.evaluations += 1
                if self.evaluations >= self._evaluations_max:
                    return self._refused(f"no decision within {self._evaluations_max} points", t, need)
                t = need if need < t else self._deadline_before(t)
            high = low
        return True, {"utilisation": self._usage, "t_ns": self._tightest[1], "demand_ns": self._tightest[2]}

    def _shape(self) -> tuple[bool, dict[str, Any]] | None:
        for r in self._tasks:
            if not 0 < r.budget_ns <= r.deadline_ns <= r.period_ns:
                reason = f"{r.name}: needs 0 < budget <= deadline <= period"
                return False, {"reason": reason, "t_ns": 0, "demand_ns": r.budget_ns}
        self._usage = sum(r.utilisation for r in self._tasks)
        most = 1 - self._reserve
        over = self._usage > most
        if abs(self._usage - most) < 1e-9:  # floats cannot tell: decide in whole numbers
            over = self._exact_usage() > 1 - Fraction(self._reserve).limit_denominator(1_000_000)
        return self._refused(f"utilisation {self._usage:.3f} > {most:.2f}", 0, 0) if over else None

    def _exact_usage(self) -> Fraction:
        return sum((Fraction(r.budget_ns, r.period_ns) for r in self._tasks), Fraction(0))

    def _refused(self, reason: str, t: int, need: int) -> tuple[bool, dict[str, Any]]:
        return False, {"reason": reason, "utilisation": self._usage, "t_ns": t, "demand_ns": need}

    def _full(self) -> tuple[bool, dict[str, Any]]:
        """No time is left over, and background on the lane takes some: at the hyperperiod demand is more than there is."""
        t = lcm(*(r.period_ns for r in self._tasks))
        if t >= 1 << 62:
            return self._refused("the lane is full and background work on it has no time", 1 << 62, 0)
        need = self._demand(t) + self._background_ns
        return self._refused(f"demand {need} ns > {t} ns", t, need)

    def _bound(self) -> Generator[int, None, int | None]:
        """Beyond it nothing new is found. -1: the lane is full and has background on it; None: too far away to be found."""
        slack = sum(r.utilisation * (r.period_ns - r.deadline_ns) for r in self._tasks) + self._background_ns
        left = 1 - self._usage
        if left > 1e-9:
            return int(slack / left * (1 + 1e-3)) + 1  # h(t) <= U t + sum U (P - D); rounding only moves it further
        left_exactly = 1 - self._exact_usage()
        if left_exactly == 0 and self._background_ns:
            return -1
        # The synchronous busy period (Spuri 1996; background opens it): within the hyperperiod where U = 1.
        busy, before = self._background_ns + sum(r.budget_ns for r in self._tasks), 0
        while busy != before:
            before = busy
            busy = self._background_ns + sum(-(-busy // r.period_ns) * r.budget_ns for r in self._tasks)
            yield len(self._rows)
            self.evaluations += 1
            if self.evaluations >= self._evaluations_max:
                return None
        return busy

    def _levels(self) -> list[tuple[int, int]]:
        """Where B(t) is constant: (lowest t, B), the farthest first."""
        levels: list[tuple[int, int]] = []
        blocking = self._background_ns
        for r in reversed(self._tasks):
            if levels and levels[-1][1] == blocking:
                levels[-1] = (r.deadline_ns, blocking)
            elif not levels or levels[-1][0] > r.deadline_ns:
                levels.append((r.deadline_ns, blocking))
            blocking = max(blocking, r.step_ns)
        return levels

    def _demand(self, t: int) -> int:
        k = bisect_right(self._deadlines, t)
        return sum([((t - d) // p + 1) * c for d, p, c in self._rows[:k]])

    def _deadline_before(self, t: int) -> int:
        """The last absolute deadline before t, -1 where there is none."""
        k = bisect_left(self._deadlines, t)
        return max([t - 1 - (t - 1 - d) % p for d, p, _ in self._rows[:k]], default=-1)


def admit(
    tasks: list[Reservation], *, reserve: float = RESERVE, background_step_ns: int = 0
) -> tuple[bool, dict[str, Any]]:
    """Whether EDF meets every deadline of these tasks on one lane, and the witness (t, demand) of the answer; see `Admission`."""
    decision = Admission(tasks, reserve=reserve, background_step_ns=background_step_ns)
    while not decision.go_on():
        pass
    assert decision.result is not None
    return decision.result


def admit_probe(reservation: Reservation, window_ns: int, others_ns: int, cost_ns: int) -> tuple[bool, dict[str, Any]]:
    """Whether the reservation's budget holds one more probe, and the witness of the answer.

    `window_ns`: what the last window used, which holds what its probes really took; `others_ns`, `cost_ns`: what the probes
    admitted before and the new one may cost a window, by proof. The budget itself is what `admit` let in, so a window that
    stays inside it meets its deadline. Probes share at most PROBE_SHARE_MAX of it.
    """
    probes_ns, budget_ns = others_ns + cost_ns, reservation.budget_ns
    share_ns = int(limits.PROBE_SHARE_MAX * budget_ns)
    need_ns = window_ns + cost_ns
    witness = {
        "t_ns": reservation.deadline_ns,
        "demand_ns": need_ns,
        "budget_ns": budget_ns,
        "window_ns": window_ns,
        "others_ns": others_ns,
        "probe_ns": cost_ns,
        "share_max_ns": share_ns,
    }
    if probes_ns > share_ns:
        reason = (
            f"probes may cost {probes_ns / 1e6:.1f} ms of a window, this one {cost_ns / 1e6:.1f} ms;"
            f" their share is {share_ns / 1e6:.1f} ms ({limits.PROBE_SHARE_MAX:.0%} of {budget_ns / 1e6:.0f} ms)"
        )
        return False, {**witness, "reason": reason}
    if need_ns > budget_ns:
        reason = (
            f"a window uses {window_ns / 1e6:.1f} ms and this probe may cost {cost_ns / 1e6:.1f} ms more;"
            f" the budget is {budget_ns / 1e6:.0f} ms"
        )
        return False, {**witness, "reason": reason}
    return True, witness


@dataclass
class _Entity:
    name: str
    weight: int
    eligible_ns: float = 0.0
    queue: deque[Any] = field(default_factory=deque)
    running: Any = None
    served_ns: int = 0
    lent_ns: int = 0
    active: bool = False
    entry: int = 0  # number of its entry in a heap, 0: it is in none


class FairClass:
    """Weighted-fair queues of jobs, one per fair server; at most `slots` servers run a job at a time, and each runs one.

    A job is opaque. CPU time is charged by the kernel when the job ends or yields. Virtual time advances with service / total weight;
    a server is eligible when its virtual time is not ahead; among the eligible the earliest virtual deadline goes first.

    Two heaps hold the servers that wait: by the time they become eligible, and, once they are, by virtual deadline. Virtual time
    never goes back, so a server moves from the first to the second once. An entry that no longer stands is skipped when it surfaces.
    """

    def __init__(
        self, weights: dict[str, int], slots: int, slice_ns: int, reserved: frozenset[str] = frozenset()
    ) -> None:
        """`reserved` servers queue here and are not picked: whoever keeps their reservations takes their jobs."""
        self._reserved = reserved
        self._entities = {name: _Entity(name, weight) for name, weight in weights.items()}
        self._slots = slots
        self._slice_ns = slice_ns
        self._virtual_ns = 0.0
        self._soon: list[tuple[float, str, int]] = []
        self._eligible: list[tuple[float, str, int]] = []
        self._entries = 0
        self._running = 0
        self._active_weight = 0  # of those that wait or run

    def __contains__(self, name: str) -> bool:
        return name in self._entities

    @property
    def free_slots(self) -> int:
        """How many more jobs may run."""
        return self._slots - self._running

    @property
    def nothing_waits(self) -> bool:
        """Whether there is certainly no job to pick."""
        return not (self._soon or self._eligible or self._reserved)

    @property
    def reserved_running(self) -> bool:
        """Whether a server with a reservation runs a job."""
        return any(self._entities[name].running is not None for name in self._reserved)

    def waiting(self, name: str) -> int:
        """Jobs of a server that could be the next one: none while it runs one."""
        entity = self._entities[name]
        return len(entity.queue) if entity.running is None else 0

    def take(self, name: str) -> Any:
        """The next job of a reserved server, which runs from now on."""
        entity = self._entities[name]
        entity.running = entity.queue.popleft()
        self._running += 1
        return entity.running

    def enqueue(self, name: str, job: Any, *, front: bool = False) -> None:
        """Queue a job; a server that slept keeps at most LAG_KEPT_NS of its lag."""
        entity = self._entities[name]
        if not entity.queue and entity.running is None:
            entity.eligible_ns = max(entity.eligible_ns, self._virtual_ns - LAG_KEPT_NS / entity.weight)
        if front:
            entity.queue.appendleft(job)
        else:
            entity.queue.append(job)
        self._note(entity)
        self._wait(entity)

    def _wait(self, entity: _Entity) -> None:
        if entity.running is None and entity.queue and not entity.entry and entity.name not in self._reserved:
            self._entries += 1
            entity.entry = self._entries
            heappush(self._soon, (entity.eligible_ns, entity.name, entity.entry))

    def _top(self, heap: list[tuple[float, str, int]]) -> _Entity | None:
        while heap:
            entity = self._entities[heap[0][1]]
            if entity.entry == heap[0][2]:
                return entity
            heappop(heap)
        return None

    def pick(self) -> tuple[str, Any] | None:
        """Take the next job to run, or None when all slots are taken or nothing waits."""
        if self._running >= self._slots:
            return None
        if self._top(self._eligible) is None and (first := self._top(self._soon)) is not None:
            # Nobody is eligible: time moves on to the next who is.
            self._virtual_ns = max(self._virtual_ns, first.eligible_ns)
        while (entity := self._top(self._soon)) is not None and entity.eligible_ns <= self._virtual_ns:
            heappop(self._soon)
            heappush(self._eligible, (entity.eligible_ns + self._slice_ns / entity.weight, entity.name, entity.entry))
        entity = self._top(self._eligible)
        if entity is None:
            return None
        heappop(self._eligible)
        entity.entry = 0
        entity.running = entity.queue.popleft()
        self._running += 1
        return entity.name, entity.running

    def finish(self, name: str, cpu_ns: int) -> Any:
        """The server's job ended (or yielded) after `cpu_ns`; returns the job, None if it ran none."""
        entity = self._entities[name]
        job, entity.running = entity.running, None
        self._running -= job is not None
        self._note(entity)
        self.charge(name, cpu_ns)
        return job

    def charge(self, name: str, cpu_ns: int, *, lent: bool = False) -> None:
        """CPU time on the server's account: its own, or (`lent`) what a server that it called spent for it."""
        entity = self._entities[name]
        entity.served_ns += cpu_ns
        entity.lent_ns += cpu_ns if lent else 0
        if name in self._reserved:
            return
        entity.eligible_ns += cpu_ns / entity.weight
        self._virtual_ns += cpu_ns / (self._active_weight or entity.weight)
        entity.entry = 0  # it stands in a heap by what it had been served until now
        self._wait(entity)

    def _note(self, entity: _Entity) -> None:
        active = (bool(entity.queue) or entity.running is not None) and entity.name not in self._reserved
        if active != entity.active:
            entity.active = active
            self._active_weight += entity.weight if active else -entity.weight
        if not entity.queue:
            entity.entry = 0

    def running(self, name: str) -> Any:
        """The job that the server runs, or None."""
        return self._entities[name].running

    def clear(self, name: str) -> list[Any]:
        """The server died; returns its jobs, the running one first."""
        entity = self._entities[name]
        jobs = ([entity.running] if entity.running is not None else []) + list(entity.queue)
        self._running -= entity.running is not None
        entity.running = None
        entity.queue.clear()
        self._note(entity)
        return jobs

    def cancel(self, name: str, doomed: Callable[[Any], bool]) -> list[Any]:
        """Take back the server's jobs that wait and that `doomed` names; returns them. The running one is not among them."""
        entity = self._entities[name]
        gone = [job for job in entity.queue if doomed(job)]
        entity.queue = deque(job for job in entity.queue if not doomed(job))
        self._note(entity)
        return gone

    def to_list(self) -> list[dict[str, Any]]:
        """For people."""
        return [
            {
                "name": n,
                "weight": e.weight,
                "waiting": len(e.queue),
                "running": e.running is not None,
                "served_ns": e.served_ns,
                "lent_ns": e.lent_ns,
                "lag_ns": int(self._virtual_ns - e.eligible_ns),
            }
            for n, e in self._entities.items()
        ]
