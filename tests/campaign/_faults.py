"""Full and failing disks: ENOSPC and EIO at every system call of every operation, once and from then on.

After the failure: the error says which it was; a poisoned store writes nothing more; the store opens again when the disk is well, holds
everything that was acknowledged, and does what failed when it is asked again.
"""

from __future__ import annotations

import contextlib
import errno
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from kfs import gc
from kfs.compactor import Compactor
from kfs.files import Files
from kfs.objects import NewObject, blob, id_of
from kfs.store import Store, StoreWriter
from kfs.trash import unlink_due
from kfs.verify import verify
from syscalls.errors import RecurosError
from tests.campaign._disk import Killed, Op, Recorder
from tests.campaign._power import scratch
from tests.unit.kfs_support import commit, miss, snapshot_of

CODES: Final = {errno.ENOSPC: "E9-NOSPACE", errno.EIO: "E9-POISONED"}
# What changes a disk; a sync or an unlink of a temporary file does no harm after a failure.
_CHANGES: Final = frozenset({"create", "mkdir", "write", "truncate", "rename", "link"})
Operation = Callable[[StoreWriter], Any]


def _commit(store: StoreWriter) -> None:
    root, _ = store.put_snapshot(*snapshot_of(100, 101), extras=[blob(b"x" * 3_000, "report")])
    store.append([commit(100, t_mono=100, result=root)])


def _compact(store: StoreWriter) -> None:
    Compactor(store, block=2, hot=1).run()
    for _ in unlink_due(store, grace_records=0):
        pass


def _collect(store: StoreWriter) -> None:
    gc.collect(store, gc.plan(store, budget=0, keep_last=gc.KEEP_LAST_MIN), grace_records=0)


def _nothing(_: StoreWriter) -> None:
    """What is under test is opening it."""


OPERATIONS: dict[str, Operation] = {
    "open": _nothing,
    "put": lambda store: store.put([blob(b"new" * 500, "report"), blob(b"other", "cal")]),
    "put_snapshot, append": _commit,
    "append": lambda store: store.append([miss(200 + n) for n in range(40)]),
    "compact": _compact,
    "collect": _collect,
    "checkpoint": lambda store: store.checkpoint(),
    "close": lambda store: store.close(),
}


@dataclass
class Ground:
    """A store with acknowledged content, copied afresh for each failure."""

    root: Path = field(default_factory=scratch)

    def __post_init__(self) -> None:
        self.acknowledged: dict[int, str] = {}
        with Store.open_writer(self.root / "template" / "store") as store:
            weights = bytearray(range(200)) * 4
            for window in range(4):
                weights[window] ^= 1  # nearly the last one: there is something to compact
                head = NewObject("F32", (200,), bytes(weights), "snapshot")
                refs, new = snapshot_of(window, window + 1)
                name = id_of(head)
                root, _ = store.put_snapshot(refs | {"student/head/weight": name}, new | {name: head})
                (seq,) = store.append([commit(window, t_mono=window, result=root)])
                self.acknowledged[seq] = root
        # Unsigned records at the end, so that opening has something to sign and to write again.
        store = Store.open_writer(self.root / "template" / "store", Files(killed := Recorder(self.root)))
        store.append([miss(9)])
        killed.kill_at = killed.count + 1
        with contextlib.suppress(Killed):
            store.close()
        self.empty = self.root / "nothing"
        self.empty.mkdir()

    def close(self) -> None:
        """Remove it."""
        shutil.rmtree(self.root)

    def attempt(self, operation: str, template: Path, arm: Callable[[Recorder], None]) -> tuple[str, int]:
        """Run one operation on a fresh copy; (violation or nothing, changing calls that the operation made)."""
        target = self.root / "target"
        shutil.copytree(template, target)
        calls = Recorder(target)
        acknowledged = self.acknowledged if template.name == "template" else {}
        try:
            return self._attempt(operation, target, calls, acknowledged, arm)
        finally:
            shutil.rmtree(target)

    def _attempt(
        self,
        operation: str,
        target: Path,
        calls: Recorder,
        acknowledged: dict[int, str],
        arm: Callable[[Recorder], None],
    ) -> tuple[str, int]:
        files = Files(calls)
        store: StoreWriter | None = None
        error: RecurosError | None = None
        begin = 0
        try:
            if operation == "open":
                arm(calls)
            store = Store.open_writer(target / "store", files)
            if operation != "open":
                begin = calls.count
                arm(calls)
            OPERATIONS[operation](store)
        except RecurosError as e:
            error = e
        made = calls.count - begin
        found = self._after(error, files, store, calls)
        if store is not None and operation != "close":
            try:
                store.close()
            except RecurosError as e:
                found = found or ("" if e.code in CODES.values() else f"closing: {e}")
        return found or _intact(target, acknowledged, operation), made

    def _after(self, error: RecurosError | None, files: Files, store: StoreWriter | None, calls: Recorder) -> str:
        if error is None:
            return ""
        if error.code not in CODES.values():
            return f"the error is {error.code}: {error.message}"
        if calls.fail_with == errno.EIO and error.code != "E9-POISONED":
            return f"an I/O error is reported as {error.code}"
        if files.poison is None or store is None:
            return ""
        before = len(calls.log)
        for name in ("put", "append", "put_snapshot, append"):
            try:
                OPERATIONS[name](store)
            except RecurosError as e:
                if e.code not in CODES.values():
                    return f"a poisoned store refuses with {e.code}"
            else:
                return f"a poisoned store did {name}"
        changes = [op for op in calls.log[before:] if _changes(op)]
        return f"a poisoned store wrote: {changes[0]}" if changes else ""


def _changes(op: Op) -> bool:
    return op.what in _CHANGES


def _intact(target: Path, acknowledged: dict[int, str], operation: str) -> str:
    """Opened again on a disk that works."""
    try:
        with Store.open_writer(target / "store") as store:
            for seq, root in acknowledged.items():
                if store.record(seq).result_snap != root:
                    return f"record {seq} is another one"
                if operation == "collect" and seq < len(acknowledged) - gc.KEEP_LAST_MIN:
                    continue  # may be given up
                for leaf in store.snapshot(root).values():
                    store.get(leaf)
            if operation != "close":
                OPERATIONS[operation](store)
            store.append([miss(1_000)])
    except (RecurosError, OSError) as e:
        return f"afterwards: {type(e).__name__}: {e}"
    report = verify(target / "store")
    return "" if report.ok else f"verify: {report.problems[0]}"


def faults(every: int = 1) -> Iterator[tuple[int, str]]:
    """Every call of every operation, both errors, once and for good; of these, one in `every`."""
    ground = Ground()
    number = 0
    try:
        cases = [("open", ground.empty), *((name, ground.root / "template") for name in OPERATIONS)]
        for name, template in cases:
            _, calls = ground.attempt(name, template, lambda recorder: None)
            for at in range(1, calls + 1):
                for code in CODES:
                    for stay in (False, True):
                        number += 1
                        if number % every:
                            continue
                        found, _ = ground.attempt(name, template, _armed(at, code, stay))
                        where = f"{name} on {template.name}, call {at}, {errno.errorcode[code]}{' from then on' if stay else ''}"
                        yield number, f"{where}: {found}" if found else ""
    finally:
        ground.close()


def _armed(at: int, code: int, stay: bool) -> Callable[[Recorder], None]:
    def arm(recorder: Recorder) -> None:
        recorder.fail_at, recorder.fail_with, recorder.fail_on = recorder.count + at, code, stay

    return arm
