"""Deliveries: requests to servers, their replies, mailboxes with credits, and the pages that travel with them.

Responsible for: bounded mailboxes (messages and bytes), handle translation of `page` columns, one-shot replies, and
handing fair servers their work in the order of the fair class. A call from an EDF server, and whatever a fair job
calls in turn, is donation: it is delivered at once. Refuses: what does not fit a mailbox (E75-FULL, counted), replies
that nobody asked for.
"""

from __future__ import annotations

from typing import Any

from kernel import donation, reserve
from kernel.caps import Cap, Key
from kernel.events import ClosePage, Send
from kernel.state import KERNEL, Caller, Pending, Server, Turn
from syscalls import abi, limits
from syscalls.abi import Right
from syscalls.errors import RecurosError
from syscalls.wire import Deliver, Reply

# What only the kernel may ask: these write the ledger, drive windows or occupy a fair server on the kernel's account.
KERNEL_ONLY = frozenset(
    {"archivist.open", "archivist.append", "archivist.gc", "archivist.keep", "archivist.fetch"}
    | {"dataset.fill", "observer.trace", "observer.evaluate", "observer.calibrate"}
    | {row.qualified for row in abi.METHODS if row.server == "learner"}
)
MESSAGE_BYTES_MIN = 64
"""What an empty message counts for in a mailbox."""
CONTROL = frozenset({abi.METHOD_BY_NAME["any.ping"].nr})
"""Requests that no credit holds up. Grants, aborts, drains and commits are one-way, and are not held up either."""
CANCELLABLE = frozenset({"relay", "evaluate", "calibrate"})
"""What a revocation takes back from a queue. Other requests are halfway through a change that their record describes."""
FAIR_JOBS = frozenset({"dataset.fill", "observer.evaluate", "observer.calibrate", "gpu.telemetry", "gpu.inventory"})


def request(t: Turn, kind: str, method: str, args: dict[str, Any], **data: Any) -> int:
    """The kernel asks a server; the reply arrives as continuation `kind` with `data`. Page columns are slots of the kernel."""
    server, _, name = method.partition(".")
    row = abi.method_of(server, name)
    pending = Pending(kind, server, row.nr, data)
    caller = data.get("caller")
    if isinstance(caller, Caller):
        pending.cap = (caller.principal, t.cap)
    return _deliver(t, server, row, row.bind(args), KERNEL, pending)


def tell(t: Turn, method: str, args: dict[str, Any]) -> None:
    """The kernel tells a server, one-way. Page columns are lent until the kernel's own capability is released."""
    server, _, name = method.partition(".")
    row = abi.method_of(server, name)
    lent: list[tuple[str, int]] = []
    values = _translate(t, row, row.bind(args), KERNEL, server, lent)
    _send(t, t.state.servers[server], Deliver(0, row.nr, values, KERNEL))


def relay(t: Turn, caller: Caller, endpoint: Cap, method_nr: int, args: list[Any]) -> None:
    """Syscall `call`: deliver to the server behind an endpoint capability; the caller's reply is one-shot."""
    s = t.state
    server = str(endpoint.obj)
    row = abi.METHOD_BY_NR.get(method_nr)
    if row is None or row.server != server:
        raise RecurosError("E2-USAGE", f"{server} has no method number {method_nr}")
    if row.qualified in KERNEL_ONLY:
        raise RecurosError("E5-DENIED", f"{caller.principal} may not call {row.qualified}: only the kernel does")
    row.check_args(args)
    s.caps.require(caller.principal, endpoint.slot, row.right, row.qualified)
    target = s.servers[server]
    if target.state not in ("ready", "draining"):
        raise RecurosError("E75-AGAIN", f"{server} is {target.state}", hint="it is being restarted; try again")
    limit = s.config.servers[server]
    full = _full(t, target)
    if full and limit.mailbox_policy == "drop-oldest" and _drop_oldest(t, target):
        full = False
    waits = full and limit.mailbox_policy == "block" and not _waits(t, target, caller.principal)
    if full and not waits:
        target.refused += 1
        raise RecurosError(
            "E75-FULL",
            f"mailbox of {server}: {len(target.queue)} messages, {target.queued_bytes} bytes;"
            f" limits {limit.mailbox_messages} and {limit.mailbox_bytes}",
            hint="wait for replies before sending more",
        )
    pending = Pending("relay", server, row.nr, {"caller": caller}, cap=endpoint.key)
    try:
        _deliver(t, server, row, list(args), caller.principal, pending)
    except RecurosError:
        target.refused += 1
        raise
    target.accepted += 1


def _full(t: Turn, target: Server) -> bool:
    limit = t.state.config.servers[target.name]
    size = max(t.size, MESSAGE_BYTES_MIN)
    return len(target.queue) >= limit.mailbox_messages or target.queued_bytes + size > limit.mailbox_bytes


def _waits(t: Turn, target: Server, caller: str) -> bool:
    """Whether a call of this caller waits for room already; one that waits cannot ask a second time."""
    pending = t.state.pending
    return any(
        frame.id in pending and pending[frame.id].data["caller"].principal == caller for frame, _ in target.blocked
    )


def _drop_oldest(t: Turn, target: Server) -> bool:
    """The question for gauges that has waited longest makes room, if one waits; its caller is told."""
    at = next((i for i, (f, _) in enumerate(target.queue) if abi.METHOD_BY_NR[f.nr].qualified in abi.TELEMETRY), -1)
    if at < 0:
        return False
    frame, size = target.queue[at]
    del target.queue[at]
    target.queued_bytes -= size
    target.dropped += 1
    pending = t.state.pending.pop(frame.id)
    _unlend(t, pending)
    if pending.reply:
        t.state.caps.use_reply(pending.reply)
    reason = f"dropped from the mailbox of {target.name} for a newer question"
    answer_error(t, pending.data["caller"], RecurosError("E75-FULL", reason, hint="ask again"))
    return True


def _deliver(t: Turn, server: str, row: abi.Row, values: list[Any], sender: str, pending: Pending) -> int:
    s = t.state
    caller = pending.data.get("caller")
    values = _translate(t, row, values, sender, server, pending.lent)
    if isinstance(caller, Caller):
        try:
            pending.reply = s.caps.reserve_reply(server, caller.principal).key
        except RecurosError:
            _unlend(t, pending)
            raise
    if pending.kind == "relay":
        donation.lend(t, pending, sender)
    delivery = s.next_delivery
    s.next_delivery += 1
    s.pending[delivery] = pending
    frame = Deliver(delivery, row.nr, values, sender)
    if row.qualified in FAIR_JOBS and pending.kind != "relay" and server in s.fair:
        s.fair.enqueue(server, ("deliver", frame))
        reserve.woken(t, server)
    else:
        _post(t, s.servers[server], frame)
    return delivery


def fair_job(t: Turn, method: str, args: dict[str, Any]) -> None:
    """A one-way job of the fair class (the observer's trace): it ends when the server says so by a syscall, see `end_job`."""
    server, _, name = method.partition(".")
    row = abi.method_of(server, name)
    lent: list[tuple[str, int]] = []
    values = _translate(t, row, row.bind(args), KERNEL, server, lent)
    t.state.fair.enqueue(server, ("deliver", Deliver(0, row.nr, values, KERNEL)))
    reserve.woken(t, server)


def dispatch_fair(t: Turn) -> None:
    """Hand out slots of the fair class; called at the end of every step."""
    s = t.state
    if s.fair.nothing_waits:
        return
    while (picked := reserve.pick(t) or s.fair.pick()) is not None:
        name, (how, what) = picked
        server = s.servers[name]
        _note_dispatch(t, name, what.nr if how == "deliver" else 0)
        server.job_cpu_ns = server.cpu_ns
        if not server.niced:
            server.spoke_cpu_ns = server.cpu_ns
        t.timer(limits.SLICE_NS_DEFAULT * 500, "slice", name=name, job=id_of(what))
        if how == "deliver":
            _post(t, server, what)
        else:
            answer(t, what, {})


def _note_dispatch(t: Turn, name: str, nr: int) -> None:
    """On the clock of records, so that a ledger gives one order of everything; `outbox.dispatches` makes a record of them."""
    s = t.state
    if not s.halting:
        s.last_t_mono = max(s.last_t_mono + 1, t.now_ns)
        s.dispatches.append([s.last_t_mono, name, nr])


def id_of(what: Any) -> int:
    """What tells a job from the next one of the same server."""
    return what.id if isinstance(what, Deliver) else what.call_id


def end_job(t: Turn, name: str, cpu_ns: int) -> None:
    """The fair job of a server ended; charge its CPU time and free the slot."""
    s = t.state
    if name in s.fair and s.fair.running(name) is not None:
        used_ns = max(0, cpu_ns - s.servers[name].job_cpu_ns)
        s.fair.finish(name, used_ns)
        reserve.ended(t, name, used_ns)


def _post(t: Turn, server: Server, frame: Deliver) -> None:
    if server.state not in ("connected", "ready", "draining"):
        # Only the kernel's own requests come here; they are made again when the server is back.
        pending = t.state.pending.pop(frame.id, None)
        if pending:
            _undelivered(t, pending, f"{server.name} is {server.state}")
        return
    if not frame.id:
        _send(t, server, frame)  # one-way: the fair class lets a server have one at a time
        return
    pending = t.state.pending[frame.id]
    size = max(t.size, MESSAGE_BYTES_MIN)
    if frame.nr in CONTROL:
        pending.credit = False
        _send(t, server, frame)
    elif server.in_flight < limits.MAILBOX_CREDIT and not (server.queue or server.blocked or server.urgent):
        server.in_flight += 1
        _send(t, server, frame)
    elif pending.kind != "relay":
        server.urgent.append((frame, 0))
    elif server.blocked or _full(t, server):
        server.blocked.append((frame, size))
    else:
        server.queue.append((frame, size))
        server.queued_bytes += size


def _next(t: Turn, server: Server) -> None:
    """Hand out what waits while there is credit: the kernel's own first, then calls in order."""
    limit = t.state.config.servers[server.name]
    while server.in_flight < limits.MAILBOX_CREDIT and (server.urgent or server.queue or server.blocked):
        lane = server.urgent or server.queue or server.blocked
        frame, size = lane.popleft()
        if lane is server.queue:
            server.queued_bytes -= size
        server.in_flight += 1
        _send(t, server, frame)
    while server.blocked and len(server.queue) < limit.mailbox_messages:
        if server.queue and server.queued_bytes + server.blocked[0][1] > limit.mailbox_bytes:
            return
        server.queue.append(server.blocked.popleft())
        server.queued_bytes += server.queue[-1][1]


def _send(t: Turn, server: Server, frame: Deliver) -> None:
    if pending := t.state.pending.get(frame.id):
        pending.handed = True
    t.emit(Send(False, server.route, frame))


def replied(t: Turn, name: str, reply: Reply, cpu_ns: int) -> tuple[Pending, dict[str, Any] | RecurosError] | None:
    """Match a server's reply with what it answers; None if nobody asked, or not this server, or it was answered.

    A server that guesses the number of a call in its mailbox is refused: the call would be handed out later, out of reach of a revocation.
    """
    s = t.state
    pending = s.pending.get(reply.id)
    if pending is None or pending.server != name or not pending.handed:
        return None
    del s.pending[reply.id]
    if pending.reply:
        s.caps.use_reply(pending.reply)
    server = s.servers[name]
    server.in_flight -= pending.credit
    donation.returned(t, pending, cpu_ns)
    _unlend(t, pending)
    if abi.METHOD_BY_NR[pending.nr].qualified in FAIR_JOBS and pending.kind != "relay":
        end_job(t, name, cpu_ns)
    _next(t, server)
    if not reply.ok:
        return pending, RecurosError.from_wire(reply.payload)
    row = abi.METHOD_BY_NR[pending.nr]
    try:
        values = row.check_reply(reply.payload)
        _move_pages(t, row, values, name, pending)
    except RecurosError as error:
        return pending, error
    return pending, values


def _move_pages(t: Turn, row: abi.Row, values: dict[str, Any], name: str, pending: Pending) -> None:
    """Page columns of a reply move to whoever asked; those for a server that died meanwhile go nowhere."""
    to, gone = KERNEL, False
    if pending.kind == "relay":
        to, route = pending.data["caller"][:2]
        asker = t.state.servers.get(to)
        gone = asker is not None and (asker.state in ("dead", "down") or asker.route != route)
    for column in row.reply:
        if column.kind == "page" and values[column.name]:
            if gone:
                release_page(t, name, values[column.name])
            else:
                values[column.name] = move_page(t, name, values[column.name], to).slot


def move_page(t: Turn, holder: str, slot: int, to: str) -> Cap:
    """A page capability changes hands; the holder's own is gone."""
    caps = t.state.caps
    cap = caps.require(holder, slot, Right.MAP, "page")
    if cap.kind != "page":
        raise RecurosError("E5-DENIED", f"slot {slot} of {holder} is not a page")
    moved = caps.derive(cap, to, Right.MAP)
    caps.release(cap)
    return moved


def _translate(
    t: Turn, row: abi.Row, values: list[Any], sender: str, to: str, lent: list[tuple[str, int]]
) -> list[Any]:
    values = list(values)
    for i in row.pages:
        if values[i]:
            cap = t.state.caps.require(sender, values[i], Right.MAP, row.qualified)
            if cap.kind != "page":
                raise RecurosError("E5-DENIED", f"{row.qualified}: slot {values[i]} of {sender} is not a page")
            child = t.state.caps.derive(cap, to, Right.MAP)
            lent.append(child.key)
            values[i] = child.slot
    return values


def _unlend(t: Turn, pending: Pending) -> None:
    donation.returned(t, pending, 0)  # where no reply came
    for key in pending.lent:
        cap = t.state.caps.find(*key)
        if cap:
            t.state.caps.release(cap)


def release_page(t: Turn, holder: str, slot: int) -> None:
    """Revoke what was derived from this page capability and give it up."""
    caps = t.state.caps
    cap = caps.find(holder, slot)
    if cap and cap.kind == "page":
        if holder == KERNEL:
            caps.revoke(cap)
        caps.release(cap)


def sweep_pages(t: Turn) -> None:
    """Close pages that no capability names any more."""
    s = t.state
    if not s.caps.pages_released:
        return
    s.caps.pages_released = False
    used = s.caps.pages_in_use()
    for page in [p for p in s.pages if p not in used]:
        del s.pages[page]
        t.emit(ClosePage(page))


def answer(t: Turn, caller: Caller, values: dict[str, Any]) -> None:
    """Answer a syscall."""
    if caller.call_id:
        row = abi.SYSCALL_BY_NR[caller.nr]
        if caller.inner:
            values = {"reply": abi.SYSCALL_BY_NR[caller.inner].bind_reply(values), "step": int(values.get("step", -1))}
        _answer(t, caller, Reply(caller.call_id, True, row.bind_reply(values)))


def answer_error(t: Turn, caller: Caller, error: RecurosError) -> None:
    """Answer a syscall with an error."""
    if caller.call_id:
        _answer(t, caller, Reply(caller.call_id, False, error.to_wire()))


def _answer(t: Turn, caller: Caller, reply: Reply) -> None:
    operator = caller.principal not in t.state.config.servers
    server = t.state.servers.get(caller.principal)
    if server is not None and (server.route not in (caller.route, b"") or server.state == "dead"):
        return  # the caller died; its reply capability died with it (b"": a hello that was refused is answered too)
    t.emit(Send(operator, caller.route, reply))


def _undelivered(t: Turn, pending: Pending, reason: str) -> None:
    """Nobody will answer this delivery. A policy's blobs wait for the next archivist, since their submitter waits too."""
    _unlend(t, pending)
    if pending.reply:
        t.state.caps.use_reply(pending.reply)
    caller = pending.data.get("caller")
    if pending.kind == "put":
        t.state.parked.append(pending)
    elif isinstance(caller, Caller):
        answer_error(t, caller, RecurosError("E3-GONE", reason, hint="try again"))


def _sent_under(t: Turn, delivery: int, keys: set[Key]) -> bool:
    pending = t.state.pending.get(delivery)
    return pending is not None and pending.cap in keys and pending.kind in CANCELLABLE


def cancel(t: Turn, gone: list[Cap]) -> int:
    """Take back what was sent under capabilities that are gone and was not handed out yet: E5-DENIED to its sender."""
    s = t.state
    keys = {cap.key for cap in gone}
    taken = 0
    for name, server in s.servers.items():
        waiting = [*server.urgent, *server.queue, *server.blocked]
        doomed = {frame.id for frame, _ in waiting if _sent_under(t, frame.id, keys)}
        for lane in (server.urgent, server.queue, server.blocked):
            kept = [(frame, size) for frame, size in lane if frame.id not in doomed]
            lane.clear()
            lane.extend(kept)
        server.queued_bytes = sum(size for _, size in server.queue)
        if name in s.fair:
            jobs = s.fair.cancel(name, lambda job: job[0] == "deliver" and _sent_under(t, job[1].id, keys))
            doomed |= {frame.id for _, frame in jobs}
        for delivery in sorted(doomed):
            pending = s.pending.pop(delivery)
            _unlend(t, pending)
            if pending.reply:
                s.caps.use_reply(pending.reply)
            caller = pending.data["caller"]
            holder, slot = pending.cap or ("", 0)
            reason = f"the capability in slot {slot} of {holder} was revoked before {name} took this call"
            answer_error(t, caller, RecurosError("E5-DENIED", reason, hint="recuros cap ls"))
        server.cancelled += len(doomed)
        if doomed:
            _next(t, server)
        taken += len(doomed)
    return taken


def server_died(t: Turn, name: str) -> None:
    """Drop what was on its way to the server; callers learn it, the kernel's own requests are made again by `lifecycle`."""
    s = t.state
    server = s.servers[name]
    server.queue.clear()
    server.urgent.clear()
    server.blocked.clear()
    server.queued_bytes = server.in_flight = 0
    if name in s.fair:
        s.fair.clear(name)
    for delivery, pending in list(s.pending.items()):
        if pending.server == name:
            del s.pending[delivery]
            _undelivered(t, pending, f"{name} died before it answered")
    # What it sent and nobody took goes too: once its capabilities are gone, no revocation would find it.
    cancel(t, s.caps.held(name))
    s.caps.drop_holder(name)
