"""Collection: what is kept stays whole, what goes is told from what is missing, and a crash at any point changes neither."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st
from kfs_space_support import History, filled, pack_bytes
from kfs_support import args_of, key_of, miss, snapshot_of, tensor
from test_kfs_crash import FailingCalls

from kfs import gc, plans, records
from kfs.compactor import Compactor
from kfs.files import Files
from kfs.gc import Collector, collect, plan
from kfs.objects import blob
from kfs.reach import Reach
from kfs.records import Record, RecordKind
from kfs.retention import Facts, Weights, give_up, utilities
from kfs.store import Store, StoreWriter
from kfs.trash import waiting
from kfs.verify import verify
from syscalls.errors import RecurosError

GOLDEN = Path(__file__).parents[1] / "golden" / "kfs"


def half(store: Store, share: float = 0.5) -> gc.Plan:
    return plan(store, budget=int(plan(store).bytes_now * share), keep_last=2)


def left(history: History, made: gc.Plan) -> list[int]:
    return [window for window, (root, _) in history.snapshots.items() if root not in made.ids]


# --- scoring -----------------------------------------------------------------------------------------------------------


def test_the_terms_of_a_utility() -> None:
    facts = [
        Facts("a", 5, score=0.5, cka=0.9, used_ns=10),
        Facts("b", 4, score=None, cka=0.9, used_ns=10, pinned="why"),
        Facts("c", 3, score=0.7, cka=0.5, used_ns=30),
        Facts("d", 2, score=0.6, cka=None, used_ns=30, importance=2.0),
        Facts("e", 1, score=0.8, cka=0.5, used_ns=0),
    ]
    only = {
        "gain": [0.0, 0.0, 1.0, 0.0, 1.0],
        "distance": [0.0, 0.5, 1.0, 0.0, 0.0],
        "replay": [10 / 60, 20 / 60, 30 / 60, 1.0, 1.0],
        "cover": [1.0, 0.5, 1.0, 0.5, 1.0],
        "importance": [0.0, 0.0, 0.0, 1.0, 0.0],
    }
    zero = dict.fromkeys(only, 0.0)
    for name, expected in only.items():
        assert utilities(facts, Weights(**{**zero, name: 1.0})) == pytest.approx(expected), name


@pytest.mark.parametrize("value", [-1.0, float("inf"), float("nan")])
def test_weights_are_finite_and_not_negative(value: float) -> None:
    with pytest.raises(RecurosError, match="retention weight cover"):
        Weights(cover=value)


def slow_give_up(
    closures: dict[str, list[int]], worth: dict[str, float], sizes: list[int], kept: list[int], budget: int
) -> list[tuple[str, int]]:
    """The definition, without bookkeeping."""
    there, chosen = set(closures), []

    def size(names: set[str]) -> int:
        return sum(sizes[i] for i in set(kept).union(*(closures[name] for name in names)))

    while there and size(there) > budget:
        freed = {name: size(there) - size(there - {name}) for name in there}
        name = min(there, key=lambda name: (worth[name] / max(1, freed[name]), name))
        there.remove(name)
        chosen.append((name, freed[name]))
    return chosen


@given(st.data())
def test_the_greedy_choice_is_its_definition(data: st.DataObject) -> None:
    sizes = data.draw(st.lists(st.integers(0, 20), min_size=1, max_size=12))
    indexes = st.lists(st.integers(0, len(sizes) - 1), unique=True)
    closures = data.draw(st.dictionaries(st.sampled_from("abcdef"), indexes, max_size=6))
    worth = {name: data.draw(st.sampled_from([0.0, 0.5, 1.0, 2.0])) for name in closures}
    kept, budget = data.draw(indexes), data.draw(st.integers(0, 200))
    assert give_up(closures, worth, sizes, kept, budget) == slow_give_up(closures, worth, sizes, kept, budget)


# --- plans -------------------------------------------------------------------------------------------------------------


def test_without_a_budget_nothing_that_a_record_names_is_given_up(tmp_path: Path) -> None:
    store, history = filled(tmp_path / "store", 5)
    store.put([tensor(99)])
    made = plan(store)
    assert (made.ids, made.unreferenced) == ([], 1)
    seq, notes = collect(store, made, grace_records=0)
    assert (seq, notes) == (10, [])
    assert key_of(tensor(99)) not in store
    history.check(store)
    assert [record.kind for record in store.records(10)] == [RecordKind.GC_PLAN, RecordKind.GC_DONE]
    assert collect(store, plan(store))[0] == -1
    store.close()
    assert verify(tmp_path / "store").ok


@pytest.mark.parametrize("compacted", [False, True], ids=["raw", "compacted"])
def test_a_collection_to_half_keeps_the_rest_whole(tmp_path: Path, compacted: bool) -> None:
    store, history = filled(tmp_path / "store", 30)
    if compacted:
        Compactor(store, block=8, hot=2).run()
    before = pack_bytes(store)
    made = half(store, 0.6)
    assert 0 < len(made.ids) < 30
    seq, notes = collect(store, made, grace_records=0)
    assert notes == []
    assert pack_bytes(store) < 0.75 * before
    kept = left(history, made)
    assert {28, 29} <= set(kept)
    history.check(store, kept)
    done = store.record(store.size - 1)
    assert (done.kind, done.args["plan_seq"]) == (RecordKind.GC_DONE, seq)
    assert done.args["packs"] > 0
    gone = next(name for name in made.ids)
    with pytest.raises(RecurosError, match=f"collected under plan {seq}") as caught:
        store.get(gone)
    assert caught.value.code == "E4-NOENT"
    store.close()
    report = verify(tmp_path / "store")
    assert report.ok, report.problems
    assert report.collected == len(made.ids)
    with Store.open_writer(tmp_path / "store") as again:
        history.check(again, kept)


def test_collected_is_told_from_missing(tmp_path: Path) -> None:
    store, history = filled(tmp_path / "store", 10)
    made = half(store)
    collect(store, made, grace_records=0)
    kept = left(history, made)[0]
    name, refs = history.snapshots[kept]
    path, _ = store.entry(name)
    assert path == store.entry(refs["student/blocks.0/w"])[0]
    store.close()
    path.unlink()
    report = verify(tmp_path / "store")
    assert name in {problem.where for problem in report.problems}
    assert not {problem.where for problem in report.problems} & set(made.ids)


def test_what_is_pinned_is_never_listed(tmp_path: Path) -> None:
    store, history = filled(tmp_path / "store", 20)
    named = history.snapshots[3][0]
    args = args_of(RecordKind.SNAPSHOT, name="release", window=3)
    store.append([Record("operator", RecordKind.SNAPSHOT, args, 1_000, result_snap=named)])
    store.append([Record("kernel", RecordKind.SWAP, {"mode": "ema", "window": 9}, 1_001)])
    pinned = history.snapshots[12][0]
    made = plan(store, budget=0, keep_last=3, pins=[pinned[:12]])
    held = {named, pinned, history.snapshots[8][0], *(history.snapshots[window][0] for window in (17, 18, 19))}
    assert held <= made.pins.keys()
    assert set(made.ids) == {root for root, _ in history.snapshots.values()} - held
    assert plan(store, budget=0, pins=["release"]).pins[named] == "pinned by this plan"
    collector = Collector(store)
    with pytest.raises(RecurosError, match="is pinned: named by snapshot: release"):
        collector.begin([named], [0.0], "a mistake")
    store.close()


@pytest.mark.parametrize(
    ("ids", "scores", "code"),
    [
        (["b3:" + "0" * 64], [1.0], "E4-NOENT"),
        (["text"], [1.0], "E2-USAGE"),
        (["b3:" + "0" * 64] * 2, [1.0, 1.0], "E2-USAGE"),
        (["b3:" + "0" * 64], [], "E2-USAGE"),
    ],
)
def test_a_plan_that_makes_no_sense_is_refused(tmp_path: Path, ids: list[str], scores: list[float], code: str) -> None:
    store, history = filled(tmp_path / "store", 3)
    with pytest.raises(RecurosError) as caught:
        Collector(store).begin(ids, scores, "x")
    assert caught.value.code == code
    with pytest.raises(RecurosError, match="decisions replay from"):
        Collector(store).begin([history.evidence[0]], [0.0], "x")
    for arguments in ({"keep_last": 1}, {"budget": -1}):
        with pytest.raises(RecurosError) as caught:
            plan(store, **arguments)  # type: ignore[arg-type]
        assert caught.value.code == "E2-LIMIT"
    assert store.size == 6
    store.close()


def test_a_long_list_is_an_object_and_an_audit_reads_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gc, "INLINE_IDS_MAX", 3)
    store, _ = filled(tmp_path / "store", 20)
    made = plan(store, budget=0, keep_last=2)
    seq, _ = collect(store, made, grace_records=0)
    record = store.record(seq)
    assert (record.args["ids"], record.args["scores"]) == ([], [])
    assert plans.decode_list(store.get(record.input_ids[0]).data) == (made.ids, made.scores)
    store.close()
    report = verify(tmp_path / "store")
    assert report.ok, report.problems
    assert report.collected == len(made.ids) == 18


def test_artifacts_may_go_and_evidence_of_decisions_may_not(tmp_path: Path) -> None:
    store, history = filled(tmp_path / "store", 4)
    cka, mask, program = store.put([blob(bytes(500), "cka"), blob(bytes(501), "mask"), blob(bytes(502), "program")])
    args = args_of(RecordKind.PRUNE, mask_spec={"sparsity": 0.5}, report={"movement": 0.9})
    drafts = [
        Record("kernel", RecordKind.PRUNE, args, 500, input_ids=(mask,)),
        Record("kernel", RecordKind.INTERRUPT, args_of(RecordKind.INTERRUPT), 501, input_ids=(cka, program)),
    ]
    store.append(drafts)
    made = plan(store, budget=0, keep_last=2)
    assert {cka, mask} <= set(made.ids)
    assert program not in made.ids
    scores = dict(zip(made.ids, made.scores, strict=True))
    assert scores[mask] > scores[cka]
    collect(store, made, grace_records=0)
    assert mask not in store
    assert program in store
    history.check(store, [2, 3])
    store.close()
    assert verify(tmp_path / "store").ok


# --- beside others -----------------------------------------------------------------------------------------------------


def test_a_snapshot_that_is_stored_again_after_its_plan_is_whole_again(tmp_path: Path) -> None:
    store, history = filled(tmp_path / "store", 10)
    made = plan(store, budget=0, keep_last=2)
    root, refs = history.snapshots[3]
    assert root in made.ids
    collector = Collector(store, lease_records=0, grace_records=0)
    collector.begin(made.ids, made.scores, "x")
    with pytest.raises(RecurosError, match="gave up"):
        store.append([Record("operator", RecordKind.SNAPSHOT, {"name": "late", "window": 3}, 900, result_snap=root)])
    assert store.put_snapshot(refs, _objects(history, refs))[0] == root
    store.append([Record("operator", RecordKind.SNAPSHOT, {"name": "late", "window": 3}, 901, result_snap=root)])
    collector.run()
    history.check(store, [3, 8, 9])
    store.close()
    report = verify(tmp_path / "store")
    assert report.ok, report.problems
    assert report.collected == len(made.ids) - 1


def _objects(history: History, refs: dict[str, str]) -> dict[str, gc.Any]:
    from kfs.objects import NewObject

    return {name: NewObject("F32", (2_000,), history.data[name], "snapshot") for name in refs.values()}


@pytest.mark.parametrize("seed", range(6))
def test_commits_between_the_steps_of_a_sweep_lose_nothing(tmp_path: Path, seed: int) -> None:
    store, history = filled(tmp_path / "store", 12)
    history.dice.seed(seed)
    collector = Collector(store, grace_records=0)
    made = plan(store, budget=0, keep_last=2)
    collector.begin(made.ids, made.scores, "x")
    dead = [window for window in history.snapshots if history.snapshots[window][0] in made.ids]
    window, busy = 12, True
    while busy or collector.pending:
        busy = collector.step(budget_ns=1)
        if history.dice.random() < 0.3 and window < 60:
            history.commit(store, window)
            window += 1
        if history.dice.random() < 0.2:
            # Leaves of a snapshot that goes, under a new root: what is still there must stay, what has gone must be refused.
            old = history.snapshots[history.dice.choice(dead)][1]
            refs = {f"other/{i}/w": name for i, name in enumerate(old.values())}
            codes: list[str] = []
            try:
                root, _ = store.put_snapshot(refs, {})
            except RecurosError as e:
                codes.append(e.code)
            assert set(codes) <= {"E4-NOENT"}
            if not codes:
                store.append(
                    [Record("k", RecordKind.SNAPSHOT, {"name": "", "window": 0}, 10**6 + window, result_snap=root)]
                )
                history.snapshots[1_000 + len(history.snapshots)] = root, refs
    history.check(store, [w for w in history.snapshots if w not in dead])
    store.close()
    report = verify(tmp_path / "store")
    assert report.ok, report.problems


def test_a_staged_snapshot_survives_a_collection_before_its_record(tmp_path: Path) -> None:
    store, history = filled(tmp_path / "store", 6)
    dead_leaf = history.snapshots[0][1]["student/blocks.0/w"]
    refs = {"student/a/w": dead_leaf, **snapshot_of(5)[0]}
    root, _ = store.put_snapshot(refs, snapshot_of(5)[1])
    store.close()
    with Store.open_writer(tmp_path / "store") as again:  # the archivist was restarted meanwhile
        made = plan(again, budget=0, keep_last=2)
        collector = Collector(again, grace_records=0)
        collector.begin(made.ids, made.scores, "x")
        collector.run()
        assert again.snapshot(root) == refs
        assert bytes(again.get(dead_leaf).data) == history.data[dead_leaf]
        again.append([Record("k", RecordKind.SNAPSHOT, {"name": "", "window": 0}, 10**6, result_snap=root)])
    assert verify(tmp_path / "store").ok


def test_the_grace_counts_records_and_then_the_plan_is_done(tmp_path: Path) -> None:
    store, _ = filled(tmp_path / "store", 8)
    made = plan(store, budget=0, keep_last=2)
    collector = Collector(store, lease_records=0, grace_records=10)
    seq = collector.begin(made.ids, made.scores, "x")
    collector.run()
    assert collector.pending == [seq]
    assert {item.plan for item in waiting(store.layout)} == {str(seq)}
    store.append([miss(number) for number in range(9)])
    collector.run()
    assert collector.pending == [seq]
    store.append([miss(9)])
    collector.run()
    assert (collector.pending, waiting(store.layout)) == ([], [])
    assert store.record(store.size - 1).args["plan_seq"] == seq
    store.close()


def test_a_damaged_kept_snapshot_stops_the_sweep_and_says_so(tmp_path: Path) -> None:
    store, history = filled(tmp_path / "store", 8)
    made = plan(store, budget=0, keep_last=2)
    root, _ = history.snapshots[7]
    path, entry = store.entry(root)
    data = bytearray(path.read_bytes())
    data[entry.offset + 3] ^= 1
    path.write_bytes(data)
    collector = Collector(store, grace_records=0)
    collector.begin(made.ids, made.scores, "x")
    before = sorted(os.listdir(store.layout.packs))
    while collector.step():
        pass
    assert "nothing is swept" in collector.notes[0]
    assert sorted(os.listdir(store.layout.packs)) == before
    store.close()


READER = """
import sys
from kfs.store import Store
from syscalls.errors import RecurosError
store = Store.open_reader(sys.argv[1])
roots = sys.argv[2].split(",")
leaves = {root: store.snapshot(root) for root in roots}
print("open", flush=True)
for line in sys.stdin:
    if line.strip() == "end":
        break
    found = wrong = gone = again = 0
    for root in roots:
        for name in leaves[root].values():
            try:
                found += len(store.get(name).data) > 0
            except RecurosError as e:
                gone += e.code == "E4-NOENT" and "collected" in e.message
                again += e.code == "E75-AGAIN"
                wrong += e.code not in ("E4-NOENT", "E75-AGAIN") or (e.code == "E4-NOENT" and "collected" not in e.message)
    print(found, gone, again, wrong, flush=True)
"""


def test_readers_of_other_processes_never_see_wrong_bytes(tmp_path: Path) -> None:
    store, history = filled(tmp_path / "store", 24)
    roots = ",".join(root for root, _ in history.snapshots.values())
    command = [sys.executable, "-c", READER, str(tmp_path / "store"), roots]
    root_dir = Path(__file__).parents[2]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=root_dir) as reader:
        assert reader.stdin is not None
        assert reader.stdout is not None

        def ask() -> list[int]:
            print("go", file=reader.stdin, flush=True)
            return [int(part) for part in reader.stdout.readline().split()]  # type: ignore[union-attr]

        assert reader.stdout.readline() == "open\n"
        assert ask() == [72, 0, 0, 0]
        Compactor(store, block=8, hot=2).run()
        assert ask() == [72, 0, 0, 0]
        made = half(store, 0.7)
        collect(store, made, grace_records=0)
        found, gone, again, wrong = ask()
        assert (again, wrong) == (0, 0)
        assert found >= 3 * len(left(history, made)) - 24
        assert gone > 0
        print("end", file=reader.stdin, flush=True)
    store.close()


# --- crashes -----------------------------------------------------------------------------------------------------------


def work(store: StoreWriter) -> None:
    Compactor(store, block=3, hot=1).run()
    collector = Collector(store, lease_records=0, grace_records=0)
    made = plan(store, budget=0, keep_last=2)
    collector.begin(made.ids, made.scores, made.reason)
    collector.run()


class KillingCalls(FailingCalls):
    """After the call that fails, no call reaches the disk any more: a process that was killed there."""

    def __getattr__(self, name: str) -> gc.Any:
        real = super().__getattr__(name)
        if name not in ("unlink", "ftruncate"):
            return real

        def call(*args: gc.Any) -> gc.Any:
            if self.fail_at and self.count >= self.fail_at:
                raise OSError(self.code, os.strerror(self.code))
            return real(*args)

        return call


@pytest.mark.parametrize("killed", [False, True], ids=["full disk", "killed"])
def test_a_stop_at_any_call_leaves_a_store_that_opens_and_verifies(tmp_path: Path, killed: bool) -> None:
    kind = KillingCalls if killed else FailingCalls
    code = errno.EIO if killed else errno.ENOSPC
    first, history = filled(tmp_path / "first" / "store", 5)
    first.close()
    fail_at = 1
    while True:
        folder = tmp_path / "run"
        shutil.copytree(tmp_path / "first", folder)
        calls = kind(0, code)
        store = Store.open_writer(folder / "store", Files(calls))
        calls.count, calls.fail_at, calls.stay = 0, fail_at, killed
        codes = set()
        try:
            work(store)
        except RecurosError as e:
            codes.add(e.code)
        finished = not codes and calls.count < fail_at
        assert codes <= {"E9-POISONED" if killed else "E9-NOSPACE"}
        calls.fail_at, calls.stay = 0, False
        store.close()
        with Store.open_writer(folder / "store") as again:
            history.check(again, [3, 4])
            given_up = Reach(again)
            given_up.scan_all()
            history.check(again, [w for w, (root, _) in history.snapshots.items() if root not in given_up.given_up])
            Collector(again, lease_records=0, grace_records=0).run()
            history.check(again, [3, 4])
        report = verify(folder / "store")
        assert report.ok, (fail_at, report.problems)
        assert not waiting(store.layout) or not given_up.pending
        shutil.rmtree(folder)
        if finished:
            break
        fail_at += 3 if fail_at > 12 else 1
    assert fail_at > 20


# --- format ------------------------------------------------------------------------------------------------------------


def golden_records() -> list[Record]:
    ids = ["b3:" + "0a" * 32, "b3:" + "0b" * 32]
    args = {"ids": ids, "scores": [0.25, 0.5], "reason": "2 of least utility per byte, to 1000 bytes"}
    return [
        Record("operator:1", RecordKind.GC_PLAN, args, 5, 1, seq=7, t_wall=9),
        Record(
            "operator:1",
            RecordKind.GC_PLAN,
            {"ids": [], "scores": [], "reason": "long"},
            6,
            input_ids=(ids[0],),
            seq=8,
            t_wall=10,
        ),
        Record("archivist", RecordKind.GC_DONE, {"plan_seq": 7, "packs": 3, "bytes": 4_096}, 7, seq=9, t_wall=11),
    ]


def test_the_records_of_a_collection_are_the_golden_ones() -> None:
    path = GOLDEN / "gc-records.msgpack"
    data = msgpack.packb(
        [[records.encode(record) for record in golden_records()], plans.encode_list(["b3:" + "0a" * 32], [0.25])]
    )
    if os.environ.get("UPDATE_GOLDEN"):
        path.write_bytes(data)
    assert path.read_bytes() == data
    stored, listed = msgpack.unpackb(path.read_bytes())
    assert [records.decode(item) for item in stored] == golden_records()
    assert plans.decode_list(listed) == (["b3:" + "0a" * 32], [0.25])


@pytest.mark.parametrize(
    "data", [b"", b"\xc1", msgpack.packb([2, [], []]), msgpack.packb([1, ["x"], []]), msgpack.packb(1)]
)
def test_a_malformed_list_is_refused(data: bytes) -> None:
    with pytest.raises(RecurosError) as caught:
        plans.decode_list(data)
    assert caught.value.code == "E9-INTEGRITY"
