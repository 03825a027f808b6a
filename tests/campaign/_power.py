"""Power loss: whatever is left of the disk, the store opens and holds everything that it acknowledged.

A trace is a seeded history of one store (puts, snapshots, appends, checkpoints, reopening, kills and failing calls in the middle of
them) as system calls and acknowledgements. The power goes after every call of it, and what may then be on the disk is opened. The
promises, each named by the first words of its violation:

    refused       a store opens after any crash
    record        an acknowledged record has its number and its bytes
    object        an acknowledged object has its bytes
    again         what is sent again after a crash gets the number that it had, and an object whose first sending was cut short is stored
    signed        whoever saw a signature finds the tree it covers in the ledger, for ever
    highest       `keys/ID.signed` is not below any signature that exists
    checkpoint    an acknowledged checkpoint is in its file
    grace         a pack that was given up is in `packs/` or in `trash/` until its grace is over
    gone          what a finished compaction or collection gave up does not come back
    goes on       the opened store takes records and signs them
    verify        the audit finds nothing wrong afterwards
    leftover      no temporary file outlives an opening

A mutant is a log with one write barrier taken out, or two steps in the other order; the promises must break.
"""

from __future__ import annotations

import contextlib
import errno
import os
import random
import shutil
import tempfile
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from kfs import gc, records
from kfs.checkpoint import PublicKey, TreeHead, read_highest, verify_note
from kfs.compactor import Compactor
from kfs.files import Files
from kfs.formatfile import read_format
from kfs.layout import PACK_SUFFIX
from kfs.objects import NewObject, object_id
from kfs.records import Record
from kfs.store import Store, StoreWriter, read_checkpoint
from kfs.trash import unlink_due
from kfs.verify import verify
from syscalls.errors import RecurosError
from tests.campaign._disk import STYLES, Disk, Killed, Op, Recorder, Shelf
from tests.unit.kfs_support import commit, miss, snapshot_of

STEPS: Final = 14
CREATION_CALLS: Final = 64
"""At least as many as changing calls that creating a store takes (a test counts them)."""
_PACK_NAME_CHARS: Final = 64 + len(PACK_SUFFIX)
_NOTE_MARK: Final = "\n\n— ".encode()


def scratch() -> Path:
    """A new folder, in memory where the machine has one: what is on its disk is the model's business."""
    memory = Path("/dev/shm")
    return Path(tempfile.mkdtemp(prefix="recuros-kfs-", dir=memory if memory.is_dir() else None))


# --- a history ----------------------------------------------------------------------------------------------------------


@dataclass
class History:
    """Drives one store through a seeded history and logs it. `close` removes its folder."""

    dice: random.Random
    root: Path = field(default_factory=scratch)
    faults: bool = True

    def __post_init__(self) -> None:
        self.calls = Recorder(self.root)
        self._store: StoreWriter | None = None
        self._number = 0
        self._objects: list[str] = []
        self._leaves: dict[str, set[str]] = {}  # of committed snapshots
        self._named: set[str] = set()  # inputs of records
        self._given: set[str] = set()  # ids that plans gave up
        self._weights = bytearray(self.dice.randbytes(600))

    def close(self) -> None:
        """Give everything back."""
        if self._store is not None:
            self.calls.kill_at = self.calls.count + 1  # the last process dies; its lock goes with it
            self._drop()
        shutil.rmtree(self.root)

    def run(self, steps: int = STEPS) -> list[Op]:
        """The log of opening the store and of `steps` things done to it."""
        self._do(lambda store: None)
        for _ in range(steps):
            self._do(self._choose())
        return self.calls.log

    def _choose(self) -> Callable[[StoreWriter], None]:
        roll = self.dice.random()
        if roll < 0.22:
            return self._put()
        if roll < 0.5:
            return self._commit_window()
        if roll < 0.72:
            return self._append()
        if roll < 0.86:
            return self._sign
        if roll < 0.92:
            return self._compact
        if roll < 0.95:
            return self._collect
        return self._reopen

    def _do(self, action: Callable[[StoreWriter], None]) -> None:
        """One thing, whatever befalls it: a killed process is started again and does it again, and so does one with a poisoned store."""
        calls = self.calls
        if self.faults and self.dice.random() < 0.35:
            at = calls.count + self.dice.randint(1, 12 if self._store is not None else 60)
            roll = self.dice.random()
            if roll < 0.25:
                calls.kill_at = at
            elif roll < 0.5:
                calls.kill_at_folder_sync = self.dice.randint(1, 3 if self._store is not None else 12)
            else:
                calls.fail_at, calls.fail_with = at, self.dice.choice((errno.ENOSPC, errno.EIO))
        for _ in range(8):
            try:
                action(self._open())
            except Killed:
                self._drop()
            except RecurosError as error:
                if error.code not in ("E9-NOSPACE", "E9-POISONED"):
                    raise
                calls.fail_at = 0
                if self._store is not None and self._store.poisoned:
                    self._drop()
            else:
                return
        raise AssertionError("a step never got through")

    def _open(self) -> StoreWriter:
        if self._store is None:
            self._store = Store.open_writer(self.root / "store", Files(self.calls))
            self.calls.acknowledge(("open",))
            self._note_index()
        return self._store

    def _note_index(self) -> None:
        """The disposable index is written past the log: nothing of it is promised. It may be there after a crash, in any state."""
        path = self.root / "store" / "index.sqlite"
        if path.exists():
            self.calls.log.append(Op("index", data=path.read_bytes()))

    def _drop(self) -> None:
        """The process is gone: nothing more reaches the disk through it."""
        self.calls._dead = True
        if self._store is not None:
            with contextlib.suppress(Killed, RecurosError):
                self._store.close()
            self._store = None
        self.calls.revive()

    def _reopen(self, store: StoreWriter) -> None:
        self._note_index()
        self._store = None  # closed or not, it is let go
        store.close()
        self._open()

    def _sign(self, store: StoreWriter) -> None:
        head = store.checkpoint()
        self.calls.acknowledge(("checkpoint", head))

    def _compact(self, store: StoreWriter) -> None:
        Compactor(store, block=2, hot=1).run()
        self._note_index()
        if self.dice.random() < 0.5:
            for _ in unlink_due(store, grace_records=0):
                pass
        self.calls.acknowledge(("given up",))

    def _collect(self, store: StoreWriter) -> None:
        """Give up about half, and whatever no record names; what may go is no longer promised from before the plan on."""
        made = gc.plan(store, budget=0, keep_last=gc.KEEP_LAST_MIN)
        self._given |= set(made.ids)
        kept = {leaf for root, leaves in self._leaves.items() if root not in self._given for leaf in leaves}
        kept |= self._named - self._given
        self._objects = [name for name in self._objects if name in kept]
        self.calls.acknowledge(("giving up", kept, frozenset(self._given)))
        gc.collect(store, made, grace_records=self.dice.choice((0, 0, 1_000)))
        self.calls.acknowledge(("given up",))
        self._note_index()

    def _put(self) -> Callable[[StoreWriter], None]:
        items = [
            NewObject("U8", (size,), self.dice.randbytes(size), self.dice.choice(("report", "cal", "batch")))
            for size in self.dice.choices((1, 40, 700, 1_500), k=self.dice.randint(1, 3))
        ]

        def put(store: StoreWriter) -> None:
            self.calls.acknowledge(("trying", items))
            names = store.put(items)
            self._objects += names
            self.calls.acknowledge(("objects", {n: bytes(i.data) for n, i in zip(names, items, strict=True)}))

        return put

    def _commit_window(self) -> Callable[[StoreWriter], None]:
        self._number += 1
        window = self._number
        refs, new = self._snapshot()
        drafts: list[Record] = []

        def go(store: StoreWriter) -> None:
            self.calls.acknowledge(("trying", list(new.values())))
            root, _ = store.put_snapshot(refs, new)
            self.calls.acknowledge(("objects", {n: bytes(item.data) for n, item in new.items()}))
            self._leaves[root] = set(refs.values())
            drafts[:] = [commit(window, t_mono=window, result=root)]
            self._send(store, drafts)

        return go

    def _snapshot(self) -> tuple[dict[str, str], dict[str, NewObject]]:
        """Three tensors, of which some were there before; the larger ones are near the last ones, so that there is something to compact."""
        refs, new = snapshot_of(self.dice.randrange(40), self.dice.randrange(40))
        self._weights[self.dice.randrange(len(self._weights))] ^= 1 << self.dice.randrange(8)
        item = NewObject("F32", (len(self._weights) // 4,), bytes(self._weights), "snapshot")
        name = object_id(item.dtype, item.shape, item.data)
        return refs | {"student/head/weight": name}, new | {name: item}

    def _append(self) -> Callable[[StoreWriter], None]:
        drafts = []
        for _ in range(self.dice.choice((1, 1, 2, 5))):
            self._number += 1
            inputs = tuple(self.dice.sample(self._objects, min(len(self._objects), self.dice.randrange(3))))
            self._named |= set(inputs)
            drafts.append(miss(self._number, input_ids=inputs, data_cursor="x" * self.dice.choice((0, 30, 900))))
        return lambda store: self._send(store, drafts)

    def _send(self, store: StoreWriter, drafts: Sequence[Record]) -> None:
        seqs = store.append(drafts)
        self.calls.acknowledge(("records", {q: records.encode(d) for q, d in zip(seqs, drafts, strict=True)}))


def trace(seed: int, *, steps: int = STEPS, faults: bool = True) -> list[Op]:
    """The log of the history of a seed; a negative one is that of a store whose creation is killed at the call -seed, and nothing else."""
    history = History(random.Random(seed), faults=faults and seed >= 0)
    history.calls.kill_at = max(0, -seed)
    try:
        return list(history.run(steps))
    finally:
        history.close()


# --- what was promised ----------------------------------------------------------------------------------------------------


@dataclass
class Promises:
    """What stands acknowledged at a point of a log."""

    opened: bool = False
    records: dict[int, bytes] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)
    tried: list[NewObject] = field(default_factory=list)  # the last that were sent; acknowledged or not
    signed: dict[int, bytes] = field(default_factory=dict)  # size -> root, of every signature that exists
    checkpoint: int = 0
    given: frozenset[str] = frozenset()  # ids that plans gave up, or may have
    waiting: set[str] = field(default_factory=set)  # digests of packs in the trash
    retired: set[str] = field(default_factory=set)  # moved out of packs/ by something that was finished
    unlinked: set[str] = field(default_factory=set)
    gone: tuple[frozenset[str], frozenset[str]] = (frozenset(), frozenset())  # from packs/, and altogether

    def follow(self, op: Op) -> None:
        """Take in one entry."""
        if op.what == "ack":
            self._acknowledged(*op.ack)
        elif op.what == "write" and _NOTE_MARK in op.data:
            size, root = _claim(op.data)
            self.signed[size] = root
        elif op.what in ("rename", "link") and op.to_name.endswith(PACK_SUFFIX):
            self._named(op.to_name[-_PACK_NAME_CHARS:][:64], op.site)
        elif op.what == "unlink" and op.name.endswith(PACK_SUFFIX):
            digest = op.name[-_PACK_NAME_CHARS:][:64]
            if len(op.name) == _PACK_NAME_CHARS:
                self.retired.add(digest)
            else:
                self.waiting.discard(digest)
                self.unlinked.add(digest)

    def _named(self, digest: str, site: str) -> None:
        if site.startswith("store/trash/"):
            self.waiting.add(digest)
            return
        for there in (self.retired, self.unlinked):  # written again, or taken back
            there.discard(digest)
        self.gone = (self.gone[0] - {digest}, self.gone[1] - {digest})

    def _acknowledged(self, what: str, value: Any = None, given: frozenset[str] = frozenset()) -> None:
        if what == "open":
            self.opened = True
        elif what == "giving up":
            self.given = given
            self.objects = {name: data for name, data in self.objects.items() if name in value}
        elif what == "records":
            self.records |= value
        elif what == "trying":
            self.tried = value
        elif what == "objects":
            self.objects |= value
        elif what == "given up":
            self.gone = (frozenset(self.retired), frozenset(self.unlinked))
        elif what == "checkpoint":
            self.checkpoint = max(self.checkpoint, value.size)


def _claim(note: bytes) -> tuple[int, bytes]:
    """What a note claims; that it verifies is checked by the store, and once by the log's own test."""
    import base64

    lines = note.decode().split("\n")
    return int(lines[1]), base64.b64decode(lines[2])


def broken(target: Path, promises: Promises, *, audit: bool) -> str:
    """The first promise that a disk image does not keep, or nothing. Opens the store at `target` as its next writer would."""
    store_dir = target / "store"
    if promises.opened and (found := _broken_on_disk(store_dir, promises)):
        return found
    try:
        store = Store.open_writer(store_dir)
    except (RecurosError, OSError) as e:
        return f"refused: {e}"
    with store:
        found = _broken_in(store, promises)
    if found:
        return found
    left = [str(p.relative_to(target)) for p in target.rglob(".tmp-*")]
    if left:
        return f"leftover: {left}"
    if audit:
        report = verify(store_dir)
        if not report.ok:
            return f"verify: {report.problems[0]}"
    return ""


def _broken_on_disk(store_dir: Path, promises: Promises) -> str:
    """What must be in the files before anybody repairs anything."""
    try:
        form = read_format(store_dir / "FORMAT")
        key: PublicKey = form.key
        highest = read_highest(store_dir.parent / "keys" / f"{form.store_id}.signed")
        head = verify_note((store_dir / "checkpoint").read_bytes(), key)
    except (RecurosError, OSError) as e:
        return f"refused: {e}"
    most = max(promises.signed, default=0)
    if highest.size < most:
        return f"highest: ID.signed says {highest.size}, a signature over {most} records exists"
    if head.size < promises.checkpoint:
        return f"checkpoint: the file covers {head.size}, {promises.checkpoint} was acknowledged"
    return _broken_grace(store_dir, promises)


def _broken_grace(store_dir: Path, promises: Promises) -> str:
    held = {name[:64] for name in os.listdir(store_dir / "packs")}
    trashed = {name[-_PACK_NAME_CHARS:][:64] for name in os.listdir(store_dir / "trash")}
    if lost := promises.waiting - held - trashed:
        return f"grace: pack {min(lost)} is neither in packs/ nor in trash/"
    if back := (promises.gone[0] & held) | (promises.gone[1] & (held | trashed)):
        return f"gone: pack {min(back)} is back"
    return ""


def _broken_in(store: StoreWriter, promises: Promises) -> str:
    for seq, draft in promises.records.items():
        try:
            found = records.encode(store.record(seq).draft())
        except RecurosError as e:
            return f"record: {seq} is lost: {e.message}"
        if found != draft:
            return f"record: {seq} is another one"
    for name, data in promises.objects.items():
        try:
            held = store.get(name)
        except (RecurosError, OSError) as e:
            return f"object: {name} is lost: {e}"
        if held.data != data:
            return f"object: {name} has other bytes"
    if max(promises.signed, default=0) > store.size:
        return f"signed: a signature covers {max(promises.signed)} records, the ledger holds {store.size}"
    if promises.signed:
        reader = Store.open_reader(store.layout.store)
        with reader:
            for size, root in sorted(promises.signed.items()):
                if reader._ledger.grow_tree(size).root() != root:
                    return f"signed: the signature over {size} records is over another tree"
    for seq, draft in sorted(promises.records.items(), reverse=True):
        sent = records.decode(draft)
        if sent.result_snap not in promises.given and promises.objects.keys() >= set(sent.input_ids):
            if store.append([sent]) != [seq]:
                return f"again: record {seq} was stored a second time"
            break
    for name, item in zip(store.put(promises.tried), promises.tried, strict=True):
        try:
            held = store.get(name)
        except (RecurosError, OSError) as e:
            return f"again: object {name}, sent again, is lost: {e}"
        if held.data != bytes(item.data):
            return f"again: object {name}, sent again, has other bytes"
    size = store.size
    try:
        got = store.append([miss(10_000_000 + size)])
        head = store.checkpoint()
    except RecurosError as e:
        return f"goes on: {e}"
    if (
        got != [size]
        or head != TreeHead(size + 1, bytes.fromhex(store.head()[1]))
        or read_checkpoint(store.layout, store.format) != head
    ):
        return "goes on: the next record or its signature is not what it should be"
    return ""


# --- the campaign -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Violation:
    """A promise that broke, and how to see it again: the trace's seed, the entry of its log, the sample."""

    seed: int
    entry: int
    sample: int
    what: str
    after: str

    def __str__(self) -> str:
        return f"seed {self.seed}, entry {self.entry} ({self.after}), sample {self.sample}: {self.what}"


@dataclass
class Images:
    """Disk images laid out one after the other in one scratch folder."""

    folder: Path = field(default_factory=scratch)

    def __post_init__(self) -> None:
        self._shelf = Shelf(self.folder, lambda path: path.endswith(("/records", "LOCK")) or ".sqlite" in path)

    def __enter__(self) -> Images:
        return self

    def __exit__(self, *exc_info: object) -> None:
        shutil.rmtree(self.folder)

    def check(self, state: dict[str, bytes | None], promises: Promises, *, audit: bool) -> str:
        """Lay a state out, open it, say what is broken."""
        target = self.folder / "image"
        self._shelf.lay_out(state, target)
        try:
            return broken(target, promises, audit=audit)
        finally:
            shutil.rmtree(target)


@dataclass
class Count:
    """How many distinct states were opened, of how many drawn."""

    states: int = 0
    drawn: int = 0


def _some_index(indexes: Sequence[bytes], dice: random.Random) -> bytes:
    """Nothing; the index of any time, also of one that the rest of the disk does not know yet; two of them torn together."""
    roll = dice.random()
    if roll < 0.5:
        return b""
    first, second = dice.choice(indexes), dice.choice(indexes)
    if roll < 0.75:
        return first
    at = dice.randrange(max(1, len(first) // 512)) * 512
    return first[:at] + second[at:]


def crash_everywhere(
    log: Sequence[Op],
    seed: int,
    images: Images,
    count: Count,
    *,
    samples: int = 3,
    audit_every: int = 8,
    entries: Collection[int] | None = None,
) -> Iterator[Violation]:
    """Take the power away after every entry of a log (or those in `entries`), `samples` times.

    A state that was seen before is not opened again.
    """
    disk, promises = Disk(), Promises()
    seen: set[int] = set()
    indexes = [op.data for op in log if op.what == "index"]
    acknowledged = 0
    last = max(entries, default=-1) if entries is not None else len(log)
    for entry, op in enumerate(log[: last + 1]):
        disk.apply(op)
        promises.follow(op)
        acknowledged += op.what == "ack"
        for sample in range(samples) if entries is None or entry in entries else ():
            # A draw depends on these three alone, so that a violation can be seen again without its predecessors.
            dice = random.Random(f"{seed}/{entry}/{sample}")
            data, names = STYLES[sample] if sample < 2 else dice.choice(STYLES)
            state = disk.crash(dice, data, names)
            if indexes and "store/tile" in state and (index := _some_index(indexes, dice)):
                state["store/index.sqlite"] = index
            count.drawn += 1
            key = hash((frozenset(state.items()), acknowledged, len(promises.signed)))
            if key in seen:
                continue
            seen.add(key)
            count.states += 1
            what = images.check(state, promises, audit=count.states % audit_every == 0)
            if what:
                yield Violation(seed, entry, sample, what, f"{op.what} {op.site or op.name}".strip())
