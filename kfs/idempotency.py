"""Which records the ledger already holds, so that sending one twice stores it once.

Responsible for: two keys. A window commit is known by (boot, window) for ever, since recovery must not commit a window twice.
Any other record is known by its draft bytes, within the boot that sent it, while it is among the last DRAFTS_KEPT. A boot's
records begin with the append that holds its boot record, which shares one `t_wall`.
Refuses: a second commit of a window with another snapshot.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

from kfs import records
from kfs.ledger import LedgerReader
from kfs.records import Record, RecordKind
from syscalls.errors import RecurosError

DRAFTS_KEPT: Final = 4_096
_COMMIT_MARK: Final = RecordKind.WINDOW_COMMIT.value.encode()


class Known:
    """Sequence numbers of what is stored. Rebuilt from the ledger when a writer opens it."""

    def __init__(self) -> None:
        self._commits: dict[tuple[str | int, int], tuple[int, str | None]] = {}
        self._drafts: OrderedDict[bytes, tuple[int, int]] = OrderedDict()  # draft -> (seq, t_wall)

    @classmethod
    def of(cls, ledger: LedgerReader) -> Known:
        """What a ledger holds: every commit, and the drafts since its last boot record."""
        known = cls()
        for seq, data in enumerate(ledger.records()):
            if _COMMIT_MARK in data:  # cheap; the decoded kind decides
                known._add_commit(records.decode(data), seq)
        tail: list[tuple[bytes, tuple[int, int]]] = []
        booted_at_ns = None
        for seq in range(ledger.size - 1, max(-1, ledger.size - 1 - DRAFTS_KEPT), -1):
            record = records.decode(ledger.record(seq))
            if booted_at_ns is not None and record.t_wall != booted_at_ns:
                break
            tail.append((records.encode(record.draft()), (seq, record.t_wall)))
            if record.kind is RecordKind.BOOT and booted_at_ns is None:
                booted_at_ns = record.t_wall
        known._drafts.update(reversed(tail))
        return known

    def find(self, record: Record, draft: bytes) -> int | None:
        """The sequence number under which this record is stored already, if it is."""
        if record.kind is RecordKind.WINDOW_COMMIT:
            found = self._commits.get((record.args["boot"], record.args["window"]))
            if found is None:
                return None
            if found[1] != record.result_snap:
                raise RecurosError(
                    "E9-INTEGRITY",
                    f"window {record.args['window']} of boot {record.args['boot']} is committed as record {found[0]} with snapshot "
                    f"{found[1]}; refusing a second commit with {record.result_snap}",
                )
            return found[0]
        found_draft = self._drafts.get(draft)
        return None if found_draft is None else found_draft[0]

    def add(self, record: Record, draft: bytes, seq: int, t_wall: int) -> None:
        """Remember a record that is in the ledger under `seq`, or about to be."""
        self._add_commit(record, seq)
        if record.kind is RecordKind.BOOT:
            for old in [known for known, (_, at) in self._drafts.items() if at != t_wall]:
                del self._drafts[old]
        self._drafts[draft] = seq, t_wall
        while len(self._drafts) > DRAFTS_KEPT:
            self._drafts.popitem(last=False)

    def remove(self, record: Record, draft: bytes) -> None:
        """Take back an `add` whose record did not reach the disk."""
        self._drafts.pop(draft, None)
        if record.kind is RecordKind.WINDOW_COMMIT:
            self._commits.pop((record.args["boot"], record.args["window"]), None)

    def _add_commit(self, record: Record, seq: int) -> None:
        if record.kind is RecordKind.WINDOW_COMMIT:
            self._commits.setdefault((record.args["boot"], record.args["window"]), (seq, record.result_snap))
