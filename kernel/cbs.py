"""Constant bandwidth servers: what one reservation (Q, D, P) may use, and when.

Responsible for: the rules of Abeni and Buttazzo 1998 ("Integrating multimedia applications in hard real-time systems") for D = P: on
a wake with d <= now or q / (d - now) > Q / P a new deadline now + D and a full budget; at q <= 0 throttled until d, then d += P, q += Q.
For D < P the simple rule would let a server that suspends early come back with more than its demand bound; here a wake before the
next period begins is throttled to it (revised CBS: Bristot de Oliveira et al. 2018). A budget that is lent is not replenished until
it is back. Pure: no clock, no timers; the caller says when it is. Refuses: nothing; what fits a lane is `kernel.sched.Admission`.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from typing import Any

from kernel.sched import Reservation

NEVER = 1 << 62


@dataclass
class Cbs:
    """One server's state: budget left `left_ns` (below 0 after an overrun), absolute deadline `deadline_ns`."""

    reservation: Reservation
    left_ns: int = 0
    deadline_ns: int = 0
    throttled_until_ns: int = 0  # 0: it may run
    lent: int = 0  # calls under way that spend this budget
    used_ns: int = 0
    lent_ns: int = 0
    overruns: int = 0
    postponed: int = 0

    def wake(self, now_ns: int) -> bool:
        """There is work again; whether it may run at once. Otherwise `throttled_until_ns` says when."""
        r = self.reservation
        if self.throttled_until_ns:
            return self.replenish(now_ns)
        ahead = self.deadline_ns - now_ns
        if r.deadline_ns < r.period_ns:
            if now_ns < self._next_period_ns:
                self.throttled_until_ns = self._next_period_ns
                return False
            self._begin(now_ns)
        elif ahead <= 0 or self.left_ns * r.period_ns > r.budget_ns * ahead:
            self._begin(now_ns)
        return True

    @property
    def _next_period_ns(self) -> int:
        """When the period of the present deadline ends; for D = P that is the deadline."""
        r = self.reservation
        return self.deadline_ns - r.deadline_ns + r.period_ns if self.deadline_ns else 0

    def _begin(self, now_ns: int) -> None:
        self.deadline_ns = now_ns + self.reservation.deadline_ns
        self.left_ns = self.reservation.budget_ns + min(0, self.left_ns)  # what was overrun is not forgiven

    def charge(self, cpu_ns: int, *, lent: bool = False) -> bool:
        """It used CPU time, itself or (`lent`) through a server that it called; whether its budget is gone and it is throttled now."""
        self.used_ns += cpu_ns
        self.lent_ns += cpu_ns if lent else 0
        self.left_ns -= cpu_ns
        if self.left_ns > 0 or self.throttled_until_ns:
            return False
        self.overruns += self.left_ns < 0
        self.throttled_until_ns = self._next_period_ns
        return True

    def replenish(self, now_ns: int) -> bool:
        """The throttle's end, if it is: next deadline, next budget; whether it may run. Never while the budget is lent."""
        while self.throttled_until_ns and now_ns >= self.throttled_until_ns and not self.lent:
            if self.left_ns <= 0:
                self.deadline_ns += self.reservation.period_ns
                self.left_ns += self.reservation.budget_ns
                self.throttled_until_ns = 0 if self.left_ns > 0 else self._next_period_ns
            else:  # it woke too early, with budget of the old period left: that budget is void
                self.throttled_until_ns = 0
            if not self.throttled_until_ns and now_ns + self.reservation.deadline_ns > self.deadline_ns:
                self._begin(now_ns)  # called late: the deadline counts from here
        return not self.throttled_until_ns

    def postpone(self, now_ns: int) -> None:
        """The soft rule: instead of waiting for the throttle's end, go on now with a later deadline and the next budget."""
        self.throttled_until_ns = 0
        while self.left_ns <= 0:
            self.deadline_ns += self.reservation.period_ns
            self.left_ns += self.reservation.budget_ns
        if self.deadline_ns <= now_ns:
            self._begin(now_ns)
        self.postponed += 1

    def lend(self) -> None:
        """A call began that spends this budget."""
        self.lent += 1

    def give_back(self) -> None:
        """It ended, or its server died."""
        self.lent = max(0, self.lent - 1)

    def to_map(self, now_ns: int) -> dict[str, Any]:
        """For people."""
        return {
            "left_ns": self.left_ns,
            "deadline_in_ns": self.deadline_ns - now_ns,
            "throttled_for_ns": max(0, self.throttled_until_ns - now_ns) if self.throttled_until_ns else 0,
            "used_ns": self.used_ns,
            "lent_ns": self.lent_ns,
            "lent_calls": self.lent,
            "overruns": self.overruns,
            "postponed": self.postponed,
        }


class EdfQueue:
    """Names by absolute deadline, the earliest first, equal ones by name; a decision costs the logarithm of their number."""

    def __init__(self) -> None:
        self._heap: list[tuple[int, str]] = []
        self._deadlines: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._deadlines)

    def __contains__(self, name: str) -> bool:
        return name in self._deadlines

    def push(self, name: str, deadline_ns: int) -> None:
        """Add a name, or move it to another deadline."""
        if self._deadlines.get(name) != deadline_ns:
            self._deadlines[name] = deadline_ns
            heapq.heappush(self._heap, (deadline_ns, name))

    def remove(self, name: str) -> None:
        """Take a name out, if it is in."""
        self._deadlines.pop(name, None)

    def pop(self) -> str | None:
        """Take the name with the earliest deadline, None from an empty queue."""
        while self._heap:
            deadline_ns, name = heapq.heappop(self._heap)
            if self._deadlines.get(name) == deadline_ns:
                del self._deadlines[name]
                return name
        return None
