"""Direct channels between servers: granted, counted, taken back.

Responsible for: who may have one (the manifest's `direct`, a subset of `calls`), the capability behind it (a child of the endpoint, so
that a revocation of either ends it), the generation in the page that both ends read, the methods that the caller's rights allow, and
the account that the callee gives. A grant is a record before it is anything else. Refuses: operators, channels that the manifest does
not name or that an operator took back, ends that the caller did not make.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from kernel import outbox
from kernel.broker import KERNEL_ONLY, answer, answer_error, release_page, request, tell
from kernel.events import ChannelSet
from kernel.state import KERNEL, Caller, State, Turn
from syscalls import abi, limits
from syscalls.abi import Right
from syscalls.errors import RecurosError

TABLE_PAGE: Final = 1 << 40
"""Number of the page of generations, the only page that the kernel writes; pages that are offered count from 1."""
TABLE_BYTES: Final = 4096
ENTRIES: Final = TABLE_BYTES // 8


@dataclass
class Channel:
    """One granted channel; `slot` is the caller's capability."""

    id: int
    caller: str
    callee: str
    index: int
    slot: int
    state: str = "granted"  # granted | open
    calls: int = 0
    refused: int = 0
    cpu_ns: int = 0

    @property
    def generation(self) -> int:
        """What its word in the page holds while it stands: its number, which is never used again."""
        return self.id


def open_table(s: State) -> None:
    """At boot, where the manifest grants direct channels at all."""
    if any(server.direct for server in s.config.servers.values()):
        s.pages[TABLE_PAGE] = (TABLE_BYTES, KERNEL)
        s.channel_table = s.caps.mint(KERNEL, "page", TABLE_PAGE, Right.MAP).slot


def methods_for(callee: str, rights: Right) -> list[int]:
    """Numbers of the callee's methods that these rights allow, less what only the kernel asks."""
    return [
        row.nr
        for row in abi.METHODS
        if row.server == callee and row.qualified not in KERNEL_ONLY and not row.right & ~rights
    ]


def open_(t: Turn, caller: Caller, a: dict[str, Any]) -> None:
    """Syscall channel_open."""
    s = t.state
    who = caller.principal
    endpoint = s.caps.get(who, a["endpoint"])
    end = s.caps.get(who, a["end"])
    if who not in s.servers or endpoint.kind != "endpoint" or end.kind != "end":
        raise RecurosError(
            "E5-DENIED", f"{who}: a direct channel needs an endpoint and an end of its own", hint="recuros cap ls"
        )
    callee = str(endpoint.obj)
    if callee not in s.config.servers[who].direct or (who, f"direct:{callee}") in s.taken:
        s.caps.release(end)
        raise RecurosError(
            "E5-DENIED",
            f"{who} is granted no direct channel to {callee}",
            hint=f'add "{callee}" to direct in [server.{who}]; its calls go through the kernel',
        )
    if s.servers[callee].state != "ready":
        s.caps.release(end)
        raise RecurosError("E75-AGAIN", f"{callee} is {s.servers[callee].state}", hint="calls go through the kernel")
    for old in [c for c in s.channels.values() if (c.caller, c.callee) == (who, callee)]:
        cut(t, old, "a new one was opened")
    taken = {c.index for c in s.channels.values()}
    index = next((i for i in range(ENTRIES) if i not in taken), -1)
    if index < 0:
        raise RecurosError("E2-LIMIT", f"{len(taken)} direct channels stand, the limit")
    number, s.next_channel = s.next_channel, s.next_channel + 1
    cap = s.caps.mint(who, "channel", number, endpoint.rights, parent=endpoint, badge=callee)
    s.channels[number] = Channel(number, who, callee, index, cap.slot)
    args = {
        "slot": cap.slot,
        "parent": endpoint.slot,
        "holder": who,
        "object": f"channel {number} to {callee}",
        "rights": abi.right_names(cap.rights),
        "badge": callee,
    }
    data = {"caller": caller, "channel": number, "callee": callee, "end": end.slot}
    outbox.record(t, "cap.derive", args, actor=who, cap=endpoint.slot, then="channel", then_data=data)


def recorded(t: Turn, data: dict[str, Any]) -> None:
    """The grant is durable: write its generation, and hand the end to the callee."""
    s = t.state
    caller: Caller = data["caller"]
    channel = s.channels.get(data["channel"])
    end = s.caps.find(caller.principal, data["end"])
    if channel is None or end is None or not isinstance(end.obj, int):
        answer_error(t, caller, _ended_early(s, caller.principal, data["callee"]))
        return
    t.emit(ChannelSet(channel.index, channel.generation))
    theirs = s.caps.mint(channel.callee, "end", end.obj, Right.MAP)
    s.caps.release(end)
    table = s.caps.derive(s.caps.get(KERNEL, s.channel_table), channel.callee, Right.MAP)
    limit = s.config.servers[channel.callee]
    cap = s.caps.get(channel.caller, channel.slot)
    columns = {
        "channel": channel.id,
        "caller": channel.caller,
        "pid": s.servers[channel.caller].pid,
        "index": channel.index,
        "generation": channel.generation,
        "methods": methods_for(channel.callee, cap.rights),
        "messages": limit.mailbox_messages,
        "bytes": limit.mailbox_bytes,
        "end": theirs.slot,
        "table": table.slot,
    }
    delivery = request(
        t, "channel", f"{channel.callee}.channel", columns, caller=caller, channel=channel.id, callee=channel.callee
    )
    if (pending := s.pending.get(delivery)) is not None:
        pending.lent += [theirs.key, table.key]  # it maps both before it answers
    else:
        s.caps.release(theirs)
        s.caps.release(table)


def _ended_early(s: State, caller: str, callee: str) -> RecurosError:
    """Why a channel went before it was opened. Only what an operator took is denied: after a death the caller opens another one."""
    if {f"direct:{callee}", callee, "self"} & {what for who, what in s.taken if who == caller}:
        return RecurosError(
            "E5-DENIED", f"the channel to {callee} was revoked before it was opened", hint="recuros cap ls"
        )
    return RecurosError("E3-GONE", f"the channel to {callee} ended before it was opened", hint="try again")


def accepted(t: Turn, data: dict[str, Any], values: dict[str, Any] | RecurosError) -> None:
    """The callee took its end, or says why not."""
    s = t.state
    caller: Caller = data["caller"]
    channel = s.channels.get(data["channel"])
    if isinstance(values, RecurosError) or channel is None:
        if channel is not None:
            cut(t, channel, "the callee refused it")
        error = values if isinstance(values, RecurosError) else _ended_early(s, caller.principal, data["callee"])
        answer_error(t, caller, error)
        return
    channel.state = "open"
    table = s.caps.derive(s.caps.get(KERNEL, s.channel_table), channel.caller, Right.MAP)
    limit = s.config.servers[channel.callee]
    answer(
        t,
        caller,
        {
            "channel": channel.id,
            "pid": s.servers[channel.callee].pid,
            "index": channel.index,
            "generation": channel.generation,
            "messages": limit.mailbox_messages,
            "bytes": limit.mailbox_bytes,
            "table": table.slot,
        },
    )


def cut(t: Turn, channel: Channel, reason: str) -> None:
    """End a channel now: the word in the page first, then word to those who live."""
    s = t.state
    if s.channels.pop(channel.id, None) is None:
        return
    t.emit(ChannelSet(channel.index, 0))
    cap = s.caps.find(channel.caller, channel.slot)
    if cap is not None and cap.kind == "channel" and cap.obj == channel.id:
        s.caps.release(cap)
    for name in (channel.callee, channel.caller):
        if s.servers[name].state == "ready":
            tell(t, f"{name}.channel_cut", {"channel": channel.id, "reason": reason})
    t.event("channel", action="cut", caller=channel.caller, callee=channel.callee, reason=reason)


def sweep(t: Turn) -> None:
    """At the end of a step: channels whose capability has gone, since what it was derived from was revoked or its holder died."""
    s = t.state
    if not s.caps.channels_cut:
        return
    gone, s.caps.channels_cut = s.caps.channels_cut, []
    for number in gone:
        if (channel := s.channels.get(number)) is not None:
            cut(t, channel, "its capability was revoked")
    s.caps.channels_cut = []


def server_died(t: Turn, name: str) -> None:
    """Both ends need their process."""
    for channel in [c for c in t.state.channels.values() if name in (c.caller, c.callee)]:
        cut(t, channel, f"{name} died")


def close(t: Turn, caller: Caller, a: dict[str, Any]) -> None:
    """Syscall channel_close."""
    channel = t.state.channels.get(a["channel"])
    if channel is not None and channel.caller == caller.principal:
        cut(t, channel, "given up")


def report(t: Turn, caller: Caller, a: dict[str, Any]) -> None:
    """Syscall channel_report: charge the caller for what was done for it, and say what it did wrong.

    From the caller it says what the callee did wrong, and nothing else counts.
    """
    s = t.state
    channel = s.channels.get(a["channel"])
    if channel is None or caller.principal not in (channel.callee, channel.caller):
        return  # the last words on a channel that was cut meanwhile
    if caller.principal == channel.caller:
        _accuse(t, channel.callee, channel.caller, a["reason"] or "no reason given")
        cut(t, channel, a["reason"] or "its caller closed it")
        return
    cpu_ns = max(0, min(a["cpu_ns"], limits.HEARTBEAT_TIMEOUT_NS))
    channel.calls += max(0, a["calls"])
    channel.refused += max(0, a["refused"])
    channel.cpu_ns += cpu_ns
    server = s.servers[channel.callee]
    server.accepted += max(0, a["calls"])
    server.refused += max(0, a["refused"])
    server.job_cpu_ns += cpu_ns  # a job that it runs besides is not charged for it
    if channel.caller in s.fair:
        s.fair.charge(channel.caller, cpu_ns, lent=True)
    if channel.caller in s.cbs:
        s.cbs[channel.caller].charge(cpu_ns, lent=True)
    if a["reason"]:
        _accuse(t, channel.caller, channel.callee, a["reason"])
    if a["fatal"]:
        cut(t, channel, a["reason"] or "its caller closed it")


def _accuse(t: Turn, who: str, by: str, reason: str) -> None:
    """One end broke the rules, by the other one's word: counted, and recorded the 1st, 2nd, 4th, 8th ... time."""
    s = t.state
    s.refused["direct channel"] = n = s.refused.get("direct channel", 0) + 1
    if n & (n - 1) == 0 and not s.halting:
        message = f"direct channel, as {by} says: {reason[:800]} (number {n})"
        outbox.record(t, "fault", {"name": who, "code": "E5-DENIED", "message": message})


def between(s: State, caller: str, callee: str) -> bool:
    """Whether such a channel stands."""
    return any((c.caller, c.callee) == (caller, callee) for c in s.channels.values())


def release_end(t: Turn, holder: str, slot: int) -> None:
    """Give an end or a page back."""
    cap = t.state.caps.find(holder, slot)
    if cap is not None and cap.kind == "end":
        t.state.caps.release(cap)
    else:
        release_page(t, holder, slot)


def rows(s: State, callee: str) -> list[dict[str, Any]]:
    """For people: who reaches a server directly, and what came of it."""
    return [
        {
            "channel": c.id,
            "caller": c.caller,
            "state": c.state,
            "calls": c.calls,
            "refused": c.refused,
            "cpu_ns": c.cpu_ns,
            "slot": c.slot,
        }
        for c in s.channels.values()
        if c.callee == callee
    ]
