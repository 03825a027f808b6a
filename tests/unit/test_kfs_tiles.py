from __future__ import annotations

import shutil
import subprocess
import sys
from hashlib import sha256
from pathlib import Path

import pytest
from kfs_support import miss
from test_kfs_crash import FailingCalls

from kfs.files import Files
from kfs.merkle import CompactRange, leaf_hash
from kfs.proofs import verify_inclusion
from kfs.prover import Prover
from kfs.store import Store
from kfs.tiles import (
    HASH_BYTES,
    TILE_BYTES,
    Levels,
    TileId,
    TileNodes,
    changed_tiles,
    check,
    parse_path,
    read_tile,
    rebuild,
    tiles_of,
)
from kfs.verify import verify
from syscalls.errors import RecurosError


def leaves_of(size: int) -> bytearray:
    return bytearray(b"".join(sha256(b"%d" % i).digest() for i in range(size)))


def fill(run: Path, *sizes: int) -> None:
    """A store that signed trees of these sizes, one after the other."""
    with Store.open_writer(run / "store") as store:
        for size in sizes:
            store.append([miss(i) for i in range(store.size, size)])
            store.checkpoint()


def files_below(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def problems(run: Path) -> list[tuple[str, str]]:
    return [(problem.what, problem.where) for problem in verify(run / "store", fast=True).problems]


@pytest.mark.parametrize(
    ("tile", "path"),
    [
        (TileId(0, 0), "0/000"),
        (TileId(0, 999), "0/999"),
        (TileId(0, 1000), "0/x001/000"),
        (TileId(3, 1234067), "3/x001/x234/067"),
        (TileId(1, 1234067, 12), "1/x001/x234/067.p/12"),
        (TileId(0, 0, 255), "0/000.p/255"),
    ],
)
def test_a_tile_has_one_path(tile: TileId, path: str) -> None:
    assert tile.path == path
    assert parse_path(path) == tile


@pytest.mark.parametrize(
    "path",
    [
        "",
        "0",
        "0/0",
        "00/000",
        "0/x000/001",
        "0/001/000",
        "0/000.p/0",
        "0/000.p/256",
        "0/000.p/01",
        "0/000.p",
        "a/000",
        "entries/000",
        "0/000/",
        "/0/000",
        "0/../000",
        "0/x001/000.p/999",
        "0/٠٠٠",
    ],
)
def test_anything_else_is_not_the_path_of_a_tile(path: str) -> None:
    assert parse_path(path) is None


def test_the_tiles_of_a_tree_are_those_of_the_specification_s_example() -> None:
    found = list(tiles_of(70_000))
    assert sum(tile.level == 0 and tile.full for tile in found) == 273
    assert [tile for tile in found if not tile.full or tile.level] == [
        TileId(0, 273, 112),
        TileId(1, 0),
        TileId(1, 1, 17),
        TileId(2, 0, 1),
    ]
    assert list(tiles_of(256)) == [TileId(0, 0), TileId(1, 0, 1)]
    assert list(tiles_of(0)) == []


def test_what_changes_between_two_sizes_is_what_the_later_has_and_the_earlier_has_not() -> None:
    for before, after in [(0, 1), (1, 2), (255, 256), (256, 257), (300, 66_000), (65_535, 65_536), (5, 5)]:
        assert set(changed_tiles(before, after)) == set(tiles_of(after)) - set(tiles_of(before))


@pytest.mark.parametrize("size", [1, 2, 255, 256, 257, 700])
def test_tiles_give_the_root_that_the_leaves_give(size: int) -> None:
    leaves = leaves_of(size)
    tree = CompactRange()
    for at in range(0, len(leaves), HASH_BYTES):
        tree.append(bytes(leaves[at : at + HASH_BYTES]))
    nodes = TileNodes(Levels(leaves).tile, size)
    nodes.warm()
    peaks, start = [], 0
    for height in reversed(range(size.bit_length())):
        if size >> height & 1:
            peaks.append(nodes.node(height, start >> height))
            start += 1 << height
    root = peaks.pop()
    while peaks:
        root = sha256(b"\x01" + peaks.pop() + root).digest()
    assert root == tree.root()


def test_each_level_holds_the_hashes_of_full_tiles_below() -> None:
    leaves = leaves_of(600)
    tree = CompactRange()
    for i in range(256):
        tree.append(bytes(leaves[256 * 32 + i * 32 : 256 * 32 + i * 32 + 32]))
    assert Levels(leaves).tile(TileId(1, 0, 2))[32:] == tree.root()
    with pytest.raises(RecurosError, match=r"has no tile/1/000\.p/3"):
        Levels(leaves).tile(TileId(1, 0, 3))


def test_a_checkpoint_has_its_tiles_and_a_full_tile_takes_the_place_of_its_partial_ones(tmp_path: Path) -> None:
    folder = tmp_path / "store" / "tile"
    fill(tmp_path, 3, 200)
    assert files_below(folder) == {"0/000.p/3", "0/000.p/200"}
    fill(tmp_path, 300, 520)
    assert files_below(folder) == {"0/000", "0/001", "0/002.p/8", "1/000.p/1", "1/000.p/2"}
    with Store.open_reader(tmp_path / "store") as store:
        leaves = [leaf_hash(store.record_bytes(seq)) for seq in range(520)]
    assert (folder / "0/001").read_bytes() == b"".join(leaves[256:512])
    assert (folder / "0/001").stat().st_size == TILE_BYTES
    assert problems(tmp_path) == []


def test_a_partial_tile_that_is_gone_is_read_from_a_wider_one(tmp_path: Path) -> None:
    fill(tmp_path, 3, 7)
    folder = tmp_path / "store" / "tile"
    assert read_tile(folder, TileId(0, 0, 5)) == (folder / "0/000.p/7").read_bytes()[: 5 * 32]
    with pytest.raises(RecurosError, match=r"tile/0/000\.p/8 is missing"):
        read_tile(folder, TileId(0, 0, 8))


def spoil_torn(run: Path) -> str:
    path = run / "store/tile/0/000"
    path.write_bytes(path.read_bytes()[:4096])
    return "0/000"


def spoil_empty(run: Path) -> str:
    (run / "store/tile/0/001.p/44").write_bytes(b"")
    return "0/001.p/44"


def spoil_deleted(run: Path) -> str:
    (run / "store/tile/0/000").unlink()
    return "0/000"


def spoil_flipped(run: Path) -> str:
    path = run / "store/tile/0/000"
    data = bytearray(path.read_bytes())
    data[777] ^= 4
    path.write_bytes(data)
    return "0/000"


def spoil_other_store(run: Path) -> str:
    fill(run / "other", 300)
    shutil.copy(run / "other/store/tile/1/000.p/1", run / "store/tile/1/000.p/1")
    return "1/000.p/1"


def spoil_too_long(run: Path) -> str:
    path = run / "store/tile/0/001.p/44"
    path.write_bytes(path.read_bytes() + b"\0")
    return "0/001.p/44"


def spoil_stale(run: Path) -> str:
    (run / "store/tile/0/001.p/90").write_bytes(bytes(90 * 32))
    return "0/001.p/90"


def spoil_level_that_is_not_there(run: Path) -> str:
    (run / "store/tile/9").mkdir()
    (run / "store/tile/9/000").write_bytes(bytes(TILE_BYTES))
    return "9/000"


def spoil_everything(run: Path) -> str:
    shutil.rmtree(run / "store/tile")
    (run / "store/tile").mkdir()
    return "0/000"


def spoil_file_for_a_folder(run: Path) -> str:
    shutil.rmtree(run / "store/tile/1")
    (run / "store/tile/1").write_text("in the way")
    return "1"


def spoil_symlink(run: Path) -> str:
    path = run / "store/tile/0/000"
    path.unlink()
    path.symlink_to(run / "store/ledger/records")
    return "0/000"


SPOILS = [value for name, value in sorted(globals().items()) if name.startswith("spoil_")]


@pytest.mark.parametrize("spoil", SPOILS, ids=lambda spoil: spoil.__name__[6:])
def test_a_bad_tile_is_named_and_the_next_writer_makes_it_again(tmp_path: Path, spoil: object) -> None:
    assert callable(spoil)
    fill(tmp_path, 300)
    good = {path: (tmp_path / "store/tile" / path).read_bytes() for path in files_below(tmp_path / "store/tile")}
    bad = spoil(tmp_path)
    assert ("tile", f"tile/{bad}") in problems(tmp_path)
    with Store.open_writer(tmp_path / "store") as store:
        assert any("hash tiles again" in note for note in store.notes)
    assert problems(tmp_path) == []
    found = {path: (tmp_path / "store/tile" / path).read_bytes() for path in files_below(tmp_path / "store/tile")}
    assert found == good
    with Store.open_writer(tmp_path / "store") as store:
        assert store.notes == []


def test_what_is_no_tile_is_named_and_left_alone(tmp_path: Path) -> None:
    fill(tmp_path, 3)
    (tmp_path / "store/tile/notes.txt").write_text("?")
    assert problems(tmp_path) == [("tile", "tile/notes.txt")]
    with Store.open_writer(tmp_path / "store") as store:
        assert store.notes == ["tile/notes.txt is not the path of a tile; it was left alone"]
    assert (tmp_path / "store/tile/notes.txt").exists()


def test_a_folder_in_the_place_of_a_tile_is_an_error_with_a_way_out(tmp_path: Path) -> None:
    fill(tmp_path, 10)
    (tmp_path / "store/tile/0/000.p/11").mkdir()
    store = Store.open_writer(tmp_path / "store")
    store.append([miss(10)])
    with pytest.raises(RecurosError, match=r"tile/0/000\.p/11 cannot be written") as caught:
        store.close()
    assert caught.value.code == "E9-INTEGRITY"
    (tmp_path / "store/tile/0/000.p/11").rmdir()
    fill(tmp_path, 11)
    assert problems(tmp_path) == []


def test_check_and_rebuild_work_on_a_folder_by_itself(tmp_path: Path) -> None:
    leaves = leaves_of(300)
    folder = tmp_path / "tile"
    folder.mkdir()
    assert [finding.path for finding in check(folder, leaves, 260)] == [f"tile/{t.path}" for t in tiles_of(260)]
    assert len(rebuild(folder, leaves, 260, Files())) == 3
    assert check(folder, leaves, 260) == []
    assert rebuild(folder, leaves, 260, Files()) == []


@pytest.mark.parametrize("minor", [0, 3])
def test_a_minor_version_that_a_flipped_bit_could_choose_is_refused(tmp_path: Path, minor: int) -> None:
    fill(tmp_path, 5)
    form = tmp_path / "store/FORMAT"
    form.write_bytes(form.read_bytes().replace(b'"minor": 1', f'"minor": {minor}'.encode()))
    with pytest.raises(RecurosError, match=rf"store format 1\.{minor}; this program reads and writes format 1\.1"):
        Store.open_writer(tmp_path / "store")


def test_no_tile_is_written_or_synced_before_an_append_answers(tmp_path: Path) -> None:
    calls = FailingCalls(0, 0)
    store = Store.open_writer(tmp_path / "store", Files(calls))
    before = calls.count
    store.append([miss(1)])
    assert calls.count - before == 2  # the write and the fdatasync of the frame
    assert files_below(tmp_path / "store/tile") == set()
    store.close()
    assert files_below(tmp_path / "store/tile") == {"0/000.p/1"}


def test_a_disk_that_is_full_for_tiles_delays_the_signature_and_nothing_else(tmp_path: Path) -> None:
    calls = FailingCalls(0, 28)
    store = Store.open_writer(tmp_path / "store", Files(calls))
    store.append([miss(i) for i in range(300)])
    calls.fail_at = calls.count + 3
    with pytest.raises(RecurosError) as caught:
        store.checkpoint()
    assert caught.value.code == "E9-NOSPACE"
    assert not store.poisoned
    assert store.checkpoint_head().size == 0
    assert store.append([miss(300)]) == [300]
    store.close()
    assert problems(tmp_path) == []


def test_tiles_locate_a_forged_record_that_has_a_valid_checksum(tmp_path: Path) -> None:
    from kfs import records
    from kfs.ledger import MAGIC, frame

    fill(tmp_path, 20)
    with Store.open_reader(tmp_path / "store") as store:
        found = [store.record_bytes(seq) for seq in range(20)]
    found[13] = records.encode(miss(99, seq=13, t_wall=5))
    (tmp_path / "store/ledger/records").write_bytes(MAGIC + frame(0, found))
    report = verify(tmp_path / "store", fast=True)
    assert {problem.what for problem in report.problems} == {"root"}
    assert "record 13 at byte" in report.problems[0].detail


WRITER = """
import sys
sys.path.insert(0, sys.argv[2])
from kfs_support import miss
from kfs.store import Store

with Store.open_writer(sys.argv[1]) as store:
    print("up", flush=True)
    while store.size < 700:
        store.append([miss(store.size + i) for i in range(7)])
        store.checkpoint()
"""


def test_audits_and_proofs_beside_a_live_writer_find_no_fault(tmp_path: Path) -> None:
    here = Path(__file__).parent
    command = [sys.executable, "-c", WRITER, str(tmp_path / "store"), str(here)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=here.parent.parent) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == b"up\n"
        rounds = 0
        while writer.poll() is None:
            assert problems(tmp_path) == []
            with Store.open_reader(tmp_path / "store") as store:
                prover = Prover(store)
                for seq in range(0, prover.checkpoint.size, 97):
                    verify_inclusion(prover.checkpoint, store.record_bytes(seq), prover.inclusion(seq))
                assert prover.notes == []
            rounds += 1
    assert writer.returncode == 0
    assert rounds > 2
    assert problems(tmp_path) == []
