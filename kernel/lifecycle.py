"""Servers come up, die and come back; the runtime boots fail-closed, drains and stops.

Responsible for: the order of boot (the archivist first, since the ledger says where to resume), hello and ready,
heartbeats, restart policies with an intensity limit, and a shutdown that leaves a halt record behind. Refuses: to run
with a server missing; a failure that no policy handles stops the runtime with its reason.
"""

from __future__ import annotations

import signal
from typing import Any

from kernel import channels, flow, outbox, programs, reserve, rights, steer
from kernel.broker import answer, cancel, release_page, request, server_died, tell
from kernel.events import Boot, Exit, Exited, Kill, Report, Spawn, Spawned
from kernel.sched import FairClass, Reservation, admit
from kernel.state import KERNEL, Caller, Cursor, Probe, Server, State, Turn
from kfs import records
from kfs.ids import is_object_id
from kfs.records import Record, RecordKind
from syscalls import abi, limits
from syscalls.errors import RecurosError

FIRST = "archivist"


def boot(event: Boot, now_ns: int) -> tuple[State, Turn]:
    """The first step of a history."""
    config = event.config
    s = State(config, event.boot_id, event.pid, event.environment, booted_ns=now_ns)
    s.servers = {name: Server(name) for name in config.servers}
    s.fair = FairClass(
        {c.name: c.weight for c in config.servers.values() if not c.edf},
        config.background_slots,
        limits.SLICE_NS_DEFAULT,
        frozenset(c.name for c in config.servers.values() if c.reservation and not c.edf),
    )
    s.reservation = Reservation("replay", config.budget_ns, config.deadline_ns, config.period_ns)
    rights.roots(s)
    channels.open_table(s)
    t = Turn(s, now_ns)
    ok, witness = admit([s.reservation])
    if not ok:
        fail(
            t,
            RecurosError(
                "E6-ADMIT",
                f"window reservation refused: {witness['reason']}",
                hint="lower budget-ms or raise period-ms",
            ),
        )
        return s, t
    try:
        reserve.open_all(s)
    except RecurosError as error:
        fail(t, error)
        return s, t
    spawn(t, FIRST)
    t.timer(limits.HEARTBEAT_PERIOD_NS, "heartbeat")
    return s, t


def spawn(t: Turn, name: str) -> None:
    """Start the next incarnation of a server."""
    server = t.state.servers[name]
    server.incarnation += 1
    server.state, server.pid, server.route, server.fault = "spawned", 0, b"", None
    server.cpu_ns = server.job_cpu_ns = server.paid_cpu_ns = server.spoke_cpu_ns = 0
    server.stopped = server.niced = False
    t.state.seen.pop(name, None)
    t.emit(Spawn(name, server.incarnation))
    t.timer(limits.HELLO_TIMEOUT_NS, "hello", name=name, incarnation=server.incarnation)


def spawned(t: Turn, event: Spawned) -> None:
    """The supervisor says that a server's process exists."""
    server = t.state.servers[event.name]
    if server.incarnation == event.incarnation:
        server.pid = event.pid
        server.last_heard_ns = t.now_ns
        outbox.record(t, "spawn", {"name": event.name, "pid": event.pid, "incarnation": event.incarnation})


def hello(t: Turn, caller: Caller, args: dict[str, Any]) -> None:
    """A peer opens its session: version check, capabilities, configuration."""
    s = t.state
    if args["major"] != abi.ABI_MAJOR:
        raise RecurosError(
            "E9-VERSION", f"the peer speaks ABI {args['major']}.{args['minor']}, this kernel {abi.ABI_MAJOR}.{abi.ABI_MINOR}",
            hint="use the client that was installed with the runtime",
        )  # fmt: skip
    if caller.principal in s.servers:
        _hello_server(t, caller)
    else:
        _hello_operator(t, caller)


def _hello_server(t: Turn, caller: Caller) -> None:
    s = t.state
    server = s.servers[caller.principal]
    if server.state not in ("spawned", "connected"):
        raise RecurosError("E2-WIRE", f"{caller.principal} said hello twice")
    server.state, server.route = "connected", caller.route
    config = s.config.servers[caller.principal]
    slots = rights.open_server(s, server.name)
    answer(t, caller, {"principal": server.name, "boot": s.boot_id, "caps": slots, "config": config.config})


def _hello_operator(t: Turn, caller: Caller) -> None:
    s = t.state
    if caller.principal not in s.operators:
        while len(s.operators) >= limits.OPERATORS_MAX:
            oldest = next(iter(s.operators))
            del s.operators[oldest]
            s.seen.pop(oldest, None)
            cancel(t, s.caps.held(oldest))
            s.caps.drop_holder(oldest)
        rights.open_operator(s, caller.principal)
    s.operators[caller.principal] = caller.route
    answer(
        t,
        caller,
        {"principal": caller.principal, "boot": s.boot_id, "caps": {"self": 1}, "config": {"app": s.config.app}},
    )


def check_ready(t: Turn, name: str, info: dict[str, Any]) -> None:
    """Refuse a second `ready`, and what the learner says of itself where no record could carry it."""
    if name == "dataset" and t.state.data_digest and info.get("data") != t.state.data_digest:
        raise RecurosError(
            "E2-DATA",
            f"the dataset is not the one that the committed windows learned from: it was {t.state.data_digest},"
            f" it is {info.get('data')}",
            hint="put the old files back, or boot with the new ones in another run directory (--run)",
        )
    state = t.state.servers[name].state
    if state != "connected":
        raise RecurosError("E2-WIRE", f"{name} said ready while {state}")
    if name == "learner":
        if not is_object_id(info.get("base")):
            raise RecurosError("E2-WIRE", f"the learner's base {info.get('base')!r:.80} is not an object id")
        code_id, env_id = info.get("code") or None, info.get("env_id") or None
        args = {"name": name, "code": "", "message": ""}
        records.encode(Record(name, RecordKind.FAULT, args, t_mono=0, code_id=code_id, env_id=env_id))


def ready(t: Turn, name: str, info: dict[str, Any]) -> None:
    """A server takes work."""
    s = t.state
    server = s.servers[name]
    server.state, server.info = "ready", info
    if name == FIRST:
        request(t, "open", "archivist.open", {"boot": s.boot_id})
        return
    if name == "gpu":
        request(t, "inventory", "gpu.inventory", {})
    if name == "learner":
        _learner_ready(t, info)
    if s.phase == "starting":
        _all_ready(t)
    elif s.phase in ("running", "done", "draining"):
        flow.server_back(t, name)


def _learner_ready(t: Turn, info: dict[str, Any]) -> None:
    s = t.state
    s.learner_ok = False
    if not s.base and not s.committed:
        s.base = info["base"]
    if s.base != info["base"]:
        request(t, "restore", "learner.restore", {"snapshot": s.base}, base=s.base)
    else:
        learner_restored(t, s.base, {"restored": info["base"]})


def learner_restored(t: Turn, base: str, values: dict[str, Any]) -> None:
    """The learner proved by digest which state it is in."""
    s = t.state
    if values["restored"] != base:
        raise RecurosError(
            "E9-INTEGRITY",
            f"the learner restored {values['restored']} where {base} was asked for",
            hint="recuros kfs verify",
        )
    s.learner_ok = True
    flow.learner_back(t, base)
    for probe in list(s.probes.values()):
        programs.restore(t, probe)
    _all_ready(t)


def opened(t: Turn, values: dict[str, Any]) -> None:
    """The store is open: fold the ledger's tail into the state, then start everybody else."""
    s = t.state
    s.ledger_size, s.ledger_root = values["size"], values["root"]
    s.store_open = True
    if s.phase != "booting":
        steer.store_parked(t)
        programs.restore_missing(t)
        return  # the archivist was restarted in mid-run
    if values["commit"]:
        commit, tail = records.decode(values["commit"]), [records.decode(r) for r in values["tail"]]
        resume(s, commit, tail)
    else:
        resume_uncommitted(s, [records.decode(r) for r in values["tail"]])
    outbox.record(
        t,
        "boot",
        {
            "boot": s.boot_id,
            "app": s.config.app,
            "abi": f"{abi.ABI_MAJOR}.{abi.ABI_MINOR}",
            "resumed_from": s.resumed_from,
            "env": {**s.environment, "recovery": list(values["notes"])},
        },
    )
    if values["commit"]:
        _note_lost_policies(t, commit, tail)
    manifest = Reservation("replay", *s.config.times)
    outbox.record(t, "sched.admit", _sched_args(manifest))
    if s.reservation != manifest:
        outbox.record(t, "sched.set", _sched_args(s.reservation), actor="kernel:resume")
    for c in s.cbs.values():
        if c.reservation is not s.reservation:
            outbox.record(t, "sched.admit", _sched_args(c.reservation))
    s.phase = "starting"
    t.emit(Report({"event": "state", "state": "starting"}))
    for name in s.servers:
        if name != FIRST:
            spawn(t, name)


def _sched_args(r: Reservation) -> dict[str, Any]:
    times = {"budget_ns": r.budget_ns, "period_ns": r.period_ns, "deadline_ns": r.deadline_ns}
    return {"name": r.name, **times, "witness": admit([r])[1]}


def _keep_schedule(s: State, force: list[int], manifest: list[int]) -> None:
    """What an operator set stands until the manifest says something else than it did then."""
    kept = Reservation("replay", *force)
    if tuple(manifest) == s.config.times and admit([kept])[0]:
        reserve.change_learner(s, kept)


def _schedule_in(tail: list[Record], manifest: list[int]) -> tuple[list[int], list[int]] | None:
    """The last schedule that an operator set in these records, and the manifest's at that time."""
    found = None
    for r in tail:
        if r.kind in (RecordKind.SCHED_ADMIT, RecordKind.SCHED_SET) and r.args["name"] == "replay":
            times = [r.args["budget_ns"], r.args["deadline_ns"], r.args["period_ns"]]
            if r.kind is RecordKind.SCHED_SET:
                found = times, manifest
            else:
                manifest = times
    return found


def resume_uncommitted(s: State, tail: list[Record]) -> None:
    """No window is committed yet: windows begin at the first, with what operators had asked for. Evidence of lost windows is void."""
    asked = {
        RecordKind.KD_SET,
        RecordKind.SWAP,
        RecordKind.RESTORE,
        RecordKind.PRUNE,
        RecordKind.GATE_SET,
        RecordKind.INTERRUPT,
    }
    for r in tail:
        probe = r.kind is RecordKind.PROBE_ATTACH and r.actor != "kernel:manifest"  # the manifest's are attached anew
        if r.kind in asked or probe or r.kind is RecordKind.PROBE_DETACH:
            _fold(s, r)
    if found := _schedule_in(tail, []):
        _keep_schedule(s, *found)


def _note_lost_policies(t: Turn, commit: Record, tail: list[Record]) -> None:
    """Evidence that was with the Observer in a crash is gone; the absence of its policy is an input of the windows to come."""
    if any(r.kind is RecordKind.HALT and r.args["mode"] == "drain" for r in tail):
        return  # a drain waits for every policy that is due
    decided = {r.args["window"] for r in tail if r.kind is RecordKind.POLICY}
    for window in sorted(set(commit.args["resume"].get("awaiting", [])) - decided):
        applies_at = window + limits.POLICY_LAG_WINDOWS
        args = {"window": window, "applies_at": applies_at, "settings": {}, "pack": "lost"}
        outbox.record(t, "policy", args)


def resume(s: State, commit: Record, tail: list[Record]) -> None:
    """Where the last boot stopped: its last commit says nearly all; later records add what was asked for since."""
    state = commit.args["resume"]
    s.resumed_from = commit.seq
    s.cursor = Cursor(*state["cursor"])
    s.data_digest = state["data"]
    s.next_window = commit.args["window"] + 1
    s.base = s.committed = commit.result_snap or ""
    s.committed_window, s.rng = commit.args["window"], commit.rng_after or ""
    s.kd, s.gate = state["kd"], state["gate"]
    s.policies = {int(k): v for k, v in state["policies"].items()}
    s.policy, s.policy_seq, s.policy_count = state["policy"], state["policy_seq"], state["policy_count"]
    s.directives = [list(d) for d in state["directives"]]
    s.probes = {
        p["id"]: Probe(p["id"], p["hook"], p["prog"], p["every"], owner=p.get("owner", ""), object=p.get("object", ""))
        for p in state["probes"]
    }
    s.next_probe = state["next_probe"]
    s.scores, s.reference, s.generation = state["scores"], state["reference"], state["generation"]
    s.metrics = commit.args["metrics"]
    schedule = state.get("schedule", {"force": s.config.times, "manifest": s.config.times})
    _keep_schedule(s, *(_schedule_in(tail, schedule["manifest"]) or (schedule["force"], schedule["manifest"])))
    for r in tail:
        _fold(s, r)


def _fold(s: State, r: Record) -> None:
    a = r.args
    if r.kind is RecordKind.KD_SET:
        kd = {k: v for k, v in a.items() if k != "reason"}
        s.directives.append(["kd", kd])
        steer.operator_set(s, kd)
    elif r.actor == "kernel:policy":
        pass  # it follows from the policy's own record
    elif r.kind is RecordKind.RESTORE:
        s.directives.append(["restore", {"snapshot": a["snapshot"]}])
    elif r.kind is RecordKind.SWAP and r.actor != "kernel:plan":
        s.directives.append(["swap", {"mode": a["mode"]}])
    elif r.kind is RecordKind.PRUNE:
        s.directives.append(["prune", a["mask_spec"]])
    elif r.kind is RecordKind.INTERRUPT and a.get("verdict") == "accepted" and a["kind"] == "constraint":
        s.directives.append(["constrain", a["body"]])
    elif r.kind is RecordKind.GATE_SET:
        s.gate = a["criteria"]
    elif r.kind is RecordKind.POLICY and a["settings"] and "refused" not in a["settings"]:
        settings = steer.without_overridden(s, a["window"], a["settings"])
        s.policies[max(a["applies_at"], s.next_window)] = {
            **settings,
            "weights": a["settings"].get("weights") or "",
            "evidence": ([x for x in r.input_ids if x not in (settings.get("weights"), settings.get("order"))] or [""])[
                -1
            ],
            "seq": r.seq,
        }
    elif r.kind is RecordKind.PROBE_ATTACH:
        # A program's record names its bytes and spells its cadence out.
        every = int(a["prog"].rpartition("every=")[2]) if r.input_ids else 0
        s.probes[a["id"]] = Probe(a["id"], a["hook"], a["prog"], every, owner=r.actor, object="".join(r.input_ids[:1]))
        s.next_probe = max(s.next_probe, a["id"] + 1)
    elif r.kind is RecordKind.PROBE_DETACH:
        s.probes.pop(a["id"], None)
    elif r.kind is RecordKind.EVALUATE:
        s.scores[a["split"]] = a["scores"]
        if r.generation == 0:
            s.reference[a["split"]] = a["scores"].get("teacher", {})


def _all_ready(t: Turn) -> None:
    """Up means that every server takes work and that the learner has proved the state it starts from."""
    s = t.state
    if s.phase != "starting" or not s.learner_ok or any(x.state != "ready" for x in s.servers.values()):
        return
    s.phase = "running"
    if s.resumed_from < 0 and not any(p.owner == "kernel:manifest" for p in s.probes.values()):
        for p in s.config.probes:
            steer.attach(t, p["hook"], p["prog"], int(p.get("every", 0)), None, "kernel:manifest")
    t.emit(Report({"event": "state", "state": "running"}))
    t.event("state", state="running")
    if s.drain_mode:
        drain(t)


def exited(t: Turn, event: Exited) -> None:
    """A server's process ended."""
    s = t.state
    server = s.servers[event.name]
    if server.incarnation != event.incarnation:
        return
    server.state = "dead"
    outbox.record(t, "exit", {"name": event.name, "pid": event.pid, "status": event.status})
    channels.server_died(t, event.name)
    server_died(t, event.name)
    # The halt record still needs the archivist: if it dies before the acknowledgement it comes back once more.
    wanted = s.halting == "record" and event.name == FIRST
    if s.phase == "failed" or (s.halting and not wanted):
        halting_exited(t)
        return
    if s.phase in ("booting", "starting"):
        fault = server.fault or [
            "E3-BOOT",
            f"{event.name} exited with status {event.status} while starting",
            f"recuros logs {event.name}",
            {},
        ]
        fail(t, RecurosError.from_wire(fault))
        return
    reason = server.fault[1] if server.fault else f"exited with status {event.status}"
    flow.server_lost(t, event.name, reason)
    policy = s.config.servers[event.name].restart
    while server.restarts and server.restarts[0] < t.now_ns - limits.RESTART_WINDOW_NS:
        server.restarts.popleft()
    if policy == "never" or len(server.restarts) >= limits.RESTARTS_MAX:
        fault = server.fault or [
            "E3-GONE",
            f"{event.name} died {len(server.restarts) + 1} times in a minute: {reason}",
            f"recuros logs {event.name}",
            {},
        ]
        fail(t, RecurosError.from_wire(fault))
        return
    server.restarts.append(t.now_ns)
    # The first restart is immediate, later ones back off: 0, 0.5, 1, 2, 4 s.
    backoff_ns = 0 if len(server.restarts) == 1 else 250_000_000 << (len(server.restarts) - 1)
    t.timer(backoff_ns, "restart", name=event.name, incarnation=event.incarnation, reason=reason)


def restart(t: Turn, name: str, incarnation: int, reason: str) -> None:
    """The backoff is over."""
    s = t.state
    server = s.servers[name]
    wanted = not s.halting or (s.halting == "record" and name == FIRST)
    if server.incarnation == incarnation and server.state == "dead" and wanted and s.phase != "failed":
        spawn(t, name)
        outbox.record(t, "restart", {"name": name, "incarnation": server.incarnation, "reason": reason[:500]})


def hello_timeout(t: Turn, name: str, incarnation: int) -> None:
    """A server that did not become ready in time is killed; `exited` does the rest."""
    server = t.state.servers[name]
    if server.incarnation == incarnation and server.state in ("spawned", "connected"):
        where = "it never said hello" if server.state == "spawned" else "it said hello, and not that it is ready"
        server.fault = [
            "E3-BOOT",
            f"{name} was not ready after {limits.HELLO_TIMEOUT_NS // 10**9} s: {where}",
            f"recuros logs {name}: it ends with what the process was doing",
            {},
        ]
        t.emit(Kill(name, incarnation, signal.SIGKILL, dump=True))


def heartbeat(t: Turn) -> None:
    """Ping the silent, kill the ones who stay silent."""
    s = t.state
    t.timer(limits.HEARTBEAT_PERIOD_NS, "heartbeat")
    for server in s.servers.values():
        if server.state != "ready" or server.stopped:
            continue
        silent_ns = t.now_ns - server.last_heard_ns
        patience_ns = limits.HEARTBEAT_TIMEOUT_NS * (limits.HEARTBEATS_NICED if server.niced else 1)
        if silent_ns > patience_ns and server.pinged:
            server.fault = [
                "E3-GONE",
                f"{server.name} was silent for {silent_ns // 10**9} s",
                f"recuros logs {server.name}",
                {},
            ]
            t.emit(Kill(server.name, server.incarnation, signal.SIGKILL, dump=True))
        elif silent_ns > limits.HEARTBEAT_PERIOD_NS and not server.pinged:
            server.pinged = True
            request(t, "ping", f"{server.name}.ping", {})
    if s.phase in ("running", "done") and s.servers.get("gpu") and s.servers["gpu"].state == "ready":
        waiting = any(p.kind == "telemetry" for p in s.pending.values())
        if not waiting:
            request(t, "telemetry", "gpu.telemetry", {})


# --- the end ------------------------------------------------------------------------------------------------------------------


def fail(t: Turn, error: RecurosError) -> None:
    """No policy handles this: take everything down and say why."""
    s = t.state
    if s.phase == "failed":
        return
    s.phase, s.error, s.halting = "failed", error.to_wire(), "servers"
    t.event("failed", error=s.error)
    for server in s.servers.values():
        if server.state not in ("down", "dead"):
            t.emit(Kill(server.name, server.incarnation, signal.SIGKILL if server.name != FIRST else signal.SIGTERM))
    halting_exited(t)


def drain(t: Turn, mode: str = "drain", reason: str = "") -> None:
    """Stop granting; when the last window is final, halt."""
    s = t.state
    if not s.drain_mode:
        s.drain_mode, s.drain_reason = mode, reason[:1000]
        reserve.go_on_again(
            t, "learner", s.servers["learner"].incarnation
        )  # who is to leave need not wait for a budget
        t.timer(limits.DRAIN_TIMEOUT_NS, "drain")
    elif mode == "now":
        s.drain_mode = "now"
    if s.phase in ("booting", "starting"):
        fail(t, RecurosError("E1-NO", "stopped before the runtime was up", hint="recuros boot"))
        return
    if s.phase != "failed":
        s.phase = "draining"
    if s.drain_mode == "now":
        flow.abort_running(t, "E1-NO", "the operator stopped the runtime")


def drain_step(t: Turn) -> None:
    """Called at the end of every step while draining: write the halt record once nothing is under way any more."""
    s = t.state
    if s.phase != "draining" or s.halting or s.windows or s.outbox.records or s.in_flight:
        return
    # A policy that is due belongs to windows of the next boot: a drain waits for it, so that stopping changes nothing.
    due = s.parked or s.awaiting_policy or any(p.kind in ("put", "evaluate", "calibrate") for p in s.pending.values())
    if due and s.drain_mode != "now":
        return
    outbox.dispatches(t)
    s.halting = "record"
    outbox.record(t, "halt", {"boot": s.boot_id, "mode": s.drain_mode, "reason": s.drain_reason}, then="halted")


def halted(t: Turn) -> None:
    """The halt record is durable: let the servers go, the archivist last."""
    s = t.state
    s.halting = "servers"
    for cap in s.caps.held(KERNEL):  # batches that were fetched ahead, traces that nobody judged
        if cap.slot != s.channel_table:  # generations are read until the last server has gone
            release_page(t, KERNEL, cap.slot)
    for server in s.servers.values():
        if server.name != FIRST and server.state in ("connected", "ready"):
            server.state = "draining"
            tell(t, f"{server.name}.drain", {})
        elif server.name != FIRST and server.state == "spawned":
            t.emit(Kill(server.name, server.incarnation, signal.SIGKILL))
    halting_exited(t)


def halting_exited(t: Turn) -> None:
    """Whoever is left decides what comes next."""
    s = t.state
    if s.halting == "record" and s.phase != "failed":
        return  # an archivist that died has yet to come back for the halt record
    left = [x for x in s.servers.values() if x.state not in ("down", "dead")]
    if s.halting == "servers" and s.phase != "failed" and all(x.name == FIRST for x in left):
        s.halting = "archivist"
        if left and left[0].state == "ready":
            left[0].state = "draining"
            tell(t, "archivist.drain", {})
        elif left:
            t.emit(Kill(FIRST, left[0].incarnation, signal.SIGKILL))
    if not left:
        from kernel.status import status

        if s.phase == "failed":
            t.emit(Report({"event": "failed", "error": s.error, "status": status(t)}))
            t.emit(Exit(1))
        else:
            t.emit(Report({"event": "halted", "status": status(t)}))
            t.emit(Exit(0))


def drain_timeout(t: Turn) -> None:
    """Somebody does not finish: kill what is left. The ledger holds every commit that was acknowledged."""
    s = t.state
    if s.phase == "draining" or s.halting:
        s.halting = s.halting or "servers"
        for server in s.servers.values():
            if server.state not in ("down", "dead"):
                t.emit(Kill(server.name, server.incarnation, signal.SIGKILL))
