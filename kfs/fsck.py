"""The check of everything that a repair can mend, and the repair.

Responsible for: unfinished files, a torn final frame, a checkpoint behind its key's highest size, hash tiles, the index, packs that
nothing names, packs in the trash that are missed, collections that were cut short. Without `repair` it takes no lock and writes
nothing; with it, it holds the writer's lock. Refuses: what cannot be mended without inventing bytes (damage inside the signed records,
an object that is gone): it says where, and what helps. Whether bytes match their ids is `kfs verify`'s.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from kfs import tiles
from kfs.catalog import Catalog
from kfs.checkpoint import read_highest
from kfs.files import Files
from kfs.formatfile import Format, read_format
from kfs.gc import collect, plan
from kfs.layout import TEMP_PREFIX, Layout, trash_parts
from kfs.ledger import LedgerReader
from kfs.lock import has_writer
from kfs.reach import Reach, mark
from kfs.store import Store, StoreWriter, read_checkpoint
from kfs.tell import Tell, counted, silent
from kfs.trash import take_back, waiting
from syscalls.errors import RecurosError

RESTORE = "restore it from a copy of the store; nothing here can make it again"


@dataclass(slots=True)
class Finding:
    """Something that is not as it should be. `repair`: what would be done, "" when nothing can be; `done`: it was."""

    what: str
    where: str
    detail: str
    repair: str
    done: bool = False


@dataclass(slots=True)
class Result:
    """What was found, in the order of the checks; `notes`: what a repair did besides."""

    findings: list[Finding] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def status(self) -> int:
        """0: nothing is left to mend; 1: a repair would mend it; 9: something cannot be mended."""
        left = [finding for finding in self.findings if not finding.done]
        if any(not finding.repair for finding in left):
            return 9
        return 1 if left else 0

    def add(self, what: str, where: str, detail: str, repair: str) -> None:
        """Note a finding."""
        self.findings.append(Finding(what, where, detail, repair))


def fsck(store_dir: Path | str, *, repair: bool = False, files: Files | None = None, tell: Tell = silent) -> Result:
    """Check a store, and with `repair` mend it. E4-NOENT without a store, E9-VERSION for another format, E3-BUSY names a writer."""
    layout = Layout(Path(store_dir))
    form = read_format(layout.format)
    if repair and has_writer(layout.lock):
        Store.open_writer(layout.store).close()  # raises E3-BUSY with the holder, unless it left just now
    result = _check(layout, form, tell)
    if not repair or result.status == 9:
        if repair:
            result.notes.append("nothing was repaired: what cannot be repaired comes first")
        return result
    if result.findings:
        _repair(layout, result, files or Files(), tell)
    return result


def _check(layout: Layout, form: Format, tell: Tell) -> Result:
    result = Result()
    for path in _unfinished(layout):
        result.add("temp", str(path.relative_to(layout.store.parent)), "an unfinished write", "remove it")
    for folder in layout.folders():
        if not folder.is_dir():
            lost = folder in (layout.packs, layout.ledger)
            result.add("folder", folder.name, "the folder is missing", "" if lost else "make it")
    if not layout.packs.is_dir():
        return result
    if not _check_ledger(layout, form, result):
        return result
    _check_index(layout, form, result)
    try:
        store = Store.open_reader(layout.store, use_index=False)
    except RecurosError as e:
        result.add("store", ".", e.message, "")
        return result
    with store:
        _check_packs(store, result, tell)
    return result


def _unfinished(layout: Layout) -> Iterator[Path]:
    if has_writer(layout.lock):
        return  # they are being written
    for folder in (layout.store, layout.packs, layout.ledger, layout.tile, layout.trash, layout.keys):
        if folder.is_dir():
            yield from (Path(entry.path) for entry in os.scandir(folder) if entry.name.startswith(TEMP_PREFIX))


def _check_ledger(layout: Layout, form: Format, result: Result) -> bool:
    """Whether records can be read as far as they are signed."""
    try:
        ledger = LedgerReader(layout.records)
    except FileNotFoundError:
        result.add("ledger", "ledger/records", f"the file is missing; {RESTORE}", "")
        return False
    try:
        return _check_heads(layout, form, ledger, result)
    finally:
        ledger.close()


def _check_heads(layout: Layout, form: Format, ledger: LedgerReader, result: Result) -> bool:
    signed = 0
    try:
        signed = read_checkpoint(layout, form).size
    except RecurosError as e:
        result.add("checkpoint", "checkpoint", f"{e.message}; {RESTORE}", "")
    path = layout.signed(form.store_id)
    if path.exists():
        try:
            highest = read_highest(path).size
            if highest != signed:
                result.add(
                    "checkpoint", "checkpoint", f"covers {signed} records; {highest} were signed", "sign it again"
                )
            signed = max(signed, highest)
        except RecurosError as e:
            result.add("key", f"keys/{path.name}", f"{e.message}; {RESTORE}", "")
    damage = ledger.damage
    live = has_writer(layout.lock)
    if damage is not None and not (live and not damage.valid_after):
        where = f"ledger/records@{damage.offset}"
        if damage.valid_after or damage.seq < signed:
            why = "valid frames follow it" if damage.valid_after else f"{signed} records are signed"
            result.add("ledger", where, f"record {damage.seq}: {damage.reason}; {why}; {RESTORE}", "")
            return False
        result.add(
            "ledger", where, f"record {damage.seq}: {damage.reason}; nobody was told it was written", "cut it off"
        )
    if ledger.size < signed:
        result.add(
            "ledger", f"ledger/records@{ledger.end}", f"{ledger.size} records, and {signed} are signed; {RESTORE}", ""
        )
        return False
    ledger.grow_tree(ledger.size)
    if not live and layout.tile.is_dir():
        for finding in tiles.check(layout.tile, ledger.leaves, signed):
            result.add("tile", finding.path, finding.why, "make it again from the ledger" if finding.mendable else "")
    return True


def _check_index(layout: Layout, form: Format, result: Result) -> None:
    problem = Catalog(layout, form.store_id, use_index=False).index_problem()
    if problem and not has_writer(layout.lock):
        result.add("index", "index.sqlite", problem, "make it again from the packs")


def _check_packs(store: Store, result: Result, tell: Tell) -> None:
    for name, error in sorted(store.damaged.items()):
        result.add("pack", f"packs/{name}", f"{error.message}; {RESTORE}", "")
    try:
        reach = Reach(store)
        reach.scan_all(tell)
    except RecurosError as e:
        result.add("record", "ledger/records", e.message, "")
        return
    _check_missed(store, reach, result, tell)
    live = has_writer(store.layout.lock)
    if reach.pending and not live:
        plans = ", ".join(map(str, sorted(reach.pending)))
        result.add("gc", "trash", f"plan {plans} is not done", "carry on with it; its packs wait out their grace")
    with os.scandir(store.layout.trash) as listing:
        strange = sorted(
            entry.name
            for entry in listing
            if trash_parts(entry.name) is None and not entry.name.startswith(TEMP_PREFIX)
        )
    for name in strange:
        result.notes.append(f"trash/{name} is not a collected pack; it is left alone")
    if result.status != 9 and not live and not reach.pending and (count := plan(store, tell=tell).unreferenced):
        result.add("pack", "packs", f"{count} packs that nothing names", "collect them")


def _check_missed(store: Store, reach: Reach, result: Result, tell: Tell) -> None:
    """Objects that records promise and no pack holds: the trash may have them."""
    missed: set[str] = set()
    live: set[str] = set()
    roots = reach.kept_roots()
    for root in counted(roots, "snapshots", len(roots), tell):
        try:
            for _ in mark(reach, root, live):
                pass
        except RecurosError as e:
            if root not in store:
                missed.add(root)
            else:
                result.add("snapshot", root, f"{e.message}; recuros kfs verify lists what is wrong; {RESTORE}", "")
    names = {name for name in live if name.startswith("b3:")} | {
        name for name in reach.inputs if name not in reach.given_up
    }
    missed |= {name for name in names if name not in store}
    if not missed:
        return
    from kfs import pack as packs

    for item in waiting(store.layout):
        try:
            held = missed & packs.read_header(item.path).header.keys()
        except (RecurosError, FileNotFoundError):
            continue
        if held:
            result.add(
                "trash", f"trash/{item.path.name}", f"{len(held)} objects in it are missed", "move it back to packs"
            )
            missed -= held
    for name in sorted(missed):
        result.add("object", name, f"a record names it and no pack holds it; {RESTORE}", "")


def _repair(layout: Layout, result: Result, files: Files, tell: Tell) -> None:
    """Mend under the lock: opening a writer mends the most; the rest follows while it is open."""
    for folder in layout.folders():
        files.make_folder(folder)
    if any(finding.what == "index" for finding in result.findings):
        Catalog.remove_index(layout)
    store: StoreWriter
    with Store.open_writer(layout.store, files) as store:
        result.notes += store.notes
        for item in waiting(layout):
            if any(finding.where == f"trash/{item.path.name}" for finding in result.findings):
                take_back(files, layout, item)
        store.refresh()
        if any(finding.what in ("gc", "pack") for finding in result.findings):
            seq, notes = collect(store, plan(store, tell=tell), actor="fsck", tell=tell)
            result.notes += notes
            if seq >= 0:
                result.notes.append(f"plan {seq} collects what nothing names")
        if any(finding.what == "index" for finding in result.findings):
            store.catalog.rebuild_index()
    for finding in result.findings:
        finding.done = True
    again = _check(layout, read_format(layout.format), tell)
    for found in again.findings:
        if found.what != "gc":  # a plan in its grace is as it should be
            found.detail = f"still there after the repair: {found.detail}"
            result.findings.append(found)
