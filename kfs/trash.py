"""Packs that left `packs/`: the move, the grace, the end.

Responsible for: `trash/PLAN-AT-HEX.safetensors`. A reader that looked a pack up just before the move finds it again by looking once
more; one that mapped it keeps the mapping. The grace, in records of the ledger, is for people: until it is over `kfs fsck --repair`
takes a pack back whose objects are missed. Refuses: clocks, and unlinking what is still in its grace.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from kfs.files import Files
from kfs.layout import Layout, trash_parts
from kfs.store import StoreWriter

GRACE_RECORDS: Final = 64
NO_PLAN: Final = "x"


@dataclass(frozen=True, slots=True)
class Trashed:
    """A file in the trash: the plan that gave it up ("x": none), the ledger's size at the move, and its digest."""

    path: Path
    plan: str
    at: int
    digest: str
    file_bytes: int


def waiting(layout: Layout) -> list[Trashed]:
    """What lies in the trash, oldest first; names of another form are left alone."""
    found = []
    with os.scandir(layout.trash) as listing:
        for entry in listing:
            parts = trash_parts(entry.name)
            if parts is not None:
                found.append(Trashed(Path(entry.path), *parts, entry.stat().st_size))
    return sorted(found, key=lambda item: (item.at, item.digest))


def retire(store: StoreWriter, digest: str, plan: str) -> None:
    """Move a pack to the trash, durably. Whatever of it is to stay must be in another pack already."""
    store.files.move(store.layout.pack(digest), store.layout.trashed(plan, store.size, digest))
    store.catalog.drop([digest])


def take_back(files: Files, layout: Layout, item: Trashed) -> None:
    """Move a pack back where it came from."""
    files.move(item.path, layout.pack(item.digest))


def unlink_due(store: StoreWriter, grace_records: int = GRACE_RECORDS) -> Iterator[Trashed]:
    """Unlink what has had its grace, one file a step; when it is over, what an earlier, killed process unlinked is gone for good too."""
    due = [item for item in waiting(store.layout) if item.at + grace_records <= store.size]
    for item in due:
        store.files.remove(item.path)
        yield item
    store.files.sync_folder(store.layout.trash)
