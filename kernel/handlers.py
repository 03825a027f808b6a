"""One function a syscall.

Responsible for: the kernel's side of each row of the table. A handler answers at once, or leaves its `Caller` with a
continuation that answers when the record is durable. Refuses: by raising RecurosError; `core` turns it into the
answer.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from kernel import (
    channels,
    flow,
    interrupts,
    lifecycle,
    outbox,
    plan,
    programs,
    proposal,
    reserve,
    rights,
    staging,
    steer,
)
from kernel.broker import answer, end_job, relay, request
from kernel.events import Report
from kernel.sched import Reservation, admit
from kernel.state import KERNEL, OPERATOR, Caller, Turn
from kernel.status import status
from kfs.ids import is_object_id
from syscalls import abi, limits, masks
from syscalls.errors import RecurosError

REMOTE = "operator:key-"

MS = 1_000_000


def _hello(t: Turn, c: Caller, a: dict[str, Any], cpu_ns: int) -> None:
    lifecycle.hello(t, c, a)


def _ready(t: Turn, c: Caller, a: dict[str, Any], cpu_ns: int) -> None:
    _server_only(t, c)
    lifecycle.check_ready(t, c.principal, a["info"])
    answer(t, c, {})
    lifecycle.ready(t, c.principal, a["info"])


def _fault(t: Turn, c: Caller, a: dict[str, Any], cpu_ns: int) -> None:
    _server_only(t, c)
    error = RecurosError.from_wire([a["code"], a["message"], a["hint"], {}])
    t.state.servers[c.principal].fault = error.to_wire()
    outbox.record(
        t, "fault", {"name": c.principal, "code": error.code, "message": error.message[:2000]}, actor=c.principal
    )


def _status(t: Turn, c: Caller, a: dict[str, Any], cpu_ns: int) -> None:
    answer(t, c, {"status": status(t)})


def _events(t: Turn, c: Caller, a: dict[str, Any], cpu_ns: int) -> None:
    s = t.state
    first = s.events[0]["n"] if s.events else s.event_count + 1
    fresh = [e for e in s.events if e["n"] > a["after"]][: max(1, min(a["limit"], limits.EVENTS_KEPT))]
    last = fresh[-1]["n"] if fresh else a["after"]
    answer(t, c, {"events": fresh, "last": last, "dropped": max(0, first - 1 - a["after"])})


def _shutdown(t: Turn, c: Caller, a: dict[str, Any], cpu_ns: int) -> None:
    if a["mode"] not in ("drain", "now"):
        raise RecurosError("E2-USAGE", f"shutdown mode {a['mode']!r}", hint="mode=drain or mode=now")
    answer(t, c, {})
    lifecycle.drain(t, a["mode"], a["reason"] or f"asked by {c.principal}")


def _cap_list(t: Turn, c: Caller, a: dict[str, Any], cpu_ns: int) -> None:
    s = t.state
    who = a["principal"] or c.principal
    if who not in s.servers and who not in s.operators and who not in (KERNEL, OPERATOR):
        raise RecurosError("E4-NOENT", f"no principal is called {who!r}", hint="recuros ps")
    answer(t, c, {"caps": s.caps.to_list(who)})


def _cap_derive(t: Turn, c: Caller, a: dict[str, Any], cpu_ns: int) -> None:
    rights.derive(t, c, a)


def _cap_revoke(t: Turn, c: Caller, a: dict[str, Any], cpu_ns: int) -> None:
    rights.revoke(t, c, a)


def _cap_take(t: Turn, c: Caller, a: dict[str, Any], cpu_ns: int) -> None:
    rights.take(t, c, a)


def _page_release(t: Turn, c: Caller, a: dict[str, Any], cpu_ns: int) -> None:
    channels.release_end(t, c.principal, a["page"])


def _page_list(t: Turn, c: Caller, a: dict[str, Any], cpu_ns: int) -> None:
    s = t.state
    rows = [
        {"handle": cap.slot, "bytes": s.pages[cap.obj][0], "writer": s.pages[cap.obj][1]}
        for cap in s.caps.held(c.principal)
        if cap.kind == "page" and isinstance(cap.obj, int)
    ]
    answer(t, c, {"pages": rows})


def _call(t: Turn, c: Caller, a: dict[str, Any], cpu_ns: int) -> None:
    endpoint = t.state.caps.get(c.principal, a["endpoint"])
    if endpoint.kind != "endpoint":
        raise RecurosError(
            "E5-DENIED", f"slot {a['endpoint']} of {c.principal} is not an endpoint", hint="recuros cap ls"
        )
    relay(t, c, endpoint, a["method"], a["args"])


def _channel_list(t: Turn, c: Caller, a: dict[str, Any], cpu_ns: int) -> None:
    s = t.state
    rows = [
        {
            "server": x.name,
            "messages": len(x.queue),
            "bytes": x.queued_bytes,
            "in_flight": x.in_flight,
            "messages_max": s.config.servers[x.name].mailbox_messages,
            "bytes_max": s.config.servers[x.name].mailbox_bytes,
            "policy": s.config.servers[x.name].mailbox_policy,
            "blocked": len(x.blocked),
            "accepted": x.accepted,
            "refused": x.refused,
            "dropped": x.dropped,
            "cancelled": x.cancelled,
            "direct": channels.rows(s, x.name),
            "callers": [y.name for y in s.config.servers.values() if x.name in y.calls],
        }
        for x in s.servers.values()
    ]
    answer(t, c, {"channels": rows})


def _channel_open(t: Turn, c: Caller, a: dict[str, Any], cpu_ns: int) -> None:
    channels.open_(t, c, a)


def _channel_close(t: Turn, c: Caller, a: dict[str, Any], cpu_ns: int) -> None:
    channels.close(t, c, a)


def _channel_report(t: Turn, c: Caller, a: dict[str, Any], cpu_ns: int) -> None:
    channels.report(t, c, a)


def _stage_done(t: Turn, c: Caller, a: dict[str, Any], cpu_ns: int) -> None:
    staging.stored(t, c, a)


def _rl_schedule(t: Turn, c: Caller, a: dict[str, Any], cpu_ns: int) -> None:
    steer.schedule(t, c, a)


def _sched_show(t: Turn, c: Caller, a: dict[str, Any], cpu_ns: int) -> None:
    s = t.state
    sched = {
        "reservations": reserve.to_list(t),
        "fair": s.fair.to_list(),
        "slots": s.config.background_slots,
        "counts": s.counts,
        "overruns": s.overruns,
        "kernel": s.environment.get("kernel", {}),
        "witness": admit([s.reservation])[1],
    }
    answer(t, c, {"sched": sched})


def _sched_admit(t: Turn, c: Caller, a: dict[str, Any], cpu_ns: int) -> None:
    steer.check_ms(**{key: a[key] for key in ("budget_ms", "period_ms", "deadline_ms")})
    new = Reservation(a["name"], a["budget_ms"] * MS, a["deadline_ms"] * MS, a["period_ms"] * MS)
    others, background_step_ns = reserve.others_on_lane(t.state, a["name"])
    ok, witness = admit([*others, new], background_step_ns=background_step_ns)
    answer(t, c, {"admitted": ok, "witness": witness})


def _sched_yield(t: Turn, c: Caller, a: dict[str, Any], cpu_ns: int) -> None:
    s = t.state
    _server_only(t, c)
    if c.principal not in s.fair or s.fair.running(c.principal) is None:
        answer(t, c, {})
        return
    end_job(t, c.principal, cpu_ns)
    s.fair.enqueue(c.principal, ("resume", c), front=True)
    reserve.go_on(t, c.principal)


def _progress(t: Turn, c: Caller, a: dict[str, Any], cpu_ns: int) -> None:
    flow.progress(t, a)


def _window_staged(t: Turn, c: Caller, a: dict[str, Any], cpu_ns: int) -> None:
    flow.staged(t, c, a, cpu_ns)


def _window_rolled_back(t: Turn, c: Caller, a: dict[str, Any], cpu_ns: int) -> None:
    flow.rolled_back(t, c, a)


def _probe_evicted(t: Turn, c: Caller, a: dict[str, Any], cpu_ns: int) -> None:
    if evicted := t.state.probes.pop(a["id"], None):
        programs.forget(t, evicted)
        outbox.record(
            t, "probe.evict", {"id": a["id"], "step": a["step"], "reason": a["reason"][:1000]}, actor=c.principal
        )


def _rl_snapshot(t: Turn, c: Caller, a: dict[str, Any], cpu_ns: int) -> None:
    s = t.state
    if not s.committed:
        raise RecurosError(
            "E4-NOENT",
            "no window is committed yet, so there is no state to name",
            hint="recuros wait windows --for committed>=1",
        )
    if len(a["name"]) > 100:
        raise RecurosError("E2-LIMIT", f"snapshot name of {len(a['name'])} characters; the limit is 100")
    outbox.record(
        t,
        "snapshot",
        {"name": a["name"], "window": s.committed_window},
        actor=c.principal,
        cap=t.cap,
        result=s.committed,
        then="reply",
        then_data={"caller": c, "values": {"snapshot": s.committed, "step": plan.next_step(s)}},
    )


def _rl_swap_roles(t: Turn, c: Caller, a: dict[str, Any], cpu_ns: int) -> None:
    s = t.state
    if a["mode"] not in limits.SWAP_MODES:
        raise RecurosError("E2-USAGE", f"swap mode {a['mode']!r}", hint=f"mode={' or mode='.join(limits.SWAP_MODES)}")
    _directive(
        t, c, ["swap", {"mode": a["mode"]}], "swap", {"mode": a["mode"], "window": s.next_window}, dry_run=a["dry_run"]
    )


def _rl_set_kd(t: Turn, c: Caller, a: dict[str, Any], cpu_ns: int) -> None:
    s = t.state
    kd = {"temperature": -1.0, "alpha": -1.0, "proj": "", "mix": -1.0, **s.kd}
    bounds = {
        "temperature": (limits.TEMPERATURE_MIN, limits.TEMPERATURE_MAX),
        "alpha": (0.0, limits.ALPHA_MAX),
        "mix": (0.0, 1.0),
    }
    for key, (low, high) in bounds.items():
        if a[key] != -1.0:
            if not low <= a[key] <= high:
                raise RecurosError(
                    "E2-LIMIT", f"rl_set_kd {key}={a[key]:g} is outside [{low:g}, {high:g}]", hint="nothing was changed"
                )
            kd[key] = a[key]
    if a["proj"]:
        if a["proj"] not in ("linear", "none"):
            raise RecurosError("E2-USAGE", f"rl_set_kd proj={a['proj']!r}", hint="proj=linear or proj=none")
        kd["proj"] = a["proj"]
    if a["terms"]:
        kd["terms"] = {**kd.get("terms", {}), **_term_weights(a["terms"])}
    kd["window"] = s.next_window
    _directive(t, c, ["kd", kd], "kd.set", kd)
    steer.operator_set(s, kd)


def _term_weights(terms: dict[str, Any]) -> dict[str, float]:
    for name, weight in terms.items():
        if name not in limits.TERMS:
            raise RecurosError(
                "E2-USAGE", f"rl_set_kd terms: no term is called {name!r:.40}", hint=f"terms: {', '.join(limits.TERMS)}"
            )
        number = isinstance(weight, (int, float)) and not isinstance(weight, bool)
        if not number or not 0.0 <= weight <= limits.TERM_WEIGHT_MAX:
            raise RecurosError(
                "E2-LIMIT",
                f"rl_set_kd terms: {name}={weight!r:.40} is outside [0, {limits.TERM_WEIGHT_MAX:g}]",
                hint="nothing was changed",
            )
    return {name: float(weight) for name, weight in terms.items()}


def _directive(
    t: Turn, c: Caller, directive: list[Any], kind: str, args: dict[str, Any], *, dry_run: bool = False
) -> None:
    """A change of the learner's state goes into the next window that is granted, and rolls back with it."""
    s = t.state
    if plan.plan_complete(s):
        raise RecurosError(
            "E4-NOENT", "the plan is complete, no window will run", hint="boot an app with a repeating phase, --detach"
        )
    phase = s.config.phases[s.cursor.phase]
    if directive[0] in ("swap", "prune") and phase.spec.get("train") != "student":
        raise RecurosError(
            "E2-USAGE",
            f"{directive[0]}: phase {phase.name!r} still trains the teacher ({phase.windows - s.cursor.window} windows to go)",
            hint="recuros wait windows --for 'committed>=N', then try again",
        )
    if dry_run:
        answer(t, c, {"seq": -1, "step": plan.next_step(s)})
        return
    s.directives.append(directive)
    outbox.record(
        t,
        kind,
        args,
        actor=c.principal,
        cap=t.cap,
        then="reply",
        then_data={"caller": c, "values": {"step": plan.next_step(s)}},
    )


def _rl_attach_probe(t: Turn, c: Caller, a: dict[str, Any], cpu_ns: int) -> None:
    steer.attach(t, a["hook"], a["prog"], a["every"], c, c.principal, t.cap)


def _rl_load_probe(t: Turn, c: Caller, a: dict[str, Any], cpu_ns: int) -> None:
    programs.load(t, c, a["program"], t.state.caps.get(c.principal, t.cap).rights)


def _probe_programs(t: Turn, c: Caller, a: dict[str, Any], cpu_ns: int) -> None:
    answer(t, c, {"programs": programs.to_list(t.state)})


def _probe_page(t: Turn, c: Caller, a: dict[str, Any], cpu_ns: int) -> None:
    if c.principal.startswith(REMOTE):
        raise RecurosError("E1-NO", "pages stay on the machine of the runtime", hint="probe_read takes copies")
    answer(t, c, {"page": programs.page_of(t, c, a["id"])})


def _rl_detach_probe(t: Turn, c: Caller, a: dict[str, Any], cpu_ns: int) -> None:
    _known_probe(t, a["id"])
    request(t, "detach", "learner.detach", {"id": a["id"]}, caller=c, id=a["id"])


def _rl_gate_samples(t: Turn, c: Caller, a: dict[str, Any], cpu_ns: int) -> None:
    s = t.state
    gate = a["criteria"]
    for key, value in gate.items():
        fraction = isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value <= 0.45
        if not (key in ("drop_low", "drop_high") and fraction) and not (key == "mask" and is_object_id(value)):
            raise RecurosError(
                "E2-USAGE",
                f"gate takes drop_low and drop_high in [0, 0.45] or mask=OBJECT-ID, got {key}={value!r:.40}",
                hint="criteria={} opens the gate",
            )
    if s.config.policy.get("pack") == "static" and gate.keys() & {"drop_low", "drop_high"}:
        raise RecurosError(
            "E1-NOSYS", "the policy pack 'static' applies no gate", hint='boot with [policy] pack = "starter"'
        )
    if "extra" in s.gate:  # what was learned from stays part of the data
        gate = {**gate, "extra": s.gate["extra"]}
    s.gate = gate
    outbox.record(
        t,
        "gate.set",
        {"criteria": gate, "window": s.next_window},
        actor=c.principal,
        cap=t.cap,
        then="reply",
        then_data={"caller": c, "values": {"step": plan.next_step(s)}},
    )


def _rl_prune(t: Turn, c: Caller, a: dict[str, Any], cpu_ns: int) -> None:
    spec = masks.checked(a["mask_spec"])
    window = t.state.next_window
    _directive(t, c, ["prune", spec], "prune", {"mask_spec": spec, "window": window, "report": {}})


def _rl_calibrate(t: Turn, c: Caller, a: dict[str, Any], cpu_ns: int) -> None:
    s = t.state
    if not s.committed:
        raise RecurosError(
            "E4-NOENT",
            "no window is committed yet, so there is nothing to calibrate",
            hint="recuros wait windows --for committed>=1",
        )
    request(
        t,
        "calibrate",
        "observer.calibrate",
        {"snapshot": s.committed, "mode": a["mode"]},
        caller=c,
        mode=a["mode"],
        snapshot=s.committed,
    )


def _known_probe(t: Turn, number: int) -> None:
    """Refuse ids that were never given. One that was may be an evicted probe, which the learner keeps until it is detached."""
    if not 0 < number < t.state.next_probe:
        raise RecurosError("E4-NOENT", f"no probe has id {number}", hint="recuros probe ls")


def _probe_list(t: Turn, c: Caller, a: dict[str, Any], cpu_ns: int) -> None:
    request(t, "probes", "learner.probes", {"id": 0}, caller=c, columns=("probes", "sites"))


def _probe_read(t: Turn, c: Caller, a: dict[str, Any], cpu_ns: int) -> None:
    _known_probe(t, a["id"])
    request(t, "probes", "learner.probes", {"id": a["id"]}, caller=c, columns=("maps",))


def _policy_submit(t: Turn, c: Caller, a: dict[str, Any], cpu_ns: int) -> None:
    steer.submit_policy(t, c, a, cpu_ns)


def _evaluate(t: Turn, c: Caller, a: dict[str, Any], cpu_ns: int) -> None:
    snapshot = a["snapshot"] or t.state.committed
    if not snapshot:
        raise RecurosError(
            "E4-NOENT",
            "no window is committed yet, so there is nothing to score",
            hint="recuros wait windows --for committed>=1",
        )
    steer.evaluate(t, snapshot, a["split"], c, t.state.generation)


def _interrupt(t: Turn, c: Caller, a: dict[str, Any], cpu_ns: int) -> None:
    s = t.state
    kind = a["kind"]
    if kind not in ("pause", "resume", "stop"):
        raise RecurosError("E2-USAGE", f"interrupt kind {kind!r}", hint="kind=pause, resume or stop")
    running = [w for w in s.windows.values() if w.step < w.steps]
    outbox.record(
        t,
        "interrupt",
        {
            "kind": kind,
            "window": running[0].id if running else s.committed_window,
            "step": running[0].step if running else 0,
            "reason": a["reason"],
        },
        actor=c.principal,
        cap=t.cap,
        then="reply",
        then_data={"caller": c, "values": {"step": plan.next_step(s)}},
    )
    s.paused = kind == "pause"
    if kind == "resume" and s.phase == "done" and s.error:
        s.error, s.failures_in_a_row, s.phase = None, 0, "running"
        t.emit(Report({"event": "state", "state": "running"}))
    if kind == "stop":
        lifecycle.drain(t, "drain", a["reason"] or f"stopped by {c.principal}")


def _rl_interrupt(t: Turn, c: Caller, a: dict[str, Any], cpu_ns: int) -> None:
    interrupts.ask(t, c, a)


def _kfs_gc(t: Turn, c: Caller, a: dict[str, Any], cpu_ns: int) -> None:
    if t.state.servers["archivist"].state != "ready":
        raise RecurosError("E75-AGAIN", "the archivist is not ready", hint="try again in a moment")
    args = {**a, "reason": a["reason"][:1000], "actor": c.principal, "cap": t.cap}
    request(t, "gc", "archivist.gc", args, caller=c)


def _propose(t: Turn, c: Caller, a: dict[str, Any], cpu_ns: int) -> None:
    proposal.propose(t, c, a, cpu_ns, HANDLERS)


def _rl_restore(t: Turn, c: Caller, a: dict[str, Any], cpu_ns: int) -> None:
    if not is_object_id(a["snapshot"]):
        raise RecurosError(
            "E2-USAGE", f"rl_restore snapshot={a['snapshot']!r:.80} is not a root id", hint="recuros snapshot ls --all"
        )
    args = {"snapshot": a["snapshot"]}
    _directive(t, c, ["restore", args], "restore", {**args, "window": t.state.next_window})


def _server_only(t: Turn, c: Caller) -> None:
    if c.principal not in t.state.servers:
        raise RecurosError("E5-DENIED", f"{c.principal} is not a server", hint="this call is for servers")


HANDLERS: dict[str, Callable[[Turn, Caller, dict[str, Any], int], None]] = {
    "hello": _hello,
    "ready": _ready,
    "fault": _fault,
    "status": _status,
    "events": _events,
    "shutdown": _shutdown,
    "cap_list": _cap_list,
    "cap_derive": _cap_derive,
    "cap_revoke": _cap_revoke,
    "cap_take": _cap_take,
    "page_release": _page_release,
    "page_list": _page_list,
    "call": _call,
    "channel_list": _channel_list,
    "channel_open": _channel_open,
    "channel_close": _channel_close,
    "channel_report": _channel_report,
    "stage_done": _stage_done,
    "rl_schedule": _rl_schedule,
    "sched_show": _sched_show,
    "sched_admit": _sched_admit,
    "sched_yield": _sched_yield,
    "progress": _progress,
    "window_staged": _window_staged,
    "window_rolled_back": _window_rolled_back,
    "probe_evicted": _probe_evicted,
    "rl_snapshot": _rl_snapshot,
    "rl_swap_roles": _rl_swap_roles,
    "rl_set_kd": _rl_set_kd,
    "rl_attach_probe": _rl_attach_probe,
    "rl_detach_probe": _rl_detach_probe,
    "rl_gate_samples": _rl_gate_samples,
    "rl_prune": _rl_prune,
    "rl_calibrate": _rl_calibrate,
    "probe_list": _probe_list,
    "probe_read": _probe_read,
    "policy_submit": _policy_submit,
    "evaluate": _evaluate,
    "interrupt": _interrupt,
    "rl_interrupt": _rl_interrupt,
    "kfs_gc": _kfs_gc,
    "rl_load_probe": _rl_load_probe,
    "probe_programs": _probe_programs,
    "probe_page": _probe_page,
    "propose": _propose,
    "rl_restore": _rl_restore,
}
assert HANDLERS.keys() == abi.SYSCALL_BY_NAME.keys(), "a syscall has no handler, or a handler no syscall"
