"""A page is a lease: who has lost its capability to a revocation, and keeps the page, is killed.

Responsible for: the time that a server has to unmap a page after whoever lent it took it back. Refuses: to let a revocation end with
the handle only; a mapping cannot be taken from outside, but a process that keeps one can. Pages that a server gave back itself were not
revoked, and one that came with a call is its callee's until it answers: a caller must not get a slow callee killed.
"""

from __future__ import annotations

import signal

from kernel import outbox
from kernel.caps import Cap
from kernel.events import Kill, LeaseOver, PageKept, PageLeased
from kernel.state import Turn
from syscalls import limits

ALIVE = ("connected", "ready", "draining")


def revoked(t: Turn, gone: list[Cap]) -> None:
    """These capabilities were taken: servers that held pages by them have a while to let go of them."""
    asked = {key for pending in t.state.pending.values() for key in pending.lent}
    for cap in gone:
        if cap.key in asked:
            continue
        server = t.state.servers.get(cap.holder)
        if cap.kind == "page" and isinstance(cap.obj, int) and server is not None and server.state in ALIVE:
            t.emit(PageLeased(cap.obj, server.name, server.incarnation, cap.slot))
            t.timer(
                limits.PAGE_LEASE_NS,
                "lease",
                name=server.name,
                incarnation=server.incarnation,
                page=cap.obj,
                slot=cap.slot,
            )


def over(t: Turn, name: str, incarnation: int, page: int, slot: int) -> None:
    """The lease is over: whether the page is still there is to be looked up, unless another capability of the server names it."""
    again = any(c.kind == "page" and c.obj == page for c in t.state.caps.held(name))
    t.emit(LeaseOver(page, name, incarnation, slot, look=not again))


def kept(t: Turn, event: PageKept) -> None:
    """It kept the page."""
    s = t.state
    server = s.servers[event.name]
    if server.incarnation != event.incarnation or server.state not in ALIVE:
        return
    s.refused["page lease"] = s.refused.get("page lease", 0) + 1
    message = (
        f"{event.name} kept the page of slot {event.slot} for {limits.PAGE_LEASE_NS // 10**9} s after it was revoked"
    )
    server.fault = ["E5-DENIED", message, f"recuros logs {event.name}", {}]
    if not s.halting:
        outbox.record(t, "fault", {"name": event.name, "code": "E5-DENIED", "message": message})
    t.emit(Kill(event.name, event.incarnation, signal.SIGKILL))
