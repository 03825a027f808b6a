"""A store: packs of objects, and the ledger over them.

Responsible for: opening a store to write (one process, under flock) or to read (any number, no lock, beside a live writer);
putting objects with dedupe, one durable pack per call; snapshots as trees; appending records; verified reads. Refuses: handing
out bytes that do not match their id; acknowledging what is not on disk. Neither class is meant for more than one thread.
"""

from __future__ import annotations

import os
import re
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from kfs import delta, records
from kfs import pack as packs
from kfs.catalog import Catalog
from kfs.checkpoint import NOTE_BYTES_MAX, Signer, TreeHead, verify_note
from kfs.files import Files
from kfs.formatfile import Format, origin, read_format
from kfs.idempotency import Known
from kfs.layout import TEMP_PREFIX, Layout
from kfs.ledger import FRAME_BYTES_MAX, FRAME_RECORDS_MAX, MAGIC, LedgerReader, LedgerWriter
from kfs.lock import WriterLock
from kfs.objects import ITEM_BYTES, NewObject, blob, id_of, is_object_id, object_id
from kfs.pack import Entry
from kfs.plans import pending_ids, plan_of
from kfs.records import Record
from kfs.snapshot import TreeCache, build_tree, read_tree
from kfs.tiles import TileWriter
from syscalls import limits
from syscalls.errors import RecurosError

if TYPE_CHECKING:
    from typing_extensions import Buffer

CHECKPOINT_RECORDS: Final = 256
CHECKPOINT_PERIOD_NS: Final = 1_000_000_000
RECENT_COMMITS: Final = 8
_VANISHED_TRIES: Final = 5
_HASHED_BESIDE_BYTES_MIN: Final = 4 << 20
_PREFIX: Final = re.compile(r"b3:[0-9a-f]{0,63}\Z")
# A frame holds at least this many records of the largest size.
_BATCH_RECORDS: Final = min(FRAME_RECORDS_MAX, FRAME_BYTES_MAX // (limits.RECORD_BYTES_MAX + 64))


@dataclass(frozen=True, slots=True)
class Stored:
    """A verified object: `data` is a read-only view, of a mapping of its pack when it is large."""

    dtype: str
    shape: tuple[int, ...]
    kind: str
    data: memoryview


class Store:
    """The reading side. `refresh` (also called when an id is unknown) picks up what a live writer has added."""

    def __init__(self, layout: Layout, form: Format, ledger: LedgerReader, catalog: Catalog) -> None:
        """Use `open_reader` or `open_writer`."""
        self.layout = layout
        self.format = form
        self._ledger = ledger
        self.catalog = catalog
        self._seen_gone = False  # whether a pack that this reader knew has left

    @staticmethod
    def open_reader(store_dir: Path | str, *, use_index: bool = True) -> Store:
        """Open for reading; takes no lock. E4-NOENT without a store, E9-VERSION for another format."""
        layout = Layout(Path(store_dir))
        form = read_format(layout.format)
        return Store(layout, form, _open_ledger(layout), Catalog(layout, form.store_id, use_index=use_index))

    @staticmethod
    def open_writer(store_dir: Path | str, files: Files | None = None) -> StoreWriter:
        """Open for writing, creating the store if there is none; see `StoreWriter`."""
        return StoreWriter.open(Layout(Path(store_dir)), files or Files())

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the ledger file and the index. Views handed out stay valid."""
        self.catalog.close()
        self._ledger.close()

    def refresh(self) -> None:
        """See packs and records that were added since."""
        self._ledger.refresh()
        self.catalog.refresh()

    @property
    def damaged(self) -> dict[str, RecurosError]:
        """Packs whose header cannot be read: name -> why. Their objects are absent; `kfs verify` reports them."""
        return self.catalog.damaged

    # --- objects -----------------------------------------------------------------------------------------------------

    def __contains__(self, object_id: str) -> bool:
        return self.catalog.find(object_id) is not None

    def objects(self, kind: str | None = None) -> Iterator[tuple[str, Entry]]:
        """Every object's id and place, of one kind if given, in the order of their ids."""
        for name in self.catalog.names():
            found = self.catalog.find(name)
            if found is not None and (entry := found.entry(name)) and kind in (None, entry.kind):
                yield name, entry

    def entry(self, object_id: str) -> tuple[Path, Entry]:
        """The pack and the place of an object; E4-NOENT when the store does not hold it (any more: it names the plan)."""
        found = self.catalog.find_surely(object_id)
        if found is None:
            raise self._absent(object_id)
        return found.path, found.entry(object_id)

    def _absent(self, object_id: str) -> RecurosError:
        self._ledger.refresh()
        plan = plan_of(object_id, self._ledger.records(), lambda name: self.get(name).data)
        if plan is not None:
            return RecurosError(
                "E4-NOENT",
                f"object {object_id} was collected under plan {plan}",
                hint=f"recuros kfs show {plan}",
                details={"plan": plan},
            )
        extra = f"; {len(self.damaged)} packs cannot be read" if self.damaged else ""
        if self._seen_gone:
            extra += "; packs were collected while this was open"
        return RecurosError("E4-NOENT", f"the store holds no object {object_id:.80}{extra}", hint="recuros kfs ls")

    def get(self, wanted: str) -> Stored:
        """An object with its bytes checked against its id: E9-INTEGRITY names the pack and the bytes when they differ."""
        for _ in range(_VANISHED_TRIES):
            path, entry = self.entry(wanted)
            try:
                data = self.read_unchecked(path, entry)
            except FileNotFoundError:
                self._seen_gone = True
                self.catalog.refresh()  # a collection moved the pack; the object may lie in another one now
                continue
            if len(data) != entry.object_bytes or object_id(entry.dtype, entry.shape, data) != wanted:
                raise RecurosError(
                    "E9-INTEGRITY",
                    f"pack {path.name}: bytes {entry.offset} to {entry.offset + entry.length} are not object {wanted}",
                    hint="recuros kfs verify lists everything that is wrong",
                )
            return Stored(entry.dtype, entry.shape, entry.kind, data)
        raise RecurosError("E75-AGAIN", f"packs of object {wanted} kept moving while it was read", hint="try again")

    def read_unchecked(self, path: Path, entry: Entry) -> memoryview:
        """The bytes of an object, decoded and unverified; a delta's base is stored plain, which bounds the work."""
        data = packs.read_bytes(path, entry)
        if entry.base is None:
            return data
        base = None
        if entry.base:
            base_path, base_entry = self.entry(entry.base)
            if base_entry.base is not None or (base_entry.dtype, base_entry.shape) != (entry.dtype, entry.shape):
                raise RecurosError(
                    "E9-INTEGRITY",
                    f"pack {path.name}: {entry.base} cannot be the base of an object",
                    hint="recuros kfs verify",
                )
            base = packs.read_bytes(base_path, base_entry)
        return delta.decode(data, entry.object_bytes, ITEM_BYTES[entry.dtype], base)

    def resolve(self, text: str) -> str:
        """The one object id that begins with `text` (with or without `b3:`); E4-NOENT for none, E2-USAGE for several."""
        prefix = text if text.startswith("b3:") else f"b3:{text}"
        if is_object_id(prefix):
            return prefix
        found = self.catalog.beginning_with(prefix) if _PREFIX.match(prefix) else []
        if len(found) > 1:
            raise RecurosError("E2-USAGE", f"{text!r} is ambiguous: {len(found)} objects begin with it")
        if not found or len(prefix) < 7:
            raise RecurosError(
                "E4-NOENT", f"no object begins with {text!r:.80}", hint="recuros kfs ls; give at least 4 digits"
            )
        return found[0]

    def snapshot(self, root: str) -> dict[str, str]:
        """A snapshot's leaves: path `role/module.path/tensor` -> object id."""
        return read_tree(root, lambda node: self.get(node).data)

    # --- records -----------------------------------------------------------------------------------------------------

    def record_bytes(self, seq: int) -> bytes:
        """The stored bytes of a record, which are what its leaf hash covers."""
        if seq >= self._ledger.size:
            self._ledger.refresh()
        return self._ledger.record(seq)

    def record(self, seq: int) -> Record:
        """A record; E4-NOENT outside the ledger."""
        return records.decode(self.record_bytes(seq))

    def records(self, start: int = 0, stop: int | None = None) -> Iterator[Record]:
        """Records start .. stop - 1. Reading to the end of a damaged ledger raises E9-INTEGRITY after the last good one."""
        for data in self._ledger.records(start, stop):
            yield records.decode(data)
        damage = self._ledger.damage
        if damage is not None and damage.valid_after and (stop is None or stop > damage.seq):
            raise damage.error("records after it cannot be read")

    def stored_records(self, start: int = 0, stop: int | None = None) -> Iterator[bytes]:
        """As `records`, as stored; a damaged ledger just ends."""
        return self._ledger.records(start, stop)

    @property
    def size(self) -> int:
        """How many records the ledger holds."""
        return self._ledger.size

    def head(self) -> tuple[int, str]:
        """The ledger's size and the RFC 6962 root over its records, in hex."""
        return self._ledger.size, self._ledger.root().hex()

    def leaf_hashes(self, size: int) -> bytes:
        """The RFC 6962 leaf hashes of the first `size` records, one after the other, hashed from the ledger."""
        self._ledger.grow_tree(size)
        return bytes(self._ledger.leaves[: size * 32])

    def checkpoint_head(self) -> TreeHead:
        """The newest signed tree head; E9-INTEGRITY when the checkpoint is missing or does not verify."""
        return read_checkpoint(self.layout, self.format)


class StoreWriter(Store):
    """The one writer. `notes` says what opening it repaired."""

    def __init__(
        self, layout: Layout, form: Format, ledger: LedgerWriter, *, signer: Signer, files: Files, lock: WriterLock
    ) -> None:
        """Use `Store.open_writer`."""
        self._writer = ledger
        self._signer = signer
        self.files = files
        self._lock = lock
        self._trees: TreeCache = {}
        self._tiles = TileWriter(layout.tile, files, ledger.leaves, signer.highest.size)
        self._signed_at_ns = time.monotonic_ns()
        self.notes = list(ledger.notes)
        # Whoever sends a snapshot may lean on objects of the ones before it, committed or not: a collection keeps these.
        self.recent: deque[list[str]] = deque(maxlen=RECENT_COMMITS)
        self.born: dict[str, int] = {}  # pack -> the ledger's size when this writer wrote it
        self.opened_size = ledger.size
        # What plans in hand give up (id -> plan): it may be here still, and does not count as stored any more.
        self.doomed: dict[str, int] = {}
        self.watched: set[str] | None = None  # while a sweep runs: what is stored or named meanwhile
        super().__init__(layout, form, ledger, Catalog(layout, form.store_id, write=True))
        self._known = Known.of(ledger)
        self.doomed.update(pending_ids(ledger.records(), lambda name: self.get(name).data))

    @classmethod
    def open(cls, layout: Layout, files: Files) -> StoreWriter:
        """Take the lock, create or recover: E3-BUSY names another writer, E9-INTEGRITY what a crash cannot have caused."""
        if not layout.format.exists():
            files.sure_folder(layout.store)
        lock = WriterLock(layout.lock)
        ledger = None
        try:
            if not layout.format.exists():
                _create(layout, files)
            form = read_format(layout.format)
            signer = Signer(files, layout.signing_key(form.store_id), layout.signed(form.store_id))
            if signer.public != form.key:
                raise RecurosError(
                    "E9-INTEGRITY", f"the key in {layout.keys} is not the one that {layout.format} names"
                )
            signed = sorted({read_checkpoint(layout, form), signer.highest}, key=lambda head: head.size)
            ledger = LedgerWriter(layout.records, files, signed[-1].size)
            _check_signed(ledger, signed)
            notes = _clean_folders(layout, files)
            store = cls(layout, form, ledger, signer=signer, files=files, lock=lock)
            store.notes += notes
            store._mend_tiles()
            if signed[0].size != store.size:
                store.checkpoint()
        except BaseException:
            if ledger is not None:
                ledger.close()
            lock.release()
            raise
        return store

    def __enter__(self) -> StoreWriter:
        return self

    def close(self) -> None:
        """Sign what is unsigned and let the lock go; the lock goes even when signing fails."""
        try:
            if self.files.poison is None:
                self.checkpoint()
                while self.catalog.index_due() and self.catalog.update_index():
                    pass
        finally:
            super().close()
            self._lock.release()

    # --- objects -----------------------------------------------------------------------------------------------------

    def put(self, objects: Iterable[NewObject]) -> list[str]:
        """Store objects durably in at most one new pack; their ids in order. What is stored already writes nothing."""
        items = list(objects)
        ids = [id_of(item) for item in items]
        self._commit(dict(zip(ids, items, strict=True)))
        return ids

    def put_snapshot(
        self, refs: Mapping[str, str], new: Mapping[str, NewObject], extras: Iterable[NewObject] = ()
    ) -> tuple[str, int]:
        """Store a whole snapshot durably in at most one pack: its root id, and the bytes that this wrote.

        `refs` maps every path of the snapshot to an object id; `new` holds the objects that the store may lack, by the id
        that the caller computed, which is checked. `extras` are further objects for the same pack. E4-NOENT when a path
        names an object that is in neither.
        """
        for claimed, item in new.items():
            if id_of(item) != claimed:
                raise RecurosError(
                    "E9-INTEGRITY", f"object {claimed} of the snapshot has bytes that hash to {id_of(item)}"
                )
        known = self.catalog.known(set(refs.values()) - new.keys())
        for path, ref in refs.items():
            if ref not in new and ref not in known and self.catalog.find_surely(ref) is None:
                raise RecurosError(
                    "E4-NOENT", f"snapshot path {path} names {ref}, which is not stored and was not sent"
                )
        root, nodes = build_tree(refs, self._trees)
        objects = {node: blob(data, "snapshot") for node, data in nodes.items()}
        objects |= new
        objects |= {id_of(item): item for item in extras}
        return root, self._commit(objects, refs.values())

    def _commit(self, objects: Mapping[str, NewObject], refs: Iterable[str] = ()) -> int:
        """Write the objects that are not stored yet as one pack; durable when this returns. Returns the pack's size."""
        self.files.check()
        known = self.catalog.known(objects) - self.doomed.keys()
        self.recent.append([*objects, *refs])
        if self.watched is not None:
            self.watched.update(self.recent[-1])
        fresh = {key: item for key, item in objects.items() if key not in known}
        if not fresh:
            return 0
        digest, temp = self._write_pack(packs.encode(fresh))
        path = self.layout.pack(digest)
        self.files.publish(temp, path)
        found = packs.read_header(path)
        self.catalog.add(found)
        self.born[digest] = self.size
        for name in self.doomed.keys() & fresh.keys():
            del self.doomed[name]  # it is stored anew
        return found.file_bytes

    def _write_pack(self, buffers: Sequence[Buffer]) -> tuple[str, Path]:
        """A pack's digest and the temporary file that holds it, synced. A large one is hashed while it is written."""
        if sum(memoryview(buffer).nbytes for buffer in buffers) < _HASHED_BESIDE_BYTES_MIN:
            return packs.digest_of(buffers), self.files.write_temp(self.layout.packs, buffers)
        from concurrent.futures import ThreadPoolExecutor  # what only reads has no use for it

        with ThreadPoolExecutor(1) as beside:
            digest = beside.submit(packs.digest_of, buffers)
            temp = self.files.write_temp(self.layout.packs, buffers)
            return digest.result(), temp

    # --- records -----------------------------------------------------------------------------------------------------

    def append(self, drafts: Sequence[Record]) -> list[int]:
        """Stamp and append records; their sequence numbers in order. All are durable when this returns.

        A record that the ledger holds already (see `kfs.idempotency`) is not stored again: its first number is returned.
        E4-NOENT when a record names a result or an input that is not stored: nothing of the batch is then written.
        """
        self.files.check()
        for record in drafts:
            self._check_references(record)
        t_wall = time.time_ns()
        seqs: list[int] = []
        for start in range(0, len(drafts), _BATCH_RECORDS):
            seqs += self._append_batch(drafts[start : start + _BATCH_RECORDS], t_wall)
        return seqs

    def _append_batch(self, drafts: Sequence[Record], t_wall: int) -> list[int]:
        seqs: list[int] = []
        batch: list[bytes] = []
        added: list[tuple[Record, bytes]] = []
        try:
            for record in drafts:
                if not record.is_draft:
                    record = record.draft()  # noqa: PLW2901 - the same record, as its producer sent it
                draft = records.encode(record)
                seq = self._known.find(record, draft)
                if seq is None:
                    seq = self.size + len(batch)
                    batch.append(records.stamp(draft, record, seq, t_wall))
                    self._known.add(record, draft, seq, t_wall)
                    added.append((record, draft))
                seqs.append(seq)
            if batch:
                self._writer.append(batch)
        except BaseException:
            for record, draft in added:
                self._known.remove(record, draft)
            raise
        return seqs

    def _check_references(self, record: Record) -> None:
        for name in records.references(record):
            if name in self.doomed:
                raise RecurosError(
                    "E4-NOENT", f"record {record.kind} names {name}, which plan {self.doomed[name]} gave up"
                )
            if self.watched is not None:
                self.watched.add(name)
            if self.catalog.find_surely(name) is None:
                raise RecurosError("E4-NOENT", f"record {record.kind} names {name}, which the store does not hold")

    @property
    def poisoned(self) -> bool:
        """Whether a write barrier failed: the store then takes no more writes until it is opened again."""
        return self.files.poison is not None

    # --- signing -----------------------------------------------------------------------------------------------------

    def _mend_tiles(self) -> None:
        """A full disk puts it off to the next checkpoint: tiles can always be made again."""
        try:
            self.notes += self._tiles.mend()
        except RecurosError as e:
            if e.code != "E9-NOSPACE" or self.poisoned:
                raise
            self.notes.append(f"hash tiles were not mended: {e.message}")

    def checkpoint_due(self) -> bool:
        """Whether enough records, or a record for long enough, lie beyond the last checkpoint."""
        unsigned = self.size - self._signer.highest.size
        waited_ns = time.monotonic_ns() - self._signed_at_ns
        return unsigned >= CHECKPOINT_RECORDS or (unsigned > 0 and waited_ns >= CHECKPOINT_PERIOD_NS)

    def checkpoint(self) -> TreeHead:
        """Publish the hash tiles of all records, which are on disk already, sign the tree, and publish the checkpoint.

        Call it after acknowledging.
        """
        head = TreeHead(self.size, self._writer.root())
        self._tiles.publish(head.size)
        note = self._signer.sign(head)
        if self.layout.checkpoint.read_bytes() != note:
            self.files.replace(self.layout.checkpoint, note)
        self._signed_at_ns = time.monotonic_ns()
        return head


def read_checkpoint(layout: Layout, form: Format) -> TreeHead:
    """The tree head in the checkpoint file, verified with the store's key."""
    return verify_note(read_note(layout), form.key)


def read_note(layout: Layout) -> bytes:
    """The bytes of the checkpoint file, not verified; E9-INTEGRITY when it is missing."""
    try:
        with layout.checkpoint.open("rb") as file:
            return file.read(NOTE_BYTES_MAX + 1)
    except FileNotFoundError as e:
        raise RecurosError("E9-INTEGRITY", f"{layout.checkpoint} is missing", hint="restore it from a copy") from e


def _open_ledger(layout: Layout) -> LedgerReader:
    try:
        return LedgerReader(layout.records)
    except FileNotFoundError as e:
        raise RecurosError("E9-INTEGRITY", f"{layout.records} is missing", hint="restore it from a copy") from e


def _check_signed(ledger: LedgerReader, signed: Sequence[TreeHead]) -> None:
    for head in signed:
        found = ledger.grow_tree(head.size).root()
        if found != head.root:
            raise RecurosError(
                "E9-INTEGRITY",
                f"the first {head.size} records hash to {found.hex()}; {head.root.hex()} is signed",
                hint="recuros kfs verify; restore ledger/records from a copy",
            )


def _clean_folders(layout: Layout, files: Files) -> list[str]:
    """Remove temporary files of a killed writer, and make surviving names durable before anything is trusted because of them.

    A name that a killed writer made is there, and need not be on the disk: without this a pack could be deduplicated against, a
    signed size counted as persisted, or a whole folder filled, and a power cut could then take the name back.
    """
    folders = (layout.store.parent, layout.store, layout.keys, layout.packs)
    leftovers = [
        entry.path
        for folder in (*folders[1:], layout.ledger, layout.tile)
        for entry in os.scandir(folder)
        if entry.name.startswith(TEMP_PREFIX)
    ]
    for leftover in leftovers:
        files.discard(Path(leftover))
    for folder in folders:
        files.sync_folder(folder)
    return [f"removed {len(leftovers)} unfinished files"] if leftovers else []


def _create(layout: Layout, files: Files) -> None:
    """Make an empty store. FORMAT comes last, so a store without it was never used and is made anew."""
    for folder in layout.folders():
        files.sure_folder(folder)
    used = [entry.name for entry in os.scandir(layout.packs) if not entry.name.startswith(TEMP_PREFIX)]
    if used or (layout.records.exists() and layout.records.stat().st_size > len(MAGIC)):
        raise RecurosError(
            "E9-INTEGRITY", f"{layout.format} is missing from a store that holds data", hint="restore it from a copy"
        )
    store_id = os.urandom(16).hex()
    signer = Signer.create(files, layout.signing_key(store_id), layout.signed(store_id), origin(store_id))
    if layout.records.exists():
        files.sync_folder(layout.ledger)  # a killed creation made it, and its name need not be on the disk
    else:
        files.create(layout.records, MAGIC)
    files.replace(layout.checkpoint, signer.sign(signer.highest))
    files.create(layout.format, Format(store_id, signer.public).text())


__all__ = ["Store", "StoreWriter", "Stored", "read_checkpoint"]
