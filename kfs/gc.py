"""Collection: what to give up, said in the ledger first, then done in short steps.

Responsible for: the plan (a pure reading of the store, which any reader can make), the `gc.plan` record, moving packs that nothing
kept refers to into the trash, rewriting packs that hold both, unlinking after the grace, and `gc.done`. A crash anywhere leaves either
no plan, or a plan that the next collector carries on with: what is to go follows from the records alone. Refuses: giving up what is pinned,
sweeping while a kept snapshot cannot be read to its last node (its leaves would be taken for garbage).
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from kfs import repack, snapshot
from kfs.objects import blob, is_object_id
from kfs.pack import Pack
from kfs.plans import INLINE_IDS_MAX, LIST_KIND, encode_list
from kfs.reach import NEVER, Reach, mark
from kfs.records import Record, RecordKind
from kfs.repack import Steps
from kfs.retention import DEFAULT_WEIGHTS, Facts, Weights, give_up, utilities
from kfs.store import Store, StoreWriter
from kfs.tell import Tell, counted, silent
from kfs.trash import GRACE_RECORDS, retire, unlink_due, waiting
from syscalls.errors import RecurosError

KEEP_LAST: Final = 8
KEEP_LAST_MIN: Final = 2
"""The last state and the one before it: what a runtime that is up may go back to."""
LEASE_RECORDS: Final = 64
"""A pack that no record names is let be until the ledger has grown by this much: its record may be on its way."""
RETRY_RECORDS: Final = 64
"""A sweep that failed (a full disk, a damaged snapshot) is tried again when the ledger has grown by this much."""
SWEEPS_MAX: Final = 8
SLICE_NS: Final = 8_000_000
_ROW_BYTES: Final = 160  # an object's share of its pack's header


@dataclass(frozen=True, slots=True)
class Choice:
    """One thing that a plan gives up."""

    name: str
    what: str  # "snapshot", or the kind of an artifact
    seq: int
    window: int
    score: float
    bytes: int


@dataclass(slots=True)
class Plan:
    """What a collection would do. Bytes are those of stored objects; `unreferenced`: packs that nothing names."""

    bytes_now: int = 0
    bytes_after: int = 0
    budget: int | None = None
    choices: list[Choice] = field(default_factory=list)
    pins: dict[str, str] = field(default_factory=dict)
    snapshots: int = 0
    unreferenced: int = 0
    reason: str = ""

    @property
    def ids(self) -> list[str]:
        """What it gives up, in order."""
        return [choice.name for choice in self.choices]

    @property
    def scores(self) -> list[float]:
        """The utility of each."""
        return [choice.score for choice in self.choices]


def plan(
    store: Store,
    *,
    budget: int | None = None,
    keep_last: int = KEEP_LAST,
    pins: Sequence[str] = (),
    weights: Weights = DEFAULT_WEIGHTS,
    tell: Tell = silent,
) -> Plan:
    """Choose what to give up so that what stays takes at most `budget` bytes; None gives up only what nothing names.

    `pins` are ids, unambiguous beginnings of ids, or names of snapshots. Reads headers and trees; writes nothing.
    """
    if keep_last < KEEP_LAST_MIN:
        raise RecurosError("E2-LIMIT", f"keep-last {keep_last}: a rollback needs the last {KEEP_LAST_MIN} states")
    if budget is not None and budget < 0:
        raise RecurosError("E2-LIMIT", f"a budget of {budget} bytes")
    reach = Reach(store)
    reach.scan_all(tell)
    held = reach.pins(keep_last)
    for text in pins:
        held[_resolve(reach, text)] = "pinned by this plan"
    return _Planner(reach, held, weights, tell).make(budget)


def _resolve(reach: Reach, text: str) -> str:
    named = [root for root, why in reach.pinned.items() if why.partition(": ")[2] == text]
    if len(named) == 1:
        return named[0]
    found = reach.store.resolve(text)
    if found not in reach.results and found not in reach.inputs:
        raise RecurosError(
            "E4-NOENT", f"no record names {text!r:.80}, so nothing would give it up", hint="recuros snapshot ls --all"
        )
    return found


class _Planner:
    """Numbers for objects, closures of candidates, and the plan."""

    def __init__(self, reach: Reach, held: dict[str, str], weights: Weights, tell: Tell) -> None:
        self._reach = reach
        self._held = held
        self._weights = weights
        self._tell = tell
        self._numbers: dict[str, int] = {}
        self._sizes: list[int] = []
        self._below: dict[str, frozenset[int]] = {}

    def _number(self, name: str) -> int:
        number = self._numbers.get(name)
        if number is None:
            number = self._numbers[name] = len(self._sizes)
            pack = self._reach.store.catalog.find_surely(name)
            self._sizes.append(0 if pack is None else pack.entry(name).length + _ROW_BYTES)
        return number

    def _leaf(self, name: str) -> frozenset[int]:
        base = self._reach.base(name)
        return frozenset({self._number(name), self._number(base)} if base else {self._number(name)})

    def _closure(self, name: str, level: int = 0) -> frozenset[int]:
        if level == len(snapshot.LEVELS):
            return self._leaf(name)
        known = self._below.get(f"{level}{name}")
        if known is None:
            below = [self._closure(child, level + 1) for child in self._reach.children(name, level)]
            known = self._leaf(name).union(*below)
            if level:
                self._below[f"{level}{name}"] = known
        return known

    def make(self, budget: int | None) -> Plan:
        """The plan; E9-INTEGRITY when a snapshot that is kept cannot be read whole."""
        try:
            return self._make(budget)
        except RecurosError as e:
            raise RecurosError(
                "E9-INTEGRITY",
                f"a snapshot that records name cannot be read: {e.message}; nothing is planned",
                hint="recuros kfs verify",
            ) from e

    def _make(self, budget: int | None) -> Plan:
        reach = self._reach
        made = Plan(budget=budget, pins=self._held)
        present = {name for pack in reach.store.catalog.packs() for name in pack.header}
        roots = [commit for commit in _newest(reach) if commit.result in present]
        artifacts = self._artifacts(present)
        facts = self._facts(roots)
        kept: set[int] = set()
        closures: dict[str, Sequence[int]] = {}
        worth: dict[str, float] = {}
        scored = zip(facts, utilities(facts, self._weights), strict=True)
        for fact, score in counted(scored, "snapshots", len(facts), self._tell):
            closure = self._closure(fact.name)
            if fact.pinned:
                kept |= closure
            else:
                closures[fact.name], worth[fact.name] = sorted(closure), score
        for root in reach.kept_roots():
            if root not in closures and root in present:
                kept |= self._closure(root)
        ages = utilities(artifacts, self._weights)
        for fact, score in zip(artifacts, ages, strict=True):
            closures[fact.name], worth[fact.name] = sorted(self._leaf(fact.name)), score
        for name in reach.kept_objects():
            if name not in closures and name in present:
                kept |= self._leaf(name)
        named = kept.union(*closures.values())
        made.snapshots = len(roots)
        made.bytes_now = sum(self._sizes[i] for i in named)
        chosen = [] if budget is None else give_up(closures, worth, self._sizes, sorted(kept), budget)
        made.bytes_after = made.bytes_now - sum(freed for _, freed in chosen)
        windows = {commit.result: commit.window for commit in roots}
        for name, freed in chosen:
            seq = reach.results.get(name, reach.inputs.get(name, -1))
            what = "snapshot" if name in windows else reach.store.entry(name)[1].kind
            made.choices.append(Choice(name, what, seq, windows.get(name, -1), round(worth[name], 6), freed))
        known = {name for name, number in self._numbers.items() if number in named}
        ever = known | reach.given_up.keys() | reach.results.keys() | reach.inputs.keys() | reach.in_args
        made.unreferenced = sum(not (pack.header.keys() & ever) for pack in reach.store.catalog.packs())
        made.reason = _reason(made)
        return made

    def _facts(self, commits: Sequence[Any]) -> list[Facts]:
        reach = self._reach
        return [
            Facts(
                name=commit.result,
                age=len(commits) - i,
                score=reach.scores.get(commit.result),
                cka=commit.cka,
                used_ns=commit.used_ns,
                pinned=self._held.get(commit.result, ""),
            )
            for i, commit in enumerate(commits)
        ]

    def _artifacts(self, present: set[str]) -> list[Facts]:
        """Inputs that a plan may give up: probe artifacts, masks, batches; oldest first."""
        reach = self._reach
        found = []
        for name, _ in sorted(reach.inputs.items(), key=lambda pair: pair[1]):
            free = name not in self._held and name not in reach.given_up and name not in reach.results
            if free and name in present and name not in reach.in_args and reach.store.entry(name)[1].kind not in NEVER:
                found.append(name)
        return [
            Facts(name=name, age=len(found) - i, importance=reach.importance.get(name, 0.0))
            for i, name in enumerate(found)
        ]


def _newest(reach: Reach) -> list[Any]:
    """One commit for each snapshot that is kept: the last that made it, in the order of the ledger."""
    last = {commit.result: commit for commit in reach.commits if commit.result and commit.result not in reach.given_up}
    return sorted(last.values(), key=lambda commit: commit.seq)


def _reason(made: Plan) -> str:
    parts = []
    if made.choices:
        parts.append(f"{len(made.choices)} of least utility per byte, to {made.budget} bytes")
    if made.unreferenced:
        parts.append(f"{made.unreferenced} pack{'s' * (made.unreferenced != 1)} that nothing names")
    return "; ".join(parts)


class Collector:
    """Carries plans out over a writer's store, step by step. There is one for each open store."""

    def __init__(
        self, store: StoreWriter, *, lease_records: int = LEASE_RECORDS, grace_records: int = GRACE_RECORDS
    ) -> None:
        """`lease_records` is 0 where no other process can be about to name a pack: offline, under the lock."""
        self._store = store
        self._reach = Reach(store)
        self._lease = lease_records
        self._grace = grace_records
        self._swept: set[int] = set()
        self._job: Steps[None] | None = None
        self._looked_at = -1
        self._retry_at = 0
        self._tries = 0
        self._unlinked: dict[str, list[int]] = {}  # plan -> packs, bytes
        self.notes: list[str] = []
        self.step_ns_max = 0
        self.sweeps = 0

    # --- deciding ----------------------------------------------------------------------------------------------------

    def begin(
        self, ids: Sequence[str], scores: Sequence[float], reason: str, *, actor: str = "operator", cap_id: int = -1
    ) -> int:
        """Record a plan, after which nothing of it can be named again; returns its number. `step` does the rest."""
        self.check(ids, scores)
        record_args: dict[str, Any] = {"ids": list(ids), "scores": [float(score) for score in scores], "reason": reason}
        inputs: tuple[str, ...] = ()
        if len(ids) > INLINE_IDS_MAX:
            inputs = tuple(self._store.put([blob(encode_list(ids, scores), LIST_KIND)]))
            record_args |= {"ids": [], "scores": []}
        draft = Record(actor, RecordKind.GC_PLAN, record_args, time.monotonic_ns(), cap_id, input_ids=inputs)
        (seq,) = self._store.append([draft])
        self._store.doomed |= dict.fromkeys(ids, seq)
        self._reach.scan_all()
        self.abandon()
        self._retry_at = 0
        self._looked_at = -1
        return seq

    def check(self, ids: Sequence[str], scores: Sequence[float]) -> None:
        """Refuse a plan that makes no sense (E2-USAGE, E4-NOENT) or lists something pinned (E2-USAGE)."""
        self._reach.scan_all()
        if len(ids) != len(scores) or len(set(ids)) != len(ids) or not all(map(is_object_id, ids)):
            raise RecurosError(
                "E2-USAGE", f"a plan lists ids once, with a score each; {len(ids)} ids, {len(scores)} scores"
            )
        pins = self._reach.pins(KEEP_LAST_MIN)
        for name in ids:
            if why := pins.get(name, ""):
                raise RecurosError(
                    "E2-USAGE", f"{name} is pinned: {why}", hint="recuros kfs gc --plan makes a new plan"
                )
            if name in self._reach.given_up:
                plan = self._reach.given_up[name]
                raise RecurosError(
                    "E4-NOENT", f"{name} was given up under plan {plan}", hint=f"recuros kfs show {plan}"
                )
            if name not in self._reach.results:
                if name not in self._reach.inputs:
                    raise RecurosError("E4-NOENT", f"no record names {name}", hint="recuros kfs gc --plan")
                if self._store.entry(name)[1].kind in NEVER or name in self._reach.in_args:
                    raise RecurosError(
                        "E2-USAGE", f"{name} is an input that decisions replay from; it is never given up"
                    )

    # --- doing -------------------------------------------------------------------------------------------------------

    def step(self, budget_ns: int = SLICE_NS) -> bool:
        """Work for about `budget_ns`; True when there is more to do at once. E9-NOSPACE puts the sweep off, with a note."""
        if self._job is None:
            if self._looked_at == self._store.size or self._store.size < self._retry_at:
                return False
            self._job = self._work()
        started_ns = now_ns = time.monotonic_ns()
        try:
            while now_ns - started_ns < budget_ns:
                step_ns = now_ns
                next(self._job)
                now_ns = time.monotonic_ns()
                self.step_ns_max = max(self.step_ns_max, now_ns - step_ns)
        except StopIteration:
            self._job = None
            return False
        except RecurosError as e:
            self.abandon()
            if self._store.poisoned:
                raise
            self._note(f"collection put off: {e.message}")
            self._retry_at = self._store.size + RETRY_RECORDS
            return False
        return True

    def run(self, tell: Tell = silent) -> None:
        """Everything there is to do now, at once."""
        for _ in counted(self._work(), "collection, in steps", 0, tell):
            pass

    @property
    def pending(self) -> list[int]:
        """Plans that are not done: swept or not, in their grace or not."""
        return sorted(self._reach.pending)

    def abandon(self) -> None:
        """Drop the step in hand; whoever opens the store next carries on."""
        if self._job is not None:
            self._job.close()
            self._job = None
        self._store.watched = None

    def _note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)

    def _work(self) -> Steps[None]:
        self._looked_at = self._store.size
        yield from self._reach.scan()
        todo = [plan for plan in self._reach.pending if plan not in self._swept]
        if todo:
            yield from self._sweep(todo[-1])
            self._tries += 1
            if self._left_over(todo) and self._tries < SWEEPS_MAX:
                self._retry_at = self._store.size + RETRY_RECORDS  # what was in somebody's hands is garbage by then
            else:
                self._swept.update(todo)
                self._tries = 0
        for item in unlink_due(self._store, self._grace):
            packs_bytes = self._unlinked.setdefault(item.plan, [0, 0])
            packs_bytes[0] += 1
            packs_bytes[1] += item.file_bytes
            yield
        self._finish()

    def _left_over(self, plans: Sequence[int]) -> bool:
        """Whether something that these plans gave up is still in a pack: it was stored or sent along a moment ago."""
        names = (name for number in plans for name in self._reach.pending[number].ids)
        return any(name in self._reach.given_up and name in self._store for name in names)

    def _finish(self) -> None:
        left = {item.plan for item in waiting(self._store.layout)}
        for plan in sorted(self._swept & self._reach.pending.keys()):
            if str(plan) not in left:
                count, size = self._unlinked.get(str(plan), (0, 0))
                args = {"plan_seq": plan, "packs": count, "bytes": size}
                self._store.append([Record("archivist", RecordKind.GC_DONE, args, time.monotonic_ns())])
                self._unlinked.pop(str(plan), None)
        self._reach.scan_all()
        for name in [name for name, plan in self._store.doomed.items() if plan not in self._reach.pending]:
            del self._store.doomed[name]
        self._looked_at = self._store.size

    def _sweep(self, plan: int) -> Steps[None]:
        """Empty `packs/` of what nothing kept refers to. What others store or name meanwhile is kept."""
        store = self._store
        self.sweeps += 1
        store.watched = set()
        try:
            live = yield from self._live()
            for pack in store.catalog.packs():
                yield from self._sweep_pack(pack, live, str(plan))
        finally:
            store.watched = None

    def _sweep_pack(self, pack: Pack, live: set[str], plan: str) -> Steps[None]:
        store = self._store
        touched = self._touched()
        keep = [name for name in pack.header if name in live or name in touched]
        if len(keep) == len(pack.header):
            return
        elsewhere = self._held_elsewhere(pack)
        batch = {name: repack.as_stored(pack, name) for name in keep if name not in elsewhere}
        yield
        if batch:
            try:
                yield from repack.write(store, batch, compacted=pack.compacted)
            except RecurosError as e:
                if e.code != "E9-INTEGRITY":
                    raise
                self._note(e.message)  # damaged before it was copied: `kfs verify` names it, and it stays
                return
        # Somebody may have stored or named one of the others while the pack was rewritten.
        kept = set(keep)
        while late := {name for name in pack.header if name in self._touched()} - kept:
            kept |= late
            rest = {name: repack.as_stored(pack, name) for name in late}
            yield from repack.write(store, rest, compacted=pack.compacted)
        retire(store, pack.digest, plan)
        yield

    def _touched(self) -> set[str]:
        """What was stored or named since the sweep began, and what that is stored against."""
        watched = self._store.watched or set()
        return watched | {base for name in watched if (base := self._reach.base(name))}

    def _held_elsewhere(self, pack: Pack) -> set[str]:
        return {
            name for name in pack.header if (found := self._store.catalog.find(name)) is not None and found is not pack
        }

    def _live(self) -> Steps[set[str]]:
        """Everything that is to stay."""
        store, reach = self._store, self._reach
        for digest in sorted(store.catalog.digests()):
            store.catalog.pack(digest)
            yield
        if store.damaged:
            unreadable = ", ".join(sorted(store.damaged))
            raise RecurosError(
                "E9-INTEGRITY",
                f"the headers of {unreadable} cannot be read; nothing is swept",
                hint="recuros kfs verify",
            )
        live: set[str] = set()
        for root in reach.kept_roots():
            try:
                yield from mark(reach, root, live)
            except RecurosError as e:
                raise RecurosError(
                    "E9-INTEGRITY",
                    f"snapshot {root}, which is kept, cannot be read: {e.message}; nothing is swept",
                    hint="recuros kfs verify",
                ) from e
        recent = [name for names_put in store.recent for name in names_put] if self._lease else []
        for name in (*reach.kept_objects(), *recent):
            live.add(name)
            if base := reach.base(name):
                live.add(base)
        yield
        ever = self._ever(live)
        for pack in store.catalog.packs():
            if self._age(pack) < self._lease and not (pack.header.keys() & ever):
                yield from self._mark_leased(pack, live)
        return live

    def _ever(self, live: set[str]) -> set[str]:
        reach = self._reach
        return live | reach.given_up.keys() | reach.results.keys() | reach.inputs.keys()

    def _mark_leased(self, pack: Pack, live: set[str]) -> Steps[None]:
        """A snapshot that is staged and not committed yet: it leans on objects of other packs too."""
        for name in pack.header:
            live.add(name)
            if pack.entry(name).kind != "snapshot" or pack.entry(name).dtype != "U8":
                continue
            for level in range(len(snapshot.LEVELS)):
                try:
                    yield from mark(self._reach, name, live, level)
                except RecurosError:
                    continue  # a blob, or a node of another level
                break

    def _age(self, pack: Pack) -> int:
        return self._store.size - self._store.born.get(pack.digest, self._store.opened_size)


def collect(
    store: StoreWriter,
    made: Plan,
    *,
    actor: str = "operator",
    grace_records: int = GRACE_RECORDS,
    tell: Tell = silent,
) -> tuple[int, list[str]]:
    """Record a plan and carry it out, offline: its number (-1: nothing to give up), and what could not be done."""
    collector = Collector(store, lease_records=0, grace_records=grace_records)
    seq = -1
    if made.choices or made.unreferenced:
        seq = collector.begin(made.ids, made.scores, made.reason, actor=actor)
    collector.run(tell)
    return seq, collector.notes
