"""What the records of a ledger refer to, and what those objects refer to in turn.

Responsible for: which snapshots and inputs are kept and which were given up, the facts that retention scores, and walking trees down to
leaves and the bases of deltas. Works in short steps and takes up records as they come. Refuses: guessing what a node that cannot
be read refers to.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final

from kfs import snapshot
from kfs.ids import is_object_id
from kfs.plans import plan_ids
from kfs.records import Record, RecordKind, references
from kfs.repack import Steps
from kfs.store import Store
from kfs.tell import Tell, silent

_RECORDS_PER_STEP: Final = 256
_STATES: Final = (RecordKind.WINDOW_COMMIT, RecordKind.WINDOW_ROLLBACK)
_IMPORTANCE: Final = frozenset({"movement", "l0"})
"""Names under which a record's args give movement scores or L0 gates, in [0, 1]."""
NEVER: Final = frozenset({"policy", "cal", "report", "program"})
"""Kinds that are kept as inputs whatever a plan says: decisions replay from them."""


@dataclass(slots=True)
class Commit:
    """One committed state. `result` is its snapshot, `parent` the one that a rollback would have gone back to."""

    seq: int
    window: int
    result: str
    parent: str | None
    used_ns: int
    cka: float | None


@dataclass(slots=True)
class Pending:
    """A plan that has no `gc.done` yet."""

    seq: int
    ids: list[str]


@dataclass(slots=True)
class Reach:
    """What records up to `scanned` say. See `scan`."""

    store: Store
    scanned: int = 0
    commits: list[Commit] = field(default_factory=list)
    results: dict[str, int] = field(default_factory=dict)  # snapshot -> the last record that has it as its result
    inputs: dict[str, int] = field(default_factory=dict)  # object -> the last record that rests on it
    in_args: set[str] = field(default_factory=set)  # ids that stand in args: weights in force, gates, programs
    pinned: dict[str, str] = field(default_factory=dict)  # snapshot -> why it is never a candidate
    scores: dict[str, float] = field(default_factory=dict)  # snapshot -> held-out score
    importance: dict[str, float] = field(default_factory=dict)
    given_up: dict[str, int] = field(default_factory=dict)  # id -> plan
    pending: dict[int, Pending] = field(default_factory=dict)
    swap_window: int = -1

    def scan(self) -> Steps[None]:
        """Take in the records since the last scan."""
        while self.scanned < self.store.size:
            stop = min(self.scanned + _RECORDS_PER_STEP, self.store.size)
            for record in self.store.records(self.scanned, stop):
                self._take(record)
            self.scanned = stop
            yield

    def scan_all(self, tell: Tell = silent) -> None:
        """`scan` at once."""
        for _ in self.scan():
            tell("records", self.scanned, self.store.size)

    def _take(self, record: Record) -> None:
        for name in references(record):
            self.given_up.pop(name, None)
        if record.result_snap and record.kind is not RecordKind.WINDOW_ROLLBACK:
            self.results[record.result_snap] = record.seq
        self.inputs |= dict.fromkeys(record.input_ids, record.seq)
        ids, importance = _look_into(record.args)
        match record.kind:
            case RecordKind.WINDOW_COMMIT:
                self._commit(record)
            case RecordKind.EVALUATE:
                self._evaluated(record)
            case RecordKind.SWAP:
                self.swap_window = record.args["window"]
            case RecordKind.GC_PLAN:
                self.inputs.update(dict.fromkeys(record.input_ids, record.seq))
                plan = Pending(record.seq, plan_ids(record, lambda name: self.store.get(name).data))
                self.given_up |= dict.fromkeys(plan.ids, record.seq)
                self.pending[record.seq] = plan
                ids = set()
            case RecordKind.GC_DONE:
                self.pending.pop(record.args["plan_seq"], None)
        self.in_args |= ids
        if importance is not None:
            self.importance |= dict.fromkeys(record.input_ids, importance)
        if record.result_snap and record.kind not in _STATES:
            name = record.args.get("name") or f"record {record.seq}"
            self.pinned[record.result_snap] = f"named by {record.kind}: {name}"

    def _commit(self, record: Record) -> None:
        metrics = record.args["metrics"]
        used_ns, cka = metrics.get("used_ns"), metrics.get("cka")
        self.commits.append(
            Commit(
                record.seq,
                record.args["window"],
                record.result_snap or "",
                record.parent_snap,
                used_ns if isinstance(used_ns, int) else 0,
                float(cka) if isinstance(cka, float | int) else None,
            )
        )

    def _evaluated(self, record: Record) -> None:
        """Held-out means the validation split: no decision rests on the test split, this one neither."""
        student = record.args["scores"].get("student")
        if record.args["split"] == "validation" and record.parent_snap and isinstance(student, dict):
            accuracy, nll = student.get("accuracy"), student.get("nll")
            if isinstance(accuracy, float | int):
                self.scores[record.parent_snap] = float(accuracy)
            elif isinstance(nll, float | int):
                self.scores[record.parent_snap] = -float(nll)

    # --- what is kept ------------------------------------------------------------------------------------------------

    def kept_roots(self) -> list[str]:
        """Snapshots that records name and no plan gave up."""
        return [root for root in self.results if root not in self.given_up]

    def kept_objects(self) -> Iterator[str]:
        """Single objects that records name and no plan gave up; an id in args that is a snapshot's does not keep the snapshot."""
        yield from (name for name in self.inputs if name not in self.given_up and name not in self.results)
        yield from (name for name in self.in_args if name not in self.given_up and name not in self.results)

    def pins(self, keep_last: int) -> dict[str, str]:
        """Snapshots that no plan may list: id -> why."""
        pins = dict(self.pinned)
        states = [commit for commit in self.commits if commit.result]
        for commit in states[-keep_last:]:
            pins.setdefault(commit.result, f"one of the last {keep_last}")
            if commit.parent:
                pins.setdefault(commit.parent, "the state that a rollback goes back to")
        promoted = [commit for commit in states if commit.window < self.swap_window]
        if self.swap_window >= 0 and promoted:
            pins.setdefault(promoted[-1].result, "the state that the last swap promoted")
        return pins

    # --- what objects refer to ---------------------------------------------------------------------------------------

    def children(self, name: str, level: int) -> list[str]:
        """What a tree node of that level refers to; see `snapshot.LEVELS`. E4-NOENT or E9-INTEGRITY when it cannot be read."""
        return list(snapshot.decode_node(self.store.get(name).data, snapshot.LEVELS[level]).values())

    def base(self, name: str) -> str:
        """The object that this one is stored against, "" for none."""
        pack = self.store.catalog.find(name)
        return (pack.encoded[name][2] or "") if pack is not None and name in pack.encoded else ""


def mark(reach: Reach, root: str, live: set[str], level: int = 0) -> Steps[None]:
    """Add a snapshot (or a node of a lower level), everything below it and the bases of that to `live`."""
    todo = [(root, level)]
    while todo:
        name, depth = todo.pop()
        if depth < len(snapshot.LEVELS):
            mark_name = f"{depth}{name}"  # a blob may be a node and a leaf; only as a node has it children
            if mark_name in live:
                continue
            live.add(mark_name)
            todo += [(child, depth + 1) for child in reach.children(name, depth)]
            yield
        live.add(name)
        if base := reach.base(name):
            live.add(base)


def _look_into(value: Any) -> tuple[set[str], float | None]:
    """Every object id anywhere in plain data, and the largest movement score or L0 gate."""
    ids: set[str] = set()
    importance: float | None = None
    todo: list[tuple[str, Any]] = [("", value)]
    while todo:
        key, item = todo.pop()
        if isinstance(item, dict):
            todo += item.items()
        elif isinstance(item, list):
            todo += [(key, inner) for inner in item]
        elif isinstance(item, str):
            if is_object_id(item):
                ids.add(item)
        elif key in _IMPORTANCE and isinstance(item, float | int):
            importance = max(importance or 0.0, float(item))
    return ids, importance
