"""A store against a dictionary, with readers beside it: put, append, get, sign, compact, collect, reopen and crash in any order."""

from __future__ import annotations

import contextlib
import random
import shutil
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, multiple, rule

from kfs import gc, records
from kfs.compactor import Compactor
from kfs.files import Files
from kfs.objects import NewObject, id_of
from kfs.records import Record, RecordKind
from kfs.store import Store, StoreWriter
from kfs.trash import unlink_due
from kfs.verify import verify
from syscalls.errors import RecurosError
from tests.campaign._disk import OLDEST, Disk, Killed, Recorder
from tests.campaign._power import scratch
from tests.unit.kfs_support import commit, miss

OBJECTS = st.builds(
    lambda dtype, items, seed: NewObject(
        dtype, (items,), random.Random(seed).randbytes(items * (4 if dtype == "F32" else 1)), "report"
    ),
    st.sampled_from(["F32", "U8"]),
    st.sampled_from([0, 1, 7, 200, 700]),
    st.integers(0, 30),
)
KEEP = st.sampled_from([OLDEST, 0.0, 0.5, 1.0])


class StoreMachine(RuleBasedStateMachine):
    """The model: what was acknowledged. `drafts` by number, `objects` by id, `heads` signed so far.

    `named` are the leaves of committed roots and the inputs of records: what a collection keeps unless its plan gives it up. What it does
    not keep goes from `objects` to `gone`: a reader then has its bytes or an error, and never other bytes.
    """

    known = Bundle("known")  # ids of stored objects
    roots = Bundle("roots")
    readers = Bundle("readers")

    @initialize()
    def create(self) -> None:
        self.root: Path = scratch()
        self.calls = Recorder(self.root)
        self.drafts: list[bytes] = []
        self.objects: dict[str, bytes] = {}
        self.trees: dict[str, dict[str, str]] = {}
        self.heads: dict[int, bytes] = {}
        self.named: dict[str, set[str]] = {}
        self.given: set[str] = set()
        self.gone: dict[str, bytes] = {}
        self.open_readers: list[Store] = []
        self.number = 0
        self.store = self.opened()

    def opened(self) -> StoreWriter:
        store = Store.open_writer(self.root / "store", Files(self.calls))
        assert store.size == len(self.drafts)
        return store

    def teardown(self) -> None:
        if not hasattr(self, "store"):
            return
        for reader in self.open_readers:
            reader.close()
        self.store.close()
        report = verify(self.root / "store")
        shutil.rmtree(self.root)
        assert report.ok, report.problems

    # --- writing ------------------------------------------------------------------------------------------------------

    @rule(target=known, items=st.lists(OBJECTS, max_size=3))
    def put(self, items: list[NewObject]) -> Any:
        names = self.store.put(items)
        assert names == [id_of(item) for item in items]
        self.objects |= {name: bytes(item.data) for name, item in zip(names, items, strict=True)}
        return multiple(*names)

    @rule(target=roots, old=st.lists(known, max_size=3), new=st.lists(OBJECTS, min_size=1, max_size=3))
    def put_snapshot(self, old: list[str], new: list[NewObject]) -> str:
        sent = {id_of(item): item for item in new}
        refs = {f"student/block/w{n}": name for n, name in enumerate([*self.there(old), *sent])}
        root, _ = self.store.put_snapshot(refs, sent)
        self.objects |= {name: bytes(item.data) for name, item in sent.items()}
        self.trees[root] = refs
        self.gone.pop(root, None)
        return root

    def there(self, names: list[str]) -> list[str]:
        """Those that were not collected."""
        return [name for name in names if name in self.objects and name not in self.given]

    def sent(self, drafts: list[Record]) -> None:
        first = len(self.drafts)
        assert self.store.append(drafts) == list(range(first, first + len(drafts)))
        self.drafts += [records.encode(draft) for draft in drafts]

    @rule(count=st.integers(1, 4), inputs=st.lists(known, max_size=2))
    def append(self, count: int, inputs: list[str]) -> None:
        self.number += count
        inputs = self.there(inputs)
        self.named |= {name: {name} for name in inputs}
        self.sent([miss(self.number - n, input_ids=tuple(inputs)) for n in range(count)])

    @rule(root=roots)
    def commit(self, root: str) -> None:
        if root in self.given or not self.objects.keys() >= set(self.trees[root].values()) or root in self.lost_roots():
            return
        self.named[root] = set(self.trees[root].values())
        self.number += 1
        self.sent([commit(self.number, t_mono=self.number, result=root)])

    @rule(back=st.integers(0, 3))
    def send_again(self, back: int) -> None:
        if back < len(self.drafts):
            seq = len(self.drafts) - 1 - back
            draft = records.decode(self.drafts[seq])
            if all(name in self.objects or name in self.named for name in records.references(draft)) and not (
                set(records.references(draft)) & self.given
            ):
                assert self.store.append([draft]) == [seq]

    @rule()
    def sign(self) -> None:
        head = self.store.checkpoint()
        assert self.heads.setdefault(head.size, head.root) == head.root

    @rule(unlink=st.booleans())
    def compact(self, unlink: bool) -> None:
        Compactor(self.store, block=2, hot=1).run()
        if unlink:
            for _ in unlink_due(self.store, grace_records=0):
                pass

    def lost_roots(self) -> set[str]:
        """Trees that nothing named when a collection came by."""
        return self.trees.keys() & self.gone.keys()

    @rule(grace=st.sampled_from([0, 1_000]))
    def collect(self, grace: int) -> None:
        made = gc.plan(self.store, budget=0, keep_last=gc.KEEP_LAST_MIN)
        self.given |= set(made.ids)
        self.named = {name: held for name, held in self.named.items() if name not in self.given}
        kept = {name for held in self.named.values() for name in held}
        seq, notes = gc.collect(self.store, made, grace_records=grace)
        assert not notes
        assert seq == -1 or self.store.record(seq).kind is RecordKind.GC_PLAN
        self.gone |= {name: data for name, data in self.objects.items() if name not in kept}
        self.gone |= {root: b"" for root in self.trees if root not in self.named}
        self.objects = {name: data for name, data in self.objects.items() if name in kept}
        self.drafts += [records.encode(r.draft()) for r in self.store.records(len(self.drafts))]

    # --- ends of processes -------------------------------------------------------------------------------------------

    def dies(self) -> None:
        """The writer is killed between two calls, or in the middle of closing, which is as good."""
        self.calls._dead = True
        with contextlib.suppress(Killed):
            self.store.close()

    @rule()
    def reopen(self) -> None:
        self.store.close()
        self.store = self.opened()

    @rule()
    def kill(self) -> None:
        self.dies()
        self.calls.revive()
        self.store = self.opened()

    @rule(data=KEEP, names=KEEP, seed=st.integers(0, 1 << 30))
    def lose_power(self, data: float, names: float, seed: int) -> None:
        """Readers go with the machine; the disk holds what was synced and any part of what was not."""
        self.dies()
        for reader in self.open_readers:
            reader.close()
        self.open_readers.clear()
        disk = Disk()
        for op in self.calls.log:
            disk.apply(op)
        state = disk.crash(random.Random(seed), data, names)
        shutil.rmtree(self.root)
        self.root = scratch()
        self.calls = Recorder(self.root)
        self.calls.restore(state)
        self.store = self.opened()

    # --- reading ------------------------------------------------------------------------------------------------------

    @rule(target=readers)
    def open_reader(self) -> int:
        self.open_readers.append(Store.open_reader(self.root / "store"))
        return len(self.open_readers) - 1

    @rule(which=consumes(readers))
    def close_reader(self, which: int) -> None:
        if which < len(self.open_readers):
            self.open_readers.pop(which).close()

    @rule(name=known, through=st.integers(0, 3))
    def get(self, name: str, through: int) -> None:
        for store in (self.store, *self.open_readers[through : through + 1]):
            found: bytes | str
            try:
                found = bytes(store.get(name).data)
            except RecurosError as e:
                found = e.code
            allowed = [self.objects[name]] if name in self.objects else [self.gone[name], "E4-NOENT", "E75-AGAIN"]
            assert found in allowed

    @rule(root=roots, through=st.integers(0, 3))
    def read_snapshot(self, root: str, through: int) -> None:
        if root not in self.named:
            return
        for store in (self.store, *self.open_readers[through : through + 1]):
            assert store.snapshot(root) == self.trees[root]
            for name in self.trees[root].values():
                assert bytes(store.get(name).data) == self.objects[name]

    @rule(through=st.integers(0, 3), pick=st.integers(0, 1 << 30))
    def read_record(self, through: int, pick: int) -> None:
        if self.drafts:
            seq = pick % len(self.drafts)
            for store in (self.store, *self.open_readers[through : through + 1]):
                assert records.encode(store.record(seq).draft()) == self.drafts[seq]

    @invariant()
    def readers_hold_a_prefix(self) -> None:
        for reader in getattr(self, "open_readers", []):
            reader.refresh()
            assert reader.head() == self.store.head()


TestStoreMachine = StoreMachine.TestCase
TestStoreMachine.settings = settings(
    max_examples=25, stateful_step_count=30, suppress_health_check=list(HealthCheck), print_blob=True
)
