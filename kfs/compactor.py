"""The compactor: packs of old commits become one smaller pack, in the background and in short steps.

Responsible for: taking BLOCK_COMMITS commits at a time (never the newest HOT_COMMITS), choosing a keyframe, re-encoding every other
state of the same path against it, and dropping the old packs once what it wrote has been read back, decoded and hashed to the same
ids. Refuses: chains (a base is stored plain), encodings that save nothing, packs with damaged objects, the hot path: it is a
generator that its owner steps when there is nothing else to do, and abandoning it at any step loses only the work.

The keyframe is the *middle* commit of a block, so no state is further from its base than half a block: the distance decides how many
bits differ (docs/kfs-format.md has the figures).
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Final

from kfs import delta, repack
from kfs import pack as packs
from kfs.objects import ITEM_BYTES, NewObject, byte_view
from kfs.pack import Encoded, Entry, Pack
from kfs.records import RecordKind
from kfs.repack import Steps
from kfs.store import StoreWriter
from kfs.tell import Tell, counted, silent
from kfs.trash import NO_PLAN, retire, unlink_due
from syscalls.errors import RecurosError

BLOCK_COMMITS: Final = 16
HOT_COMMITS: Final = 4
SLICE_NS: Final = 8_000_000
PACK_BYTES: Final = 32 << 20
"""A pack is closed when it has this much; one object may exceed it."""
OBJECT_BYTES_MIN: Final = 128
"""Below this an entry in the header costs more than the encoding saves."""
SAVES: Final = 0.97
"""An encoding is kept when it takes at most this share of the plain bytes."""
_RECORDS_PER_STEP: Final = 256


@dataclass(slots=True)
class Figures:
    """What compaction did since the store was opened."""

    blocks: int = 0
    objects: int = 0
    bytes_before: int = 0
    bytes_after: int = 0
    step_ns_max: int = 0
    notes: list[str] = field(default_factory=list)


class Compactor:
    """Steps one job after the other over a writer's store."""

    def __init__(self, store: StoreWriter, *, block: int = BLOCK_COMMITS, hot: int = HOT_COMMITS) -> None:
        """`block` commits a keyframe; the newest `hot` stay as they were written."""
        if block < 2 or hot < 1:
            raise RecurosError("E2-LIMIT", f"a block of {block} commits with {hot} left alone; at least 2 and 1")
        self.figures = Figures()
        self._store = store
        self._block = block
        self._hot = hot
        self._roots: list[tuple[str, int]] = []  # committed roots in order, with their record
        self._named: dict[str, int] = {}  # input -> the first record that names it
        self._seen: set[str] = set()
        self._scanned = 0
        self._roots_looked_at = -1
        self._job: Steps[None] | None = None
        self._looked_at = -1
        self._bad: set[str] = set()  # packs that cannot be compacted, because something in them is damaged

    def step(self, budget_ns: int = SLICE_NS) -> bool:
        """Work for about `budget_ns`; True when there is more to do at once. E9-NOSPACE puts the job off, with a note."""
        if self._job is None:
            if self._looked_at == self._store.size:
                return False
            self._job = self._work(partial=False)
        started_ns = now_ns = time.monotonic_ns()
        try:
            while now_ns - started_ns < budget_ns:
                step_ns = now_ns
                next(self._job)
                now_ns = time.monotonic_ns()
                self.figures.step_ns_max = max(self.figures.step_ns_max, now_ns - step_ns)
        except StopIteration:
            self._job = None
            return False
        except RecurosError as e:
            self.abandon()
            if e.code != "E9-NOSPACE" or self._store.poisoned:
                raise
            self.figures.notes.append(f"compaction put off: {e.message}")
            return False
        return True

    def run(self, *, partial: bool = True, tell: Tell = silent) -> Figures:
        """Everything there is to do, at once; `partial`: also a last block of fewer commits."""
        for _ in counted(self._work(partial=partial), "compaction, in steps", 0, tell):
            pass
        return self.figures

    def abandon(self) -> None:
        """Drop the job in hand; what it did not publish is gone, what it published is found again."""
        if self._job is not None:
            self._job.close()
            self._job = None

    # --- choosing ----------------------------------------------------------------------------------------------------

    def _work(self, *, partial: bool) -> Steps[None]:
        self._looked_at = self._store.size
        yield from self._scan()
        if partial or self._roots_looked_at < 0 or len(self._roots) - self._roots_looked_at >= self._block:
            self._roots_looked_at = len(self._roots)
            yield from self._read_headers()
            yield from self._drop_redundant()
            while block := (yield from self._next_block(partial)):
                yield from self._compact(block)
        for _ in unlink_due(self._store):
            yield

    def _scan(self) -> Steps[None]:
        """Take in the records since the last scan."""
        while self._scanned < self._store.size:
            stop = min(self._scanned + _RECORDS_PER_STEP, self._store.size)
            for record in self._store.records(self._scanned, stop):
                for name in record.input_ids:
                    self._named.setdefault(name, record.seq)
                if (
                    record.kind is RecordKind.WINDOW_COMMIT
                    and record.result_snap
                    and record.result_snap not in self._seen
                ):
                    self._seen.add(record.result_snap)
                    self._roots.append((record.result_snap, record.seq))
            self._scanned = stop
            yield

    def _read_headers(self) -> Steps[None]:
        for digest in sorted(self._store.catalog.digests()):
            self._store.catalog.pack(digest)
            yield

    def _raw_packs(self) -> list[Pack]:
        return [pack for pack in self._store.catalog.packs() if not pack.compacted and pack.digest not in self._bad]

    def _drop_redundant(self) -> Steps[None]:
        """Packs that a crash left beside the pack that replaces them."""
        inside: set[str] = set()
        for pack in self._store.catalog.packs():
            if pack.compacted:
                inside.update(pack.header)
                yield
        for pack in self._raw_packs() if inside else []:
            if pack.header.keys() <= inside:
                retire(self._store, pack.digest, NO_PLAN)
                yield

    def _next_block(self, partial: bool) -> Steps[list[tuple[str, int, Pack]]]:
        """The oldest commits whose packs are as they were written: (root, record, pack)."""
        cold = self._roots[: max(0, len(self._roots) - self._hot)]
        wanted = {root for root, _ in cold}
        where: dict[str, Pack] = {}
        for pack in self._raw_packs():
            where |= dict.fromkeys(wanted.intersection(pack.header), pack)
            yield
        found = [(root, seq, where[root]) for root, seq in cold if root in where][: self._block]
        return found if len(found) == self._block or (partial and len(found) > 1) else []

    # --- compacting --------------------------------------------------------------------------------------------------

    def _compact(self, block: list[tuple[str, int, Pack]]) -> Steps[None]:
        sources = {pack.digest: pack for _, _, pack in block}
        last = block[-1][1]
        for pack in self._raw_packs():
            if any(self._named.get(name, last + 1) <= last for name in pack.header):
                sources[pack.digest] = pack
        yield
        try:
            bases = yield from self._choose_bases([root for root, _, _ in block])
            todo = yield from self._left_to_write(sources)
            written: list[Pack] = []
            batch: dict[str, NewObject | Encoded] = {}
            size = 0
            for name, pack in todo:
                item = yield from self._encode(name, pack, bases.get(name))
                batch[name] = item
                size += delta.payload_bytes(item.pieces) if isinstance(item, Encoded) else byte_view(item.data).nbytes
                if size >= PACK_BYTES:
                    written.append((yield from repack.write(self._store, batch, compacted=True)))
                    batch, size = {}, 0
            if batch:
                written.append((yield from repack.write(self._store, batch, compacted=True)))
        except repack.DamagedPackError as e:
            self._bad.add(e.digest)
            self.figures.notes.append(str(e))
            return
        self.figures.blocks += 1
        self.figures.objects += len(todo)
        self.figures.bytes_before += sum(pack.file_bytes for pack in sources.values())
        self.figures.bytes_after += sum(pack.file_bytes for pack in written)
        for digest in sources:
            retire(self._store, digest, NO_PLAN)
            yield

    def _choose_bases(self, roots: list[str]) -> Steps[dict[str, str]]:
        """object -> the object it may be a delta of; see the module docstring."""
        trees = []
        for root in roots:
            try:
                trees.append(self._store.snapshot(root))
            except RecurosError as e:
                if e.code != "E4-NOENT":  # part of a snapshot that was given up
                    raise
            yield
        bases: dict[str, str] = {}
        if trees:
            keyframe = trees[len(trees) // 2]
            plain = set(keyframe.values()) | (yield from self._bases_in_use())
            for tree in trees:
                for path, leaf in tree.items():
                    base = keyframe.get(path)
                    if base is not None and leaf not in plain:
                        bases.setdefault(leaf, base)
                yield
            bases |= dict.fromkeys(plain, "")
        return bases

    def _bases_in_use(self) -> Steps[set[str]]:
        found: set[str] = set()
        for pack in self._store.catalog.packs():
            if pack.encoded:
                found.update(row[2] for row in pack.encoded.values())
                yield
        return found

    def _left_to_write(self, sources: dict[str, Pack]) -> Steps[list[tuple[str, Pack]]]:
        """What the sources hold and no compacted pack does."""
        inside: set[str] = set()
        for pack in self._store.catalog.packs():
            if pack.compacted:
                inside.update(pack.header)
                yield
        todo: dict[str, Pack] = {}
        for pack in sources.values():
            todo |= {name: pack for name in pack.header if name not in inside}
        return list(todo.items())

    def _encode(self, name: str, pack: Pack, base: str | None) -> Steps[NewObject | Encoded]:
        """The object as it will be stored; `base` is an id, "" when it must stay plain, None when it has none."""
        entry = pack.entry(name)
        data = packs.read_bytes(pack.path, entry)
        yield from repack.check(self._store, name, pack)
        plain = NewObject(entry.dtype, entry.shape, data, entry.kind)
        if base == "" or entry.length < OBJECT_BYTES_MIN:
            return plain
        base, base_data = self._base_bytes(base, entry)
        item_bytes = ITEM_BYTES[entry.dtype]
        if base_data is not None:
            # The first block tells whether the keyframe helps.
            first = data[: delta.BLOCK_BYTES]
            alone = delta.payload_bytes(delta.encode_blocks(first, item_bytes))
            if alone <= delta.payload_bytes(delta.encode_blocks(first, item_bytes, base_data[: delta.BLOCK_BYTES])):
                base, base_data = "", None
            yield
        pieces = []
        for piece in delta.encode_blocks(data, item_bytes, base_data):
            pieces.append(piece)
            yield
        if delta.payload_bytes(pieces) > SAVES * entry.length:
            return plain
        return Encoded(entry.dtype, entry.shape, entry.kind, base, pieces)

    def _base_bytes(self, base: str | None, entry: Entry) -> tuple[str, memoryview | None]:
        """The base to use and its bytes: a base that is itself a delta hands over to its own, which is stored plain."""
        for _ in range(2):
            pack = self._store.catalog.find(base) if base else None
            if not base or pack is None:
                break
            found = pack.entry(base)
            if found.base is None:
                if (found.dtype, found.shape) != (entry.dtype, entry.shape):
                    break
                return base, packs.read_bytes(pack.path, found)
            base = found.base
        return "", None
