from __future__ import annotations

import random
import shutil
from pathlib import Path

import pytest
from kfs_support import commit, key_of, miss, snapshot_of, tensor

from kfs import records
from kfs.ledger import MAGIC, frame
from kfs.objects import blob
from kfs.store import Store
from kfs.verify import Report, verify
from syscalls.errors import RecurosError


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A closed store of six records and four packs, every record signed."""
    with Store.open_writer(tmp_path / "store") as store:
        root, _ = store.put_snapshot(*snapshot_of(1, 2, 3, 4, 5))
        again, _ = store.put_snapshot(*snapshot_of(1, 2, 3, 4, 6))
        (evidence,) = store.put([blob(b"evidence", "cal")])
        store.put([tensor(7, 400_000)])
        store.append([miss(1), miss(2)])
        store.append([commit(1, result=root)])
        store.append([commit(2, result=again), miss(3, parent_snap=root, input_ids=(evidence,)), miss(4)])
    return tmp_path


def wrong(run: Path, **options: bool) -> Report:
    report = verify(run / "store", **options)
    assert not report.ok
    assert report.problems
    return report


def flip(path: Path, position: int, bit: int = 1) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= bit
    path.write_bytes(data)


def packs(run: Path) -> list[Path]:
    return sorted((run / "store" / "packs").iterdir(), key=lambda path: path.stat().st_size)


def test_an_intact_store_is_ok_with_its_counts_and_root(run: Path) -> None:
    report = verify(run / "store")
    with Store.open_reader(run / "store") as store:
        assert (report.records, report.root) == store.head()
        assert report.objects == len(list(store.objects()))
    assert report.ok
    assert report.signed == 6
    assert verify(run / "store", fast=True).ok


def test_a_copy_without_keys_verifies_with_the_public_key_it_carries(run: Path) -> None:
    shutil.rmtree(run / "keys")
    assert verify(run / "store").ok


@pytest.mark.parametrize("name", ["ledger/records", "checkpoint", "FORMAT"])
def test_every_flipped_byte_of_a_small_file_is_found_and_named(run: Path, name: str) -> None:
    path = run / "store" / name
    good = path.read_bytes()
    for position in range(len(good)):
        flip(path, position, 1 << position % 8)
        report = wrong(run, fast=True)
        if name == "ledger/records":
            named = [p for p in report.problems if p.where.startswith("ledger/records@")]
            assert named
            assert int(named[0].where.partition("@")[2]) <= position
        else:
            assert any(p.where in (name, "checkpoint") for p in report.problems)
        path.write_bytes(good)
    assert verify(run / "store").ok


def test_every_flipped_byte_of_a_pack_is_found_and_named(run: Path) -> None:
    dice = random.Random(1)
    for path in packs(run):
        good = path.read_bytes()
        header = 8 + int.from_bytes(good[:8], "little")
        positions = [
            *range(9),
            header - 1,
            header,
            len(good) - 1,
            *(dice.randrange(min(len(good), 2 * header)) for _ in range(40)),
        ]
        for position in positions:
            flip(path, position, 1 << dice.randrange(8))
            assert any(p.where.startswith(f"packs/{path.name}") for p in wrong(run).problems)
        path.write_bytes(good)
    assert verify(run / "store").ok


def test_a_flipped_tensor_byte_names_the_object_and_its_place(run: Path) -> None:
    large = key_of(tensor(7, 400_000))
    with Store.open_reader(run / "store") as store:
        path, entry = store.entry(large)
    flip(path, entry.offset + 999)
    details = [p for p in wrong(run).problems if p.what == "object"]
    assert [p.where for p in details] == [f"packs/{path.name}@{entry.offset}"]
    assert large in details[0].detail


def test_bytes_cut_off_or_added_to_any_file_are_found(run: Path) -> None:
    for path in [
        *packs(run),
        run / "store" / "ledger" / "records",
        run / "store" / "checkpoint",
        run / "store" / "FORMAT",
    ]:
        good = path.read_bytes()
        for bad in (good[:-1], good[: len(good) // 2], b"", good + b"\0"):
            path.write_bytes(bad)
            wrong(run)
        path.write_bytes(good)
    assert verify(run / "store").ok


def test_a_forged_record_with_a_valid_checksum_is_found(run: Path) -> None:
    path = run / "store" / "ledger" / "records"
    with Store.open_reader(run / "store") as store:
        found = [store.record_bytes(seq) for seq in range(store.size)]
    found[1] = records.encode(miss(99, seq=1, t_wall=5))
    path.write_bytes(MAGIC + frame(0, found))
    assert {p.what for p in wrong(run, fast=True).problems} == {"root"}


def test_a_ledger_cut_at_a_frame_boundary_is_found(run: Path) -> None:
    path = run / "store" / "ledger" / "records"
    with Store.open_reader(run / "store") as store:
        found = [store.record_bytes(seq) for seq in range(3)]
    path.write_bytes(MAGIC + frame(0, found[:2]) + frame(2, found[2:]))
    assert "3 valid records; checkpoint covers 6" in wrong(run, fast=True).problems[0].detail


def test_a_record_that_says_another_number_is_found(tmp_path: Path) -> None:
    with Store.open_writer(tmp_path / "store") as store:
        store._writer.append([records.encode(miss(1, seq=5, t_wall=9)), b"not a record"])
    details = [p.detail for p in wrong(tmp_path).problems]
    assert "record 0 says it is record 5" in details[0]
    assert "record 1: record is" in details[1]


def test_a_missing_pack_is_found_through_the_records_that_need_it(run: Path) -> None:
    for path in packs(run):
        kept = path.read_bytes()
        path.unlink()
        with Store.open_reader(run / "store") as store:
            unreferenced = key_of(tensor(7, 400_000)) not in store
        if unreferenced:
            assert verify(run / "store").ok  # nothing ever said it was there
        else:
            assert all("named by record" in p.detail for p in wrong(run).problems)
        path.write_bytes(kept)


def test_an_incomplete_tree_is_found(tmp_path: Path) -> None:
    refs, new = snapshot_of(1, 2)
    with Store.open_writer(tmp_path / "store") as store:
        store.put([tensor(1)])
        root, _ = store.put_snapshot(refs, new)
        store.append([commit(1, result=root)])
        path, _ = store.entry(key_of(tensor(1)))
    path.unlink()
    assert [(p.what, p.where) for p in wrong(tmp_path).problems] == [("snapshot", key_of(tensor(1)))]


def test_a_result_that_is_not_a_snapshot_is_found(tmp_path: Path) -> None:
    with Store.open_writer(tmp_path / "store") as store:
        (name,) = store.put([blob(b"not a tree", "report")])
        store.append([commit(1, result=name)])
    assert [(p.what, p.where) for p in wrong(tmp_path).problems] == [("snapshot", name)]


def test_a_stray_file_among_the_packs_is_found(run: Path) -> None:
    (run / "store" / "packs" / "notes.txt").write_text("?")
    assert [(p.what, p.where) for p in wrong(run).problems] == [("pack", "packs/notes.txt")]


def test_an_audit_runs_beside_a_live_writer(tmp_path: Path) -> None:
    with Store.open_writer(tmp_path / "store") as store:
        for number in range(30):
            root, _ = store.put_snapshot(*snapshot_of(number))
            store.append([commit(number, result=root)])
            report = verify(tmp_path / "store")
            assert report.ok, report.problems
            assert report.records == number + 1


def test_no_store_is_no_such_object(tmp_path: Path) -> None:
    with pytest.raises(RecurosError) as caught:
        verify(tmp_path / "store")
    assert caught.value.code == "E4-NOENT"
