"""What there is to replay: the inputs of committed windows and of policies, read out of the ledger.

Responsible for: ranges (`12..40` records, `w3..w9` windows), joining a commit with its grant and a policy with its commit, the
checks that need records only (the signature over the ledger, the policy in force at a window, absences), and the plan as plain
data for the processes that compute. Refuses: computing anything itself; ranges that hold nothing (E4-NOENT).
"""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass, field
from typing import Any, Final

from kfs import at
from kfs.merkle import CompactRange, leaf_hash
from kfs.records import Record, RecordKind
from kfs.store import Store
from syscalls.errors import RecurosError

ABSENT: Final = ("timeout", "lost")
"""Packs of policies that record that none came."""
_RANGE = re.compile(r"(w?)(-?\d+)?(?:\.\.(w?)(-?\d+)?)?\Z")


@dataclass(frozen=True)
class Window:
    """A committed window: everything that its result depends on, and the result. Empty text: none."""

    seq: int
    grant_seq: int
    window: int
    base: str
    result: str
    phase: dict[str, Any]
    step0: int
    steps: int
    policy: dict[str, Any]
    directives: list[Any]
    weights: str
    gate: dict[str, Any]
    batch: str
    config: str
    data: str
    code_id: str
    env_id: str
    rng_before: str
    rng_after: str
    steps_done: int  # fewer than `steps` where the window was cut short for its budget
    replayed_steps: int = 0
    """Steps that came from a CUDA graph."""


@dataclass(frozen=True)
class Decision:
    """A policy record with the evidence that the Observer had. `trace` empty: no teacher ran in that window."""

    seq: int
    window: int
    pack: str
    actor: str
    settings: dict[str, Any]
    inputs: list[str]
    commit_seq: int
    snapshot: str
    metrics: dict[str, Any]
    policy: dict[str, Any]
    trace: str
    config: str
    previous: str  # evidence of the newest decision before it on an earlier window
    gap: bool  # whether a policy between the two was recorded as absent


@dataclass
class Finding:
    """Something that does not agree. `what`: ledger, policy, ... ; `seq`: the record that it is about, or -1."""

    what: str
    seq: int
    window: int
    detail: str


@dataclass
class Plan:
    """What to replay, and what the records alone already show to be wrong."""

    windows: list[Window] = field(default_factory=list)
    decisions: list[Decision] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    held_out: dict[str, list[list[float | None]]] = field(default_factory=dict)
    """Snapshot -> [ECE of the student, accuracy of the student, accuracy of the teacher] of its validations, as answered."""

    def to_map(self, store: Store, *, force: bool) -> dict[str, Any]:
        """Plain data for the processes that compute; `environments` tells what each set of papers says."""
        configs = sorted({w.config for w in self.windows} | {d.config for d in self.decisions})
        return {
            "store": str(store.layout.store),
            "force": force,
            "configs": {name: papers(store, name) for name in configs},
            "windows": [asdict(w) for w in self.windows],
            "decisions": [asdict(d) for d in self.decisions],
            "held_out": self.held_out,
        }


def papers(store: Store, name: str) -> dict[str, Any] | None:
    """The papers of a run by object id; None when no commit named any, E9-INTEGRITY when they are no papers."""
    if not name:
        return None
    try:
        found = json.loads(bytes(store.get(name).data))
    except ValueError as e:
        raise RecurosError("E9-INTEGRITY", f"object {name} is not the papers of a run: {e}") from e
    if not isinstance(found, dict) or found.get("version") != 1:
        raise RecurosError("E9-VERSION", f"object {name} is not the papers of a run in version 1")
    return found


def parse_range(text: str, size: int) -> tuple[bool, int, int]:
    """(whether it counts windows, first, last), both inclusive: `12..40`, `..40`, `-50..`, `17`, `w3..w9`, `w3..`."""
    match = _RANGE.match(text)
    if match is None or not text or text in ("w", ".."):
        raise RecurosError(
            "E2-USAGE",
            f"{text!r:.60} is not a range",
            hint="FROM..TO in records (12..40, -50..) or in windows (w3..w9); both ends belong to it",
        )
    by_window = bool(match[1] or match[3])
    first = int(match[2]) if match[2] else 0
    last = (int(match[4]) if match[4] else 1 << 62) if ".." in text else first
    if not by_window:
        first, last = (n + size if n < 0 else n for n in (first, last))
    if first > last:
        raise RecurosError("E2-USAGE", f"{text!r:.60} is an empty range: it ends before it begins")
    return by_window, first, last


def plan(store: Store, text: str, *, state: bool = True, decisions: bool = True) -> Plan:
    """Everything in the range that can be replayed; the whole ledger up to its end is folded, since policies depend on it."""
    by_window, first, last = parse_range(text, store.size)

    def wanted(record: Record) -> bool:
        return first <= (record.args["window"] if by_window else record.seq) <= last

    made = Plan()
    _check_signature(store, made)
    fold = _Fold(made)
    stop = None if by_window else min(last + 1, store.size)
    for record in store.records(0, stop):
        take = record.kind in (RecordKind.WINDOW_COMMIT, RecordKind.POLICY) and wanted(record)
        fold.add(record, take=take, state=state, decisions=decisions)
    if not made.windows and not made.decisions:
        what = "windows" if by_window else "records"
        raise RecurosError(
            "E4-NOENT",
            f"no {what} of {text!r:.60} can be replayed: none is a committed window or a policy",
            hint="recuros kfs log --kind window.commit",
        )
    return made


class _Fold:
    """The state as it goes, and the records that a later one needs."""

    def __init__(self, plan_: Plan) -> None:
        self._plan = plan_
        self._state = at.State()
        self._grants: dict[int, Record] = {}
        self._in_force: dict[int, tuple[int, dict[str, Any]]] = {}  # at the grant of a window: record and settings
        self._rootless: dict[int, str] = {}
        self._commits: dict[int, Record] = {}
        self._decided: list[tuple[int, str]] = []  # (window, evidence), in ledger order
        self._absent: set[int] = set()
        self._unfounded: set[int] = set()  # windows from which policies apply that a commit carries and no record tells

    def add(self, record: Record, *, take: bool, state: bool, decisions: bool) -> None:
        """Fold one record, and add it to the plan if it is taken."""
        window = record.args.get("window")
        if record.kind is RecordKind.WINDOW_COMMIT and take:
            self._check_in_force(record)
            if state:
                self._plan.windows.append(_window(record, self._grants.get(record.args["window"])))
        elif record.kind is RecordKind.POLICY and take and decisions:
            self._decide(record)
        before = {applies: p.learner_map() for applies, p in self._state.policies.items()}
        at.fold(self._state, record)
        match record.kind:
            case RecordKind.WINDOW_GRANT if isinstance(window, int):
                self._grants[window] = record
                due = [n for n in self._state.policies if n <= window]
                policy = self._state.policies[max(due)] if due else None
                self._in_force[window] = (policy.seq, policy.learner_map()) if policy is not None else (-1, {})
                if due and max(due) in self._unfounded:
                    detail = (
                        f"the policy in force from window {max(due)} on is not the recorded one, or not recorded at all"
                    )
                    self._rootless[window] = detail
            case RecordKind.WINDOW_COMMIT if isinstance(window, int):
                self._commits[window] = record
                for applies, p in self._state.policies.items():
                    if before.get(applies) != p.learner_map() and p.seq >= 0:  # -1: its record is on the way
                        self._unfounded.add(applies)
            case RecordKind.POLICY if isinstance(window, int):
                self._unfounded.discard(record.args["applies_at"])
                if record.args["pack"] in ABSENT:
                    self._absent.add(window)
                elif record.input_ids:
                    self._decided.append((window, record.input_ids[-1]))
            case RecordKind.EVALUATE if record.args["split"] == "validation" and record.parent_snap:
                student, teacher = (record.args["scores"].get(role) or {} for role in ("student", "teacher"))
                if isinstance(student.get("ece"), float | int):
                    row = [_number(student["ece"]), _number(student.get("accuracy")), _number(teacher.get("accuracy"))]
                    self._plan.held_out.setdefault(record.parent_snap, []).append(row)

    def _check_in_force(self, commit: Record) -> None:
        """The policy that a window says it ran under is the recorded one, less what an operator overrode."""
        window, resume = commit.args["window"], commit.args["resume"]
        if window not in self._in_force or "policy" not in resume:
            return
        if window in self._rootless:
            self._plan.findings.append(Finding("policy", commit.seq, window, self._rootless[window]))
            return
        seq, expected = self._in_force[window]
        said = {k: v for k, v in resume["policy"].items() if k != "seq"}
        if said != expected:
            named = f"record {seq}" if expected else "no policy"
            differing = sorted(k for k in {*said, *expected} if said.get(k) != expected.get(k))
            text = ", ".join(f"{k} {said.get(k)!r:.80} where {expected.get(k)!r:.80} is recorded" for k in differing)
            self._plan.findings.append(
                Finding("policy", commit.seq, window, f"the window ran under other settings than {named}: {text}")
            )

    def _decide(self, record: Record) -> None:
        args = record.args
        commit = self._commits.get(args["window"])
        if args["pack"] in ABSENT:
            if args["settings"] or record.input_ids:
                self._plan.findings.append(
                    Finding("policy", record.seq, args["window"], f"an absence ({args['pack']}) carries settings")
                )
        elif commit is None:
            self._plan.findings.append(
                Finding("policy", record.seq, args["window"], "it rests on a window that is not committed before it")
            )
            return
        self._plan.decisions.append(self._decision(record, commit))

    def _decision(self, record: Record, commit: Record | None) -> Decision:
        args = record.args
        before = next(((w, name) for w, name in reversed(self._decided) if w < args["window"]), (-1, ""))
        found: dict[str, Any] = commit.args if commit is not None else {"metrics": {}, "resume": {}}
        inputs = found.get("inputs") or {}
        resume = found["resume"]
        policy = {**resume.get("policy", {}), "gate": resume.get("gate", {}), "kd": resume.get("kd", {})}
        return Decision(
            seq=record.seq,
            window=args["window"],
            pack=args["pack"],
            actor=record.actor,
            settings=args["settings"],
            inputs=list(record.input_ids),
            commit_seq=commit.seq if commit is not None else -1,
            snapshot=(commit.result_snap or "") if commit is not None else "",
            metrics={k: v for k, v in found["metrics"].items() if k not in ("batch", "used_ns", "left_ns")},
            policy=policy,
            trace=inputs.get("evidence", ""),
            config=inputs.get("config", ""),
            previous=before[1],
            gap=any(before[0] < w < args["window"] for w in self._absent),
        )


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, float | int) else None


def _window(commit: Record, grant: Record | None) -> Window:
    a = commit.args
    inputs, resume = a.get("inputs") or {}, a["resume"]
    return Window(
        seq=commit.seq,
        grant_seq=grant.seq if grant is not None else -1,
        window=a["window"],
        base=commit.parent_snap or "",
        result=commit.result_snap or "",
        phase=a["phase"],
        step0=a["step0"],
        steps=a["steps"],
        policy={k: v for k, v in resume.get("policy", {}).items() if k != "seq"},
        directives=list(grant.args["directives"]) if grant is not None else [],
        weights=inputs.get("weights", ""),
        gate=inputs.get("gate", {}),
        batch=a["metrics"].get("batch", ""),
        config=inputs.get("config", ""),
        data=resume.get("data", ""),
        code_id=commit.code_id or "",
        env_id=commit.env_id or "",
        rng_before=commit.rng_before or "",
        rng_after=commit.rng_after or "",
        steps_done=_done(a["metrics"].get("steps"), a["steps"]),
        replayed_steps=int(a["metrics"].get("replayed_steps", 0)),
    )


def _done(done: Any, steps: int) -> int:
    return done if type(done) is int and 0 < done <= steps else steps


def _check_signature(store: Store, made: Plan) -> None:
    """A ledger that was changed and not signed again is found before anything is computed."""
    try:
        head = store.checkpoint_head()
    except RecurosError as e:
        made.findings.append(Finding("ledger", -1, -1, e.message))
        return
    if head.size > store.size:
        made.findings.append(
            Finding("ledger", store.size, -1, f"{store.size} records can be read; {head.size} are signed")
        )
        return
    tree = CompactRange()
    for seq in range(head.size):
        tree.append(leaf_hash(store.record_bytes(seq)))
    if tree.root() != head.root:
        detail = f"the first {head.size} records hash to {tree.root().hex()}; {head.root.hex()} is signed"
        made.findings.append(Finding("ledger", -1, -1, detail))
