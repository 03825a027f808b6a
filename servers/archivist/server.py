"""The archivist's handlers: the one process that writes the store.

Responsible for: `open` (what recovery needs to know), `append` (stamped, durable, each draft once), `stage` (a snapshot in one
pack) and `put` (objects in one pack); signing after the answers are out. Refuses: ids that do not match the bytes in the page,
index rows that point outside it.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from kfs.objects import NewObject
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
        }
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
        return False

    def drain(self) -> None:
        """Sign everything and let the lock go."""
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
        """Store a snapshot; `index` rows [id, dtype, shape, offset, nbytes] place the new objects in the raw page."""
        for path, ref in refs.items():
            if not isinstance(ref, str):
                raise RecurosError("E2-WIRE", f"snapshot path {path:.80} must name an object id, got {ref!r:.80}")
        new: dict[str, NewObject] = {}
        if not index:
            root, stored_bytes = self.store.put_snapshot(refs, new)
            return {"snapshot": root, "stored_bytes": stored_bytes}
        source = self._kernel.map(page)
        try:
            for row in index:
                claimed, item = _indexed(row, source.view)
                new[claimed] = item
            root, stored_bytes = self.store.put_snapshot(refs, new)
        finally:
            new.clear()
            source.close()
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


def _draft(data: Any) -> Record:
    if not isinstance(data, bytes):
        raise RecurosError("E2-WIRE", f"a record must be bytes, got {type(data).__name__}")
    record = decode(data)
    if not record.is_draft:
        raise RecurosError("E2-WIRE", f"record {record.kind} is stamped already, as {record.seq}; send drafts")
    return record


def _indexed(row: Any, view: memoryview) -> tuple[str, NewObject]:
    match row:
        case [str(claimed), str(dtype), list(shape), int(offset), int(length)]:
            if not 0 <= offset <= offset + length <= view.nbytes:
                raise RecurosError("E2-WIRE", f"object {claimed:.80} points outside its page of {view.nbytes} bytes")
            return claimed, NewObject(dtype, tuple(shape), view[offset : offset + length], "snapshot")
    raise RecurosError("E2-WIRE", f"an index row must be [id, dtype, shape, offset, nbytes], got {row!r:.120}")


def _kind_and_name(row: Any) -> tuple[str, str]:
    match row:
        case [str(kind), str(name)]:
            return kind, name
    raise RecurosError("E2-WIRE", f"an object row must be [kind, name], got {row!r:.120}")


def main() -> int:
    """Serve until drained."""
    return serve("archivist", ArchivistService)
