"""The audit: recompute everything that can be recomputed, and name everything that does not match.

Responsible for: FORMAT, checkpoint, every frame and leaf against the signed root, the hash tiles, every pack's whole-file hash,
every object's id, and every snapshot and input that a record names, down to the last leaf of its tree; and, where the caller
brings them from elsewhere, the key and an earlier checkpoint. Refuses: stopping at the first problem,
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
from kfs import records, snapshot, tiles
from kfs.checkpoint import PublicKey, TreeHead, VerifiedCheckpoint, read_highest
from kfs.formatfile import Format, read_format
from kfs.layout import TEMP_PREFIX, Layout, pack_digest
from kfs.ledger import LedgerReader
from kfs.lock import has_writer
from kfs.merkle import CompactRange
from kfs.objects import object_id
from kfs.plans import given_up
from kfs.store import Store, read_note
from kfs.tell import Tell, counted, silent
from syscalls.errors import RecurosError

_CHUNK_BYTES: Final = 8 << 20
_SETTLE_TRIES: Final = 40
_SETTLE_S: Final = 0.05
_TOLD_EVERY: Final = 256


@dataclass(frozen=True, slots=True)
class Problem:
    """Something wrong: `what` kind of thing, `where` it lies in the store, and the detail."""

    what: str
    where: str
    detail: str


@dataclass(slots=True)
class Report:
    """The result of an audit. `records` and `root` cover the whole ledger, `signed` the part under the checkpoint; `collected`
    counts what records name and a later plan gave up.

    `own_key`: no key from elsewhere was given, so whoever can write the store could have signed it anew. `anchored`: how many
    records an earlier checkpoint, kept elsewhere, covers; None without one.
    """

    records: int = 0
    objects: int = 0
    signed: int = 0
    root: str = ""
    fast: bool = False
    collected: int = 0
    own_key: bool = True
    anchored: int | None = None
    problems: list[Problem] = field(default_factory=list)
    # What is not wrong and should be known: where the archivist's clock went back.
    notes: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems

    def add(self, what: str, where: str, detail: str) -> None:
        """Note a problem."""
        self.problems.append(Problem(what, where, detail))


def verify(
    store_dir: Path | str,
    *,
    fast: bool = False,
    key: PublicKey | None = None,
    anchor: bytes | None = None,
    tell: Tell = silent,
) -> Report:
    """Audit a store; `fast` leaves the objects out. E4-NOENT when there is no store; every other finding is a problem.

    `key` and `anchor` (a signed note) come from elsewhere: the store must have that key, and have grown from that checkpoint.
    """
    layout = Layout(Path(store_dir))
    report = Report(fast=fast, own_key=key is None)
    try:
        form = read_format(layout.format)
    except RecurosError as e:
        if e.code == "E4-NOENT":
            raise
        report.add("format", "FORMAT", e.message)
        return report
    if key is not None and key != form.key:
        report.add("key", "FORMAT", f"names key {form.key}; the key given is {key}")
    # Heads first, then records, then packs: a live writer makes them durable in the opposite order.
    heads = _signed_heads(layout, form, report)
    if anchor is not None:
        heads = _with_anchor(anchor, key or form.key, heads, report)
    try:
        ledger = LedgerReader(layout.records)
    except FileNotFoundError:
        report.add("ledger", "ledger/records", "the file is missing")
        return report
    try:
        named = _check_ledger(layout, ledger, heads, report, tell)
        if not any(problem.what in ("ledger", "root") for problem in report.problems):
            _check_tiles(layout, ledger, report)
    finally:
        ledger.close()
    if not fast:
        _check_stored(layout, named, report, tell)
    return report


def _signed_heads(layout: Layout, form: Format, report: Report) -> list[tuple[str, TreeHead]]:
    heads = []
    # A copy of a store carries no keys; where they are, they also tell the highest size ever signed.
    signed_path = layout.signed(form.store_id)
    highest = None
    if signed_path.exists():
        try:
            highest = read_highest(signed_path)
            heads.append((f"keys/{signed_path.name}", highest))
        except RecurosError as e:
            report.add("key", f"keys/{signed_path.name}", e.message)
    try:
        head = settled_checkpoint(layout, form, 0 if highest is None else highest.size).head
        report.signed = head.size
        heads.insert(0, ("checkpoint", head))
        if highest is not None and head.size < highest.size:
            report.add(
                "checkpoint",
                "checkpoint",
                f"covers {head.size} records; {highest.size} are signed by keys/{signed_path.name}: an older one was put back, "
                "or a crash came between the two, and the next writer signs again",
            )
    except RecurosError as e:
        report.add("checkpoint", "checkpoint", e.message)
    return sorted(heads, key=lambda pair: pair[1].size)


def settled_checkpoint(layout: Layout, form: Format, highest_size: int) -> VerifiedCheckpoint:
    """The checkpoint of a store whose highest signed size was `highest_size` before; a live writer gets a moment to publish it."""
    for _ in range(_SETTLE_TRIES):
        alive = has_writer(layout.lock)  # asked first: a writer that is gone by now published before it went
        found = VerifiedCheckpoint(read_note(layout), form.key)
        if found.size >= highest_size or not alive:
            break
        time.sleep(_SETTLE_S)
    return found


def _with_anchor(
    anchor: bytes, key: PublicKey, heads: list[tuple[str, TreeHead]], report: Report
) -> list[tuple[str, TreeHead]]:
    """The anchor is one more signed tree that the ledger's first records must hash to; that alone proves the prefix."""
    try:
        head = VerifiedCheckpoint(anchor, key).head
    except RecurosError as e:
        report.add("anchor", "the given checkpoint", e.message)
        return heads
    report.anchored = head.size
    if report.signed < head.size:
        report.add(
            "anchor",
            "checkpoint",
            f"covers {report.signed} records; the given checkpoint covers {head.size}: the log was cut or put back",
        )
    return sorted([*heads, ("the given checkpoint", head)], key=lambda pair: pair[1].size)


def _check_ledger(
    layout: Layout, ledger: LedgerReader, heads: list[tuple[str, TreeHead]], report: Report, tell: Tell
) -> dict[str, tuple[int, bool]]:
    """Frames, leaves, signed roots, records. Returns what records name: id -> (last seq, whether it is a snapshot)."""
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
            detail = f"the first {head.size} records hash to {root.hex()}, not to {head.root.hex()}"
            report.add("root", where, detail + _changed_record(layout, ledger, head))
    report.records = size
    report.root = ledger.root().hex()
    return {} if report.fast else _check_records(ledger, report, tell)


def _changed_record(layout: Layout, ledger: LedgerReader, head: TreeHead) -> str:
    """Which record is not the signed one, where tiles that hash to the signed root can tell."""
    tree, changed = CompactRange(), list[int]()
    try:
        for tile in tiles.tiles_of(head.size):
            if tile.level == 0:
                data = tiles.read_tile(layout.tile, tile)
                for at in range(0, len(data), tiles.HASH_BYTES):
                    leaf = data[at : at + tiles.HASH_BYTES]
                    if tree.size < ledger.size and ledger.leaves[tree.size * 32 : tree.size * 32 + 32] != leaf:
                        changed.append(tree.size)
                    tree.append(leaf)
    except RecurosError:
        return ""
    if tree.root() != head.root or not changed:
        return ""
    more = f" and {len(changed) - 1} more" if len(changed) > 1 else ""
    return f"; by the hash tiles, record {changed[0]} at byte {ledger.location(changed[0])}{more} was changed"


def _check_tiles(layout: Layout, ledger: LedgerReader, report: Report) -> None:
    """Every tile against the records."""
    found = tiles.read_all(layout.tile)
    ledger.refresh()  # a live writer publishes tiles of records that were not there when the ledger was read
    ledger.grow_tree(ledger.size)
    for finding in tiles.compare(layout.tile, found, ledger.leaves, report.signed):
        report.add("tile", finding.path, finding.why)


def _settle(layout: Layout, ledger: LedgerReader) -> None:
    """Beside a live writer the last frame may be half there; give the write in progress its moment."""
    alive = True
    for _ in range(_SETTLE_TRIES):
        if ledger.damage is None or ledger.damage.valid_after or not alive:
            return
        alive = has_writer(layout.lock)
        if alive:
            time.sleep(_SETTLE_S)
        ledger.refresh()  # also when the writer is gone: it may have finished since the ledger was read


def _check_records(ledger: LedgerReader, report: Report, tell: Tell) -> dict[str, tuple[int, bool]]:
    named: dict[str, tuple[int, bool]] = {}
    t_wall = 0
    for seq, data in enumerate(counted(ledger.records(), "records", ledger.size, tell, _TOLD_EVERY)):
        try:
            record = records.decode(data)
        except RecurosError as e:
            report.add("record", f"ledger/records@{ledger.location(seq)}", f"record {seq}: {e.message}")
            continue
        if record.seq != seq:
            report.add(
                "record", f"ledger/records@{ledger.location(seq)}", f"record {seq} says it is record {record.seq}"
            )
        if record.t_wall < t_wall:
            back_s = (t_wall - record.t_wall) / 1e9
            report.notes.append(
                f"record {seq}: the clock is {back_s:.3f} s behind record {seq - 1}; numbers order records"
            )
        t_wall = record.t_wall
        for name in records.references(record):
            is_snapshot = name == record.result_snap or named.get(name, (0, False))[1]
            named[name] = (seq, is_snapshot)
    return named


def _check_stored(layout: Layout, named: dict[str, tuple[int, bool]], report: Report, tell: Tell) -> None:
    """Packs, objects, and what records name."""
    if not layout.packs.is_dir():
        report.add("pack", "packs", "the folder is missing")
        return
    try:
        store = Store.open_reader(layout.store, use_index=False)
    except (RecurosError, OSError) as e:
        report.add("store", ".", str(e))
        return
    with store:
        _check_packs(store, report, tell)
        store.refresh()
        _check_references(store, named, report, tell)


def _check_packs(store: Store, report: Report, tell: Tell) -> None:
    layout = store.layout
    names = sorted(os.listdir(layout.packs))
    for name in counted(names, "packs", len(names), tell):
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
            _check_objects(path, store, report)
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


def _check_objects(path: Path, store: Store, report: Report) -> None:
    """Recompute each id, of the decoded bytes where they are compacted.

    The header must also describe the file from its first data byte to its last, without a gap.
    """
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
        where = f"packs/{path.name}@{entry.offset}"
        try:
            data = store.read_unchecked(path, entry)
        except RecurosError as e:
            report.add("object", where, f"{entry.kind} {name} cannot be decoded: {e.message}")
            continue
        if len(data) != entry.object_bytes or object_id(entry.dtype, entry.shape, data) != name:
            report.add("object", where, f"the {entry.length} bytes of {entry.kind} {name} do not match their id")
        else:
            report.objects += 1
    if at != pack.file_bytes:
        report.add("pack", f"packs/{path.name}", f"objects end at byte {at} of {pack.file_bytes}")


def _check_references(store: Store, named: dict[str, tuple[int, bool]], report: Report, tell: Tell) -> None:
    """Everything that records name exists and every snapshot is complete, or a later plan gave it up."""
    collected = _given_up(store, report)
    absent: list[tuple[str, int, bool, str, str]] = []
    seen: set[str] = set()
    for name, (seq, is_snapshot) in counted(named.items(), "references", len(named), tell, _TOLD_EVERY):
        if name not in collected:
            absent += [(name, seq, is_snapshot, *found) for found in _missing(store, name, is_snapshot, seen)]
    if absent:
        store.refresh()  # a live writer may have collected while this ran
        collected = _given_up(store, report)
    for name, seq, is_snapshot, missing, detail in absent:
        if name not in collected:
            report.add("snapshot" if is_snapshot else "input", missing, f"named by record {seq}: {detail}")
    # What is left of a collected snapshot was checked with its pack.
    gone = [collected[name] for name in named if name in collected and name not in store]
    report.collected = len(gone)
    if gone:
        plans = ", ".join(map(str, sorted(set(gone))))
        report.notes.append(f"{len(gone)} snapshots or inputs are not here: collected under plan {plans}")


def _given_up(store: Store, report: Report) -> dict[str, int]:
    try:
        return given_up(store.stored_records(), lambda name: store.get(name).data)
    except RecurosError as e:
        report.add("record", "ledger/records", f"a gc.plan cannot be read: {e.message}")
        return {}


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
