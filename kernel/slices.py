"""Fair servers that stay in a slice: slowed down, then stopped and let go on in turns, until they reach a micro-step.

    in its slice -> (1 s of CPU time) nice 19 -> (3 s) stopped for 2 s -> goes on at nice 19 -> (2 s more) stopped for 2 s ...

Responsible for: that ladder, by the CPU time that the kernel samples; whatever the server then says to the kernel takes it back to the
start. What a server does outside its jobs, for others, does not count. Refuses: to take a stopped server for a silent one, or one that
is slowed down as soon as others; one that never speaks at all is killed in the end.
"""

from __future__ import annotations

import signal
from typing import Final

from kernel import outbox
from kernel.broker import end_job
from kernel.events import Kill, Renice
from kernel.state import Server, Turn

NICE_AFTER_NS: Final = 1_000_000_000
STOP_AFTER_NS: Final = 3_000_000_000
STOPPED_NS: Final = 2_000_000_000
NICE: Final = 19


def sampled(t: Turn) -> None:
    """CPU times are new: who has been in its slice for too long?"""
    s = t.state
    for name, server in s.servers.items():
        if name not in s.fair or server.state != "ready" or server.stopped:
            continue
        if s.fair.running(name) is None and not server.niced:
            continue
        used_ns = server.cpu_ns - server.spoke_cpu_ns
        if not server.niced and used_ns > NICE_AFTER_NS:
            server.niced = True
            t.emit(Renice(name, server.incarnation, NICE))
            _tell(t, server, used_ns, f"nice {NICE}")
        elif server.niced and used_ns > STOP_AFTER_NS:
            server.stopped = True
            t.emit(Kill(name, server.incarnation, signal.SIGSTOP))
            t.timer(STOPPED_NS, "throttled", name=name, incarnation=server.incarnation)
            _tell(t, server, used_ns, f"stopped for {STOPPED_NS // 10**9} s")
            end_job(t, name, server.cpu_ns)
            server.spoke_cpu_ns = (
                server.cpu_ns - NICE_AFTER_NS
            )  # it goes on at nice 19, and is stopped again after the rest


def _tell(t: Turn, server: Server, used_ns: int, what: str) -> None:
    s = t.state
    number = s.refused["slice overrun"] = s.refused.get("slice overrun", 0) + 1
    message = f"slice overrun, {what}: {used_ns / 1e9:.1f} s of CPU time without a micro-step"
    t.event("overrun", name=server.name, policy=what, reason=message, number=number)
    if number & (number - 1) == 0 and not s.halting:
        outbox.record(t, "fault", {"name": server.name, "code": "E7-BUDGET", "message": f"{message} (number {number})"})


def heard(t: Turn, server: Server) -> None:
    """It said something, so it has come to a micro-step."""
    server.spoke_cpu_ns = server.cpu_ns
    if server.niced:
        server.niced = False
        t.emit(Renice(server.name, server.incarnation, 0))
