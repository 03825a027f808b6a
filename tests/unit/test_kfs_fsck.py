"""Everything that a repair can mend is found and mended; everything else is named, with a way out, and left alone."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from kfs_space_support import filled, pack_bytes
from kfs_support import key_of, miss, tensor

from console.main import run as console
from kfs.fsck import fsck
from kfs.gc import Collector, plan
from kfs.store import Store
from kfs.trash import waiting
from kfs.verify import verify
from syscalls.errors import RecurosError


@pytest.fixture
def run(tmp_path: Path) -> Path:
    store, _ = filled(tmp_path / "store", 8)
    store.close()
    return tmp_path


def tear(run: Path) -> None:
    with (run / "store/ledger/records").open("ab") as file:
        file.write(b"KFSF torn")


def old_checkpoint(run: Path) -> None:
    old = (run / "store/checkpoint").read_bytes()
    with Store.open_writer(run / "store") as store:
        store.append([miss(500)])
    (run / "store/checkpoint").write_bytes(old)


def unreferenced(run: Path) -> None:
    with Store.open_writer(run / "store") as store:
        store.put([tensor(1_000)])


def to_trash(run: Path) -> None:
    path = min((run / "store/packs").iterdir())
    path.rename(run / "store/trash" / f"x-3-{path.name}")


def cut_short(run: Path) -> None:
    with Store.open_writer(run / "store") as store:
        made = plan(store, budget=0, keep_last=2)
        Collector(store).begin(made.ids, made.scores, "x")


def bad_index(run: Path) -> None:
    (run / "store/index.sqlite").write_bytes(b"nothing")


MENDABLE: dict[str, tuple[Callable[[Path], object], str]] = {
    "an unfinished pack": (lambda run: (run / "store/packs/.tmp-1").write_bytes(b"half"), "temp"),
    "a torn final frame": (tear, "ledger"),
    "a checkpoint behind its key": (old_checkpoint, "checkpoint"),
    "a tile that is gone": (lambda run: shutil.rmtree(run / "store/tile/0"), "tile"),
    "no tile folder": (lambda run: shutil.rmtree(run / "store/tile"), "folder"),
    "an index that is none": (bad_index, "index"),
    "a pack that nothing names": (unreferenced, "pack"),
    "a needed pack in the trash": (to_trash, "trash"),
    "a plan that was cut short": (cut_short, "gc"),
}


def test_a_sound_store_has_nothing_to_mend(run: Path) -> None:
    result = fsck(run / "store")
    assert (result.status, result.findings, result.notes) == (0, [], [])


@pytest.mark.parametrize("name", MENDABLE)
def test_what_can_be_mended_is_found_without_writing_and_mended_when_asked(run: Path, name: str) -> None:
    spoil, what = MENDABLE[name]
    spoil(run)
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    result = fsck(run / "store")
    assert what in {finding.what for finding in result.findings}
    assert result.status == 1
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
    mended = fsck(run / "store", repair=True)
    assert mended.status == 0, mended.findings
    assert all(finding.done for finding in mended.findings)
    assert verify(run / "store").ok
    again = fsck(run / "store")
    assert {finding.what for finding in again.findings} <= {"gc"}  # its packs wait out their grace


def test_a_collection_that_was_cut_short_is_carried_on_with(run: Path) -> None:
    cut_short(run)
    with Store.open_reader(run / "store") as store:
        before = pack_bytes(store)
    fsck(run / "store", repair=True)
    with Store.open_reader(run / "store") as store:
        assert pack_bytes(store) < before / 2
        assert waiting(store.layout)


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


HOPELESS: dict[str, tuple[Callable[[Path], object], str]] = {
    "a flipped byte in a signed record": (lambda run: flip(run / "store/ledger/records", 200), "ledger/records@"),
    "a shorter ledger": (
        lambda run: (run / "store/ledger/records").write_bytes(b"RKFS-LEDGER 1\n\0\0"),
        "ledger/records@",
    ),
    "no ledger": (lambda run: (run / "store/ledger/records").unlink(), "ledger/records"),
    "a pack without a readable header": (lambda run: flip(min((run / "store/packs").iterdir()), 9), "packs/"),
    "a pack that is gone": (lambda run: min((run / "store/packs").iterdir()).unlink(), "b3:"),
    "no checkpoint": (lambda run: (run / "store/checkpoint").unlink(), "checkpoint"),
    "no packs": (lambda run: shutil.rmtree(run / "store/packs"), "packs"),
}


@pytest.mark.parametrize("name", HOPELESS)
def test_what_cannot_be_mended_is_named_and_left_alone(run: Path, name: str) -> None:
    spoil, where = HOPELESS[name]
    spoil(run)
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    result = fsck(run / "store", repair=True)
    assert result.status == 9
    hopeless = [finding for finding in result.findings if not finding.repair]
    assert any(finding.where.startswith(where) for finding in hopeless), result.findings
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_a_repair_beside_a_writer_is_refused_and_names_it(run: Path) -> None:
    with Store.open_writer(run / "store"):
        assert fsck(run / "store").status == 0
        with pytest.raises(RecurosError) as caught:
            fsck(run / "store", repair=True)
        assert caught.value.code == "E3-BUSY"


def test_fsck_and_gc_on_the_command_line(capsys: pytest.CaptureFixture[str], run: Path) -> None:
    def document(*argv: str, status: int = 0) -> dict[str, object]:
        assert console([*argv, "--run", str(run), "--json"]) == status
        found: dict[str, object] = json.loads(capsys.readouterr().out)
        return found

    assert document("kfs", "fsck")["ok"] is True
    (run / "store/packs/.tmp-1").write_bytes(b"half")
    assert document("kfs", "fsck", status=1)["ok"] is False
    assert document("kfs", "fsck", "--repair", "--dry-run", status=1)["ok"] is False
    assert document("kfs", "fsck", "--repair")["schema"] == "recuros.kfs.fsck/v1"
    planned = document("kfs", "gc", "--budget", "60%", "--keep-last", "2")
    assert planned["applied"] is False
    chosen = planned["collect"]
    assert isinstance(chosen, list)
    assert chosen
    assert document("kfs", "gc", "--plan", "--budget", "60%", "--keep-last", "2")["collect"] == chosen
    assert document("kfs", "gc", "--apply", "--dry-run", "--budget", "1k", "--yes")["seq"] == -1
    assert console(["kfs", "gc", "--apply", "--budget", "60%", "--keep-last", "2", "--run", str(run)]) == 2
    assert "--yes" in capsys.readouterr().err
    done = document("kfs", "gc", "--apply", "--budget", "60%", "--keep-last", "2", "--grace", "0", "--compact", "--yes")
    assert (done["applied"], done["seq"], done["pending"]) == (True, 16, [])
    assert document("kfs", "gc")["collect"] == []
    assert document("kfs", "verify")["ok"] is True
    for argv in (["--budget", "many"], ["--plan", "--apply"], ["--keep-last", "1"]):
        assert console(["kfs", "gc", *argv, "--run", str(run)]) == 2
    assert console(["kfs", "gc", "--pin", "nothing", "--run", str(run)]) == 4
    with Store.open_writer(run / "store"):
        assert console(["kfs", "gc", "--apply", "--yes", "--run", str(run)]) == 3
    capsys.readouterr()
    assert key_of(tensor(1)) is not None
