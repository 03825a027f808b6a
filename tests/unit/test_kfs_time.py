"""Snapshots by name, differences, model directories and the fsspec filesystem."""

from __future__ import annotations

import json
import math
import resource
import signal
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
import torch
from fsspec.registry import register_implementation
from hypothesis import given
from hypothesis import strategies as st
from kfs_support import args_of, commit

from console.main import run
from console.tensors import compare
from kfs import refs
from kfs.checkout import checkout
from kfs.diff import diff
from kfs.fs import KnowledgeFileSystem
from kfs.objects import NewObject, blob, id_of
from kfs.records import Record, RecordKind
from kfs.store import Store, Stored
from servers.models.patch import PatchConfig, PatchModel
from servers.models.registry import build, from_checkout
from syscalls.errors import RecurosError

BF16 = {"one": 0x3F80, "two": 0x4000, "inf": 0x7F80, "nan": 0x7FC0}


def stored(dtype: str, data: bytes, shape: tuple[int, ...]) -> Stored:
    return Stored(dtype, shape, "snapshot", memoryview(data))


def leaves_of(role: str, module: torch.nn.Module) -> dict[str, NewObject]:
    """`role/module/tensor` -> object for every parameter."""
    found = {}
    for name, p in module.named_parameters():
        owner, _, tensor = name.rpartition(".")
        found[f"{role}/{owner or '.'}/{tensor}"] = NewObject(
            "F32", tuple(p.shape), p.detach().numpy().tobytes(), "snapshot"
        )
    return found


def put(store: Any, objects: dict[str, NewObject]) -> str:
    root, _ = store.put_snapshot({p: id_of(o) for p, o in objects.items()}, {id_of(o): o for o in objects.values()})
    return str(root)


def architectures(**roles: dict[str, Any]) -> dict[str, NewObject]:
    return {"policy/roles/state": blob(json.dumps(roles).encode(), "snapshot")}


def patch_objects(seed: int) -> dict[str, NewObject]:
    spec = {"kind": "patch", "layers": 1, "width": 8, "heads": 2}
    model = build(spec, seed)
    return {
        **leaves_of("student", model.module),
        **leaves_of("ema", model.module),
        **architectures(student=model.architecture, teacher=model.architecture),
    }


@pytest.fixture
def patch_run(tmp_path: Path) -> Path:
    """Two committed windows of a small patch model, and a name for the first."""
    with Store.open_writer(tmp_path / "store") as store:
        for window in (1, 2):
            root = put(store, patch_objects(window))
            store.append([commit(window, t_mono=window, result=root)])
            if window == 1:
                args = args_of(RecordKind.SNAPSHOT, name="first", window=1)
                store.append([Record("operator:1.1", RecordKind.SNAPSHOT, args, 9, result_snap=root)])
    return tmp_path


# --- names ---------------------------------------------------------------------------------------------------------------


def test_a_snapshot_has_many_names(patch_run: Path) -> None:
    with Store.open_reader(patch_run / "store") as store:
        one, two = (store.record(seq).result_snap for seq in (0, 2))
        assert one is not None
        assert two is not None
        for text, root in {"first": one, "w1": one, "0": one, "1": one, "w2": two, "last": two, "-1": two}.items():
            assert refs.resolve(store, text) == root
        assert refs.resolve(store, one[:12]) == one
        for text in ("w3", "nobody", "b3:ffffffff", "zz"):
            with pytest.raises(RecurosError) as caught:
                refs.resolve(store, text)
            assert caught.value.code == "E4-NOENT"


# --- differences ---------------------------------------------------------------------------------------------------------


@given(
    st.lists(
        st.tuples(st.floats(width=32), st.floats(width=32)).filter(
            lambda pair: all(not math.isfinite(x) or abs(x) < 1e30 for x in pair)
        ),
        max_size=40,
    )
)
def test_norms_are_those_of_the_finite_differences(pairs: list[tuple[float, float]]) -> None:
    a, b = (struct.pack(f"<{len(pairs)}f", *side) for side in zip(*pairs, strict=True)) if pairs else (b"", b"")
    found = compare(stored("F32", a, (len(pairs),)), stored("F32", b, (len(pairs),)))
    left, right = (np.frombuffer(x, "<f4") for x in (a, b))
    moved = left.view("<u4") != right.view("<u4")
    finite = moved & np.isfinite(left) & np.isfinite(right)
    gaps = [abs(float(y) - float(x)) for x, y in zip(left[finite], right[finite], strict=True)]
    assert (found.items, found.changed, found.not_finite) == (len(pairs), moved.sum(), moved.sum() - finite.sum())
    assert found.max_abs == max(gaps, default=0.0)
    assert found.l2 == pytest.approx(math.hypot(*gaps))


def test_half_precision_and_values_that_are_no_numbers() -> None:
    def bf16(*names: str) -> Stored:
        return stored("BF16", struct.pack(f"<{len(names)}H", *(BF16[n] for n in names)), (len(names),))

    found = compare(bf16("one", "nan", "one", "inf"), bf16("two", "nan", "inf", "inf"))
    assert (found.changed, found.l2, found.max_abs, found.not_finite) == (2, 1.0, 1.0, 1)
    half = [stored("F16", np.array(v, "<f2").tobytes(), (2,)) for v in ([1.0, -0.0], [1.5, 0.0])]
    found = compare(*half)
    assert (found.changed, found.l2, found.max_abs) == (2, 0.5, 0.5)
    eight = compare(stored("F8_E4M3", b"\x01\x02", (2,)), stored("F8_E4M3", b"\x01\x03", (2,)))
    assert (eight.changed, eight.l2, eight.max_abs) == (1, None, None)


def test_a_diff_names_every_path_that_differs_and_reads_no_other(tmp_path: Path) -> None:
    def objects(**values: list[float]) -> dict[str, NewObject]:
        return {
            f"student/m/{name}": NewObject("F32", (len(v),), np.array(v, "<f4").tobytes(), "snapshot")
            for name, v in values.items()
        }

    with Store.open_writer(tmp_path / "store") as store:
        a = put(store, objects(same=[1], moved=[1, 2], gone=[5], grown=[1]))
        b = put(store, objects(same=[1], moved=[1, 5], come=[6], grown=[1, 2]))
        rows = {row.path.rpartition("/")[2]: row for row in diff(store, a, b, compare)}
        assert {name: row.status for name, row in rows.items()} == {
            "moved": "changed",
            "gone": "removed",
            "come": "added",
            "grown": "reshaped",
        }
        change = rows["moved"].change
        assert change is not None
        assert (change.items, change.changed, change.l2, change.max_abs) == (2, 1, 3.0, 3.0)
        assert list(diff(store, a, a, compare)) == []
        assert list(diff(store, a, b, compare, prefix="teacher/")) == []


def test_diff_on_the_command_line(capsys: pytest.CaptureFixture[str], patch_run: Path) -> None:
    assert run(["kfs", "diff", "w1", "last", "--role", "student", "--json", "--run", str(patch_run)]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["schema"] == "recuros.kfs.diff/v1"
    assert {row["status"] for row in found["changes"]} == {"changed"}
    assert run(["kfs", "diff", "-1", "last", "--run", str(patch_run)]) == 0
    assert "nothing differs" in "".join(capsys.readouterr())


# --- model directories ---------------------------------------------------------------------------------------------------


def test_a_patch_model_comes_back_as_it_was(patch_run: Path, tmp_path: Path) -> None:
    with Store.open_reader(patch_run / "store") as store:
        note = checkout(store, refs.resolve(store, "w1"), tmp_path / "out")
    model = from_checkout(tmp_path / "out")
    original = build({"kind": "patch", "layers": 1, "width": 8, "heads": 2}, 1)
    assert isinstance(model, PatchModel)
    assert model.module.config == PatchConfig(layers=1, width=8, heads=2)
    for name, p in original.module.named_parameters():
        assert torch.equal(p, model.module.get_parameter(name))
    assert note["load"] == "servers.models.registry.from_checkout(DIR)"
    assert json.loads((tmp_path / "out" / "checkout.json").read_text())["record"] == 0


def test_a_hugging_face_role_loads_with_transformers(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    config = {"model_type": "gpt2", "vocab_size": 32, "n_positions": 16, "n_embd": 8, "n_layer": 1, "n_head": 2}
    model = build({"kind": "hf-config", "task": "causal-lm", "config": config}, 7)
    tokenizer = b'{"version": "1.0"}'
    with Store.open_writer(tmp_path / "store") as store:
        (name,) = store.put([blob(tokenizer, "report")])
        papers = {"version": 1, "files": {"tokenizer.json": name}}
        (papers_id,) = store.put([blob(json.dumps(papers).encode(), "report")])
        objects = {**leaves_of("teacher", model.module), **architectures(teacher=model.architecture)}
        root = put(store, objects)
        record = commit(1, result=root)
        record.args["inputs"] = {"config": papers_id}
        store.append([record])
        checkout(store, root, tmp_path / "out", role="teacher")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out", attn_implementation="eager")
    tokens = torch.arange(6)[None]
    model.module.eval()
    assert torch.equal(loaded(tokens).logits, model.module(tokens).logits)
    assert (tmp_path / "out" / "tokenizer.json").read_bytes() == tokenizer


def test_a_checkout_never_touches_what_is_there(patch_run: Path, tmp_path: Path) -> None:
    used = tmp_path / "used"
    used.mkdir()
    (used / "mine").write_text("mine")
    (tmp_path / "file").write_text("x")
    with Store.open_reader(patch_run / "store") as store:
        root = refs.resolve(store, "last")
        for target in (used, tmp_path / "file", tmp_path / "no" / "parent"):
            with pytest.raises(RecurosError) as caught:
                checkout(store, root, target)
            assert caught.value.code == "E2-USAGE"
        with pytest.raises(RecurosError, match="no role"):
            checkout(store, root, tmp_path / "out", role="nobody")
        with pytest.raises(RecurosError, match="has no role 'teacher'"):
            checkout(store, root, tmp_path / "out", role="teacher")
    assert [p.name for p in used.iterdir()] == ["mine"]
    assert not (tmp_path / "out").exists()


def test_a_full_disk_leaves_nothing_behind(patch_run: Path, tmp_path: Path) -> None:
    """A real limit on file sizes stands in for the disk: the write fails in the middle of the tensors."""
    code = "import sys; from console.main import run; sys.exit(run(['kfs','checkout','last',sys.argv[1],'--run',sys.argv[2]]))"

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))

    before = sorted(p.name for p in tmp_path.iterdir())
    argv = [sys.executable, "-c", code, str(tmp_path / "out"), str(patch_run)]
    done = subprocess.run(argv, capture_output=True, text=True, preexec_fn=limit, check=False)
    assert done.returncode == 9
    assert "E9-NOSPACE" in done.stderr
    assert sorted(p.name for p in tmp_path.iterdir()) == before


# --- the filesystem ------------------------------------------------------------------------------------------------------


def test_the_filesystem_shows_snapshots_records_and_objects(patch_run: Path) -> None:
    fs = KnowledgeFileSystem(store=str(patch_run))
    assert fs.ls("", detail=False) == ["objects", "records", "snapshots"]
    assert fs.ls("records", detail=False) == ["records/0", "records/1", "records/2"]
    assert "snapshots/first" in fs.ls("snapshots", detail=False)
    assert fs.ls("snapshots/first", detail=False) == [f"snapshots/first/{r}" for r in ("ema", "policy", "student")]
    path = "snapshots/last/student/head/weight"
    info = fs.info(path)
    assert (info["type"], info["dtype"], info["size"]) == ("file", "F32", math.prod(info["shape"]) * 4)
    with fs.open(path) as file:
        data = file.read()
    assert data == fs.cat_file(f"objects/{info['id']}")
    assert fs.cat_file(path, 4, 8) == data[4:8]
    with Store.open_reader(patch_run / "store") as store:
        assert fs.cat_file("records/1") == store.record_bytes(1)
    assert fs.isdir("snapshots/w1/student")
    assert len(fs.find("snapshots/w1/student")) == sum(p.startswith("student/") for p in patch_objects(1))
    for path in (
        "nothing",
        "records/9",
        "records/x",
        "objects/b3:00000000",
        "snapshots/nobody",
        "snapshots/w1/student/x",
    ):
        assert not fs.exists(path)
        with pytest.raises(FileNotFoundError):
            fs.cat_file(path)
    with pytest.raises(IsADirectoryError):
        fs.cat_file("snapshots/w1")
    with pytest.raises(OSError, match="read-only"):
        fs.open("records/1", "wb")
    fs.close()


def test_a_url_names_the_store_and_the_path_in_it(patch_run: Path) -> None:
    register_implementation("kfs", KnowledgeFileSystem, clobber=True)
    with fsspec.open(f"kfs://{patch_run}!/records/0") as file:
        data = file.read()
    with Store.open_reader(patch_run / "store") as store:
        assert data == store.record_bytes(0)
    fs, path = fsspec.core.url_to_fs(f"kfs://{patch_run / 'store'}!/snapshots/first/student")
    assert path == "snapshots/first/student"
    assert fs.isdir(path)
    with pytest.raises(ValueError, match="no store is named"):
        fsspec.filesystem("kfs")
    with pytest.raises(FileNotFoundError):
        fsspec.filesystem("kfs", store=str(patch_run / "elsewhere"))


def test_damage_is_an_input_output_error(patch_run: Path) -> None:
    with Store.open_reader(patch_run / "store") as store:
        found = store.snapshot(refs.resolve(store, "last"))["student/head/weight"]
        path, entry = store.entry(found)
    data = bytearray(path.read_bytes())
    data[entry.offset] ^= 1
    path.write_bytes(data)
    with pytest.raises(OSError, match="not object") as caught:
        KnowledgeFileSystem(store=str(patch_run)).cat_file("snapshots/last/student/head/weight")
    assert caught.value.errno == 5
