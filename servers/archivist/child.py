"""An archivist without a kernel: the one writer of a store, as the child of a process that is no runtime.

    python -m servers.archivist.child STORE      requests on the Unix socket at descriptor 3

Responsible for: holding `store/LOCK`, and the requests of `Requests`, each answered when it is durable; signing between them.
Ends, signed, when the socket closes or its parent dies. Refuses: what the archivist of a runtime refuses.
"""

from __future__ import annotations

import os
import select
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import msgpack

from kfs.objects import NewObject, blob, id_of
from kfs.records import Record, RecordKind, decode
from kfs.store import Store, StoreWriter
from syscalls import wire
from syscalls.errors import RecurosError
from syscalls.harden import PR_SET_DUMPABLE, PR_SET_NO_NEW_PRIVS, drop_capabilities, prctl
from syscalls.pages import ReadPage, check_seals, unpack_arrays

SOCKET_FD: Final = 3
MESSAGE_BYTES_MAX: Final = 256 << 10
IDLE_MS: Final = 250
NICE: Final = 10
"""Hashing and writing come after the work of whoever started this."""
ASIDE: Final = "@"
"""Arrays whose name begins so are stored beside the snapshot, under the kind that follows."""


class Requests:
    """What may be asked, by name."""

    def __init__(self, store: StoreWriter) -> None:
        self._store = store
        self._last = self._last_commit()

    def _last_commit(self) -> Record | None:
        for seq in range(self._store.size - 1, -1, -1):
            record = decode(self._store.record_bytes(seq))
            if record.kind is RecordKind.WINDOW_COMMIT:
                return record
        return None

    def head(self, page: ReadPage | None) -> dict[str, Any]:
        """Where the ledger is: what a new session goes on from."""
        size, root = self._store.head()
        found = self._last
        last = (
            {"window": found.args["window"], "seq": found.seq, "step": found.args["step0"] + found.args["steps"]}
            if found
            else {}
        )
        return {"size": size, "root": root, "last": last, "notes": list(self._store.notes)}

    def append(self, page: ReadPage | None, records: list[bytes]) -> dict[str, Any]:
        """Append drafts."""
        return {"seqs": self._store.append([decode(data) for data in records])}

    def keep(self, page: ReadPage | None, kind: str, data: bytes) -> dict[str, Any]:
        """Store a small object."""
        return {"id": self._store.put([blob(data, kind)])[0]}

    def commit(self, page: ReadPage | None, draft: bytes) -> dict[str, Any]:
        """Store the page's arrays as a snapshot and append the draft of its commit record, with parent and result filled in."""
        if page is None:
            raise RecurosError("E2-WIRE", "a commit comes with a page")
        arrays, _ = unpack_arrays(page.view)
        refs: dict[str, str] = {}
        new: dict[str, NewObject] = {}
        aside: dict[str, NewObject] = {}
        try:
            for name, array in arrays.items():
                kind = name[1:] if name.startswith(ASIDE) else "snapshot"
                item = NewObject(array.dtype, array.shape, array.data, kind)
                if name.startswith(ASIDE):
                    aside[id_of(item)] = item
                else:
                    refs[name] = id_of(item)
                    new[refs[name]] = item
            root, stored = self._store.put_snapshot(refs, new, aside.values())
            inputs = tuple(aside)
        finally:
            arrays, new, aside = {}, {}, {}
        record = self._completed(decode(draft), root, inputs)
        [seq] = self._store.append([record])
        self._last = record.stamped(seq, 1)
        return {"snapshot": root, "stored_bytes": stored, "seq": seq}

    def _completed(self, draft: Record, root: str, inputs: tuple[str, ...]) -> Record:
        import dataclasses

        parent = self._last.result_snap if self._last else None
        return dataclasses.replace(draft, parent_snap=parent, result_snap=root, input_ids=inputs)


def serve(store: StoreWriter, sock: socket.socket, parent: int) -> None:
    """Answer until the socket closes or the parent is gone."""
    requests = Requests(store)
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    poll.register(parent, select.POLLIN)
    while True:
        ready = dict(poll.poll(IDLE_MS))
        if sock.fileno() in ready:
            data, fds, _, _ = socket.recv_fds(sock, MESSAGE_BYTES_MAX, 1)
            if not data:
                return
            sock.send(msgpack.packb(_answer(requests, data, fds)))
        elif parent in ready:
            return
        elif store.checkpoint_due():
            store.checkpoint()


def _answer(requests: Requests, data: bytes, fds: list[int]) -> list[Any]:
    page = None
    number = -1
    try:
        if fds:
            page = ReadPage(fds[0], check_seals(fds[0]))
        match wire.unpack(data):
            case [int(number), str(method), dict(args)] if method in ("head", "append", "keep", "commit"):
                call: Callable[..., dict[str, Any]] = getattr(requests, method)
                return [number, True, call(page, **args)]
        raise RecurosError("E2-WIRE", "a request must be [number, method, arguments]")
    except RecurosError as error:
        return [number, False, error.to_wire()]
    finally:
        if page is not None:
            page.close()


def main() -> int:
    """Open the store, say so, serve, sign."""
    prctl(PR_SET_NO_NEW_PRIVS, 1)
    drop_capabilities()
    prctl(PR_SET_DUMPABLE, 0)
    os.nice(NICE)
    sock = socket.socket(fileno=SOCKET_FD)
    parent = os.pidfd_open(os.getppid())
    try:
        store = Store.open_writer(Path(sys.argv[1]))
    except RecurosError as error:
        sock.send(msgpack.packb([0, False, error.to_wire()]))
        return error.exit_status
    try:
        sock.send(msgpack.packb([0, True, {}]))
        serve(store, sock, parent)
    except (BrokenPipeError, ConnectionResetError, KeyboardInterrupt):
        pass  # whoever asked has gone; what was acknowledged is durable
    finally:
        store.close()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
