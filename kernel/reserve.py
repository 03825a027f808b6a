"""Reservations at work: fair servers that declare one run by earliest deadline before the fair class, the learner's is accounted.

Responsible for: the reservations of both lanes. Servers with a reservation share one slot of the background, one at a time, so that
what `Admission` proved for a lane holds for them; a slice of the fair class may be in the way once, and is counted as blocking.
A server whose budget is gone waits until its constant bandwidth server replenishes it. The learner is alone on its lane: its windows
are released early and its exhausted budget is moved on at once (soft), which takes time from nobody. Refuses: to boot with
reservations that do not fit together.
"""

from __future__ import annotations

import signal
from typing import Any

from kernel.cbs import Cbs
from kernel.config import Config
from kernel.events import Kill
from kernel.sched import Reservation, admit
from kernel.state import State, Turn
from syscalls import limits
from syscalls.errors import RecurosError

LEARNER = "learner"


def background(config: Config) -> list[Reservation]:
    """The reservations of fair servers. Their micro-step is a slice: they give it up at the next point after it."""
    return [
        Reservation(c.name, *c.reservation, min(limits.SLICE_NS_DEFAULT, c.reservation[0]))
        for c in config.servers.values()
        if c.reservation and not c.edf
    ]


def others_on_lane(s: State, name: str) -> tuple[list[Reservation], int]:
    """What a reservation called `name` would share its lane with, and the lane's background step: fair servers' lane or the learner's."""
    if name in s.fair:
        return [c.reservation for n, c in s.cbs.items() if n not in (LEARNER, name)], limits.SLICE_NS_DEFAULT
    return [] if name == s.reservation.name else [s.reservation], 0


def open_all(s: State) -> None:
    """At boot: a constant bandwidth server for each reservation. E6-ADMIT when those of the background do not fit."""
    tasks = background(s.config)
    ok, witness = admit(tasks, background_step_ns=limits.SLICE_NS_DEFAULT if tasks else 0)
    if not ok:
        names = ", ".join(r.name for r in tasks)
        raise RecurosError(
            "E6-ADMIT",
            f"reservations of {names} do not fit one background slot: {witness['reason']}",
            hint="lower budget-ms, or raise period-ms and deadline-ms, of [server.NAME]",
            details=witness,
        )
    s.cbs = {r.name: Cbs(r) for r in tasks}
    s.cbs[LEARNER] = Cbs(s.reservation)


def woken(t: Turn, name: str) -> None:
    """A job was queued: the first one wakes the server."""
    s = t.state
    if name in s.cbs and s.fair.waiting(name) == 1 and name not in s.edf:
        s.cbs[name].wake(t.now_ns)
        go_on(t, name)


def go_on(t: Turn, name: str) -> None:
    """Jobs wait: the server runs by its deadline, or when its throttle ends."""
    s = t.state
    server = s.cbs.get(name)
    if server is None or not s.fair.waiting(name):
        return
    if server.replenish(t.now_ns):
        s.edf.push(name, server.deadline_ns)
    elif not server.lent or server.throttled_until_ns > t.now_ns:
        t.timer_at(server.throttled_until_ns, "replenish", name=name)


def pick(t: Turn) -> tuple[str, Any] | None:
    """The job of the earliest deadline among reserved servers, if none of them runs and there is a slot."""
    s = t.state
    if not s.fair.free_slots or s.fair.reserved_running:
        return None
    while (name := s.edf.pop()) is not None:
        if s.fair.waiting(name):
            return name, s.fair.take(name)
    return None


def ended(t: Turn, name: str, cpu_ns: int) -> None:
    """Its job ended or yielded after `cpu_ns`."""
    s = t.state
    server = s.cbs.get(name)
    if server is None:
        return
    if server.charge(cpu_ns):
        policy = s.config.servers[name].overrun
        overrun(t, name, policy, f"budget of {server.reservation.budget_ns / 1e6:g} ms used up")
        if policy == "postpone":
            server.postpone(t.now_ns)
    go_on(t, name)


def overrun(t: Turn, name: str, policy: str, what: str) -> None:
    """A reservation's budget is used up: told to operators, counted, and recorded the 1st, 2nd, 4th, 8th ... time."""
    from kernel import outbox  # which imports the broker, which imports this

    s = t.state
    s.refused["overrun"] = s.refused.get("overrun", 0) + 1
    s.overruns[name] = s.overruns.get(name, 0) + 1
    number = s.overruns[name]
    t.event("overrun", name=name, policy=policy, reason=what, number=number)
    if number & (number - 1) == 0 and not s.halting:
        message = f"overrun, {policy}: {what} (number {number})"
        outbox.record(t, "fault", {"name": name, "code": "E7-BUDGET", "message": message})
    if policy == "kill":
        server = s.servers[name]
        server.fault = ["E7-BUDGET", f"{name}: {what}, and its manifest says kill", f"recuros logs {name}", {}]
        t.emit(Kill(name, server.incarnation, signal.SIGKILL))


def window_began(t: Turn) -> None:
    """A window is granted: it runs on the learner's reservation, moved on where it is used up."""
    server = t.state.cbs[LEARNER]
    if not server.wake(t.now_ns):
        server.postpone(t.now_ns)


def go_on_again(t: Turn, name: str, incarnation: int) -> None:
    """The end of a server's stop: by its timer, or because it is needed before."""
    server = t.state.servers[name]
    if server.stopped and server.incarnation == incarnation:
        server.stopped, server.pinged, server.last_heard_ns = False, False, t.now_ns
        t.emit(Kill(name, incarnation, signal.SIGCONT))


def window_ended(t: Turn, cpu_ns: int) -> None:
    """A window was staged or gave up after `cpu_ns`."""
    t.state.cbs[LEARNER].charge(cpu_ns)


def change_learner(s: State, new: Reservation) -> None:
    """Admission took another reservation for the learner: it holds from the next wake on."""
    s.reservation = new
    if LEARNER in s.cbs:
        s.cbs[LEARNER].reservation = new


def to_list(t: Turn) -> list[dict[str, Any]]:
    """For people: every reservation, its lane and what its server has left."""
    ms = 1_000_000
    return [
        {
            "name": c.reservation.name,
            "server": name,
            "lane": "learner" if name == LEARNER else "background",
            "budget_ms": c.reservation.budget_ns / ms,
            "deadline_ms": c.reservation.deadline_ns / ms,
            "period_ms": c.reservation.period_ns / ms,
            "utilisation": c.reservation.utilisation,
            "overrun": t.state.config.servers[name].overrun,
            **c.to_map(t.now_ns),
        }
        for name, c in sorted(t.state.cbs.items(), key=lambda item: (item[0] != LEARNER, item[0]))
    ]
