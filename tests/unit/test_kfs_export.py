"""Exports, and the verifier that stands alone: run where nothing of this project can be imported."""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
import subprocess
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import blake3
import cryptography
import pytest
from kfs_support import args_of, key_of, miss, tensor

from console.main import run as recuros
from kfs import export as exports
from kfs import records, standalone
from kfs.compactor import Compactor
from kfs.export import export, lineage
from kfs.gc import collect
from kfs.gc import plan as plan_collection
from kfs.ledger import MAGIC, frame
from kfs.objects import blob
from kfs.records import Record, RecordKind
from kfs.refs import resolve
from kfs.store import Store, StoreWriter
from kfs.verify import verify
from syscalls.errors import RecurosError

ISOLATED = """
import runpy, sys
sys.path.append(sys.argv[1])
for name in ("kfs", "syscalls", "msgpack", "safetensors", "zstandard"):
    try:
        __import__(name)
    except ImportError:
        continue
    sys.exit(f"{name} can be imported: this is not isolated")
del sys.argv[1]
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.fixture(scope="session")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with blake3, cryptography and what cryptography itself needs; nothing else."""
    folder = tmp_path_factory.mktemp("packages")
    site = Path(cryptography.__file__).parents[1]
    for found in [Path(blake3.__file__).parent, site / "cryptography", site / "cffi", *site.glob("_cffi_backend*")]:
        (folder / found.name).symlink_to(found)
    return folder


def alone(packages: Path, *argv: object, status: int | None = None, script: Path | None = None) -> dict[str, Any]:
    """Run the verifier with --json in a Python that finds only those packages."""
    command = [sys.executable, "-I", "-S", "-c", ISOLATED, packages, script or standalone.__file__, *argv, "--json"]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False, cwd=packages)
    assert done.returncode in ((0, 9) if status is None else (status,)), done.stdout + done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    assert found["ok"] == (done.returncode == 0) == (not found["problems"])
    return found


def window(store: StoreWriter, number: int, base: str | None, policy: int | None) -> tuple[str, int]:
    """One window as the kernel records it: grant, policy, commit. Returns the snapshot and the policy's number."""
    args = args_of(RecordKind.WINDOW_GRANT, window=number, boot="boot-1", policy_seq=policy, directives=[])
    grant = Record(actor="kernel", kind=RecordKind.WINDOW_GRANT, args=args, t_mono=10 * number, parent_snap=base)
    (evidence,) = store.put([blob(b"evidence %d" % number, "cal")])
    args = args_of(RecordKind.POLICY, window=number, applies_at=number + 2, settings={"temperature": 2.0})
    decided = Record(actor="observer", kind=RecordKind.POLICY, args=args, t_mono=10 * number + 1, input_ids=(evidence,))
    grant_seq, policy_seq = store.append([grant, decided])
    items = [tensor(number, 5_000), tensor(number + 1, 5_000), tensor(7)]
    new = {key_of(item): item for item in items}
    refs = {f"student/blocks.{i}/weight": key_of(item) for i, item in enumerate(items)}
    root, _ = store.put_snapshot(refs | {"teacher/head/bias": key_of(items[2])}, new)
    args = args_of(RecordKind.WINDOW_COMMIT, window=number, boot="boot-1", grant_seq=grant_seq)
    store.append(
        [
            Record(
                actor="kernel",
                kind=RecordKind.WINDOW_COMMIT,
                args=args,
                t_mono=10 * number + 2,
                parent_snap=base,
                result_snap=root,
            )
        ]
    )
    return root, policy_seq


def make_run(run: Path, windows: int = 5) -> list[str]:
    """A run of a few windows with a swap and a named snapshot; the snapshots."""
    roots: list[str] = []
    policy = None
    with Store.open_writer(run / "store") as store:
        store.append([Record("kernel", RecordKind.BOOT, args_of(RecordKind.BOOT, boot="boot-1"), 1)])
        for number in range(1, windows + 1):
            root, policy = window(store, number, roots[-1] if roots else "b3:" + "5e" * 32, policy)
            roots.append(root)
            store.append([miss(1_000 + number)])
        swap = args_of(RecordKind.SWAP, mode="ema", window=windows)
        named = args_of(RecordKind.SNAPSHOT, name="best", window=2)
        store.append(
            [
                Record("kernel", RecordKind.SWAP, swap, 900),
                Record("operator", RecordKind.SNAPSHOT, named, 901, result_snap=roots[1]),
            ]
        )
    return roots


def export_of(run: Path, target: Path, text: str = "last", roles: tuple[str, ...] = ()) -> dict[str, Any]:
    with Store.open_reader(run / "store") as store:
        manifest, notes = export(store, resolve(store, text), target, roles)
    assert notes == []
    return manifest


def flip(path: Path, position: int, bit: int = 1) -> None:
    data = bytearray(path.read_bytes())
    data[position % len(data)] ^= bit
    path.write_bytes(data)


def key_text(run: Path) -> str:
    with Store.open_reader(run / "store") as store:
        return str(store.format.key)


# --- what is exported ------------------------------------------------------------------------------------------------


def test_the_lineage_is_the_chain_of_commits_with_their_grants_and_policies(tmp_path: Path) -> None:
    roots = make_run(tmp_path)
    with Store.open_reader(tmp_path / "store") as store:
        made = lineage(store, roots[3])
        rows = {seq: store.record(seq) for seq in made.records}
    assert [rows[seq].result_snap for seq in made.windows] == roots[:4]
    kinds = [record.kind.value for record in rows.values()]
    assert kinds.count("window.commit") == kinds.count("window.grant") == 4
    assert kinds.count("policy") == 3  # the first window had none, and the policies that nobody used are left out
    assert kinds.count("boot") == 1
    assert "window.miss" not in kinds
    assert "swap" not in kinds  # it came later


@pytest.mark.parametrize(("text", "window"), [("last", 4), ("best", 1)])
def test_a_snapshot_is_found_by_its_name(tmp_path: Path, text: str, window: int) -> None:
    roots = make_run(tmp_path)
    with Store.open_reader(tmp_path / "store") as store:
        assert resolve(store, text) == roots[window]
        assert resolve(store, roots[0][:12]) == roots[0]
        with pytest.raises(RecurosError, match="names no snapshot"):
            resolve(store, "worst")


def test_an_export_verifies_with_nothing_but_what_is_in_it(tmp_path: Path, packages: Path) -> None:
    roots = make_run(tmp_path)
    manifest = export_of(tmp_path, tmp_path / "out")
    assert manifest["snapshot"] == roots[-1]
    assert manifest["roles"] == ["student", "teacher"]
    found = alone(packages, tmp_path / "out", status=0, script=tmp_path / "out" / "verify.py")
    assert (found["what"], found["snapshot"], found["windows"]) == ("export", roots[-1], 5)
    assert "whoever wrote the data" in found["notes"][0]
    found = alone(packages, tmp_path / "out", "--key", key_text(tmp_path), status=0)
    assert not any("whoever wrote the data" in note for note in found["notes"])
    (tmp_path / "key.pub").write_text(key_text(tmp_path) + "\n")
    kept = tmp_path / "store" / "checkpoint"
    alone(packages, tmp_path / "out", "--key", tmp_path / "key.pub", "--checkpoint", kept, status=0)


def test_an_export_of_one_role_holds_that_role_s_objects_only(tmp_path: Path, packages: Path) -> None:
    make_run(tmp_path)
    whole = export_of(tmp_path, tmp_path / "whole")
    part = export_of(tmp_path, tmp_path / "part", roles=("teacher",))
    assert part["roles"] == ["teacher"]
    assert part["objects"] == 4 < whole["objects"]  # root, role, module, tensor
    alone(packages, tmp_path / "part", status=0)
    with pytest.raises(RecurosError, match=r"has no role 'pupil'.*"):
        export_of(tmp_path, tmp_path / "none", roles=("pupil",))


def test_the_objects_are_a_safetensors_file(tmp_path: Path) -> None:
    from safetensors import safe_open

    make_run(tmp_path)
    export_of(tmp_path, tmp_path / "out")
    (path,) = (tmp_path / "out" / "objects").iterdir()
    with safe_open(path, "np") as file:
        assert key_of(tensor(6, 5_000)) in file.keys()  # noqa: SIM118 - it is not a dict
        assert file.get_tensor(key_of(tensor(6, 5_000))).tobytes() == tensor(6, 5_000).data


def test_ten_flipped_bytes_of_an_export_are_each_found_and_named(tmp_path: Path, packages: Path) -> None:
    make_run(tmp_path)
    out = tmp_path / "out"
    export_of(tmp_path, out)
    (objects,) = (out / "objects").iterdir()
    dice = random.Random(3)
    places = [
        *[(path, dice.randrange(1 << 30)) for path in sorted(out.iterdir()) if path.is_file()],
        *[(objects, position) for position in (3, 400, objects.stat().st_size - 1)],
        (out / "records.jsonl", dice.randrange(1 << 30)),
    ]
    assert len(places) == 10
    for path, position in places:
        good = path.read_bytes()
        flip(path, position)
        found = alone(packages, out, status=9)
        assert any(path.name in problem["where"] for problem in found["problems"]), (path, found["problems"])
        path.write_bytes(good)
    alone(packages, out, status=0)


def run_here(*argv: object) -> standalone.Report:
    """The verifier in this process: faster, where isolation is not the question."""
    report = standalone.Report()
    path = Path(str(argv[0]))
    verifiers = {"MANIFEST.json": standalone.verify_export, "FORMAT": standalone.verify_store}
    call = next((call for name, call in verifiers.items() if (path / name).exists()), standalone.verify_proof)
    with report.part("all", str(path)):
        call(path, report, None, None)
    return report


def test_every_flipped_byte_of_the_manifest_the_checkpoint_and_the_key_is_found(tmp_path: Path) -> None:
    make_run(tmp_path, 2)
    out = tmp_path / "out"
    export_of(tmp_path, out)
    for name in ("MANIFEST.json", "checkpoint", "key"):
        good = (out / name).read_bytes()
        for position in range(len(good)):
            flip(out / name, position, 1 << position % 8)
            assert run_here(out).problems, (name, position)
            (out / name).write_bytes(good)
    assert not run_here(out).problems


def test_a_changed_export_whose_manifest_was_changed_with_it_is_still_found(tmp_path: Path) -> None:
    """The manifest is only a list: what is believed hangs on the signature and on ids."""
    make_run(tmp_path)
    out = tmp_path / "out"
    export_of(tmp_path, out)
    lines = (out / "records.jsonl").read_text().splitlines(keepends=True)
    manifest = json.loads((out / "MANIFEST.json").read_text())

    def publish(text: str) -> list[dict[str, str]]:
        (out / "records.jsonl").write_text(text)
        said = manifest | {
            "files": manifest["files"] | {"records.jsonl": standalone.file_digest(out / "records.jsonl")}
        }
        said["records"] = sorted(json.loads(line)["seq"] for line in text.splitlines())
        (out / "MANIFEST.json").write_text(json.dumps(said, indent=1) + "\n")
        return run_here(out).problems

    assert publish("".join(lines)) == []
    rows = [json.loads(line) for line in lines]
    commit = next(i for i, row in enumerate(rows) if row["seq"] == manifest["windows"][1])
    assert publish("".join(lines[:commit] + lines[commit + 1 :]))  # a window left out
    assert publish("".join(lines[1:]))  # the boot left out
    grant = next(i for i, row in enumerate(rows) if b"window.grant" in standalone.unbase64(row["record"]))
    assert "chain" in {problem["what"] for problem in publish("".join(lines[:grant] + lines[grant + 1 :]))}
    forged = dict(rows[commit])
    forged["record"] = rows[commit - 1]["record"]
    assert "record" in {
        p["what"] for p in publish("".join([*lines[:commit], json.dumps(forged) + "\n", *lines[commit + 1 :]]))
    }
    assert publish("".join(lines)) == []


def test_a_file_too_many_or_too_few_is_found(tmp_path: Path, packages: Path) -> None:
    make_run(tmp_path, 2)
    out = tmp_path / "out"
    export_of(tmp_path, out)
    (out / "objects" / "more.txt").write_text("?")
    assert ("file", "objects/more.txt") in [(p["what"], p["where"]) for p in alone(packages, out, status=9)["problems"]]
    (out / "objects" / "more.txt").unlink()
    (out / "README.txt").unlink()
    assert alone(packages, out, status=9)["problems"] == [
        {"what": "file", "where": "README.txt", "detail": "is missing"}
    ]


def test_an_export_of_another_store_does_not_pass_for_this_key_or_this_checkpoint(
    tmp_path: Path, packages: Path
) -> None:
    make_run(tmp_path, 2)
    make_run(tmp_path / "other", 2)
    export_of(tmp_path / "other", tmp_path / "out")
    found = alone(packages, tmp_path / "out", "--key", key_text(tmp_path), status=9)
    assert {problem["what"] for problem in found["problems"]} >= {"key", "checkpoint"}
    found = alone(packages, tmp_path / "out", "--checkpoint", tmp_path / "store" / "checkpoint", status=9)
    assert "is not signed by" in found["problems"][0]["detail"]


def test_a_target_that_holds_something_is_refused_and_an_empty_one_is_taken(tmp_path: Path) -> None:
    make_run(tmp_path, 2)
    (tmp_path / "out").mkdir()
    export_of(tmp_path, tmp_path / "out")
    with pytest.raises(RecurosError) as caught:
        export_of(tmp_path, tmp_path / "out")
    assert caught.value.code == "E2-USAGE"


def test_a_snapshot_that_is_not_signed_yet_is_told_to_wait(tmp_path: Path) -> None:
    make_run(tmp_path, 2)
    with Store.open_writer(tmp_path / "store") as writer, Store.open_reader(tmp_path / "store") as store:
        root, _ = window(writer, 9, None, None)
        store.refresh()
        with pytest.raises(RecurosError, match="is not signed yet") as caught:
            export(store, root, tmp_path / "out")
        assert caught.value.code == "E75-AGAIN"
    export_of(tmp_path, tmp_path / "out", root)


def test_an_object_that_no_window_committed_cannot_be_exported(tmp_path: Path) -> None:
    make_run(tmp_path, 2)
    with pytest.raises(RecurosError, match="no window committed"):
        export_of(tmp_path, tmp_path / "out", key_of(tensor(7)))
    assert not (tmp_path / "out").exists()


def test_a_full_disk_leaves_nothing_of_an_export(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_run(tmp_path, 2)
    real, calls = os.fsync, 0

    def fsync(fd: int) -> None:
        nonlocal calls
        calls += 1
        if calls == 4:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(fd)

    before = set(tmp_path.iterdir())
    monkeypatch.setattr(exports.os, "fsync", fsync)
    with pytest.raises(RecurosError) as caught:
        export_of(tmp_path, tmp_path / "out")
    assert caught.value.code == "E9-NOSPACE"
    assert set(tmp_path.iterdir()) == before


# --- a copied store --------------------------------------------------------------------------------------------------


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    """A copy of a store, without its keys."""
    make_run(tmp_path / "origin")
    shutil.copytree(tmp_path / "origin" / "store", tmp_path / "copy" / "store")
    return tmp_path / "copy" / "store"


def test_a_copied_store_verifies_alone_as_the_audit_does(copied: Path, packages: Path) -> None:
    found = alone(packages, copied, status=0)
    report = verify(copied)
    assert report.ok
    assert (found["records"], found["signed"], found["objects"]) == (report.records, report.signed, report.objects)
    anchor = copied / "checkpoint"
    alone(packages, copied, "--key", key_text(copied.parent), "--checkpoint", anchor, status=0)


def test_ten_flipped_bytes_of_a_copied_store_are_each_found_and_named(copied: Path, packages: Path) -> None:
    files = sorted((copied / "packs").iterdir(), key=lambda path: path.stat().st_size)
    (tile,) = (copied / "tile" / "0" / "000.p").iterdir()
    ledger = copied / "ledger" / "records"
    places = [
        (copied / "FORMAT", 30),
        (copied / "checkpoint", 45),
        (copied / "checkpoint", -5),
        (tile, 100),
        (ledger, 3),
        (ledger, 20),
        (ledger, ledger.stat().st_size // 2),
        (files[-1], -1),
        (files[-1], 50),
        (files[0], 9),
    ]
    for path, position in places:
        good = path.read_bytes()
        flip(path, position, 2)
        found = alone(packages, copied, status=9)
        name = path.relative_to(copied).as_posix()
        assert any(name in problem["where"] for problem in found["problems"]), (name, found["problems"])
        path.write_bytes(good)
    alone(packages, copied, status=0)


def test_forged_records_missing_packs_and_cut_ledgers_are_found(copied: Path) -> None:
    ledger = copied / "ledger" / "records"
    with Store.open_reader(copied) as store:
        rows = [store.record_bytes(seq) for seq in range(store.size)]
        root = resolve(store, "last")
        path, _ = store.entry(root)
    good = ledger.read_bytes()
    ledger.write_bytes(MAGIC + frame(0, [*rows[:1], records.encode(miss(5, seq=1, t_wall=9)), *rows[2:]]))
    assert {"root", "tile"} == {problem["what"] for problem in run_here(copied).problems}
    ledger.write_bytes(MAGIC + frame(0, rows[:-1]))
    assert any("valid records; checkpoint covers" in problem["detail"] for problem in run_here(copied).problems)
    ledger.write_bytes(good)
    kept = path.read_bytes()
    path.unlink()
    assert (root, "named by record") in [(p["where"], p["detail"][:15]) for p in run_here(copied).problems]
    path.write_bytes(kept)
    shutil.rmtree(copied / "tile" / "0")
    (copied / "tile" / "1").mkdir()
    (copied / "tile" / "1" / "000.p").mkdir()
    (copied / "tile" / "1" / "000.p" / "1").write_bytes(bytes(32))
    assert [p["where"] for p in run_here(copied).problems] == ["tile/1/000.p/1", "tile/0"]


def test_an_older_checkpoint_put_back_and_a_log_cut_to_it_are_found_with_an_anchor(
    tmp_path: Path, packages: Path
) -> None:
    make_run(tmp_path, 2)
    shutil.copytree(tmp_path / "store", tmp_path / "old" / "store")
    with Store.open_writer(tmp_path / "store") as store:
        store.append([miss(77)])
    anchor = tmp_path / "store" / "checkpoint"
    alone(packages, tmp_path / "old" / "store", status=0)
    found = alone(packages, tmp_path / "old" / "store", "--checkpoint", anchor, status=9)
    assert "covers" in found["problems"][0]["detail"]
    report = verify(tmp_path / "old" / "store", anchor=anchor.read_bytes())
    assert {problem.what for problem in report.problems} == {"anchor", "ledger"}
    old = (tmp_path / "old" / "store" / "checkpoint").read_bytes()
    grown = verify(tmp_path / "store", anchor=old)
    assert grown.ok
    assert grown.anchored == grown.records - 1


def plan(store: StoreWriter, *ids: str) -> int:
    args = args_of(RecordKind.GC_PLAN, ids=list(ids), scores=[0.0] * len(ids), reason="budget")
    (seq,) = store.append([Record("archivist", RecordKind.GC_PLAN, args, 5_000 + store.size)])
    return seq


def test_what_a_plan_gave_up_is_collected_and_everything_else_that_is_absent_is_missing(
    tmp_path: Path, packages: Path
) -> None:
    roots = make_run(tmp_path)
    with Store.open_writer(tmp_path / "store") as store:
        path, _ = store.entry(roots[0])
        kept = path.read_bytes()
        seq = plan(store, roots[0])
    path.unlink()
    found = alone(packages, tmp_path / "store")
    assert f"{roots[0]}, named by record 3: collected under plan {seq}" in found["notes"]
    # The second snapshot shares nodes and tensors with the first: it was not given up, so their loss is a loss.
    lost = {problem["where"]: problem["detail"] for problem in found["problems"]}
    assert lost
    assert roots[0] not in lost
    assert not any("record 3:" in detail for detail in lost.values())
    path.write_bytes(kept)
    assert alone(packages, tmp_path / "store", status=0)["collected"] == 0


@pytest.mark.parametrize("compacted", [False, True], ids=["raw", "compacted"])
def test_a_store_collected_to_half_its_size_verifies_and_exports(
    tmp_path: Path, packages: Path, compacted: bool
) -> None:
    make_run(tmp_path, 40)
    with Store.open_writer(tmp_path / "store") as store:
        if compacted:
            Compactor(store).run()
        before = plan_collection(store)
        seq, notes = collect(store, plan_collection(store, budget=before.bytes_now // 2), grace_records=0)
        assert seq > 0, notes
    found = run_here(tmp_path / "store")
    assert found.problems == []
    assert found.counts["collected"] == verify(tmp_path / "store").collected > 0
    assert any(f"collected under plan {seq}" in note for note in found.notes)
    if not compacted:
        alone(packages, tmp_path / "store", status=0)
    manifest = export_of(tmp_path, tmp_path / "out")
    assert len(manifest["windows"]) == 40  # records stay, and an export holds plain objects
    alone(packages, tmp_path / "out", status=0)
    with Store.open_reader(tmp_path / "store") as store:
        gone = next(iter(note for note in found.notes if "collected under plan" in note)).split(",")[0]
    if gone in {row.result_snap for row in commits(tmp_path)}:
        with pytest.raises(RecurosError, match=f"was collected under plan {seq}"):
            export_of(tmp_path, tmp_path / "gone", gone)


def commits(run: Path) -> list[Record]:
    with Store.open_reader(run / "store") as store:
        return [record for record in store.records() if record.kind is RecordKind.WINDOW_COMMIT]


def test_a_name_that_a_later_record_uses_again_is_not_excused_by_an_earlier_plan(tmp_path: Path) -> None:
    with Store.open_writer(tmp_path / "store") as store:
        (name,) = store.put([blob(b"evidence", "cal")])
        store.append([miss(1, input_ids=(name,))])
        plan(store, name)
        store.append([miss(2, input_ids=(name,))])
        path, _ = store.entry(name)
    path.unlink()
    assert [problem["where"] for problem in run_here(tmp_path / "store").problems] == [name]


def test_a_compacted_store_verifies_where_there_is_zstd_and_says_so_where_there_is_none(
    tmp_path: Path, packages: Path
) -> None:
    make_run(tmp_path, 40)
    with Store.open_writer(tmp_path / "store") as store:
        figures = Compactor(store).run()
        compacted = [pack for pack in store.catalog.packs() if pack.compacted and pack.encoded]
    assert compacted, figures
    report = run_here(tmp_path / "store")
    assert report.problems == []
    assert report.counts["objects"] == verify(tmp_path / "store").objects
    if sys.version_info < (3, 14):
        found = alone(packages, tmp_path / "store", status=9)
        assert any("this Python has no zstd" in problem["detail"] for problem in found["problems"])
    path = compacted[0].path
    for position in (path.stat().st_size - 1, path.stat().st_size - 3_000, 600):
        good = path.read_bytes()
        path.write_bytes(good[:position] + bytes(len(good[position : position + 50])) + good[position + 50 :])
        assert any(path.name in problem["where"] for problem in run_here(tmp_path / "store").problems)
        path.write_bytes(good)
    flip(path, path.stat().st_size - 1)
    assert any(path.name in problem["where"] for problem in run_here(tmp_path / "store").problems)


# --- hostile input ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xdd\xff\xff\xff\xff",
        b"\xdf\xff\xff\xff\xff\x01",
        b"\xc6\xff\xff\xff\xff",
        b"\xdb\x7f\xff\xff\xff",
        b"\x91" * 60_000,
        b"\x81\xa1a" * 20_000,
        b"\xc7\x01\x01\x00",
        b"\xc1",
        b"\x82\xa1a\x01\xa1a\x02",
        b"\x01\x01",
        b"\xa2\xff\xff",
    ],
)
def test_hostile_msgpack_is_refused_in_little_memory(data: bytes) -> None:
    tracemalloc.start()
    try:
        with pytest.raises((standalone.Bad, *standalone.FAULTS)):
            standalone.unpack(data)
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()


def test_the_decoder_reads_what_records_hold() -> None:
    values = {"a": [None, True, False, 0, 127, 128, -1, -32, -33, 1 << 40, -(1 << 40), (1 << 63) - 1, 1.5, "é" * 40]}
    record = miss(1, seq=0, t_wall=1, data_cursor=values | {"b": b"x" * 300, "c": ["y"] * 20, "d": {"k" * 200: {}}})
    assert standalone.decode_record(records.encode(record), 0)[-1] == record.data_cursor


@pytest.mark.parametrize("length", [1 << 62, 99_999_999, 0])
def test_a_pack_header_of_any_length_is_refused_in_little_memory(copied: Path, length: int) -> None:
    path = next((copied / "packs").iterdir())
    path.write_bytes(length.to_bytes(8, "little") + path.read_bytes()[8:])
    tracemalloc.start()
    try:
        assert any(path.name in problem["where"] for problem in run_here(copied).problems)
        assert tracemalloc.get_traced_memory()[1] < 16 << 20
    finally:
        tracemalloc.stop()


def test_random_damage_anywhere_is_a_finding_and_never_a_crash(copied: Path) -> None:
    dice = random.Random(9)
    files = [path for path in copied.rglob("*") if path.is_file() and path.name not in ("LOCK", "index.sqlite")]
    for _ in range(60):
        path = dice.choice(files)
        good = path.read_bytes()
        start = dice.randrange(len(good))
        end = start + dice.randint(1, 40)
        path.write_bytes(dice.choice([good[:start], good[:start] + dice.randbytes(end - start) + good[end:], b""]))
        if path.read_bytes() != good:
            assert run_here(copied).problems, (path, start)
        path.write_bytes(good)


@pytest.mark.parametrize("target", ["empty", "absent"])
def test_a_path_that_is_nothing_of_the_kind_is_wrong_usage(tmp_path: Path, packages: Path, target: str) -> None:
    (tmp_path / "empty").mkdir()
    command = [sys.executable, "-I", "-S", "-c", ISOLATED, packages, standalone.__file__, tmp_path / target]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "neither an export, nor a store" in done.stderr


# --- the commands ----------------------------------------------------------------------------------------------------


def test_prove_prints_a_document_that_the_verifier_accepts(
    tmp_path: Path, packages: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_run(tmp_path, 2)
    (tmp_path / "before").write_bytes((tmp_path / "store" / "checkpoint").read_bytes())
    with Store.open_writer(tmp_path / "store") as store:
        store.append([miss(5)])
    argv = ["kfs", "prove", "3", "--from", str(tmp_path / "before"), "-o", "json", "--run", str(tmp_path)]
    assert recuros(argv) == 0
    text = capsys.readouterr().out
    assert json.loads(text)["schema"] == "recuros.kfs.prove/v1"
    (tmp_path / "proof.json").write_text(text)
    alone(packages, tmp_path / "proof.json", "--checkpoint", tmp_path / "before", "--key", key_text(tmp_path), status=0)
    at = text.index('"consistency": ["') + 20
    (tmp_path / "proof.json").write_text(text[:at] + ("1" if text[at] == "0" else "0") + text[at + 1 :])
    assert "signed before" in alone(packages, tmp_path / "proof.json", status=9)["problems"][0]["detail"]
    assert recuros(["kfs", "prove", "3", "--run", str(tmp_path)]) == 0
    assert "the key is the one in this store" in capsys.readouterr().out


def test_export_says_how_to_verify(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_run(tmp_path, 2)
    assert recuros(["kfs", "export", "best", str(tmp_path / "out"), "--dry-run", "--run", str(tmp_path)]) == 0
    assert "not written" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()
    assert recuros(["kfs", "export", "best", str(tmp_path / "out"), "--run", str(tmp_path)]) == 0
    assert "verify: python" in capsys.readouterr().out
    assert recuros(["kfs", "export", "last", str(tmp_path / "out2"), "--json", "--run", str(tmp_path)]) == 0
    assert json.loads(capsys.readouterr().out)["schema"] == "recuros.kfs.export/v1"


def test_verify_takes_a_key_and_a_checkpoint_from_elsewhere_and_says_when_it_had_neither(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_run(tmp_path, 2)
    make_run(tmp_path / "other", 2)
    at = ["kfs", "verify", "--run", str(tmp_path)]
    assert recuros(at) == 0
    assert "proves nothing against whoever owns this machine" in capsys.readouterr().out
    for key in (key_text(tmp_path), str(tmp_path / "store" / "FORMAT")):
        assert recuros([*at, "--key", key, "--checkpoint", str(tmp_path / "store" / "checkpoint")]) == 0
        shown = capsys.readouterr().out
        assert "signed by the given key" in shown
        assert "grew from the given checkpoint" in shown
    assert recuros([*at, "--key", key_text(tmp_path / "other")]) == 9
    assert "the key given is" in capsys.readouterr().out
    assert recuros([*at, "--checkpoint", str(tmp_path / "other" / "store" / "checkpoint")]) == 9
    assert "anchor the given checkpoint" in capsys.readouterr().out
    assert recuros([*at, "--fast", "--json"]) == 0
    doc = json.loads(capsys.readouterr().out)
    assert (doc["key"], doc["anchored"]) == ("store", None)


@pytest.mark.parametrize(
    ("argv", "status", "words"),
    [
        (["kfs", "prove", "999"], 4, "no record 999"),
        (["kfs", "prove", "1", "--from", "absent"], 4, "cannot be read"),
        (["kfs", "export", "last", "."], 2, "not an empty directory"),
        (["kfs", "verify", "--key", "absent"], 4, "cannot be read"),
        (["kfs", "verify", "--key", "a+b+c"], 9, "is not an Ed25519 verifier key"),
        (["kfs", "verify", "--checkpoint", "absent"], 4, "cannot be read"),
    ],
)
def test_wrong_input_has_its_exit_status(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], argv: list[str], status: int, words: str
) -> None:
    make_run(tmp_path, 2)
    assert recuros([*argv, "--run", str(tmp_path)]) == status
    assert words in capsys.readouterr().err
