"""The kernel as a function: `step(state, event, now_ns) -> (state, effects)`.

Deterministic, with no clock, socket, process or randomness: one history of events gives one history of effects, live
and under a simulator. The state is consumed: use the one that is returned. Order within a step: the event, then the
plan (`flow.advance`), the fair class, the ledger's outbox, pages that nobody names any more.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable
from typing import Any, Final

from kernel import (
    channels,
    flow,
    interrupts,
    leases,
    lifecycle,
    outbox,
    overrun,
    programs,
    reserve,
    slices,
    staging,
    steer,
)
from kernel.broker import answer, answer_error, dispatch_fair, end_job, release_page, replied, sweep_pages
from kernel.events import (
    Boot,
    Continue,
    DrainWanted,
    Effect,
    Event,
    Exited,
    PageAnswer,
    PageKept,
    PageOffered,
    PageWanted,
    Received,
    Refused,
    Sampled,
    Spawned,
    Tick,
)
from kernel.handlers import HANDLERS
from kernel.state import KERNEL, Caller, Pending, State, Turn
from syscalls import abi, limits
from syscalls.abi import Right
from syscalls.errors import RecurosError
from syscalls.wire import Call, Reply

STAGE_NR = abi.METHOD_BY_NAME["archivist.stage"].nr
HELLO_NR = abi.SYSCALL_BY_NAME["hello"].nr
STARTUP = frozenset({"hello", "ready", "fault"})
EITHER_WAY: Final[dict[str, Callable[[Turn, dict[str, Any], dict[str, Any] | RecurosError], None]]] = {
    "match": programs.matched,
    "fetch": programs.fetched,
    "attach": steer.attached,
    "channel": channels.accepted,
    "interrupt_kept": interrupts.kept,
    "interrupt_checked": interrupts.checked,
    "interrupt_considered": interrupts.considered,
}
"""What goes on with an error, too."""
WHILE_HALTING = frozenset({"status", "events", "fault", "page_release", "window_rolled_back", "sched_yield"})


def step(state: State | None, event: Event, now_ns: int) -> tuple[State, list[Effect]]:
    """One event. The first is `Boot`, with state None. `now_ns` never goes back: a clock that jumps is held at its last value."""
    if isinstance(event, Boot):
        state, t = lifecycle.boot(event, now_ns)
    else:
        assert state is not None, "the first event is Boot"
        t = Turn(state, max(now_ns, state.now_last_ns))
        _handle(t, event)
    t.state.now_last_ns = t.now_ns
    try:
        flow.advance(t)
    except RecurosError as error:
        lifecycle.fail(t, error)
    lifecycle.drain_step(t)
    dispatch_fair(t)
    channels.sweep(t)
    outbox.flush(t)
    sweep_pages(t)
    return t.state, t.effects


def next_wake_ns(state: State) -> int:
    """When the next timer is due."""
    return state.timers[0][0] if state.timers else 1 << 62


def _handle(t: Turn, event: Event) -> None:
    s = t.state
    match event:
        case Received():
            _received(t, event)
        case Tick():
            _tick(t)
        case Continue():
            programs.go_on(t)
        case Spawned():
            lifecycle.spawned(t, event)
        case Exited():
            lifecycle.exited(t, event)
        case PageOffered():
            _page_offered(t, event)
        case PageWanted():
            _page_wanted(t, event)
        case PageKept():
            leases.kept(t, event)
        case Sampled():
            for name, (rss, cpu) in event.usage.items():
                if name == "kernel":
                    s.kernel_usage = (rss, cpu)
                elif name in s.servers:
                    s.servers[name].rss_bytes, s.servers[name].cpu_ns = rss, cpu
            slices.sampled(t)
            overrun.look_at_all(t)
        case Refused():
            _refused(t, event)
        case DrainWanted():
            lifecycle.drain(t, "drain", event.reason)


def _refused(t: Turn, event: Refused) -> None:
    s = t.state
    key = event.reason.split(":")[0]
    s.refused[key] = s.refused.get(key, 0) + 1
    # A flood of refusals must not become a flood of records: the 1st, 2nd, 4th, 8th ... of a kind is recorded.
    if s.refused[key] & (s.refused[key] - 1) == 0 and s.phase not in ("booting", "failed") and not s.halting:
        outbox.record(
            t,
            "fault",
            {
                "name": event.who[:100],
                "code": "E5-DENIED",
                "message": f"{event.reason[:900]} (number {s.refused[key]})",
            },
        )


def _received(t: Turn, event: Received) -> None:
    s = t.state
    server = s.servers.get(event.principal)
    t.size = event.size
    if server is not None:
        server.last_heard_ns, server.pinged = t.now_ns, False
        server.cpu_ns = max(server.cpu_ns, event.cpu_ns)
        slices.heard(t, server)
    if isinstance(event.frame, Call):
        _syscall(t, event, event.frame)
    elif isinstance(event.frame, Reply) and server is not None:
        _reply(t, event, event.frame)
    else:
        _refused(t, Refused(event.principal, "a frame that only the kernel sends"))


def _syscall(t: Turn, event: Received, call: Call) -> None:
    s = t.state
    caller = Caller(event.principal, event.route, call.id, call.nr)
    t.cap = call.cap
    row = abi.SYSCALL_BY_NR.get(call.nr)
    if _replayed(s, event.principal, call):
        # No answer: the one call that had this number may still wait for its own.
        _refused(t, Refused(event.principal, f"replayed call: number {call.id} was used in this session"))
        return
    try:
        if event.principal in s.operators:
            s.operators[event.principal] = s.operators.pop(event.principal)  # the one unheard longest makes room first
        if row is None:
            raise RecurosError("E2-WIRE", f"no syscall has number {call.nr}", hint="recuros syscall --list")
        if row.name not in STARTUP and event.principal not in s.operators:
            server = s.servers.get(event.principal)
            if server is None or server.state not in ("connected", "ready", "draining"):
                raise RecurosError("E2-WIRE", f"{row.name} before hello")
        args = row.check_args(call.args)
        if row.right:
            s.caps.require(event.principal, call.cap, row.right, row.name)
        if s.halting and row.name not in WHILE_HALTING and not (s.halting == "record" and row.name in STARTUP):
            raise RecurosError("E75-AGAIN", "the runtime is halting", hint="recuros boot")
        HANDLERS[row.name](t, caller, args, event.cpu_ns)
    except RecurosError as error:
        if error.code == "E2-WIRE":
            _refused(t, Refused(event.principal, f"malformed call: {error.message}"))
        answer_error(t, caller, error)


def _replayed(s: State, principal: str, call: Call) -> bool:
    """Whether the session has used this number. One-way calls have none; before hello there is no session."""
    if not call.id or call.nr == HELLO_NR or (principal not in s.operators and principal not in s.servers):
        return False
    seen = s.seen.setdefault(principal, deque(maxlen=limits.REPLAY_IDS_KEPT))
    if seen and (call.id in seen if call.id <= seen[-1] else False):
        return True
    if len(seen) == limits.REPLAY_IDS_KEPT and call.id < seen[0]:
        return True
    seen.append(call.id)
    return False


def _reply(t: Turn, event: Received, reply: Reply) -> None:
    got = replied(t, event.principal, reply, event.cpu_ns)
    if got is None:
        _refused(t, Refused(event.principal, f"stray reply: nobody waits for an answer to delivery {reply.id}"))
        return
    pending, values = got
    if reply.ok and isinstance(values, RecurosError):
        _refused(t, Refused(event.principal, f"malformed reply: {values.message}"))
    try:
        _continue(t, pending, values)
    except RecurosError as error:
        caller = pending.data.get("caller")
        if isinstance(caller, Caller):
            answer_error(t, caller, error)
        else:
            lifecycle.fail(t, error)


def _continue(t: Turn, pending: Pending, values: dict[str, Any] | RecurosError) -> None:
    """A server answered a delivery: go on with what it was for."""
    kind, data = pending.kind, pending.data
    if t.state.halting and kind in ("evaluate", "calibrate", "match", "fetch", "keep", "attach", "detach", "put"):
        # The halt record is the last word on what was decided; nothing is recorded after it.
        if kind == "attach" and isinstance(values, dict):
            release_page(t, KERNEL, values["page"])
        if isinstance(data["caller"], Caller):
            answer_error(t, data["caller"], RecurosError("E75-AGAIN", "the runtime is halting", hint="recuros boot"))
        return
    if kind == "relay":
        if isinstance(values, RecurosError):
            answer_error(t, data["caller"], values)
        else:
            if pending.nr == STAGE_NR:
                t.state.stored = values["snapshot"]
            answer(t, data["caller"], {"reply": abi.METHOD_BY_NR[pending.nr].bind_reply(values)})
        return
    if kind == "evaluate":
        steer.evaluated(t, data, values)
        return
    if (go_on := EITHER_WAY.get(kind)) is not None:
        go_on(t, data, values)
        return
    if kind in ("ping", "telemetry", "inventory") and isinstance(values, RecurosError):
        return  # gauges are for people; a missing one is not a failure
    if kind == "fill" and isinstance(values, RecurosError) and data["gate"]:
        steer.drop_gate(t, data, values)
        return
    if isinstance(values, RecurosError):
        raise values
    match kind:
        case "open":
            lifecycle.opened(t, values)
        case "append":
            for then, then_data, seq in outbox.acknowledged(t, values):
                _recorded(t, then, then_data, seq)
        case "fill":
            flow.filled(t, data, values)
        case "restore":
            lifecycle.learner_restored(t, data["base"], values)
        case "put":
            steer.policy_stored(t, data, values)
        case "keep":
            programs.kept(t, data, values)
        case "detach":
            _detached(t, data, values)
        case "gc":
            answer(t, data["caller"], values)
        case "probes":
            answer(t, data["caller"], steer.probe_rows(t.state, values, data["columns"]))
        case "calibrate":
            body = {"mode": data["mode"], "result": values["result"]}
            then_data = {"caller": data["caller"], "values": {"result": values["result"]}}
            outbox.record(
                t,
                "calibrate",
                body,
                actor=data["caller"].principal,
                parent=data["snapshot"],
                then="reply",
                then_data=then_data,
            )
        case "inventory":
            t.state.device = {"devices": values["devices"], "host": values["host"], "note": values["note"]}
        case "telemetry":
            flow.telemetry(t, values)


def _recorded(t: Turn, then: str, data: dict[str, Any], seq: int) -> None:
    """A record is durable: let its effect happen."""
    match then:
        case "reply":
            if data["caller"]:
                answer(t, data["caller"], {**data["values"], "seq": seq})
        case "channel":
            channels.recorded(t, data)
        case "granted":
            flow.granted(t, data, seq)
        case "committed":
            flow.committed(t, data, seq)
        case "policy":
            steer.policy_recorded(t, data, seq)
        case "evaluated":
            steer.evaluation_recorded(t, data, seq)
        case "loaded":
            programs.loaded(t, data, seq)
        case "interrupt_asked":
            interrupts.recorded(t, data, seq)
        case "interrupt_decided":
            interrupts.answered(t, data, seq)
        case "halted":
            lifecycle.halted(t)


def _detached(t: Turn, data: dict[str, Any], values: dict[str, Any]) -> None:
    programs.forget(t, t.state.probes.pop(data["id"], None))
    outbox.record(
        t,
        "probe.detach",
        {"id": data["id"], "step": values["step"]},
        actor=data["caller"].principal,
        cap=1,
        then="reply",
        then_data={"caller": data["caller"], "values": {"step": values["step"]}},
    )


def _page_refused(s: State, event: PageOffered) -> RecurosError | None:
    """Why a page is not taken. An operator's is for what an interrupt brings: few, not large, and by a session that may interrupt."""
    held = sum(c.kind in ("page", "end") for c in s.caps.held(event.principal))
    most = limits.PAGES_PER_PRINCIPAL_MAX
    if event.principal not in s.servers:
        allowed = any(c.kind == "self" and c.rights & Right.INTERRUPT for c in s.caps.held(event.principal))
        if event.principal not in s.operators or not allowed:
            return RecurosError("E5-DENIED", f"{event.principal} may not offer pages: it lacks the right interrupt")
        if event.size > limits.INTERRUPT_PAGE_BYTES_MAX:
            return RecurosError(
                "E2-LIMIT",
                f"a page of {event.size} bytes; an operator's has at most {limits.INTERRUPT_PAGE_BYTES_MAX}",
                hint="split the file: each interrupt adds to the ones before",
            )
        most = limits.OPERATOR_PAGES_MAX
    if held >= most:
        return RecurosError(
            "E2-LIMIT", f"{event.principal} holds {held} pages, the limit", hint="release pages that are no longer used"
        )
    return None


def _page_offered(t: Turn, event: PageOffered) -> None:
    s = t.state
    error = _page_refused(s, event)
    if error is not None:
        t.emit(PageAnswer(event.conn, False, error.to_wire()))
        s.pages[event.page] = (event.size, event.principal)
        s.caps.pages_released = True
        return
    s.pages[event.page] = (event.size, event.principal)
    cap = s.caps.mint(event.principal, "end" if event.end else "page", event.page, Right.MAP)
    t.emit(PageAnswer(event.conn, True, cap.slot))


def _page_wanted(t: Turn, event: PageWanted) -> None:
    s = t.state
    try:
        cap = s.caps.require(event.principal, event.handle, Right.MAP, "page map")
        if cap.kind not in ("page", "end") or not isinstance(cap.obj, int):
            raise RecurosError("E5-DENIED", f"slot {event.handle} of {event.principal} is not a page")
    except RecurosError as error:
        t.emit(PageAnswer(event.conn, False, error.to_wire()))
        return
    t.emit(PageAnswer(event.conn, True, s.pages[cap.obj][0], page=cap.obj))


def _tick(t: Turn) -> None:
    s = t.state
    while s.timers and s.timers[0][0] <= t.now_ns:
        _, _, kind, data = heapq.heappop(s.timers)
        match kind:
            case "deadline":
                staging.deadline(t, **data)
            case "abort":
                flow.abort_overdue(t, **data)
            case "policy" if not s.halting:
                steer.policy_timeout(t, **data)
            case "interrupt":
                interrupts.timeout(t, **data)
            case "hello":
                lifecycle.hello_timeout(t, **data)
            case "restart":
                lifecycle.restart(t, **data)
            case "heartbeat":
                lifecycle.heartbeat(t)
            case "drain":
                lifecycle.drain_timeout(t)
            case "replenish":
                reserve.go_on(t, **data)
            case "throttled":
                reserve.go_on_again(t, **data)
            case "lease":
                leases.over(t, **data)
            case "slice":
                _slice_overrun(t, **data)


def _slice_overrun(t: Turn, name: str, job: int) -> None:
    """A fair server neither ended its job nor reached a micro-step for 500 slices: others need not wait for it."""
    s = t.state
    running = s.fair.running(name)
    if running is not None and job and getattr(running[1], "id", getattr(running[1], "call_id", 0)) == job:
        s.refused["slice overrun"] = s.refused.get("slice overrun", 0) + 1
        end_job(t, name, s.servers[name].cpu_ns)
