"""The audit: recompute everything that can be recomputed, and name everything that does not match.

Responsible for: FORMAT, checkpoint, every frame and leaf against the signed root, every pack's whole-file hash, every object's
id, and every snapshot and input that a record names, down to the last leaf of its tree. Refuses: stopping at the first problem,
trusting an index, taking a lock; it runs beside a live writer.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from blake3 import blake3

from kfs import pack as packs
from kfs import records, snapshot
from kfs.checkpoint import TreeHead, read_highest
from kfs.formatfile import Format, read_format
from kfs.layout import TEMP_PREFIX, Layout, pack_digest
from kfs.ledger import LedgerReader
from kfs.lock import has_writer
from kfs.objects import object_id
from kfs.store import Store, read_checkpoint
from syscalls.errors import RecurosError

_CHUNK_BYTES: Final = 8 << 20
_SETTLE_TRIES: Final = 40
_SETTLE_S: Final = 0.05


@dataclass(frozen=True, slots=True)
class Problem:
    """Something wrong: `what` kind of thing, `where` it lies in the store, and the detail."""

    what: str
    where: str
    detail: str


@dataclass(slots=True)
class Report:
    """The result of an audit. `records` and `root` cover the whole ledger, `signed` the part under the checkpoint."""

    records: int = 0
    objects: int = 0
    signed: int = 0
    root: str = ""
    fast: bool = False
    problems: list[Problem] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems

    def add(self, what: str, where: str, detail: str) -> None:
        """Note a problem."""
        self.problems.append(Problem(what, where, detail))


def verify(store_dir: Path | str, *, fast: bool = False) -> Report:
    """Audit a store; `fast` leaves the objects out. E4-NOENT when there is no store; every other finding is a problem."""
    layout = Layout(Path(store_dir))
    report = Report(fast=fast)
    try:
        form = read_format(layout.format)
    except RecurosError as e:
        if e.code == "E4-NOENT":
            raise
        report.add("format", "FORMAT", e.message)
        return report
    # Heads first, then records, then packs: a live writer makes them durable in the opposite order.
    heads = _signed_heads(layout, form, report)
    try:
        ledger = LedgerReader(layout.records)
    except FileNotFoundError:
        report.add("ledger", "ledger/records", "the file is missing")
        return report
    try:
        named = _check_ledger(layout, ledger, heads, report)
    finally:
        ledger.close()
    if not fast:
        _check_packs(layout, report)
        _check_references(layout, named, report)
    return report


def _signed_heads(layout: Layout, form: Format, report: Report) -> list[tuple[str, TreeHead]]:
    heads = []
    try:
        head = read_checkpoint(layout, form)
        report.signed = head.size
        heads.append(("checkpoint", head))
    except RecurosError as e:
        report.add("checkpoint", "checkpoint", e.message)
    # A copy of a store carries no keys; where they are, they also tell the highest size ever signed.
    signed_path = layout.signed(form.store_id)
    if signed_path.exists():
        try:
            heads.append((f"keys/{signed_path.name}", read_highest(signed_path)))
        except RecurosError as e:
            report.add("key", f"keys/{signed_path.name}", e.message)
    return sorted(heads, key=lambda pair: pair[1].size)


def _check_ledger(
    layout: Layout, ledger: LedgerReader, heads: list[tuple[str, TreeHead]], report: Report
) -> dict[str, tuple[int, bool]]:
    """Frames, leaves, signed roots, records. Returns what records name: id -> (first seq, whether it is a snapshot)."""
    _settle(layout, ledger)
    damage = ledger.damage
    if damage is not None:
        after = "; valid frames follow" if damage.valid_after else ""
        report.add("ledger", f"ledger/records@{damage.offset}", f"record {damage.seq}: {damage.reason}{after}")
    size = ledger.size
    for where, head in heads:
        if head.size > size:
            report.add("ledger", f"ledger/records@{ledger.end}", f"{size} valid records; {where} covers {head.size}")
        elif (root := ledger.grow_tree(head.size).root()) != head.root:
            report.add("root", where, f"the first {head.size} records hash to {root.hex()}, not to {head.root.hex()}")
    report.records = size
    report.root = ledger.root().hex()
    return {} if report.fast else _check_records(ledger, report)


def _settle(layout: Layout, ledger: LedgerReader) -> None:
    """Beside a live writer the last frame may be half there; give the write in progress its moment."""
    for _ in range(_SETTLE_TRIES):
        if ledger.damage is None or ledger.damage.valid_after or not has_writer(layout.lock):
            return
        time.sleep(_SETTLE_S)
        ledger.refresh()


def _check_records(ledger: LedgerReader, report: Report) -> dict[str, tuple[int, bool]]:
    named: dict[str, tuple[int, bool]] = {}
    for seq, data in enumerate(ledger.records()):
        try:
            record = records.decode(data)
        except RecurosError as e:
            report.add("record", f"ledger/records@{ledger.location(seq)}", f"record {seq}: {e.message}")
            continue
        if record.seq != seq:
            report.add(
                "record", f"ledger/records@{ledger.location(seq)}", f"record {seq} says it is record {record.seq}"
            )
        for name in records.references(record):
            is_snapshot = name == record.result_snap
            if is_snapshot and not named.get(name, (0, False))[1]:
                named[name] = (seq, True)
            named.setdefault(name, (seq, is_snapshot))
    return named


def _check_packs(layout: Layout, report: Report) -> None:
    try:
        names = sorted(os.listdir(layout.packs))
    except FileNotFoundError:
        report.add("pack", "packs", "the folder is missing")
        return
    for name in names:
        digest = pack_digest(name)
        if digest is None:
            if not name.startswith(TEMP_PREFIX):
                report.add("pack", f"packs/{name}", "not the name of a pack")
            continue
        path = layout.packs / name
        try:
            found = _file_digest(path)
            if found != digest:
                report.add("pack", f"packs/{name}", f"the file hashes to {found}")
            _check_objects(path, report)
        except FileNotFoundError:
            continue  # collected while this ran
        except RecurosError as e:
            report.add("pack", f"packs/{name}", e.message)


def _file_digest(path: Path) -> str:
    hasher = blake3()
    with path.open("rb", buffering=0) as file:
        while chunk := file.read(_CHUNK_BYTES):
            hasher.update(chunk)
    return hasher.hexdigest()


def _check_objects(path: Path, report: Report) -> None:
    """Recompute each id; the header must also describe the file from its first data byte to its last, without a gap."""
    pack = packs.read_header(path)
    at = pack.data_offset
    for name in pack.header:
        try:
            entry = pack.entry(name)
        except RecurosError as e:
            report.add("object", f"packs/{path.name}", e.message)
            continue
        if entry.offset != at:
            report.add("pack", f"packs/{path.name}", f"object {name} begins at byte {entry.offset}, not at {at}")
        at = entry.offset + entry.length
        data = packs.read_bytes(path, entry)
        if len(data) != entry.length or object_id(entry.dtype, entry.shape, data) != name:
            where = f"packs/{path.name}@{entry.offset}"
            report.add("object", where, f"the {entry.length} bytes of {entry.kind} {name} do not match their id")
        else:
            report.objects += 1
    if at != pack.file_bytes:
        report.add("pack", f"packs/{path.name}", f"objects end at byte {at} of {pack.file_bytes}")


def _check_references(layout: Layout, named: dict[str, tuple[int, bool]], report: Report) -> None:
    """Everything that records name exists, and every snapshot is complete."""
    try:
        store = Store.open_reader(layout.store)
    except (RecurosError, OSError) as e:
        report.add("store", ".", str(e))
        return
    seen: set[str] = set()
    with store:
        for name, (seq, is_snapshot) in named.items():
            for missing, detail in _missing(store, name, is_snapshot, seen):
                report.add("snapshot" if is_snapshot else "input", missing, f"named by record {seq}: {detail}")


def _missing(store: Store, name: str, is_snapshot: bool, seen: set[str]) -> Iterator[tuple[str, str]]:
    todo = [(name, 0 if is_snapshot else len(snapshot.LEVELS))]
    while todo:
        current, depth = todo.pop()
        key = f"{depth}{current}"
        if key in seen:
            continue
        seen.add(key)
        if depth == len(snapshot.LEVELS):
            if current not in store:
                yield current, "the store does not hold it"
            continue
        try:
            entries = snapshot.decode_node(store.get(current).data, snapshot.LEVELS[depth])
        except RecurosError as e:
            yield current, e.message
            continue
        todo += [(child, depth + 1) for child in entries.values()]
