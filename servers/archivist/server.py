"""The archivist's handlers: the one process that writes the store.

Responsible for: `open` (what recovery needs to know), `append` (stamped, durable, each draft once), `stage` (a snapshot in one
pack) and `put` (objects in one pack); signing after the answers are out; between deliveries, in short steps, carrying out the plans
of `gc` and (with `compact = true` in its stanza's config) compacting old packs. Refuses: ids that do not match the bytes in the page,
index rows that point outside it.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from kfs.compactor import Compactor
from kfs.gc import Collector
from kfs.objects import NewObject, blob
from kfs.records import Record, RecordKind, decode
from kfs.store import Store, StoreWriter
from syscalls import limits
from syscalls.errors import RecurosError
from syscalls.pages import unpack_arrays
from syscalls.serve import Handler, Kernel, serve

# Half a frame: the other half is for the commit record and the framing.
TAIL_BYTES_MAX: Final = limits.FRAME_BYTES_MAX // 2
TAIL_RECORDS_MAX: Final = limits.ITEMS_MAX // 2


class ArchivistService:
    """Holds the writer's lock from start to drain."""

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        self.store: StoreWriter = Store.open_writer(Path(str(kernel.config["store"])))
        self.handlers: Mapping[str, Handler] = {
            "open": self.open,
            "append": self.append,
            "stage": self.stage,
            "put": self.put,
            "gc": self.gc,
            "keep": self.keep,
            "fetch": self.fetch,
        }
        self._collector = Collector(self.store)
        self._sweeps = 0
        self._compactor = Compactor(self.store) if kernel.config.get("compact") is True else None
        self._told: set[str] = set()
        size, root = self.store.head()
        self.info: dict[str, Any] = {"size": size, "root": root, "notes": self.store.notes}

    def idle(self) -> bool:
        """Sign what has been acknowledged, when it is time; a full disk delays a signature and loses nothing."""
        if self.store.checkpoint_due():
            try:
                self.store.checkpoint()
            except RecurosError as error:
                if error.code != "E9-NOSPACE" or self.store.poisoned:
                    raise
                print(f"checkpoint postponed: {error}", file=sys.stderr, flush=True)  # noqa: T201 - the server's log
        return self._background()

    def _background(self) -> bool:
        """One short step of what nobody waits for; True when there is more."""
        busy = self._collector.step()
        if self._compactor is not None:
            if self._collector.sweeps != self._sweeps:
                self._compactor.abandon()  # the packs that it was reading may have gone
                self._sweeps = self._collector.sweeps
            busy = busy or self._compactor.step()
        notes = [*self._collector.notes, *(self._compactor.figures.notes if self._compactor is not None else ())]
        for note in notes:
            if note not in self._told:
                self._told.add(note)
                print(note, file=sys.stderr, flush=True)  # noqa: T201 - the server's log
        return busy or (self.store.catalog.index_due() and self.store.catalog.update_index())

    def drain(self) -> None:
        """Sign everything and let the lock go; a plan in hand is carried on with by the next archivist."""
        if self._compactor is not None:
            self._compactor.abandon()
        self._collector.abandon()
        self.store.close()

    def open(self, boot: str) -> dict[str, Any]:
        """The last committed window and the records after it: what a boot resumes from."""
        commit, left_out = b"", 0
        tail: list[bytes] = []
        room = TAIL_BYTES_MAX
        for seq in range(self.store.size - 1, -1, -1):
            data = self.store.record_bytes(seq)
            if decode(data).kind is RecordKind.WINDOW_COMMIT:
                commit = data
                break
            room -= len(data)
            if left_out or room < 0 or len(tail) == TAIL_RECORDS_MAX:
                left_out += 1
            else:
                tail.append(data)
        notes = list(self.store.notes)
        if left_out:
            notes.append(
                f"{left_out} records after the last commit are too many for one answer; they are in the ledger"
            )
        size, root = self.store.head()
        return {"commit": commit, "tail": tail[::-1], "size": size, "root": root, "notes": notes}

    def append(self, records: list[Any]) -> dict[str, Any]:
        """Append drafts: durable when this returns. A malformed one is E2-WIRE and nothing of its batch is written."""
        if len(records) > limits.BATCH_RECORDS_MAX:
            raise RecurosError(
                "E2-LIMIT", f"{len(records)} records in one append; the limit is {limits.BATCH_RECORDS_MAX}"
            )
        seqs = self.store.append([_draft(data) for data in records])
        size, root = self.store.head()
        return {"seqs": seqs, "size": size, "root": root}

    def stage(self, window: int, refs: dict[str, str], index: list[Any], page: int) -> dict[str, Any]:
        """Store a snapshot; `index` rows [id, dtype, shape, offset, nbytes] place the new objects in the raw page.

        A sixth item names the kind of an object that is stored beside the snapshot and not part of it.
        """
        for path, ref in refs.items():
            if not isinstance(ref, str):
                raise RecurosError("E2-WIRE", f"snapshot path {path:.80} must name an object id, got {ref!r:.80}")
        new: dict[str, NewObject] = {}
        if not index:
            return self._staged(*self.store.put_snapshot(refs, new))
        source = self._kernel.map(page)
        try:
            for row in index:
                claimed, item = _indexed(row, source.view)
                new[claimed] = item
            root, stored_bytes = self.store.put_snapshot(refs, new)
        finally:
            new.clear()
            source.close()
        return self._staged(root, stored_bytes)

    def _staged(self, root: str, stored_bytes: int) -> dict[str, Any]:
        """The kernel believes the archivist and not the learner: where it did not relay the answer it is told."""
        if self._kernel.direct_caller:
            self._kernel.syscall("stage_done", snapshot=root)
        return {"snapshot": root, "stored_bytes": stored_bytes}

    def put(self, objects: list[Any], page: int) -> dict[str, Any]:
        """Store arrays of a `pack_arrays` page by [kind, name]; a name that the page does not hold answers an empty id."""
        source = self._kernel.map(page)
        try:
            arrays, _ = unpack_arrays(source.view)
            wanted: dict[tuple[str, str], NewObject] = {}
            for row in objects:
                kind, name = _kind_and_name(row)
                if name in arrays:
                    found = arrays[name]
                    wanted[kind, name] = NewObject(found.dtype, found.shape, found.data, kind)
            ids = dict(zip(wanted, self.store.put(wanted.values()), strict=True))
        finally:
            arrays, wanted = {}, {}
            source.close()
        return {"ids": [ids.get((row[0], row[1]), "") for row in objects]}

    def keep(self, kind: str, data: bytes) -> dict[str, Any]:
        """Store bytes that came in the frame: durable when this returns."""
        return {"id": self.store.put([blob(data, kind)])[0]}

    def fetch(self, id: str) -> dict[str, Any]:
        """A small object's bytes; E2-LIMIT when they would not fit a frame."""
        stored = self.store.get(id)
        if stored.data.nbytes > TAIL_BYTES_MAX:
            raise RecurosError(
                "E2-LIMIT", f"object {id} has {stored.data.nbytes} bytes; a frame takes {TAIL_BYTES_MAX}"
            )
        return {"data": bytes(stored.data)}

    def gc(self, ids: list[Any], scores: list[Any], reason: str, actor: str, cap: int, dry_run: bool) -> dict[str, Any]:
        """Record a plan; the sweep follows between deliveries."""
        if not all(isinstance(score, float | int) and not isinstance(score, bool) for score in scores):
            raise RecurosError("E2-WIRE", "the scores of a plan are numbers")
        if dry_run:
            self._collector.check(ids, scores)
            return {"seq": -1, "pending": self._collector.pending}
        seq = self._collector.begin(ids, scores, reason, actor=actor, cap_id=cap)
        if self._compactor is not None:
            self._compactor.abandon()
        return {"seq": seq, "pending": self._collector.pending}


def _draft(data: Any) -> Record:
    if not isinstance(data, bytes):
        raise RecurosError("E2-WIRE", f"a record must be bytes, got {type(data).__name__}")
    record = decode(data)
    if not record.is_draft:
        raise RecurosError("E2-WIRE", f"record {record.kind} is stamped already, as {record.seq}; send drafts")
    return record


def _indexed(row: Any, view: memoryview) -> tuple[str, NewObject]:
    match row:
        case [str(claimed), str(dtype), list(shape), int(offset), int(length), *rest] if not rest or len(rest) == 1:
            if not 0 <= offset <= offset + length <= view.nbytes:
                raise RecurosError("E2-WIRE", f"object {claimed:.80} points outside its page of {view.nbytes} bytes")
            return claimed, NewObject(dtype, tuple(shape), view[offset : offset + length], str(*rest) or "snapshot")
    raise RecurosError("E2-WIRE", f"an index row must be [id, dtype, shape, offset, nbytes, kind?], got {row!r:.120}")


def _kind_and_name(row: Any) -> tuple[str, str]:
    match row:
        case [str(kind), str(name)]:
            return kind, name
    raise RecurosError("E2-WIRE", f"an object row must be [kind, name], got {row!r:.120}")


def main() -> int:
    """Serve until drained."""
    return serve("archivist", ArchivistService)
