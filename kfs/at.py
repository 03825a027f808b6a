"""Time travel: the whole state of a run as of any record, folded from the ledger alone.

Responsible for: one pass over the records from 0, in constant memory apart from the state itself, by the rules that the kernel
follows when it resumes. Refuses: guessing. What no record says is absent from the state; what a commit record says of the state
(its `resume` map) is taken over as it stands, since that is what a boot would go on with. Knows no store: it folds records.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from kfs.records import Record, RecordKind
from syscalls import limits
from syscalls.errors import RecurosError

COUNTED: Final = ("granted", "committed", "missed", "rolled_back")
UNSET: Final = (-1.0, "")
"""Values of a `kd.set` that mean "leave it as it is"."""


class Source(Protocol):
    """What a fold reads: a store, or anything with its records."""

    @property
    def size(self) -> int:
        """How many records there are."""
        ...

    def records(self, start: int = 0, stop: int | None = None) -> Iterable[Record]:
        """Records start .. stop - 1."""
        ...


@dataclass
class Policy:
    """A recorded policy that applies from window `applies_at` on. `settings` are what is left of it after operator overrides."""

    seq: int
    window: int
    applies_at: int
    pack: str
    settings: dict[str, Any]
    weights: str = ""
    evidence: str = ""

    def to_map(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "seq": self.seq,
            "window": self.window,
            "applies_at": self.applies_at,
            "pack": self.pack,
            "settings": self.settings,
            "weights": self.weights,
            "evidence": self.evidence,
        }

    def learner_map(self) -> dict[str, Any]:
        """As the kernel holds it, without the record's number: settings, weights and evidence in one map."""
        return {**self.settings, "weights": self.weights, "evidence": self.evidence}


@dataclass
class Open:
    """A window that is granted and not final. `planned`: how many of its directives the plan asked for."""

    window: int
    seq: int
    steps: int
    step0: int
    phase: Any
    base: str
    directives: list[Any]
    policy_seq: int | None
    planned: int = 0
    missed: str = ""


@dataclass
class State:
    """The state as of record `seq`; every field is plain data. See `to_map` for the names that the console prints."""

    seq: int = -1
    time_ns: int = 0
    app: str = ""
    boot: str | int = ""
    boots: int = 0
    resumed_from: Any = -1
    halted: dict[str, Any] | None = None
    paused: bool = False
    snapshot: str = ""
    window: int = 0
    commit_seq: int = -1
    cursor: list[int] = field(default_factory=list)
    data_cursor: Any = None
    data: str = ""
    rng: str = ""
    config: str = ""
    generation: int = 0
    metrics: dict[str, Any] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(COUNTED, 0))
    windows: dict[int, Open] = field(default_factory=dict)
    kd: dict[str, Any] = field(default_factory=dict)
    gate: dict[str, Any] = field(default_factory=dict)
    directives: list[Any] = field(default_factory=list)
    policy: dict[str, Any] = field(default_factory=dict)
    policy_seq: int = -1
    policy_count: int = 0
    policies: dict[int, Policy] = field(default_factory=dict)
    absent: dict[int, str] = field(default_factory=dict)  # evidence window -> timeout | lost
    prunes: list[dict[str, Any]] = field(default_factory=list)
    swaps: list[dict[str, Any]] = field(default_factory=list)
    calibrations: dict[str, dict[str, Any]] = field(default_factory=dict)
    thresholds: dict[str, Any] = field(default_factory=dict)
    probes: dict[int, dict[str, Any]] = field(default_factory=dict)
    programs: dict[str, dict[str, Any]] = field(default_factory=dict)
    caps: dict[tuple[str, int], dict[str, Any]] = field(default_factory=dict)
    schedule: dict[str, Any] = field(default_factory=dict)
    servers: dict[str, dict[str, Any]] = field(default_factory=dict)
    scores: dict[str, Any] = field(default_factory=dict)
    reference: dict[str, Any] = field(default_factory=dict)
    pins: dict[str, dict[str, Any]] = field(default_factory=dict)
    collected: dict[str, Any] = field(default_factory=lambda: {"plans": 0, "done": 0, "bytes": 0})
    faults: int = 0

    def to_map(self) -> dict[str, Any]:
        """Plain JSON data, in the order a person reads it."""
        return {
            "seq": self.seq,
            "t_wall": self.time_ns,
            "app": self.app,
            "boot": self.boot,
            "boots": self.boots,
            "resumed_from": self.resumed_from,
            "halted": self.halted,
            "paused": self.paused,
            "committed": {
                "window": self.window,
                "seq": self.commit_seq,
                "snapshot": self.snapshot,
                "next": self.cursor,
                "data_cursor": self.data_cursor,
                "data": self.data,
                "rng": self.rng,
                "config": self.config,
            },
            "generation": self.generation,
            "windows": dict(self.counts),
            "open": [
                {"window": w.window, "seq": w.seq, "base": w.base, "state": "missed" if w.missed else "granted"}
                for w in self.windows.values()
            ],
            "kd": {"asked": self.kd, "in_force": self._kd_in_force()},
            "gate": self.gate,
            "directives": self.directives,
            "policy": {
                "seq": self.policy_seq,
                "in_force": self.policy,
                "count": self.policy_count,
                "pending": [p.to_map() for at, p in sorted(self.policies.items()) if at > self.newest_window],
                "known": [p.to_map() for _, p in sorted(self.policies.items())],
                "absent": {str(window): why for window, why in sorted(self.absent.items())},
            },
            "prunes": self.prunes,
            "swaps": self.swaps,
            "calibration": self.calibrations,
            "thresholds": self.thresholds,
            "probes": [{"id": number, **probe} for number, probe in sorted(self.probes.items())],
            "programs": self.programs,
            "capabilities": [{"holder": h, "slot": s, **cap} for (h, s), cap in sorted(self.caps.items())],
            "schedule": self.schedule,
            "servers": [{"name": name, **server} for name, server in self.servers.items()],
            "scores": self.scores,
            "reference": self.reference,
            "pins": self.pins,
            "gc": self.collected,
            "faults": self.faults,
            "metrics": self.metrics,
        }

    @property
    def newest_window(self) -> int:
        """The highest window granted so far that still stands."""
        return max([self.window, *self.windows])

    def _kd_in_force(self) -> dict[str, Any]:
        """What the last committed window reported; `proj` is told only by an operator's word."""
        found: dict[str, Any] = {k: v for k, v in self.metrics.items() if k in ("temperature", "alpha", "mix")}
        return {**found, "proj": self.kd["proj"]} if self.kd.get("proj") else found


def state_at(source: Source, seq: int) -> State:
    """The state as of record `seq`, inclusive; negative numbers count from the end. E4-NOENT outside the ledger."""
    wanted = seq if seq >= 0 else source.size + seq
    if not 0 <= wanted < source.size:
        raise RecurosError(
            "E4-NOENT", f"no record {seq}; the ledger holds {source.size}", hint="recuros kfs log --limit 1"
        )
    state = State()
    for record in source.records(0, wanted + 1):
        fold(state, record)
    if state.seq != wanted:
        raise RecurosError(
            "E9-INTEGRITY",
            f"the records end after {state.seq}; record {wanted} cannot be read",
            hint="recuros kfs verify",
        )
    return state


def seq_at(source: Source, moment_ns: int) -> int:
    """The last record that the archivist stamped at or before a time (ns since 1970); E4-NOENT when all are later.

    By number and not by time, since a clock may jump: the state as of then is the longest history whose end is not later.
    """
    found = -1
    for record in source.records():
        if record.t_wall <= moment_ns:
            found = record.seq
    if found < 0:
        raise RecurosError("E4-NOENT", "every record is later than that time", hint="recuros kfs log --until TIME")
    return found


def fold(s: State, r: Record) -> None:
    """Take one record into the state; records come in order."""
    _RULES.get(r.kind, _nothing)(s, r)
    s.seq, s.time_ns = r.seq, r.t_wall


def without_overridden(kd: dict[str, Any], evidence_window: int, settings: dict[str, Any]) -> dict[str, Any]:
    """Settings of a policy, less those that an operator's `kd.set` named after the window that the policy rests on."""
    if evidence_window >= kd.get("window", 0):
        return settings
    asked = {**kd, **kd.get("terms", {})}
    return {k: v for k, v in settings.items() if asked.get(k, -1.0) in UNSET}


def _nothing(s: State, r: Record) -> None:
    """Records that change nothing but the count."""


def _boot(s: State, r: Record) -> None:
    """What lives in processes ends; what a commit carries goes on. The archivist's own start is in the same append."""
    s.app, s.boot, s.resumed_from, s.halted = r.args["app"], r.args["boot"], r.args["resumed_from"], None
    s.boots += 1
    s.paused = False
    s.servers = {name: server for name, server in s.servers.items() if server["t_wall"] == r.t_wall}
    s.caps.clear()
    s.counts = dict.fromkeys(COUNTED, 0)
    s.windows.clear()
    s.schedule = {}


def _halt(s: State, r: Record) -> None:
    s.halted = {"seq": r.seq, "mode": r.args["mode"], "reason": r.args["reason"]}
    for server in s.servers.values():
        server["state"] = "halted"


def _spawn(s: State, r: Record) -> None:
    """A new incarnation starts with no capability that was derived for the last; what that one passed on moves up."""
    a = r.args
    for key, gone in [(k, cap) for k, cap in s.caps.items() if k[0] == a["name"]]:
        del s.caps[key]
        for cap in s.caps.values():
            if (cap["by"], cap["parent"]) == key:
                cap["by"], cap["parent"] = gone["by"], gone["parent"]
    s.servers[a["name"]] = {"pid": a["pid"], "incarnation": a["incarnation"], "state": "up", "t_wall": r.t_wall}


def _exit(s: State, r: Record) -> None:
    server = s.servers.get(r.args["name"])
    if server is not None and server["pid"] == r.args["pid"]:
        server["state"], server["status"] = "down", r.args["status"]


def _derive(s: State, r: Record) -> None:
    a = r.args
    s.caps[a["holder"], a["slot"]] = {
        "parent": a["parent"],
        "object": a["object"],
        "rights": a["rights"],
        "badge": a["badge"],
        "by": r.actor,
        "seq": r.seq,
    }


def _revoke(s: State, r: Record) -> None:
    """Every descendant of the slot goes; the slot itself stays. A parent slot is one of the principal that derived."""
    doomed = [(r.args["holder"], r.args["slot"])]
    while doomed:
        holder, slot = doomed.pop()
        below = [key for key, cap in s.caps.items() if cap["by"] == holder and cap["parent"] == slot]
        for key in below:
            del s.caps[key]
        doomed += below


def _schedule(s: State, r: Record) -> None:
    a = r.args
    s.schedule = {k: a[k] for k in ("name", "budget_ns", "period_ns", "deadline_ns")} | {"seq": r.seq, "by": r.actor}


def _grant(s: State, r: Record) -> None:
    a = r.args
    window = a["window"]
    s.windows[window] = Open(
        window,
        r.seq,
        a["steps"],
        a["step0"],
        a["phase"],
        r.parent_snap or "",
        list(a["directives"]),
        a["policy_seq"],
    )
    s.directives = []
    s.counts["granted"] += 1
    due = [at for at in s.policies if at <= window]
    s.policy = s.policies[max(due)].learner_map() if due else {}
    s.policy_seq = -1 if a["policy_seq"] is None else a["policy_seq"]
    oldest = max([at for at in s.policies if at <= window - limits.POLICY_LAG_WINDOWS], default=0)
    s.policies = {at: policy for at, policy in s.policies.items() if at >= oldest}
    s.absent = {w: why for w, why in s.absent.items() if w + limits.POLICY_LAG_WINDOWS >= window}


def _commit(s: State, r: Record) -> None:
    """The kernel's own word on what the next boot goes on from."""
    a, resume = r.args, r.args["resume"]
    s.windows.pop(a["window"], None)
    s.counts["committed"] += 1
    s.snapshot, s.window, s.commit_seq = r.result_snap or "", a["window"], r.seq
    s.data_cursor, s.rng, s.metrics = r.data_cursor, r.rng_after or "", a["metrics"]
    s.config = (a.get("inputs") or {}).get("config", "")
    s.cursor, s.generation = list(resume.get("cursor", [])), resume.get("generation", r.generation)
    s.kd, s.gate = resume.get("kd", s.kd), resume.get("gate", s.gate)
    s.data = resume.get("data", s.data)
    s.directives = [list(d) for d in resume.get("directives", [])]
    s.policy, s.policy_seq = resume.get("policy", s.policy), resume.get("policy_seq", s.policy_seq)
    s.policy_count = resume.get("policy_count", s.policy_count)
    s.scores, s.reference = dict(resume.get("scores", s.scores)), dict(resume.get("reference", s.reference))
    _policies_of(s, resume.get("policies", {}))
    _probes_of(s, resume.get("probes", []))


def _policies_of(s: State, carried: dict[str, Any]) -> None:
    """Policies as the commit carries them; one whose record was still on its way then is told in full by that record."""
    before, s.policies = s.policies, {}
    for text, settings in carried.items():
        at = int(text)
        known = before.get(at)
        plain = {k: v for k, v in settings.items() if k not in ("seq", "weights", "evidence")}
        seq = settings.get("seq", -1)
        if known is not None and seq in (known.seq, -1):
            s.policies[at] = known
            known.settings = plain
        else:
            window = at - limits.POLICY_LAG_WINDOWS
            s.policies[at] = Policy(
                seq, window, at, "", plain, settings.get("weights") or "", settings.get("evidence") or ""
            )


def _probes_of(s: State, carried: list[dict[str, Any]]) -> None:
    known, s.probes = s.probes, {}
    for probe in carried:
        before = known.get(probe["id"], {"sites": [], "step": -1, "seq": -1, "by": ""})
        s.probes[probe["id"]] = {**before, "hook": probe["hook"], "prog": probe["prog"]}


def _miss(s: State, r: Record) -> None:
    window = s.windows.get(r.args["window"])
    if window is not None:
        window.missed = r.args["reason"]
    s.counts["missed"] += r.args["late_ns"] is not None


def _rollback(s: State, r: Record) -> None:
    """Directives go back to the head of the queue, and what rests on the window's evidence goes with it."""
    number = r.args["window"]
    window = s.windows.pop(number, None)
    s.counts["rolled_back"] += 1
    s.policies = {at: p for at, p in s.policies.items() if at < number + limits.POLICY_LAG_WINDOWS}
    s.absent = {w: why for w, why in s.absent.items() if w < number}
    if window is not None and not window.missed.startswith(("E2-USAGE", "E2-LIMIT")):
        s.directives = window.directives[window.planned :] + s.directives


def _kd_set(s: State, r: Record) -> None:
    kd = {k: v for k, v in r.args.items() if k != "reason"}
    s.directives.append(["kd", kd])
    s.kd = kd
    for policy in s.policies.values():
        policy.settings = without_overridden(s.kd, policy.window, policy.settings)


def _swap(s: State, r: Record) -> None:
    mode, window = r.args["mode"], r.args["window"]
    if r.actor.startswith("kernel:"):  # of the plan, or of the policy that applies from this window
        if window in s.windows:
            s.windows[window].planned += 1
    else:
        s.directives.append(["swap", {"mode": mode}])
    s.swaps.append({"seq": r.seq, "mode": mode, "window": window, "by": r.actor})


def _restore(s: State, r: Record) -> None:
    s.directives.append(["restore", {"snapshot": r.args["snapshot"]}])


def _generation(s: State, r: Record) -> None:
    s.generation = r.args["generation"]


def _prune(s: State, r: Record) -> None:
    if r.actor == "kernel:policy":
        if r.args["window"] in s.windows:
            s.windows[r.args["window"]].planned += 1
    else:
        s.directives.append(["prune", r.args["mask_spec"]])
    s.prunes.append(
        {"seq": r.seq, "window": r.args["window"], "by": r.actor, **{k: r.args[k] for k in ("mask_spec", "report")}}
    )


def _gate(s: State, r: Record) -> None:
    s.gate = r.args["criteria"]


def _policy(s: State, r: Record) -> None:
    a = r.args
    figures = a["settings"].get("evidence")
    if isinstance(figures, dict):
        s.thresholds |= {k: v for k, v in figures.items() if k.startswith(("ood", "mahalanobis"))}
    if not a["settings"] or "refused" in a["settings"]:
        if a["pack"] in ("timeout", "lost"):
            s.absent[a["window"]] = a["pack"]
        return
    plain = {k: v for k, v in a["settings"].items() if k not in ("evidence", "weights")}
    weights = a["settings"].get("weights") or ""
    inputs = [i for i in r.input_ids if i not in (weights, plain.get("order"))]
    s.policies[a["applies_at"]] = Policy(
        r.seq,
        a["window"],
        a["applies_at"],
        a["pack"],
        without_overridden(s.kd, a["window"], plain),
        weights,
        inputs[0] if inputs else "",
    )
    s.policy_count += 1


def _calibrate(s: State, r: Record) -> None:
    result = r.args["result"]
    s.calibrations[r.args["mode"]] = {"seq": r.seq, "snapshot": r.parent_snap, "result": result}
    s.thresholds |= {k: v for k, v in result.items() if k.startswith(("ood", "mahalanobis"))}


def _load(s: State, r: Record) -> None:
    a = r.args
    s.programs[a["prog"]] = {"digest": a["digest"], "hook": a["hook"], "bytes": a["bytes"], "seq": r.seq, "by": r.actor}


def _attach(s: State, r: Record) -> None:
    a = r.args
    s.probes[a["id"]] = {k: a[k] for k in ("hook", "prog", "sites", "step")} | {"seq": r.seq, "by": r.actor}


def _detach(s: State, r: Record) -> None:
    s.probes.pop(r.args["id"], None)


def _interrupt(s: State, r: Record) -> None:
    s.paused = {"pause": True, "resume": False}.get(r.args["kind"], s.paused)
    if r.args.get("verdict") == "accepted" and r.args["kind"] == "constraint":
        s.directives.append(["constrain", r.args["body"]])


def _evaluate(s: State, r: Record) -> None:
    split, scores = r.args["split"], r.args["scores"]
    s.scores[split] = scores
    if r.generation == 0:
        s.reference[split] = scores.get("teacher", {})


def _snapshot(s: State, r: Record) -> None:
    s.pins[r.args["name"]] = {
        "snapshot": r.result_snap or "",
        "window": r.args["window"],
        "seq": r.seq,
        "by": r.actor,
    }


def _gc_plan(s: State, r: Record) -> None:
    s.collected["plans"] += 1


def _gc_done(s: State, r: Record) -> None:
    s.collected["done"] += 1
    s.collected["bytes"] += r.args["bytes"]


def _device(s: State, r: Record) -> None:
    if r.args["event"] == "micro-batches":
        kept = [d for d in s.directives if d[0] != "micro-batches"]
        s.directives = [*kept, ["micro-batches", {"parts": r.args["micro_batches"]}]]


def _fault(s: State, r: Record) -> None:
    s.faults += 1


_RULES: Final = {
    RecordKind.BOOT: _boot,
    RecordKind.HALT: _halt,
    RecordKind.SPAWN: _spawn,
    RecordKind.EXIT: _exit,
    RecordKind.CAP_DERIVE: _derive,
    RecordKind.CAP_REVOKE: _revoke,
    RecordKind.SCHED_ADMIT: _schedule,
    RecordKind.SCHED_SET: _schedule,
    RecordKind.WINDOW_GRANT: _grant,
    RecordKind.WINDOW_COMMIT: _commit,
    RecordKind.WINDOW_MISS: _miss,
    RecordKind.WINDOW_ROLLBACK: _rollback,
    RecordKind.SNAPSHOT: _snapshot,
    RecordKind.SWAP: _swap,
    RecordKind.RESTORE: _restore,
    RecordKind.GENERATION: _generation,
    RecordKind.KD_SET: _kd_set,
    RecordKind.GATE_SET: _gate,
    RecordKind.PRUNE: _prune,
    RecordKind.CALIBRATE: _calibrate,
    RecordKind.POLICY: _policy,
    RecordKind.PROBE_LOAD: _load,
    RecordKind.PROBE_ATTACH: _attach,
    RecordKind.PROBE_DETACH: _detach,
    RecordKind.PROBE_EVICT: _detach,
    RecordKind.INTERRUPT: _interrupt,
    RecordKind.EVALUATE: _evaluate,
    RecordKind.GC_PLAN: _gc_plan,
    RecordKind.GC_DONE: _gc_done,
    RecordKind.FAULT: _fault,
    RecordKind.DEVICE: _device,
}
