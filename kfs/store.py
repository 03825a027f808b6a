"""A store: packs of objects, and the ledger over them.

Responsible for: opening a store to write (one process, under flock) or to read (any number, no lock, beside a live writer);
putting objects with dedupe, one durable pack per call; snapshots as trees; appending records; verified reads. Refuses: handing
out bytes that do not match their id; acknowledging what is not on disk. Neither class is meant for more than one thread.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from kfs import pack as packs
from kfs import records
from kfs.checkpoint import Signer, TreeHead, verify_note
from kfs.files import Files
from kfs.formatfile import Format, origin, read_format
from kfs.idempotency import Known
from kfs.layout import TEMP_PREFIX, Layout, pack_digest
from kfs.ledger import FRAME_BYTES_MAX, FRAME_RECORDS_MAX, MAGIC, LedgerReader, LedgerWriter
from kfs.lock import WriterLock
from kfs.objects import NewObject, blob, id_of, is_object_id, object_id
from kfs.pack import Entry, Pack
from kfs.records import Record
from kfs.snapshot import TreeCache, build_tree, read_tree
from syscalls import limits
from syscalls.errors import RecurosError

CHECKPOINT_RECORDS: Final = 256
CHECKPOINT_PERIOD_NS: Final = 1_000_000_000
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

    def __init__(self, layout: Layout, form: Format, ledger: LedgerReader) -> None:
        """Use `open_reader` or `open_writer`."""
        self.layout = layout
        self.format = form
        self._ledger = ledger
        self._index: dict[str, Pack] = {}
        self._packs: dict[str, Pack] = {}
        # Packs whose header cannot be read: name -> why. Their objects are absent; `kfs verify` reports them.
        self.damaged: dict[str, RecurosError] = {}
        self._load_packs()

    @staticmethod
    def open_reader(store_dir: Path | str) -> Store:
        """Open for reading; takes no lock. E4-NOENT without a store, E9-VERSION for another format."""
        layout = Layout(Path(store_dir))
        form = read_format(layout.format)
        return Store(layout, form, _open_ledger(layout))

    @staticmethod
    def open_writer(store_dir: Path | str, files: Files | None = None) -> StoreWriter:
        """Open for writing, creating the store if there is none; see `StoreWriter`."""
        return StoreWriter.open(Layout(Path(store_dir)), files or Files())

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the ledger file. Views handed out stay valid."""
        self._ledger.close()

    def refresh(self) -> None:
        """See packs and records that were added since."""
        self._ledger.refresh()
        self._load_packs()

    def _load_packs(self) -> None:
        with os.scandir(self.layout.packs) as listing:
            names = sorted(entry.name for entry in listing)
        for name in names:
            digest = pack_digest(name)
            if digest is None or digest in self._packs or name in self.damaged:
                continue
            try:
                found = packs.read_header(self.layout.packs / name)
            except FileNotFoundError:
                continue  # moved to trash between the listing and now
            except RecurosError as e:
                self.damaged[name] = e
                continue
            self._add_pack(digest, found)

    def _add_pack(self, digest: str, found: Pack) -> None:
        self._packs[digest] = found
        self._index.update(dict.fromkeys(found.header, found))

    # --- objects -----------------------------------------------------------------------------------------------------

    def __contains__(self, object_id: str) -> bool:
        return object_id in self._index

    def objects(self, kind: str | None = None) -> Iterator[tuple[str, Entry]]:
        """Every object's id and place, of one kind if given, in the order of their ids."""
        for name in sorted(self._index):
            entry = self._index[name].entry(name)
            if kind is None or entry.kind == kind:
                yield name, entry

    def entry(self, object_id: str) -> tuple[Path, Entry]:
        """The pack and the place of an object; E4-NOENT when the store does not hold it."""
        found = self._index.get(object_id)
        if found is None:
            self._load_packs()
            found = self._index.get(object_id)
        if found is None:
            extra = f"; {len(self.damaged)} packs cannot be read" if self.damaged else ""
            raise RecurosError("E4-NOENT", f"the store holds no object {object_id:.80}{extra}", hint="recuros kfs ls")
        return found.path, found.entry(object_id)

    def get(self, wanted: str) -> Stored:
        """An object with its bytes checked against its id: E9-INTEGRITY names the pack and the bytes when they differ."""
        path, entry = self.entry(wanted)
        data = packs.read_bytes(path, entry)
        if len(data) != entry.length or object_id(entry.dtype, entry.shape, data) != wanted:
            raise RecurosError(
                "E9-INTEGRITY",
                f"pack {path.name}: bytes {entry.offset} to {entry.offset + entry.length} are not object {wanted}",
                hint="recuros kfs verify lists everything that is wrong",
            )
        return Stored(entry.dtype, entry.shape, entry.kind, data)

    def resolve(self, text: str) -> str:
        """The one object id that begins with `text` (with or without `b3:`); E4-NOENT for none, E2-USAGE for several."""
        prefix = text if text.startswith("b3:") else f"b3:{text}"
        if is_object_id(prefix):
            return prefix
        found = [object_id for object_id in self._index if object_id.startswith(prefix)]
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

    @property
    def size(self) -> int:
        """How many records the ledger holds."""
        return self._ledger.size

    def head(self) -> tuple[int, str]:
        """The ledger's size and the RFC 6962 root over its records, in hex."""
        return self._ledger.size, self._ledger.root().hex()

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
        self._files = files
        self._lock = lock
        self._trees: TreeCache = {}
        self._signed_at_ns = time.monotonic_ns()
        self.notes = list(ledger.notes)
        super().__init__(layout, form, ledger)
        self._known = Known.of(ledger)

    @classmethod
    def open(cls, layout: Layout, files: Files) -> StoreWriter:
        """Take the lock, create or recover: E3-BUSY names another writer, E9-INTEGRITY what a crash cannot have caused."""
        files.make_folder(layout.store)
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
            notes = _clean_packs(layout, files)
            store = cls(layout, form, ledger, signer=signer, files=files, lock=lock)
            store.notes += notes
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
            if self._files.poison is None:
                self.checkpoint()
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
        for path, ref in refs.items():
            if ref not in new and ref not in self._index:
                raise RecurosError(
                    "E4-NOENT", f"snapshot path {path} names {ref}, which is not stored and was not sent"
                )
        root, nodes = build_tree(refs, self._trees)
        objects = {node: blob(data, "snapshot") for node, data in nodes.items()}
        objects |= new
        objects |= {id_of(item): item for item in extras}
        return root, self._commit(objects)

    def _commit(self, objects: Mapping[str, NewObject]) -> int:
        """Write the objects that are not stored yet as one pack; durable when this returns. Returns the pack's size."""
        self._files.check()
        fresh = {key: item for key, item in objects.items() if key not in self._index}
        if not fresh:
            return 0
        digest, buffers = packs.encode(fresh)
        path = self.layout.pack(digest)
        self._files.publish(self._files.write_temp(self.layout.packs, buffers), path)
        found = packs.read_header(path)
        self._add_pack(digest, found)
        return found.file_bytes

    # --- records -----------------------------------------------------------------------------------------------------

    def append(self, drafts: Sequence[Record]) -> list[int]:
        """Stamp and append records; their sequence numbers in order. All are durable when this returns.

        A record that the ledger holds already (see `kfs.idempotency`) is not stored again: its first number is returned.
        E4-NOENT when a record names a result or an input that is not stored: nothing of the batch is then written.
        """
        self._files.check()
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
                draft = records.encode(record.draft())
                seq = self._known.find(record, draft)
                if seq is None:
                    seq = self.size + len(batch)
                    stamped = record.stamped(seq, t_wall)
                    batch.append(records.encode(stamped))
                    self._known.add(stamped, draft)
                    added.append((stamped, draft))
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
            if name not in self._index:
                raise RecurosError("E4-NOENT", f"record {record.kind} names {name}, which the store does not hold")

    @property
    def poisoned(self) -> bool:
        """Whether a write barrier failed: the store then takes no more writes until it is opened again."""
        return self._files.poison is not None

    # --- signing -----------------------------------------------------------------------------------------------------

    def checkpoint_due(self) -> bool:
        """Whether enough records, or a record for long enough, lie beyond the last checkpoint."""
        unsigned = self.size - self._signer.highest.size
        waited_ns = time.monotonic_ns() - self._signed_at_ns
        return unsigned >= CHECKPOINT_RECORDS or (unsigned > 0 and waited_ns >= CHECKPOINT_PERIOD_NS)

    def checkpoint(self) -> TreeHead:
        """Sign all records, which are on disk already, and publish the checkpoint. Call it after acknowledging."""
        head = TreeHead(self.size, self._writer.root())
        note = self._signer.sign(head)
        if self.layout.checkpoint.read_bytes() != note:
            self._files.replace(self.layout.checkpoint, note)
        self._signed_at_ns = time.monotonic_ns()
        return head


def read_checkpoint(layout: Layout, form: Format) -> TreeHead:
    """The tree head in the checkpoint file, verified with the store's key."""
    try:
        note = layout.checkpoint.read_bytes()
    except FileNotFoundError as e:
        raise RecurosError("E9-INTEGRITY", f"{layout.checkpoint} is missing", hint="restore it from a copy") from e
    return verify_note(note, form.key)


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


def _clean_packs(layout: Layout, files: Files) -> list[str]:
    """Remove temporary files of a crashed writer, and make surviving names durable before anything dedupes against them."""
    folders = (layout.packs, layout.store, layout.ledger, layout.keys)
    leftovers = [entry.path for folder in folders for entry in os.scandir(folder) if entry.name.startswith(TEMP_PREFIX)]
    for leftover in leftovers:
        files.discard(Path(leftover))
    files.sync_folder(layout.packs)
    return [f"removed {len(leftovers)} unfinished files"] if leftovers else []


def _create(layout: Layout, files: Files) -> None:
    """Make an empty store. FORMAT comes last, so a store without it was never used and is made anew."""
    for folder in layout.folders():
        files.make_folder(folder)
    used = [entry.name for entry in os.scandir(layout.packs) if not entry.name.startswith(TEMP_PREFIX)]
    if used or (layout.records.exists() and layout.records.stat().st_size > len(MAGIC)):
        raise RecurosError(
            "E9-INTEGRITY", f"{layout.format} is missing from a store that holds data", hint="restore it from a copy"
        )
    store_id = os.urandom(16).hex()
    signer = Signer.create(files, layout.signing_key(store_id), layout.signed(store_id), origin(store_id))
    if not layout.records.exists():
        files.create(layout.records, MAGIC)
    files.replace(layout.checkpoint, signer.sign(signer.highest))
    files.create(layout.format, Format(store_id, signer.public).text())


__all__ = ["Store", "StoreWriter", "Stored", "read_checkpoint"]
