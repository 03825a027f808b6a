from __future__ import annotations

import os
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
from blake3 import blake3
from kfs_support import args_of, commit, key_of, miss, snapshot_of, tensor
from safetensors import safe_open

from kfs import pack
from kfs.objects import NewObject, blob, object_id
from kfs.records import Record, RecordKind
from kfs.snapshot import build_tree
from kfs.store import CHECKPOINT_RECORDS, Store, StoreWriter
from kfs.verify import verify
from syscalls.errors import RecurosError


@pytest.fixture
def store(tmp_path: Path):
    store = Store.open_writer(tmp_path / "store")
    yield store
    store.close()


def packs(store: Store) -> list[Path]:
    return sorted(store.layout.packs.iterdir())


def test_what_is_put_is_got_with_dtype_shape_and_kind(store: StoreWriter) -> None:
    items = [
        NewObject("BF16", (2, 3), bytes(range(12)), "attn"),
        NewObject("F64", (), bytes(8), "cal"),
        NewObject("BOOL", (0, 4), b"", "mask"),
        NewObject("I32", (400_000,), os.urandom(1_600_000), "batch"),
        blob(b"program", "program"),
    ]
    ids = store.put(items)
    for item, name in zip(items, ids, strict=True):
        found = store.get(name)
        assert (found.dtype, found.shape, found.kind, bytes(found.data)) == (
            item.dtype,
            item.shape,
            item.kind,
            bytes(item.data),
        )
        assert found.data.readonly
    assert len(packs(store)) == 1


def test_a_pack_is_a_safetensors_file_named_by_its_hash(store: StoreWriter) -> None:
    items = [
        NewObject("F32", (2, 2), bytes(range(16)), "snapshot"),
        NewObject("U8", (0,), b"", "report"),
        NewObject("I64", (1,), bytes(8), "cka"),
    ]
    ids = store.put(items)
    (path,) = packs(store)
    assert path.name == blake3(path.read_bytes()).hexdigest() + ".safetensors"
    with safe_open(path, "np") as opened:
        assert set(opened.keys()) == set(ids)
        assert opened.get_tensor(ids[0]).tobytes() == bytes(range(16))
        assert opened.get_slice(ids[1]).get_shape() == [0]
        assert opened.metadata()["kfs.pack"] == "1"
        kinds = [opened.metadata().get(name, opened.metadata()["kind"]) for name in ids]
    assert kinds == ["snapshot", "report", "cka"]


def test_every_tensor_of_a_pack_is_aligned_for_its_dtype(store: StoreWriter) -> None:
    ids = store.put(
        [blob(b"abc", "report"), NewObject("F64", (1,), bytes(8), "cka"), NewObject("F16", (3,), bytes(6), "cka")]
    )
    for name in ids:
        found = store.get(name)
        assert store.entry(name)[1].offset % {"U8": 1, "F64": 8, "F16": 2}[found.dtype] == 0


def test_objects_stored_already_write_nothing(store: StoreWriter) -> None:
    first = store.put([tensor(1), tensor(2)])
    before = packs(store)
    assert store.put([tensor(2), tensor(1)]) == first[::-1]
    assert packs(store) == before
    store.put([tensor(1), tensor(3), tensor(3)])
    assert sum(len(pack.read_header(path).header) for path in packs(store)) == 3


def test_a_snapshot_is_one_pack_and_reads_back(store: StoreWriter) -> None:
    refs, new = snapshot_of(*range(10))
    root, written = store.put_snapshot(refs, new, extras=[blob(b"diagnostics", "report")])
    (path,) = packs(store)
    assert written == path.stat().st_size
    assert store.snapshot(root) == refs
    assert root == build_tree(refs)[0]
    assert store.put_snapshot(refs, {}) == (root, 0)
    refs["student/blocks.0/w0"] = key_of(tensor(99))
    other, _ = store.put_snapshot(refs, {key_of(tensor(99)): tensor(99)})
    assert (
        len(pack.read_header(packs(store)[0]).header) + len(pack.read_header(packs(store)[1]).header) == 10 + 5 + 1 + 4
    )
    assert store.snapshot(other) == refs


def test_a_snapshot_with_a_wrong_or_missing_object_is_refused_and_writes_nothing(store: StoreWriter) -> None:
    refs, new = snapshot_of(1, 2)
    with pytest.raises(RecurosError, match="bytes that hash to"):
        store.put_snapshot(refs, new | {key_of(tensor(1)): tensor(3)})
    with pytest.raises(RecurosError, match="was not sent"):
        store.put_snapshot(refs, {key_of(tensor(1)): tensor(1)})
    assert packs(store) == []


def test_a_changed_byte_is_never_handed_out(store: StoreWriter) -> None:
    (small,) = store.put([tensor(1)])
    (large,) = store.put([tensor(2, 500_000)])
    for name in (small, large):
        path, entry = store.entry(name)
        data = bytearray(path.read_bytes())
        data[entry.offset + entry.length // 2] ^= 1
        path.chmod(0o644)
        path.write_bytes(data)
        with pytest.raises(RecurosError, match=path.name) as caught:
            store.get(name)
        assert caught.value.code == "E9-INTEGRITY"


def test_records_are_stamped_in_order_and_the_same_draft_is_stored_once(store: StoreWriter) -> None:
    before_ns = time.time_ns()
    assert store.append([miss(1), miss(2), miss(1)]) == [0, 1, 0]
    assert store.append([miss(2), miss(3)]) == [1, 2]
    found = list(store.records())
    assert [record.seq for record in found] == [0, 1, 2]
    assert all(before_ns <= record.t_wall <= time.time_ns() for record in found)
    assert [record.draft() for record in found] == [miss(1), miss(2), miss(3)]
    assert store.append([]) == []


def test_a_window_is_committed_once_however_often_it_is_sent(tmp_path: Path) -> None:
    with Store.open_writer(tmp_path / "store") as store:
        (root, _), (other, _) = store.put_snapshot(*snapshot_of(1)), store.put_snapshot(*snapshot_of(2))
        assert store.append([commit(4, t_mono=1, result=root), commit(4, t_mono=2, result=root)]) == [0, 0]
    with Store.open_writer(tmp_path / "store") as again:
        assert again.append([commit(4, t_mono=9, result=root), commit(5, t_mono=9, result=root)]) == [0, 1]
        assert again.append([commit(4, boot="boot-2", t_mono=9, result=root)]) == [2]
        with pytest.raises(RecurosError, match="is committed as record 0"):
            again.append([commit(4, t_mono=10, result=other)])
        assert again.append([miss(3)]) == [3]


def test_a_resent_batch_is_known_after_a_restart(tmp_path: Path) -> None:
    batch = [miss(n) for n in range(5)]
    with Store.open_writer(tmp_path / "store") as store:
        store.append(batch)
    with Store.open_writer(tmp_path / "store") as store:
        assert store.append([*batch, miss(9)]) == [0, 1, 2, 3, 4, 5]


def test_a_record_that_names_what_is_not_stored_is_refused_with_its_batch(store: StoreWriter) -> None:
    for record in (
        miss(2, input_ids=(key_of(tensor(1)),)),
        commit(1, result=key_of(tensor(1))),
    ):
        with pytest.raises(RecurosError) as caught:
            store.append([miss(1), record])
        assert caught.value.code == "E4-NOENT"
    assert store.size == 0


def test_a_parent_or_a_rollback_may_name_the_state_as_built_which_nobody_stores(store: StoreWriter) -> None:
    built, (root, _) = key_of(tensor(1)), store.put_snapshot(*snapshot_of(2))
    rolled_back = args_of(RecordKind.WINDOW_ROLLBACK, base=built, restored=built)
    rollback = Record(
        actor="kernel",
        kind=RecordKind.WINDOW_ROLLBACK,
        args=rolled_back,
        t_mono=1,
        parent_snap=built,
        result_snap=built,
    )
    assert store.append([rollback, miss(2, parent_snap=built), miss(3, parent_snap=built, result_snap=root)]) == [
        0,
        1,
        2,
    ]
    assert verify(store.layout.store).ok


def test_a_large_batch_of_large_records_goes_in(store: StoreWriter) -> None:
    drafts = [miss(n, data_cursor=bytes(60_000)) for n in range(300)]
    assert store.append(drafts) == list(range(300))
    assert [record.draft() for record in store.records(298)] == drafts[298:]


def test_a_second_writer_is_told_who_holds_the_store(store: StoreWriter) -> None:
    code = "import sys; from kfs.store import Store; Store.open_writer(sys.argv[1])"
    done = subprocess.run(
        [sys.executable, "-c", code, str(store.layout.store)], check=False, capture_output=True, text=True
    )
    assert "E3-BUSY" in done.stderr
    assert f"process {os.getpid()}" in done.stderr


def test_a_reader_needs_no_lock_and_follows_a_live_writer(store: StoreWriter) -> None:
    with Store.open_reader(store.layout.store) as reader:
        refs, new = snapshot_of(1, 2)
        root, _ = store.put_snapshot(refs, new)
        store.append([miss(1, result_snap=root)])
        assert reader.snapshot(root) == refs  # an unknown id makes it look again
        assert reader.record(0).result_snap == root
        assert reader.head() == store.head()
        store.append([miss(2)])
        reader.refresh()
        assert reader.head() == store.head()


def test_a_store_of_another_format_is_refused_naming_both(tmp_path: Path) -> None:
    Store.open_writer(tmp_path / "store").close()
    form = tmp_path / "store" / "FORMAT"
    form.write_text(form.read_text().replace('"major": 1', '"major": 2'))
    for opener in (Store.open_reader, Store.open_writer):
        with pytest.raises(
            RecurosError, match=r"store format 2\.1; this program reads and writes format 1\.1"
        ) as caught:
            opener(tmp_path / "store")
        assert caught.value.code == "E9-VERSION"


def test_no_store_is_no_such_object(tmp_path: Path) -> None:
    with pytest.raises(RecurosError) as caught:
        Store.open_reader(tmp_path / "store")
    assert caught.value.code == "E4-NOENT"


def test_a_creation_cut_short_is_finished_and_a_lost_format_is_not_papered_over(tmp_path: Path) -> None:
    with Store.open_writer(tmp_path / "store") as store:
        store_id = store.format.store_id
    (tmp_path / "store" / "FORMAT").unlink()
    with Store.open_writer(tmp_path / "store") as store:
        assert store.format.store_id != store_id
        store.append([miss(1)])
    (tmp_path / "store" / "FORMAT").unlink()
    with pytest.raises(RecurosError, match="FORMAT is missing"):
        Store.open_writer(tmp_path / "store")


def test_a_missing_or_foreign_key_refuses_to_open(tmp_path: Path) -> None:
    Store.open_writer(tmp_path / "store").close()
    key = next((tmp_path / "keys").glob("*.key"))
    kept = key.read_bytes()
    key.unlink()
    with pytest.raises(RecurosError, match="signing key"):
        Store.open_writer(tmp_path / "store")
    Store.open_writer(tmp_path / "other" / "store").close()
    key.write_bytes(next((tmp_path / "other" / "keys").glob("*.key")).read_bytes())
    key.chmod(0o600)
    with pytest.raises(RecurosError, match="not the one"):
        Store.open_writer(tmp_path / "store")
    key.write_bytes(kept)
    Store.open_writer(tmp_path / "store").close()


def test_a_store_put_back_to_an_older_copy_is_refused(tmp_path: Path) -> None:
    with Store.open_writer(tmp_path / "store") as store:
        store.append([miss(1)])
        store.checkpoint()
        old = store.layout.records.read_bytes(), store.layout.checkpoint.read_bytes()
        store.append([miss(2)])
    store.layout.records.write_bytes(old[0])
    store.layout.checkpoint.write_bytes(old[1])
    with pytest.raises(RecurosError, match="2 records are signed"):
        Store.open_writer(tmp_path / "store")


def test_temporary_files_of_a_crashed_writer_are_removed_and_said(tmp_path: Path) -> None:
    Store.open_writer(tmp_path / "store").close()
    leftover = tmp_path / "store" / "packs" / ".tmp-1-1"
    leftover.write_bytes(b"half a pack")
    with Store.open_writer(tmp_path / "store") as store:
        assert store.notes == ["removed 1 unfinished files"]
    assert not leftover.exists()


def test_checkpoints_are_lazy_and_cover_everything_after_close(store: StoreWriter) -> None:
    for number in range(300):
        store.append([miss(number)])
        if store.checkpoint_due():
            store.checkpoint()
    assert 0 <= store.size - store.checkpoint_head().size < CHECKPOINT_RECORDS
    store.checkpoint()
    assert (store.checkpoint_head().size, store.checkpoint_head().root.hex()) == store.head()


def test_the_keys_are_private(store: StoreWriter) -> None:
    assert stat.S_IMODE(store.layout.keys.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in store.layout.keys.iterdir()} == {0o600}


def test_ids_resolve_by_prefix(store: StoreWriter) -> None:
    ids = store.put([tensor(n) for n in range(20)])
    assert store.resolve(ids[0]) == store.resolve(ids[0][3:]) == store.resolve(ids[0][:12]) == ids[0]
    for text, code in (("ffffffffffff", "E4-NOENT"), ("", "E2-USAGE"), (ids[0][3:5], "E4-NOENT")):
        with pytest.raises(RecurosError) as caught:
            store.resolve(text)
        assert caught.value.code in (code, "E2-USAGE")


def test_five_hundred_packs_open_quickly_enough_to_use(tmp_path: Path) -> None:
    with Store.open_writer(tmp_path / "store") as store:
        for number in range(500):
            store.put([tensor(number)])
    with Store.open_writer(tmp_path / "store") as store:
        assert len(list(store.objects())) == 500
    assert verify(tmp_path / "store").ok


def test_the_documented_id_of_an_object_is_its_id_in_the_store(store: StoreWriter) -> None:
    assert store.put([blob(b"abc", "report")]) == [object_id("U8", (3,), b"abc")]
