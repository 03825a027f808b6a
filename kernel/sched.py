"""Time: exact EDF admission for reservations, and a weighted-fair class for everything else.

Reservations (Q, D, P) are admitted per lane by the processor-demand test with the blocking term B(t), the longest
non-preemptible micro-step among tasks whose deadline lies beyond t (Baruah, Rosier, Howell 1990; blocking as in
Baruah 2005, "The limited-preemption uniprocessor scheduling of sporadic task systems"). The fair class picks, among
servers that wait, the eligible one with the earliest virtual deadline (EEVDF: Stoica, Abdel-Wahab 1995) and charges
CPU time.

Refuses: reservations that do not fit, with the witness (t, demand).
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from math import lcm
from typing import Any

RESERVE = 0.05
POINTS_MAX = 200_000
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


def demand_ns(tasks: list[Reservation], t: int) -> int:
    """Demand bound of sporadic tasks in an interval of length t: sum of (floor((t - D) / P) + 1) * C over D <= t."""
    return sum(((t - r.deadline_ns) // r.period_ns + 1) * r.budget_ns for r in tasks if t >= r.deadline_ns)


def blocking_ns(tasks: list[Reservation], t: int, background_step_ns: int) -> int:
    """B(t): the longest micro-step of a task with a later deadline; background on the lane counts with D = infinity."""
    return max([background_step_ns, *(r.step_ns for r in tasks if r.deadline_ns > t)])


def admit(
    tasks: list[Reservation], *, reserve: float = RESERVE, background_step_ns: int = 0
) -> tuple[bool, dict[str, Any]]:
    """Whether EDF meets every deadline of these tasks on one lane, and the witness of the answer.

    Exact for sporadic tasks: every absolute deadline up to the bound L = max(D) and sum(U*(P-D)+B)/(1-U) is tried.
    """
    for r in tasks:
        if not 0 < r.budget_ns <= r.deadline_ns <= r.period_ns:
            return False, {
                "reason": f"{r.name}: needs 0 < budget <= deadline <= period",
                "t_ns": 0,
                "demand_ns": r.budget_ns,
            }
    usage = sum(r.utilisation for r in tasks)
    if usage > 1 - reserve + 1e-12:
        return False, {
            "reason": f"utilisation {usage:.3f} > {1 - reserve:.2f}",
            "utilisation": usage,
            "t_ns": 0,
            "demand_ns": 0,
        }
    if not tasks:
        return True, {"utilisation": 0.0, "t_ns": 0, "demand_ns": 0}
    steps = max([background_step_ns, *(r.step_ns for r in tasks)])
    slack = sum(r.utilisation * (r.period_ns - r.deadline_ns) for r in tasks) + steps
    longest = max(r.deadline_ns for r in tasks)
    # Demand repeats with the hyperperiod and U <= 1, so nothing new is found beyond it either; it bounds a lane that is full.
    bound = max(longest, min(int(slack / max(1e-9, 1 - usage)), longest + lcm(*(r.period_ns for r in tasks))))
    points: set[int] = set()
    for r in tasks:
        steps_to_bound = range(r.deadline_ns, bound + 1, r.period_ns)
        if len(points) + len(steps_to_bound) <= POINTS_MAX:
            points.update(steps_to_bound)
        else:
            return False, {
                "reason": f"more than {POINTS_MAX} deadlines to test",
                "utilisation": usage,
                "t_ns": bound,
                "demand_ns": 0,
            }
    tightest = (1 << 62, 0, 0)
    for t in sorted(points):
        need = demand_ns(tasks, t) + blocking_ns(tasks, t, background_step_ns)
        tightest = min(tightest, (t - need, t, need))
        if need > t:
            return False, {"reason": f"demand {need} ns > {t} ns", "utilisation": usage, "t_ns": t, "demand_ns": need}
    return True, {"utilisation": usage, "t_ns": tightest[1], "demand_ns": tightest[2]}


@dataclass
class _Entity:
    weight: int
    eligible_ns: float = 0.0
    queue: deque[Any] = field(default_factory=deque)
    running: Any = None
    served_ns: int = 0


class FairClass:
    """Weighted-fair queues of jobs, one per fair server; at most `slots` servers run a job at a time, and each runs one.

    A job is opaque. CPU time is charged by the kernel when the job ends or yields. Virtual time advances with service / total weight;
    a server is eligible when its virtual time is not ahead; among the eligible the earliest virtual deadline goes first.
    """

    def __init__(self, weights: dict[str, int], slots: int, slice_ns: int) -> None:
        self._entities = {name: _Entity(weight) for name, weight in weights.items()}
        self._slots = slots
        self._slice_ns = slice_ns
        self._virtual_ns = 0.0

    def __contains__(self, name: str) -> bool:
        return name in self._entities

    def enqueue(self, name: str, job: Any, *, front: bool = False) -> None:
        """Queue a job; a server that slept keeps at most LAG_KEPT_NS of its lag."""
        entity = self._entities[name]
        if not entity.queue and entity.running is None:
            entity.eligible_ns = max(entity.eligible_ns, self._virtual_ns - LAG_KEPT_NS / entity.weight)
        if front:
            entity.queue.appendleft(job)
        else:
            entity.queue.append(job)

    def pick(self) -> tuple[str, Any] | None:
        """Take the next job to run, or None when all slots are taken or nothing waits."""
        if sum(e.running is not None for e in self._entities.values()) >= self._slots:
            return None
        waiting = [(n, e) for n, e in self._entities.items() if e.queue and e.running is None]
        if not waiting:
            return None
        eligible = [(n, e) for n, e in waiting if e.eligible_ns <= self._virtual_ns]
        if not eligible:
            self._virtual_ns = min(e.eligible_ns for _, e in waiting)
            eligible = [(n, e) for n, e in waiting if e.eligible_ns <= self._virtual_ns]
        name, entity = min(eligible, key=lambda item: (item[1].eligible_ns + self._slice_ns / item[1].weight, item[0]))
        entity.running = entity.queue.popleft()
        return name, entity.running

    def finish(self, name: str, cpu_ns: int) -> Any:
        """The server's job ended (or yielded) after `cpu_ns`; returns the job, None if it ran none."""
        entity = self._entities[name]
        job, entity.running = entity.running, None
        entity.served_ns += cpu_ns
        entity.eligible_ns += cpu_ns / entity.weight
        active = sum(e.weight for e in self._entities.values() if e.queue or e.running is not None) or entity.weight
        self._virtual_ns += cpu_ns / active
        return job

    def running(self, name: str) -> Any:
        """The job that the server runs, or None."""
        return self._entities[name].running

    def clear(self, name: str) -> list[Any]:
        """The server died; returns its jobs, the running one first."""
        entity = self._entities[name]
        jobs = ([entity.running] if entity.running is not None else []) + list(entity.queue)
        entity.running = None
        entity.queue.clear()
        return jobs

    def to_list(self) -> list[dict[str, Any]]:
        """For people."""
        return [
            {
                "name": n,
                "weight": e.weight,
                "waiting": len(e.queue),
                "running": e.running is not None,
                "served_ns": e.served_ns,
                "lag_ns": int(self._virtual_ns - e.eligible_ns),
            }
            for n, e in self._entities.items()
        ]
