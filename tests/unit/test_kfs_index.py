"""The index is a hint: whatever is wrong with it, answers stay right, and the next writer makes it anew."""

from __future__ import annotations

import os
import random
import sqlite3
from pathlib import Path

import pytest
from kfs_support import key_of, miss, snapshot_of, tensor

from kfs import catalog, pack
from kfs.catalog import Catalog
from kfs.compactor import Compactor
from kfs.index import Index
from kfs.layout import Layout
from kfs.store import Store
from kfs.verify import verify

PACKS = 90


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("indexed")
    with Store.open_writer(folder / "store") as store:
        for number in range(PACKS):
            store.put([tensor(number), tensor(number + 1)])
        store.append([miss(1)])
    assert (folder / "store" / "index.sqlite").exists()
    return folder


@pytest.fixture
def run(made: Path, tmp_path: Path) -> Path:
    import shutil

    shutil.copytree(made, tmp_path / "run")
    return tmp_path / "run" / "store"


def check_all(store: Store) -> None:
    for number in range(PACKS + 1):
        assert store.get(key_of(tensor(number))).data == tensor(number).data
    assert key_of(tensor(5_000)) not in store


def count_headers(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    read: list[Path] = []
    real = pack.read_header

    def counting(path: Path) -> pack.Pack:
        read.append(path)
        return real(path)

    monkeypatch.setattr(pack, "read_header", counting)
    return read


def test_opening_reads_no_header_and_a_get_reads_one(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = count_headers(monkeypatch)
    with Store.open_reader(run) as store:
        assert read == []
        store.get(key_of(tensor(3)))
        assert len(read) == 1
        assert store.resolve(key_of(tensor(7))[:20]) == key_of(tensor(7))
        assert len(read) == 2
    with Store.open_writer(run) as store:
        store.put([tensor(6_000)])
        assert len(read) == 3  # the header of what was just written
        check_all(store)


def test_a_store_of_few_packs_has_no_index(tmp_path: Path) -> None:
    with Store.open_writer(tmp_path / "store") as store:
        store.put_snapshot(*snapshot_of(1))
    assert not (tmp_path / "store" / "index.sqlite").exists()


def spoil(path: Path, how: str, other: Path) -> None:
    db = sqlite3.connect(path)
    match how:
        case "missing":
            path.unlink()
        case "garbage":
            path.write_bytes(b"not a database" * 100)
        case "empty":
            path.write_bytes(b"")
        case "truncated":
            path.write_bytes(path.read_bytes()[:5_000])
        case "another version":
            db.execute("PRAGMA user_version=99")
        case "another store":
            db.execute("UPDATE meta SET value='0'")
        case "rows gone":
            db.execute("DELETE FROM object WHERE rowid IS NOT NULL" if False else "DELETE FROM object")
        case "rows wrong":
            db.execute("UPDATE object SET pack = (pack % 7) + 1")
        case "packs that are gone":
            db.execute("INSERT INTO pack(digest) VALUES (?)", (bytes(32),))
            db.execute("UPDATE object SET pack = (SELECT max(n) FROM pack)")
        case "a folder":
            path.unlink()
            path.mkdir()
    db.commit()
    db.close()


SPOILT = (
    "missing", "garbage", "empty", "truncated", "another version", "another store", "rows gone", "rows wrong",
    "packs that are gone", "a folder",
)  # fmt: skip


@pytest.mark.parametrize("how", SPOILT)
def test_a_bad_index_changes_no_answer(run: Path, tmp_path: Path, how: str) -> None:
    spoil(run / "index.sqlite", how, tmp_path)
    with Store.open_reader(run) as reader:
        check_all(reader)
    with Store.open_writer(run) as store:
        check_all(store)
        assert store.put([tensor(3)]) == [key_of(tensor(3))]
        store.append([miss(2)])
    with Store.open_reader(run) as reader:
        check_all(reader)
    assert verify(run).ok


def test_a_bit_flipped_anywhere_in_the_index_changes_no_answer(run: Path) -> None:
    dice = random.Random(5)
    path = run / "index.sqlite"
    good = path.read_bytes()
    for _ in range(25):
        data = bytearray(good)
        data[dice.randrange(len(data))] ^= 1 << dice.randrange(8)
        path.write_bytes(data)
        with Store.open_reader(run) as reader:
            for number in dice.sample(range(PACKS), 5):
                assert reader.get(key_of(tensor(number))).data == tensor(number).data


def test_what_is_wrong_with_an_index_is_said_and_rebuilt(run: Path, tmp_path: Path) -> None:
    layout = Layout(run)
    with Store.open_writer(run) as store:
        assert store.catalog.index_problem() == ""
    for how in ("garbage", "rows gone", "packs that are gone", "another store"):
        spoil(layout.index, how, tmp_path)
        with Store.open_writer(run) as store:
            assert store.catalog.index_problem()
            store.catalog.rebuild_index()
            assert store.catalog.index_problem() == ""


def test_a_reader_without_permission_to_write_uses_the_index(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for path in (run / "index.sqlite", run):
        path.chmod(0o555 if path.is_dir() else 0o444)
    read = count_headers(monkeypatch)
    try:
        with Store.open_reader(run) as store:
            assert read == []
            check_all(store)
    finally:
        run.chmod(0o755)
    assert not [name for name in os.listdir(run) if name.startswith("index.sqlite-")]


def test_a_reader_beside_a_writer_that_compacts_finds_everything(run: Path) -> None:
    with Store.open_writer(run) as store, Store.open_reader(run) as reader:
        for number in range(100, 100 + PACKS):
            store.put([tensor(number)])
            while store.catalog.index_due() and store.catalog.update_index():
                pass
        Compactor(store).run()
        check_all(reader)
        for number in range(100, 100 + PACKS):
            assert reader.get(key_of(tensor(number))).data == tensor(number).data


def test_updates_come_in_small_pieces_and_leave_out_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalog, "INDEX_PACKS_MIN", 4)
    with Store.open_writer(tmp_path / "store") as store:
        for number in range(20):
            store.put([tensor(number)])
        assert store.catalog.index_due()
        assert store.catalog.update_index(rows_max=3)
        while store.catalog.update_index(rows_max=3):
            pass
        layout, form = store.layout, store.format
    index = Index(layout.index, form.store_id, write=False)
    assert len(index.digests()) == 20
    assert len(index.find([key_of(tensor(number)) for number in range(30)])) == 20
    index.close()
    lookup = Catalog(layout, form.store_id)
    assert lookup.find(key_of(tensor(4))) is not None
    lookup.close()
