"""Rights change hands: the syscalls that derive, revoke and take capabilities.

Responsible for: who may pass what to whom, and what a revocation takes with it (descendants, calls that wait under them,
direct channels). Every change is a record before it is answered. Refuses: a transfer without a channel that carries
`grant`; an endpoint for a server that must not wait for the callee; to take what the kernel itself holds.
"""

from __future__ import annotations

from typing import Any

from kernel import leases, outbox
from kernel.broker import answer, cancel
from kernel.caps import Cap
from kernel.state import KERNEL, OPERATOR, Caller, State, Turn
from syscalls import abi, limits
from syscalls.abi import Right
from syscalls.errors import RecurosError

ALL = Right((1 << len(Right)) - 1)


def roots(s: State) -> None:
    """At boot: one authority with every right, and below it the one that operators' sessions are derived from."""
    root = s.caps.mint(KERNEL, "root", KERNEL, ALL)
    s.caps.mint(OPERATOR, "root", OPERATOR, s.config.operator_rights, parent=root)


def open_server(s: State, name: str) -> dict[str, int]:
    """What the manifest gives a server, less what was taken from it in this boot; returns name -> slot."""
    config = s.config.servers[name]
    root = s.caps.get(KERNEL, 1)
    s.caps.drop_holder(name)
    own = Right(0) if (name, "self") in s.taken else config.rights
    slots = {"self": s.caps.mint(name, "self", name, own, parent=root).slot}
    for callee in config.calls:
        if (name, callee) not in s.taken:
            slots[callee] = s.caps.mint(name, "endpoint", callee, config.rights, parent=root).slot
    return slots


def open_operator(s: State, principal: str) -> None:
    """An operator's session acts under the operators' authority."""
    authority = s.caps.get(OPERATOR, 1)
    s.caps.mint(principal, "self", principal, authority.rights, parent=authority)


def derive(t: Turn, caller: Caller, a: dict[str, Any]) -> None:
    """Syscall cap_derive."""
    s = t.state
    parent = s.caps.get(caller.principal, a["cap"])
    to = a["to"] or caller.principal
    if to not in s.servers and to not in s.operators:
        raise RecurosError("E4-NOENT", f"no principal is called {to!r}", hint="recuros ps")
    rights = abi.parse_rights(a["rights"]) if a["rights"] else Right(0)
    if len(a["badge"]) > limits.BADGE_CHARS_MAX:
        raise RecurosError("E2-LIMIT", f"badge of {len(a['badge'])} characters; the limit is {limits.BADGE_CHARS_MAX}")
    if to != caller.principal:
        _check_transfer(s, caller.principal, parent, to)
    child = s.caps.derive(parent, to, rights, badge=a["badge"])
    if a["dry_run"]:
        s.caps.take(child)
        answer(t, caller, {"slot": 0})
        return
    args = {
        "slot": child.slot,
        "parent": parent.slot,
        "holder": to,
        "object": str(child.obj),
        "rights": abi.right_names(child.rights),
        "badge": child.badge,
    }
    then = {"caller": caller, "values": {"slot": child.slot}}
    outbox.record(t, "cap.derive", args, actor=caller.principal, cap=parent.slot, then="reply", then_data=then)


def _check_transfer(s: State, giver: str, cap: Cap, to: str) -> None:
    """An operator hands out by its own `grant`, which the call needs anyway; a server needs a channel that carries it."""
    if giver in s.servers and not any(
        held.kind == "endpoint" and held.obj == to and Right.GRANT in held.rights for held in s.caps.held(giver)
    ):
        raise RecurosError(
            "E5-DENIED",
            f"{giver} has no channel to {to} that carries grant",
            hint="a server passes capabilities only to servers that it may call, with the right grant in the manifest",
        )
    if cap.kind == "endpoint" and to in s.servers:
        callee = s.config.servers[str(cap.obj)]
        if callee.rank >= s.config.servers[to].rank:
            raise RecurosError(
                "E5-DENIED",
                f"{to} (rank {s.config.servers[to].rank}) may not call {callee.name} (rank {callee.rank})",
                hint="a server calls only servers of lower rank, so that no cycle can wait for itself",
            )


def revoke(t: Turn, caller: Caller, a: dict[str, Any]) -> None:
    """Syscall cap_revoke: what was derived from the caller's capability."""
    caps = t.state.caps
    cap = caps.get(caller.principal, a["cap"])
    if a["dry_run"]:
        answer(t, caller, {"removed": len(caps.under(cap))})
        return
    _revoked(t, caller, cap, caps.revoke(cap), taken=False)


def take(t: Turn, caller: Caller, a: dict[str, Any]) -> None:
    """Syscall cap_take: the capability itself too. What the manifest gave a server is not given to its successor either."""
    s = t.state
    cap = s.caps.get(a["principal"], a["cap"])
    own = any(s.caps.is_under(cap, held) for held in s.caps.held(caller.principal))
    beyond = cap.kind in ("root", "reply") or cap.holder == KERNEL or (cap.kind in ("page", "end") and not own)
    if beyond or (caller.principal in s.servers and not own):
        raise RecurosError(
            "E5-DENIED",
            f"{caller.principal} may not take slot {cap.slot} of {cap.holder}, a capability of kind {cap.kind}",
            hint="recuros cap explain shows what it is derived from",
        )
    if a["dry_run"]:
        answer(t, caller, {"removed": 1 + len(s.caps.under(cap))})
        return
    if cap.holder in s.servers and cap.parent == (KERNEL, 1):
        s.taken.add((cap.holder, "self" if cap.kind == "self" else str(cap.obj)))
    if cap.kind == "channel":
        s.taken.add((cap.holder, f"direct:{cap.badge}"))
    _revoked(t, caller, cap, s.caps.take(cap), taken=True)


def _revoked(t: Turn, caller: Caller, cap: Cap, gone: list[Cap], *, taken: bool) -> None:
    cancelled = cancel(t, gone)
    leases.revoked(t, gone)
    args = {"slot": cap.slot, "holder": cap.holder, "removed": len(gone), "cancelled": cancelled, "taken": taken}
    then = {"caller": caller, "values": {"removed": len(gone), "cancelled": cancelled}}
    outbox.record(t, "cap.revoke", args, actor=caller.principal, cap=t.cap, then="reply", then_data=then)
