"""What the tests of compaction and collection share: a store with a history of slowly changing snapshots."""

from __future__ import annotations

import random
import struct
from pathlib import Path

from kfs_support import args_of, commit, key_of

from kfs.files import Files
from kfs.objects import NewObject, blob
from kfs.records import Record, RecordKind
from kfs.store import Store, StoreWriter

ITEMS = 2_000


def drifting(dice: random.Random, values: list[float]) -> NewObject:
    """A float tensor that moves a little with every call."""
    for i in range(len(values)):
        values[i] += dice.uniform(-1e-5, 1e-5)
    return NewObject("F32", (len(values),), struct.pack(f"<{len(values)}f", *values), "snapshot")


class History:
    """Commits with a drifting student, a teacher that stays, and evidence; what the store must give back."""

    def __init__(self, seed: int = 1) -> None:
        self.dice = random.Random(seed)
        self.values = [[self.dice.uniform(-1, 1) for _ in range(ITEMS)] for _ in range(2)]
        self.teacher = NewObject("F32", (ITEMS,), self.dice.randbytes(4 * ITEMS), "snapshot")
        self.snapshots: dict[int, tuple[str, dict[str, str]]] = {}
        self.data: dict[str, bytes] = {key_of(self.teacher): bytes(self.teacher.data)}
        self.evidence: dict[int, str] = {}

    def commit(self, store: StoreWriter, window: int) -> str:
        """One window: evidence, snapshot, commit record."""
        items = [drifting(self.dice, values) for values in self.values]
        new = {key_of(item): item for item in (*items, self.teacher)}
        refs = {f"student/blocks.{i}/w": key_of(item) for i, item in enumerate(items)}
        refs["teacher/blocks.0/w"] = key_of(self.teacher)
        (evidence,) = store.put([blob(self.dice.randbytes(300), "cal")])
        root, _ = store.put_snapshot(refs, new)
        record = commit(window, t_mono=10 * window + 1, result=root)
        args = args_of(RecordKind.POLICY, window=window)
        policy = Record("observer", RecordKind.POLICY, args, t_mono=10 * window + 2, input_ids=(evidence,))
        store.append([record, policy])
        self.snapshots[window] = root, refs
        self.data |= {name: bytes(item.data) for name, item in new.items()}
        self.evidence[window] = evidence
        return root

    def check(self, store: Store, windows: list[int] | None = None) -> None:
        """Every snapshot (of those windows) is there, byte for byte, and so is all evidence."""
        for window in self.snapshots if windows is None else windows:
            root, refs = self.snapshots[window]
            assert store.snapshot(root) == refs
            for name in refs.values():
                assert bytes(store.get(name).data) == self.data[name]
        for evidence in self.evidence.values():
            assert len(store.get(evidence).data) == 300


def filled(store_dir: Path, windows: int = 20, files: Files | None = None) -> tuple[StoreWriter, History]:
    """An open store with so many commits."""
    store = Store.open_writer(store_dir, files)
    history = History()
    for window in range(windows):
        history.commit(store, window)
    return store, history


def pack_bytes(store: Store) -> int:
    """The size of `packs/`."""
    return sum(path.stat().st_size for path in store.layout.packs.iterdir())
