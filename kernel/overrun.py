"""A window over its budget, by the learner's `overrun`: noticed at a progress report or a sample, once for each budget.

    rollback    nothing more happens: the deadline decides, as for every window
    throttle    the learner is stopped until the next period; then the window goes on with another budget and a later deadline
    postpone    it goes on at once with another budget, its deadline moved by a period (the soft rule)
    degrade     the window ends after the step in hand and is staged with the steps it has
    kill        the supervisor kills the learner, and its successor starts from the base

Responsible for: these five, each recorded as an overrun. Refuses: to let a window run on a budget that admission has not seen: every
further one is the reservation's own, a period later.
"""

from __future__ import annotations

import signal

from kernel import reserve
from kernel.broker import tell
from kernel.events import Kill
from kernel.state import Turn
from kernel.window import Window, WindowState

LEARNER = reserve.LEARNER


def look(t: Turn, w: Window) -> None:
    """Has it used its budget up?"""
    s = t.state
    used_ns = s.servers[LEARNER].cpu_ns - w.cpu_start_ns
    if w.state is not WindowState.RUNNING or used_ns <= w.budget_ns or w.overran:
        return
    w.overran = True
    policy = s.config.servers[LEARNER].overrun
    what = f"window {w.id} used {used_ns / 1e6:.0f} ms of {w.budget_ns / 1e6:g} ms"
    reserve.overrun(t, LEARNER, policy, what)
    match policy:
        case "throttle":
            _throttle(t, w)
        case "postpone":
            _next_budget(t, w)
        case "degrade":
            tell(t, "learner.shorten", {"window": w.id})


def look_at_all(t: Turn) -> None:
    """CPU times were sampled: a window that reports no progress may be over its budget, too."""
    for w in list(t.state.windows.values()):
        look(t, w)


def _next_budget(t: Turn, w: Window) -> None:
    """One more budget, and the deadline a period later, which the learner is told before it looks at its own."""
    r = t.state.reservation
    w.budget_ns += r.budget_ns
    w.deadline_ns += r.period_ns
    w.periods += 1
    w.overran = False
    tell(t, "learner.deadline", {"window": w.id, "deadline_ns": w.deadline_ns})
    t.timer_at(w.deadline_ns, "deadline", window=w.id, granted_ns=w.granted_ns)


def _throttle(t: Turn, w: Window) -> None:
    until_ns = w.granted_ns + w.periods * t.state.reservation.period_ns
    _next_budget(t, w)
    if until_ns <= t.now_ns or t.state.drain_mode:
        return  # its next period has begun, or nothing comes after this window
    learner = t.state.servers[LEARNER]
    learner.stopped = True
    t.emit(Kill(LEARNER, learner.incarnation, signal.SIGSTOP))
    t.timer_at(until_ns, "throttled", name=LEARNER, incarnation=learner.incarnation)
