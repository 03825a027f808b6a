"""The life of replay windows: prefetch, grant, stage, commit, miss, roll back; and what steers them.

Responsible for: the plan's order, the fixed policy lag, directives that travel inside a window (so that they roll
back with it), and the rule that window k + 1 may run on k's staged base but never outlives k. Refuses: to grant
before data, policy and learner are there; to call anything committed before the ledger says so.
"""

from __future__ import annotations

import signal
from typing import Any

from kernel import channels, device, outbox, overrun, programs, reserve
from kernel.broker import answer, fair_job, move_page, release_page, request, tell
from kernel.events import Kill
from kernel.plan import finished, next_cursor, phase_after, plan_complete, plan_directives, stream_step
from kernel.policy import directives_at, drop_once, end_phase
from kernel.state import KERNEL, Caller, Cursor, State, Turn
from kernel.steer import (
    evaluate,
    forget_evidence,
    policy_at,
    policy_decided,
    policy_timeout,
    sources_for,
    waiting_for_probes,
    without_overridden,
)
from kernel.stop import stop_plan
from kernel.window import Window, WindowState
from kfs.ids import is_object_id
from syscalls import limits
from syscalls.errors import RecurosError


def advance(t: Turn) -> None:
    """Called at the end of every step: move the plan on as far as it goes."""
    s = t.state
    if s.phase != "running" or not s.learner_ok or s.servers["learner"].state != "ready":
        return
    if plan_complete(s):
        finish_plan(t)
        return
    if any(w.state in (WindowState.RUNNING, WindowState.MISSED) for w in s.windows.values()):
        _prefetch(t, s.next_window, s.cursor)
        return
    if s.paused or len(s.windows) >= 2 or not s.store_open:
        return  # without a store nothing could be staged, and retries would only fill the ledger
    _prefetch(t, s.next_window, s.cursor)
    if not device.may_grant(s):
        return  # the next sample asks again
    if s.next_window in s.prefetch and policy_decided(s, s.next_window) and not waiting_for_probes(s):
        _grant(t)


def _prefetch(t: Turn, window: int, c: Cursor) -> None:
    s = t.state
    if window == s.next_window and end_phase(s, phase_after(s, c)):
        c = s.cursor
        if window in s.prefetch:
            release_page(t, KERNEL, s.prefetch.pop(window)[0])
    if window in s.filling or c.phase >= len(s.config.phases) or s.servers["dataset"].state != "ready":
        return
    phase = s.config.phases[c.phase]
    sources = sources_for(s, window, str(phase.spec.get("train")))
    have = s.prefetch.get(window)
    if have is not None:
        if have[2] == sources or not policy_decided(s, window):
            return
        release_page(t, KERNEL, have[0])  # a policy or a gate came meanwhile: these carry the wrong weights
        del s.prefetch[window]
    if not policy_decided(s, window):
        return
    s.filling.add(window)
    request(
        t,
        "fill",
        "dataset.fill",
        {
            "window": window,
            "phase": phase.spec,
            "step0": stream_step(s, c),
            "steps": phase.steps,
            **sources,
        },
        window=window,
        sources=sources,
        cursor=list(c),
        gate=s.gate,
    )


def filled(t: Turn, data: dict[str, Any], values: dict[str, Any]) -> None:
    """The dataset server wrote a window's batches."""
    s = t.state
    window = data["window"]
    s.filling.discard(window)
    if window < s.next_window or Cursor(*data["cursor"]) != s.cursor or data["gate"] != s.gate or s.halting:
        release_page(t, KERNEL, values["page"])
        return
    s.prefetch[window] = (values["page"], values["batch"], data["sources"])


def _grant(t: Turn) -> None:
    s = t.state
    c, wid = s.cursor, s.next_window
    phase = s.config.phases[c.phase]
    page, batch, sources = s.prefetch.pop(wid)
    settings = policy_at(s, wid)
    planned = [] if settings.get("hold") else plan_directives(s, c)
    asked = directives_at(s, wid, str(phase.spec.get("train")))
    w = Window(
        id=wid,
        attempt=1 + s.failures_in_a_row,
        cursor=(c.phase, c.window, c.repeats),
        phase=phase.spec,
        step0=stream_step(s, c),
        steps=phase.steps,
        base=s.base,
        batch=batch,
        sources=sources,
        page_slot=page,
        directives=[list(d) for d in s.directives],
        policy={k: v for k, v in settings.items() if k not in ("seq", "evidence_summary")},
        policy_seq=int(settings.get("seq", -1)),
        granted_ns=t.now_ns,
        deadline_ns=t.now_ns + s.reservation.deadline_ns,
        budget_ns=s.reservation.budget_ns,
        cpu_start_ns=s.servers["learner"].cpu_ns,
    )
    w.to(WindowState.RUNNING)
    reserve.window_began(t)
    device.window_began(s, w, t.now_ns)
    s.windows[wid] = w
    s.directives = []
    w.swaps = sum(kind == "swap" for kind, _ in planned + asked + w.directives)
    w.generation = s.generation + w.swaps
    w.rng_base = s.rng
    s.policy, s.policy_seq = w.policy, w.policy_seq
    oldest = max((at for at in s.policies if at <= wid - 2), default=0)  # two windows may still roll back
    s.policies = {at: settings for at, settings in s.policies.items() if at >= oldest}
    s.counts["granted"] += 1
    s.cursor, s.next_window = next_cursor(s, c), wid + 1
    swaps = planned + asked + w.directives
    outbox.record(
        t,
        "window.grant",
        {
            "window": wid,
            "boot": s.boot_id,
            "phase": {"name": phase.name, "index": c.phase, "repeat": c.repeats},
            "step0": w.step0,
            "steps": w.steps,
            "deadline_ns": w.deadline_ns,
            "budget_ns": w.budget_ns,
            "policy_seq": w.policy_seq,
            "directives": swaps,
        },
        parent=w.base,
        cursor=[phase.name, w.step0],
        then="granted",
        then_data={"window": wid, "attempt": w.attempt},
    )
    if planned:
        outbox.record(t, "swap", {"mode": planned[0][1]["mode"], "window": wid}, actor="kernel:plan")
    for kind, args in asked:
        what = {"mask_spec": args, "report": {}} if kind == "prune" else args
        outbox.record(t, kind, {**what, "window": wid}, actor="kernel:policy")
    tell(
        t,
        "learner.grant",
        {
            "window": wid,
            "deadline_ns": w.deadline_ns,
            "budget_ns": w.budget_ns,
            "base": w.base,
            "phase": w.phase,
            "step0": w.step0,
            "steps": w.steps,
            "policy": w.policy,
            "directives": swaps,
            "page": page,
        },
    )
    t.timer(s.reservation.deadline_ns, "deadline", window=wid, granted_ns=w.granted_ns)
    _prefetch(t, s.next_window, s.cursor)


def progress(t: Turn, args: dict[str, Any]) -> None:
    """Where the learner is inside its window."""
    w = t.state.windows.get(args["window"])
    if w and w.state is WindowState.RUNNING:
        w.step, w.live = args["step"], args["metrics"]
        overrun.look(t, w)


def staged(t: Turn, caller: Caller, args: dict[str, Any], cpu_ns: int) -> None:
    """All state is durable in KFS. Here, at receipt, the deadline is judged."""
    s = t.state
    w = s.windows.get(args["window"])
    if w is not None and _overtook(s, w, args["snapshot"], t.now_ns):
        s.staged_waits = (caller, args, cpu_ns)
        return
    trace = move_page(t, "learner", args["trace"], KERNEL).slot if args["trace"] else 0
    if w is None or w.state is not WindowState.RUNNING:
        # The abort crossed this message on the way; the learner restores the base when it reads it.
        answer(t, caller, {})
        release_page(t, KERNEL, trace)
        return
    w.used_ns = max(0, cpu_ns - w.cpu_start_ns)
    if t.now_ns > w.deadline_ns:
        answer(t, caller, {})
        release_page(t, KERNEL, trace)
        miss(
            t, w, "E7-MISSED", f"staged {(t.now_ns - w.deadline_ns) / 1e6:.1f} ms after its deadline", tell_learner=True
        )
        return
    try:
        if args["snapshot"] != s.stored:
            raise RecurosError(
                "E9-INTEGRITY",
                f"window {w.id}: the archivist has not stored {args['snapshot']!r:.80} as the last snapshot",
            )
        args["metrics"] = {**args["metrics"], **_cka_of(args["maps"]), **device.window_energy(s, w, t.now_ns)}
        _record_commit(t, w, args["snapshot"], args["metrics"])
    except RecurosError:
        release_page(
            t, KERNEL, trace
        )  # what the learner says fits no record: nothing is staged, the deadline still runs
        raise
    answer(t, caller, {})
    w.to(WindowState.STAGED)
    reserve.window_ended(t, w.used_ns)
    w.staged_ns, w.snapshot, w.metrics, w.step = t.now_ns, args["snapshot"], args["metrics"], w.steps
    s.base, s.metrics, s.failures_in_a_row, s.generation = w.snapshot, w.metrics, 0, w.generation
    s.rng = str(w.metrics.pop("rng", ""))
    w.evidence = str(w.metrics.pop("evidence", ""))
    s.window_used = (w.id, w.used_ns)
    programs.charge(s, w.metrics.pop("probe_ns", {}))
    s.cka = _cka_of(args["maps"]).get("cka", s.cka)
    if _observer_up(s):
        _to_observer(t, w, args["maps"], trace)
    else:
        release_page(t, KERNEL, trace)


def _overtook(s: State, w: Window, snapshot: str, now_ns: int) -> bool:
    """Whether the learner's word may have come before the archivist's own, which takes another socket where the snapshot went directly."""
    waits = w.state is WindowState.RUNNING and now_ns <= w.deadline_ns and s.staged_waits is None
    return waits and snapshot != s.stored and channels.between(s, "learner", "archivist")


def _record_commit(t: Turn, w: Window, snapshot: str, metrics: dict[str, Any]) -> None:
    s = t.state
    config = str(s.servers["learner"].info.get("config") or "")
    evidence = str(metrics.get("evidence") or "")
    named = (w.policy.get("weights"), config, evidence, *w.sources.get("gate", {}).values())
    named += tuple(row[0] for row in w.sources.get("gate", {}).get("extra", ()))
    outbox.dispatches(t)
    outbox.record(
        t,
        "window.commit",
        {
            "window": w.id,
            "boot": s.boot_id,
            "phase": {"name": w.phase["name"], "index": w.cursor[0], "repeat": w.cursor[2]},
            "step0": w.step0,
            "steps": w.steps,
            "grant_seq": w.grant_seq,
            "metrics": {
                **{k: v for k, v in metrics.items() if k not in ("rng", "evidence", "probe_ns")},
                "batch": w.batch,
                "used_ns": w.used_ns,
                "left_ns": w.deadline_ns - t.now_ns,
            },
            "resume": resume_state(s, w),
            "inputs": {"config": config, **w.sources, "evidence": evidence},
        },
        parent=w.base,
        result=snapshot,
        inputs=tuple(x for x in named if is_object_id(x)),
        cursor=[w.phase["name"], w.step0 + w.steps],
        rng=(s.rng, str(metrics.get("rng", ""))),
        then="committed",
        then_data={"window": w.id, "granted_ns": w.granted_ns},
    )


def _observer_up(s: State) -> bool:
    return s.servers["observer"].state == "ready"


def _to_observer(t: Turn, w: Window, maps: dict[str, Any], trace: int) -> None:
    """Evidence goes to the Observer, and every so often the state goes with it for a look at data no gradient has seen.

    Both are jobs of one queue, so their order is fixed by the order of windows and not by timing."""
    s = t.state
    s.awaiting_policy.add(w.id)
    fair_job(
        t,
        "observer.trace",
        {
            "window": w.id,
            "snapshot": w.snapshot,
            "metrics": w.metrics,
            "maps": maps,
            "policy": {**w.policy, "gate": s.gate, "kd": s.kd},
            "page": trace,
        },
    )
    t.timer(limits.POLICY_TIMEOUT_NS, "policy", window=w.id)
    s.traces[w.id] = trace
    if s.config.eval_every and w.id % s.config.eval_every == 0:
        evaluate(t, w.snapshot, "validation", None, w.generation)
    if w.phase.get("train") == "student" and "test" not in s.reference:
        evaluate(t, w.snapshot, "test", None, w.generation)  # the teacher as it was given: what retention refers to


def _cka_of(maps: dict[str, Any]) -> dict[str, float]:
    """The similarity that a CKA probe found, for the record: retention scores snapshots by it."""
    for entry in maps.values():
        match entry:
            case {"map": {"summary": {"cka": float(cka)}}}:
                return {"cka": cka}
    return {}


def resume_state(s: State, w: Window) -> dict[str, Any]:
    """What the next boot needs if this commit is the last record it finds."""
    horizon = s.next_window
    # Policies whose records are on their way stand before this commit in the ledger, so the tail after it will not tell of them.
    on_the_way = [d for b in (s.in_flight, s.outbox) if b for _, then, d in b.then if then == "policy"]
    coming = {
        d["applies_at"]: {**without_overridden(s, d["window"], d["settings"]), "seq": -1}
        for d in on_the_way
        if d["settings"]
    }
    policies = {**s.policies, **coming}
    keep = {k: v for k, v in policies.items() if k >= max([p for p in policies if p <= horizon], default=0)}
    return {
        "cursor": list(next_cursor(s, Cursor(*w.cursor))),
        "generation": w.generation,
        "kd": s.kd,
        "gate": s.gate,
        "policies": {str(k): v for k, v in keep.items()},
        "policy": w.policy,
        "policy_seq": w.policy_seq,
        "policy_count": s.policy_count,
        "awaiting": sorted({*s.awaiting_policy, w.id} - {d["window"] for d in on_the_way}),
        "directives": s.directives + [d for x in s.windows.values() if x.id > w.id for d in x.directives],
        "probes": [
            {"id": p.id, "hook": p.hook, "prog": p.prog, "every": p.every, "owner": p.owner, "object": p.object}
            for p in s.probes.values()
        ],
        "next_probe": s.next_probe,
        "schedule": {"force": list(s.reservation.times), "manifest": list(s.config.times)},
        "data": str(s.servers["dataset"].info.get("data", "")),
        "scores": s.scores,
        "reference": s.reference,
    }


def granted(t: Turn, data: dict[str, Any], seq: int) -> None:
    """The grant record is durable."""
    w = t.state.windows.get(data["window"])
    if w and w.attempt == data["attempt"]:
        w.grant_seq = seq


def committed(t: Turn, data: dict[str, Any], seq: int) -> None:
    """The commit record is durable: the window is COMMITTED, whatever happens from here on."""
    s = t.state
    w = s.windows.get(data["window"])
    if w is None or w.state is not WindowState.STAGED:
        return
    w.to(WindowState.COMMITTED)
    s.counts["committed"] += 1
    s.committed, s.committed_window = w.snapshot, w.id
    release_page(t, KERNEL, w.page_slot)
    del s.windows[w.id]
    if s.servers["learner"].state == "ready":
        tell(t, "learner.committed", {"window": w.id})
    if w.swaps:
        outbox.record(
            t,
            "generation",
            {"generation": w.generation, "window": w.id, "reason": f"{w.swaps} role swap(s)"},
            result=w.snapshot,
            generation=w.generation,
        )


def miss(t: Turn, w: Window, code: str, reason: str, *, tell_learner: bool) -> None:
    """The window failed: late, silent, not finite, or its base went away. Windows that stand on it fall first."""
    s = t.state
    for later in sorted(
        (x for x in s.windows.values() if x.id > w.id and x.state is not WindowState.MISSED), key=lambda x: -x.id
    ):
        miss(t, later, "E1-NO", f"its base, window {w.id}, did not commit", tell_learner=False)
    if w.state is WindowState.RUNNING:
        reserve.window_ended(t, max(0, s.servers["learner"].cpu_ns - w.cpu_start_ns))
    reserve.go_on_again(t, "learner", s.servers["learner"].incarnation)  # it has to answer for this
    w.to(WindowState.MISSED)
    w.miss_code, w.miss_reason = code, reason
    late_ns = t.now_ns - w.deadline_ns
    outbox.record(
        t,
        "window.miss",
        {
            "window": w.id,
            "boot": s.boot_id,
            "reason": f"{code}: {reason}"[:1000],
            "late_ns": late_ns if code == "E7-MISSED" else None,
        },
        parent=w.base,
    )
    s.counts["missed"] += code == "E7-MISSED"
    if tell_learner and s.servers["learner"].state == "ready":
        tell(t, "learner.abort", {"window": w.id, "reason": reason})
        t.timer(limits.ABORT_GRACE_NS, "abort", window=w.id, granted_ns=w.granted_ns)


def rolled_back(t: Turn, caller: Caller, args: dict[str, Any]) -> None:
    """The learner is back at the base of a window and proves it by digest."""
    s = t.state
    if args["restored"] and not is_object_id(args["restored"]):
        raise RecurosError("E2-WIRE", f"restored={args['restored']!r:.80} is not a root id")
    answer(t, caller, {})
    w = s.windows.get(args["window"])
    if w is None or w.state not in (WindowState.RUNNING, WindowState.MISSED):
        return  # a staged window's commit record is on its way and cannot be taken back; a learner that left it fails its next grant
    if w.state is not WindowState.MISSED:
        miss(t, w, args["code"], args["reason"], tell_learner=False)
    _rolled_back(t, w, args["restored"])


def _rolled_back(t: Turn, w: Window, restored: str) -> None:
    s = t.state
    for later in sorted((x for x in s.windows.values() if x.id > w.id), key=lambda x: -x.id):
        _final_rollback(t, later, restored, exact=restored == w.base)
    exact = restored == w.base
    _final_rollback(t, w, restored, exact=exact)
    s.cursor, s.next_window, s.base, s.generation = Cursor(*w.cursor), w.id, w.base, w.generation - w.swaps
    s.rng = w.rng_base
    for page, _, _ in s.prefetch.values():
        release_page(t, KERNEL, page)
    s.prefetch.clear()
    for window in [k for k in s.awaiting_policy if k >= w.id]:
        forget_evidence(t, window)
    s.policies = {k: v for k, v in s.policies.items() if k < w.id + limits.POLICY_LAG_WINDOWS}
    if not exact:
        s.learner_ok = False
        request(t, "restore", "learner.restore", {"snapshot": w.base}, base=w.base)
    if w.miss_code == "E7-MEMORY" and device.out_of_memory(t, w):
        return
    if w.miss_code not in ("E1-NO", "E3-GONE", "E75-AGAIN"):
        s.failures_in_a_row += 1
        if s.failures_in_a_row >= limits.FAILURES_IN_A_ROW_MAX and s.phase == "running":
            stop_plan(t, w)


def _final_rollback(t: Turn, w: Window, restored: str, *, exact: bool) -> None:
    s = t.state
    if w.state is not WindowState.MISSED:
        miss(t, w, "E1-NO", "its base did not commit", tell_learner=False)
    w.to(WindowState.ROLLED_BACK)
    s.counts["rolled_back"] += 1
    asked = drop_once(s, w.id) if w.miss_code in ("E2-USAGE", "E2-LIMIT") else {}
    if asked or (w.miss_code in ("E2-USAGE", "E2-LIMIT") and w.directives):
        # The learner refused what an operator or a policy asked for; asking again would fail the same way for ever.
        outbox.record(
            t,
            "fault",
            {
                "name": "learner",
                "code": w.miss_code,
                "message": f"window {w.id} refused {[*w.directives, *asked.items()]!r:.500}; dropped",
            },
        )
    else:
        s.directives = w.directives + s.directives
    release_page(t, KERNEL, w.page_slot)
    del s.windows[w.id]
    outbox.record(
        t,
        "window.rollback",
        {"window": w.id, "boot": s.boot_id, "base": w.base or None, "restored": restored or None, "exact": exact},
        parent=w.base,
        result=restored,
    )


def deadline(t: Turn, window: int, granted_ns: int) -> None:
    """The deadline passed; a window that is still running is missed, whether its learner is slow or hung."""
    w = t.state.windows.get(window)
    if w and w.granted_ns == granted_ns and w.state is WindowState.RUNNING and t.now_ns >= w.deadline_ns:
        miss(t, w, "E7-MISSED", f"still running at its deadline, {w.step} of {w.steps} steps done", tell_learner=True)


def abort_overdue(t: Turn, window: int, granted_ns: int, waits: int = 0) -> None:
    """The learner did not prove its rollback in time: it is hung; the supervisor replaces it from the base.

    Not while it waits for a call that another server took: that server answers, or falls silent and is replaced, and the learner has
    its time from there on. `waits` is the delivery that it waited for at the last look; -1 when that one was answered, for the last time.
    """
    s = t.state
    w = s.windows.get(window)
    if w is None or w.granted_ns != granted_ns or w.state is not WindowState.MISSED:
        return
    waiting = _waits_for(s, "learner")
    same = waiting if waits in (0, waiting) else 0
    if waits >= 0 and (same or waits):
        t.timer(limits.ABORT_GRACE_NS, "abort", window=window, granted_ns=granted_ns, waits=same or -1)
        return
    learner = s.servers["learner"]
    learner.fault = [
        "E7-MISSED",
        f"window {window}: no rollback {limits.ABORT_GRACE_NS // 10**6} ms after the abort",
        "",
        {},
    ]
    t.emit(Kill("learner", learner.incarnation, signal.SIGKILL, dump=True))


def _waits_for(s: State, name: str) -> int:
    """The oldest call of this server that another one has not answered, 0 when there is none."""
    calls = (n for n, p in s.pending.items() if p.kind == "relay" and p.data["caller"].principal == name)
    return min(calls, default=0)


def telemetry(t: Turn, values: dict[str, Any]) -> None:
    """A sample of the device: the guard may hold windows back, or give the running one up."""
    if device.sampled(t, values):
        abort_running(t, "E75-AGAIN", f"the device is not fit to go on: {device.reason(t.state)}")


def abort_running(t: Turn, code: str, reason: str) -> None:
    """Roll the running window back now."""
    for w in list(t.state.windows.values()):
        if w.state is WindowState.RUNNING:
            miss(t, w, code, reason, tell_learner=True)


def server_lost(t: Turn, name: str, reason: str) -> None:
    """A server died while the runtime was up."""
    s = t.state
    if name == "learner":
        s.learner_ok = False
        s.staged_waits = None
        for probe in s.probes.values():
            probe.live = False
        for w in sorted(s.windows.values(), key=lambda x: x.id):
            if w.state is WindowState.RUNNING:
                miss(t, w, "E3-GONE", f"the learner died: {reason}", tell_learner=False)
        missed = [w for w in s.windows.values() if w.state is WindowState.MISSED]
        if missed:
            # What the next incarnation must come back to; the rollback is recorded when it has proved the digest.
            s.base = min(missed, key=lambda w: w.id).base
    elif name == "observer":
        for window in sorted(s.awaiting_policy):
            policy_timeout(t, window)
        s.awaiting_policy.clear()
        s.final_asked = False  # the final evaluation died with it, if it was under way
    elif name == "dataset":
        s.filling.clear()
    elif name == "archivist":
        s.store_open = False
        outbox.resend(t)


def learner_back(t: Turn, restored: str) -> None:
    """A new incarnation of the learner proved which state it is in: windows that died with the last one are rolled back."""
    missed = [w for w in t.state.windows.values() if w.state is WindowState.MISSED]
    if missed:
        _rolled_back(t, min(missed, key=lambda w: w.id), restored)


def server_back(t: Turn, name: str) -> None:
    """A restarted server is ready again; `advance` asks it for what is missing."""
    t.event("state", state=f"{name} is back")


def finish_plan(t: Turn) -> None:
    """Every window is granted; when all are committed, score the result on the test split and be done."""
    s = t.state
    if s.windows or s.awaiting_policy or s.outbox.records or s.in_flight or s.final_asked:
        return
    if any(p.kind == "evaluate" for p in s.pending.values()) or not _observer_up(s):
        return
    if s.servers["dataset"].state != "ready":
        return
    if "test" in s.scores and s.scores["test"].get("snapshot") == s.committed:
        finished(t)
        return
    s.final_asked = True
    evaluate(t, s.committed or s.base, "test", None, s.generation)
