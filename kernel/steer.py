"""What steers the windows: policies with their fixed lag, evaluations, probes, and the reservation.

Responsible for: checking bounds and rights where a decision enters, recording it, and letting it take effect only
when the record is durable. Refuses: policies outside their bounds, probes that the catalogue does not admit,
reservations that do not fit.
"""

from __future__ import annotations

from typing import Any

from kernel import outbox, programs, reserve
from kernel.broker import answer, answer_error, end_job, move_page, release_page, request
from kernel.plan import finished, next_step
from kernel.policy import check_policy
from kernel.sched import Reservation, admit
from kernel.state import KERNEL, Caller, Probe, State, Turn
from probes import catalogue
from syscalls import abi, limits
from syscalls.errors import RecurosError


def policy_at(s: State, window: int) -> dict[str, Any]:
    """The settings in force at a window: the latest that applies at or before it."""
    due = [k for k in s.policies if k <= window]
    return s.policies[max(due)] if due else {}


def policy_decided(s: State, window: int) -> bool:
    """In deterministic mode window k + 2 waits for the Observer's word on k."""
    return not s.config.deterministic or all(k + limits.POLICY_LAG_WINDOWS > window for k in s.awaiting_policy)


def sources_for(s: State, window: int, train: str) -> dict[str, Any]:
    """What a window's batches are made by besides the manifest: weights (empty: all one); and mask, order and samples that came later."""
    settings = policy_at(s, window) if train == "student" else {}
    gate = {k: v for k, v in s.gate.items() if k in ("mask", "extra")}
    if settings.get("order"):
        gate["order"] = settings["order"]
    return {"weights": str(settings.get("weights") or ""), "gate": gate}


def evaluate(t: Turn, snapshot: str, split: str, caller: Caller | None, generation: int) -> None:
    """Score a snapshot in the Observer's process."""
    args = {"snapshot": snapshot, "split": split}
    request(
        t, "evaluate", "observer.evaluate", args, caller=caller, snapshot=snapshot, split=split, generation=generation
    )


def evaluated(t: Turn, data: dict[str, Any], values: dict[str, Any] | RecurosError) -> None:
    """Scores are a record before they are anything else."""
    s = t.state
    caller = data["caller"]
    if isinstance(values, RecurosError):
        if caller:
            answer_error(t, caller, values)
        if s.final_asked and data["split"] == "test" and not caller:
            if values.code in ("E3-GONE", "E75-AGAIN"):
                s.final_asked = False  # a server was away for a moment: `finish_plan` asks again when it is back
                return
            s.error = values.to_wire()
            finished(t)
        return
    scores = {**values["scores"], "snapshot": data["snapshot"]}
    s.scores[data["split"]] = scores
    if data["generation"] == 0:
        s.reference[data["split"]] = scores.get("teacher", {})  # before any swap: the teacher that retention refers to
    final = s.final_asked and data["split"] == "test" and caller is None
    outbox.record(
        t,
        "evaluate",
        {"split": data["split"], "scores": scores},
        actor="observer",
        parent=data["snapshot"],
        generation=data["generation"],
        then="evaluated",
        then_data={"caller": caller, "scores": scores, "final": final},
    )


def evaluation_recorded(t: Turn, data: dict[str, Any], seq: int) -> None:
    """The evaluation is durable."""
    if data["caller"]:
        answer(t, data["caller"], {"scores": data["scores"], "seq": seq})
    if data["final"] and t.state.phase == "running":
        finished(t)


def submit_policy(t: Turn, caller: Caller, args: dict[str, Any], cpu_ns: int) -> None:
    """The Observer's decision on one window's evidence; bounds are checked here, not there."""
    s = t.state
    window = args["window"]
    end_job(t, "observer", cpu_ns)
    trace = s.traces.pop(window, 0)
    release_page(t, KERNEL, trace)
    if window not in s.awaiting_policy:
        raise RecurosError(
            "E2-USAGE", f"no policy is due for window {window}", hint="it timed out, or the window rolled back"
        )
    settings = args["settings"]
    try:
        check_policy(settings)
    except RecurosError as error:
        s.awaiting_policy.discard(window)
        outbox.record(t, "fault", {"name": "observer", "code": error.code, "message": error.message}, actor="observer")
        raise
    data = {"window": window, "settings": settings, "pack": args["pack"], "caller": caller}
    if args["blobs"]:
        page = move_page(t, "observer", args["blobs"], KERNEL).slot
        _store(t, {**data, "page": page})
    else:
        policy_stored(t, data, {"ids": ["", ""]})


def _store(t: Turn, data: dict[str, Any]) -> None:
    objects = [["policy", "weights"], ["cal", "evidence"], ["policy", "order"]]
    request(t, "put", "archivist.put", {"objects": objects, "page": data["page"]}, **data)


def store_parked(t: Turn) -> None:
    """The archivist is back: blobs that it did not answer for are sent again."""
    s = t.state
    parked, s.parked = s.parked, []
    for pending in parked:
        _store(t, pending.data)


def policy_stored(t: Turn, data: dict[str, Any], values: dict[str, Any]) -> None:
    """Weights, order and evidence are durable; now the record. A refusal is recorded and changes nothing."""
    weights, evidence, order = (*values["ids"], "")[:3]
    if "page" in data:
        release_page(t, KERNEL, data["page"])
    given = data["settings"]
    settings = {k: v for k, v in given.items() if k not in ("evidence", "order")}
    if given and "refused" not in given:
        settings["weights"] = weights
        if order:
            settings["order"] = order
    recorded = {**settings, "evidence": given.get("evidence", {})} if given else {}
    in_force = {**settings, "evidence": evidence} if given and "refused" not in given else {}
    applies_at = data["window"] + limits.POLICY_LAG_WINDOWS
    outbox.record(
        t,
        "policy",
        {"window": data["window"], "applies_at": applies_at, "settings": recorded, "pack": data["pack"]},
        actor="observer",
        inputs=tuple(x for x in (weights, order, evidence) if x),
        then="policy",
        then_data={
            "window": data["window"],
            "applies_at": applies_at,
            "settings": in_force,
            "caller": data["caller"],
        },
    )


def drop_gate(t: Turn, data: dict[str, Any], error: RecurosError) -> None:
    """The dataset server cannot apply the operator's gate: open it, say so, and fill the window without."""
    s = t.state
    s.filling.discard(data["window"])
    if s.gate == data["gate"]:
        chosen = s.gate.keys() - {"extra"}  # the samples that came later stay, unless they are what it fails on
        s.gate = {"extra": s.gate["extra"]} if chosen and "extra" in s.gate else {}
        outbox.record(
            t, "fault", {"name": "dataset", "code": error.code, "message": f"gate opened: {error.message}"[:1000]}
        )
        outbox.record(t, "gate.set", {"criteria": s.gate, "window": s.next_window})


def operator_set(s: State, kd: dict[str, Any]) -> None:
    """An operator set `kd`: policies that rest on evidence from before it no longer speak of these settings."""
    s.kd = kd
    lag = limits.POLICY_LAG_WINDOWS
    s.policies = {at: without_overridden(s, at - lag, settings) for at, settings in s.policies.items()}


def without_overridden(s: State, evidence_window: int, settings: dict[str, Any]) -> dict[str, Any]:
    """Settings of a policy, less those that an operator set after the window it rests on."""
    if evidence_window >= s.kd.get("window", 0):
        return settings
    asked = {**s.kd, **s.kd.get("terms", {})}
    return {k: v for k, v in settings.items() if asked.get(k, -1.0) in (-1.0, "")}


def policy_recorded(t: Turn, data: dict[str, Any], seq: int) -> None:
    """The policy is durable and takes effect at its window."""
    s = t.state
    if data["settings"] and (data["window"] in s.awaiting_policy or data["applies_at"] >= s.next_window):
        s.policies[data["applies_at"]] = {**without_overridden(s, data["window"], data["settings"]), "seq": seq}
        s.policy_count += 1
    s.awaiting_policy.discard(data["window"])
    answer(t, data["caller"], {"seq": seq})


def policy_timeout(t: Turn, window: int) -> None:
    """The Observer has not answered: the absence itself is an input of window + 2, and recorded as one."""
    s = t.state
    if window in s.awaiting_policy:
        forget_evidence(t, window)
        end_job(t, "observer", s.servers["observer"].cpu_ns)
        outbox.record(
            t,
            "policy",
            {"window": window, "applies_at": window + limits.POLICY_LAG_WINDOWS, "settings": {}, "pack": "timeout"},
        )


def forget_evidence(t: Turn, window: int) -> None:
    """Nobody waits for a policy on this window any more."""
    s = t.state
    s.awaiting_policy.discard(window)
    release_page(t, KERNEL, s.traces.pop(window, 0))


def attach(t: Turn, hook: str, prog: str, every: int, caller: Caller | None, actor: str, cap: int = -1) -> None:
    """Check a built-in against the catalogue; then it goes the way of a loaded program: verified, admitted, attached."""
    s = t.state
    if len(s.probes) >= limits.PROBES_MAX:
        raise RecurosError(
            "E2-LIMIT", f"{len(s.probes)} probes are attached, the limit", hint="recuros probe detach ID"
        )
    held = s.caps.get(caller.principal, cap).rights if caller else s.config.servers["observer"].rights
    loaded = prog.startswith(programs.PREFIX)
    if not loaded:
        admitted = catalogue.check(hook, f"{prog},every={every}" if every else prog, abi.right_names(held))
    if not s.learner_ok:
        raise RecurosError("E75-AGAIN", "the learner is not ready", hint="try again in a moment")
    if loaded:
        programs.attach(t, hook, prog, every, caller, actor, held)
    else:
        programs.attach_builtin(t, hook, admitted, caller, actor, held)


def attached(t: Turn, data: dict[str, Any], values: dict[str, Any] | RecurosError) -> None:
    """The learner attached it, or says why not."""
    s = t.state
    probe: Probe = data["probe"]
    if isinstance(values, RecurosError):
        programs.failed(t, data["caller"], probe, values)
        return
    programs.forget(t, s.probes.get(probe.id))  # of the learner's last incarnation
    probe.sites, probe.page, probe.live = values["sites"], values["page"], True
    s.probes[probe.id] = probe
    if not data["fresh"]:
        return
    outbox.record(
        t,
        "probe.attach",
        {"id": probe.id, "hook": probe.hook, "prog": probe.prog, "sites": probe.sites, "step": values["step"]},
        actor=data["actor"],
        cap=data["cap"],
        inputs=(probe.object,) if probe.object else (),
        then="reply",
        then_data={"caller": data["caller"], "values": {"id": probe.id, "sites": probe.sites, "step": values["step"]}},
    )


def check_ms(**times: Any) -> None:
    """Refuse times of a reservation that are not whole milliseconds within the limit: E2-LIMIT."""
    for key, value in times.items():
        if type(value) is not int or not 0 < value <= limits.WINDOW_MS_MAX:
            raise RecurosError(
                "E2-LIMIT", f"{key}={value!r:.40} must be whole milliseconds, 1 to {limits.WINDOW_MS_MAX}"
            )


def schedule(t: Turn, caller: Caller, args: dict[str, Any]) -> None:
    """Syscall rl_schedule: admission decides, and the answer is recorded either way."""
    s = t.state
    ms = 1_000_000
    r = s.reservation
    known = {"budget_ms", "period_ms"}
    if set(args["window"]) - known:
        raise RecurosError(
            "E2-USAGE",
            f"window takes {sorted(known)}, got {sorted(args['window'])}",
            hint="rl_schedule window={...} deadline=MS",
        )
    budget_ms = args["window"].get("budget_ms", r.budget_ns // ms)
    period_ms = args["window"].get("period_ms", r.period_ns // ms)
    check_ms(budget_ms=budget_ms, period_ms=period_ms, deadline=args["deadline"])
    new = Reservation(r.name, budget_ms * ms, args["deadline"] * ms, period_ms * ms)
    ok, witness = admit([new])
    body = {
        "name": new.name,
        "budget_ns": new.budget_ns,
        "period_ns": new.period_ns,
        "deadline_ns": new.deadline_ns,
        "witness": witness,
    }
    if not ok:
        outbox.record(t, "sched.refuse", body, actor=caller.principal)
        raise RecurosError(
            "E6-ADMIT",
            f"window {new.budget_ns // ms}ms/{new.period_ns // ms}ms refused: {witness['reason']}",
            hint="recuros sched admit NAME --budget-ms ... shows what fits",
            details=witness,
        )
    reserve.change_learner(s, new)
    s.failures_in_a_row = 0  # those were under another schedule; one more may be on its way under it
    if s.phase == "done" and s.error and s.error[0] == "E7-MISSED":
        s.error, s.failures_in_a_row, s.phase = None, 0, "running"  # the operator gave the plan the time it lacked
    outbox.record(
        t,
        "sched.set",
        body,
        actor=caller.principal,
        then="reply",
        then_data={"caller": caller, "values": {"admitted": True, "witness": witness, "step": next_step(s)}},
    )


def waiting_for_probes(s: State) -> bool:
    """The manifest's probes are attached before the first window, programs of an earlier boot before the next one."""
    return programs.restoring(s)


def probe_rows(s: State, values: dict[str, Any], columns: tuple[str, ...]) -> dict[str, Any]:
    """What the learner says of its probes, with what only the kernel knows: whose they are and what they may cost."""
    for row in values["probes"]:
        probe = s.probes.get(row.get("id"))
        if probe is not None:
            row.update(owner=probe.owner, prog=probe.prog, object=probe.object)
            row.update(units=probe.units, window_cost_ns=probe.window_cost_ns, charged_ns=probe.spent_ns)
    return {k: values[k] for k in columns}
