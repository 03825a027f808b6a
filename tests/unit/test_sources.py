"""The conformance suite of data sources: every kind in the list keeps the same promises."""

from __future__ import annotations

import json
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from servers import manifest_tables
from servers.dataset import code_tree, sources
from servers.dataset.stream import Stream, generator, page_rows
from servers.dataset.table import SPLITS, reservoir
from syscalls.errors import RecurosError
from syscalls.pages import pack_arrays

N = 40
Made = tuple[dict[str, Any], dict[str, Any]]
TWO = {"teacher": {"classes": 2}}


def _jsonl(folder: Path, bad: bool) -> Made:
    rows = [json.dumps({"text": f"row {i}", "label": i % 2}) for i in range(N)]
    (folder / "d.jsonl").write_text("\n".join(rows + ["{nope", '{"text": "a", "label": 9}'] * bad))
    return {"kind": "jsonl", "path": str(folder / "d.jsonl"), "tokenizer": "bytes", "seq_len": 16}, TWO


def _jsonl_features(folder: Path, bad: bool) -> Made:
    rows: list[dict[str, Any]] = [{"a": i, "b": [0.5, i / 3], "label": "xy"[i % 2]} for i in range(N)]
    rows += [{"a": float("nan"), "b": [1, 2], "label": "x"}, {"a": 1, "b": [1], "label": "x"}] * bad
    (folder / "d.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return {"kind": "jsonl", "path": str(folder / "d.jsonl"), "features": ["a", "b"]}, TWO


def _csv(folder: Path, bad: bool) -> Made:
    rows = [f'"row, {i}\nnext",{i % 2}' for i in range(N)]
    (folder / "d.csv").write_text("\n".join(["words,y", *rows, *["a,0,0", "b,7"] * bad]))
    data = {"kind": "csv", "path": str(folder / "d.csv"), "tokenizer": "bytes", "seq_len": 16}
    return {**data, "text_column": "words", "label_column": "y"}, TWO


def _csv_features(folder: Path, bad: bool) -> Made:
    rows = [f"{i},{i * 0.5},{'no' if i % 2 else 'yes'}" for i in range(N)]
    (folder / "d.csv").write_text("\r\n".join(["a,b,label", *rows, *["x,1,no", "1,inf,yes"] * bad]))
    return {"kind": "csv", "path": str(folder / "d.csv"), "features": ["a", "b"]}, TWO


def _parquet(folder: Path, bad: bool) -> Made:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    table = {
        "text": [f"row {i}" for i in range(N)] + [None, ""] * bad,
        "label": [i % 2 for i in range(N)] + [0, 1] * bad,
        "unused": [b"x"] * (N + 2 * bad),
    }
    parquet.write_table(pyarrow.table(table), folder / "d.parquet")
    return {"kind": "parquet", "path": str(folder / "d.parquet"), "tokenizer": "bytes", "seq_len": 16}, TWO


def _numpy(folder: Path, bad: bool) -> Made:
    x = np.arange(N * 3, dtype=np.float64).reshape(N, 3)
    labels = np.arange(N) % 2
    if bad:
        x, labels = np.concatenate((x, [[np.nan, 1, 2], [1, 2, 3.5]])), np.concatenate((labels, [0, 5]))
    np.savez(folder / "d.npz", x=x, labels=labels)
    return {"kind": "numpy", "path": str(folder / "d.npz")}, TWO


def _text(folder: Path, bad: bool) -> Made:
    (folder / "t.txt").write_text("".join(f"line {i}\n" for i in range(100)))
    return {"kind": "text", "path": str(folder / "t.txt"), "tokenizer": "bytes", "seq_len": 16}, {}


def _code(folder: Path, bad: bool) -> Made:
    tree = folder / "tree"
    for i in range(8):
        (tree / f"p{i % 2}").mkdir(parents=True, exist_ok=True)
        (tree / f"p{i % 2}" / f"m{i}.py").write_text(f"x = {i}\n" * 9)
    (tree / ".hidden.py").write_text("secret = 1\n" * 9)
    (tree / "notes.txt").write_text("no code\n" * 9)
    data: dict[str, Any] = {"kind": "code", "path": str(tree), "tokenizer": "bytes", "seq_len": 16}
    if bad:
        from tokenizers import Tokenizer, models, pre_tokenizers

        tokenizer = Tokenizer(models.WordLevel({"x": 0, "=": 1, "?": 2}, unk_token="?"))
        tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
        tokenizer.save(str(folder / "tokenizer.json"))
        (tree / "a.py").write_bytes(b"x = 1\n\xff\n")
        (tree / "z.py").write_bytes(b"x = 1\n\xfe\n")
        data["tokenizer"] = str(folder)
    return data, {}


CASES: dict[str, Callable[[Path, bool], Made]] = {
    "digits": lambda _folder, _bad: ({"kind": "digits"}, {}),
    "sklearn iris": lambda _folder, _bad: ({"kind": "sklearn", "name": "iris"}, {}),
    "sklearn wine": lambda _folder, _bad: ({"kind": "sklearn", "name": "wine"}, {}),
    "sklearn breast-cancer": lambda _folder, _bad: ({"kind": "sklearn", "name": "breast-cancer"}, {}),
    "sklearn digits": lambda _folder, _bad: ({"kind": "sklearn", "name": "digits"}, {}),
    "jsonl": _jsonl,
    "jsonl features": _jsonl_features,
    "csv": _csv,
    "csv features": _csv_features,
    "parquet": _parquet,
    "numpy": _numpy,
    "text": _text,
    "code": _code,
}
WRONG = {  # what is said of the first wrong row, and where the second is
    "jsonl": (r"d\.jsonl:41: not JSON", r"d\.jsonl:42: column 'label' is 9, expected one of 2 classes"),
    "jsonl features": (r"d\.jsonl:41: column 'a' is nan", r"d\.jsonl:42: the features hold 2 numbers, expected 3"),
    "csv": (r"d\.csv:82: found 3 fields, expected 2", r"d\.csv:83: column 'y' is 7, expected one of 2 classes"),
    "csv features": (r"d\.csv:42: column 'a' is 'x', expected a number", r"d\.csv:43: column 'b' is inf"),
    "parquet": (r"d\.parquet: row 41: column 'text' is null", r"row 42: column 'text' is an empty string"),
    "numpy": (r"d\.npz: row 41: a number in 'x' is not finite", r"d\.npz: row 42: 'labels' is 5"),
    "code": (r"a\.py:2: byte 6 is not UTF-8", r"z\.py:2: byte 6 is not UTF-8"),
}
every_source = pytest.mark.parametrize("name", CASES)


def test_every_kind_is_in_the_manifest_and_has_a_case() -> None:
    tables = typing.get_args(typing.get_args(manifest_tables.Data)[0])
    kinds = {typing.get_args(table.model_fields["kind"].annotation)[0] for table in tables}
    kinds.remove("app")  # an application's own dataset server answers for it (tests/live/test_nexus_windows.py)
    assert kinds == set(sources.KINDS) == {name.split()[0] for name in CASES}


@every_source
def test_a_source_gives_the_same_table_every_time(tmp_path: Path, name: str) -> None:
    data, model = CASES[name](tmp_path, False)
    assert sources.load(data, model).digest() == sources.load(data, model).digest()


@every_source
def test_splits_are_filled_disjoint_and_of_one_form(tmp_path: Path, name: str) -> None:
    table = sources.load(*CASES[name](tmp_path, False))
    forms, contents = set(), {}
    for split in SPLITS:
        columns = table.columns(split)
        assert table.size(split) > 0
        assert len({len(values) for values in columns.values()}) == 1
        forms.add(tuple(sorted((c, v.dtype.str, v.shape[1:]) for c, v in columns.items() if c != "input_ids")))
        body = columns["x"] if "x" in columns else columns["input_ids"]
        contents[split] = {row.tobytes() for row in body}
        if "x" in columns:
            assert body.dtype == np.float32
            assert np.isfinite(body).all()
        if table.task == "classify":
            assert 0 <= columns["labels"].min() <= columns["labels"].max() < table.classes
    assert len(forms) == 1
    if name not in ("text", "code", "sklearn iris", "sklearn wine"):  # a chunk or a flower may well be there twice
        assert not contents["train"] & contents["test"]


@every_source
def test_its_stream_is_whole_epochs_of_columns_that_a_page_carries(tmp_path: Path, name: str) -> None:
    table = sources.load(*CASES[name](tmp_path, False))
    stream = Stream(table, 3, 7)
    steps = -(-table.size("train") // 7)
    made = stream.window("p", 0, steps, None)
    ids = np.concatenate([columns["ids"] for columns in made.batches])[: table.size("train")]
    assert np.sort(ids).tolist() == list(range(table.size("train")))
    assert stream.window("p", 0, steps, None).digest == made.digest
    page = pack_arrays([row for columns in made.batches[:1] for row in page_rows("b0/", columns)], {})
    page.close()


@pytest.mark.parametrize("name", WRONG)
def test_wrong_rows_are_refused_with_their_place(tmp_path: Path, name: str) -> None:
    data, model = CASES[name](tmp_path, True)
    with pytest.raises(RecurosError, match=WRONG[name][0]) as caught:
        sources.load(data, model)
    assert caught.value.code == "E2-DATA"
    assert caught.value.hint


@pytest.mark.parametrize("name", WRONG)
def test_wrong_rows_are_skipped_on_request_and_both_are_told(tmp_path: Path, name: str) -> None:
    data, model = CASES[name](tmp_path, True)
    table = sources.load({**data, "on_error": "skip"}, model)
    assert table.notes["skipped"] == 2
    assert len(table.problems) == 2
    for problem, pattern in zip(sorted(table.problems), sorted(WRONG[name]), strict=True):
        import re

        assert re.search(pattern, problem)
    good, _ = CASES[name](tmp_path, False)
    if name != "code":
        assert sources.load(good, model).digest() == table.digest()


@every_source
def test_a_reservoir_keeps_so_many_training_samples_and_all_that_is_held_out(tmp_path: Path, name: str) -> None:
    data, model = CASES[name](tmp_path, False)
    whole, some, other = (
        sources.load({**data, **more}, model, seed)
        for more, seed in (({}, 1), ({"reservoir": 5}, 1), ({"reservoir": 5}, 2))
    )
    assert some.size("train") == 5
    assert some.size("test") == whole.size("test")
    column = "x" if "x" in whole.columns("train") else "input_ids"
    everything = {row.tobytes() for row in whole.columns("train")[column]}
    assert {row.tobytes() for row in some.columns("train")[column]} <= everything
    assert some.digest() != other.digest()


def test_every_sample_is_as_likely_as_any_other_to_stay_in_a_reservoir() -> None:
    from scipy.stats import chisquare

    counts = np.zeros(12)
    for seed in range(3000):
        counts[reservoir(12, 4, generator("test", seed))] += 1
    assert chisquare(counts).pvalue > 0.01


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"kind": "csv"}, "needs a path"),
        ({"kind": "parquet", "path": "/nowhere.parquet"}, r"no data file at /nowhere\.parquet"),
        ({"kind": "code", "path": "/nowhere"}, "no folder at /nowhere"),
        ({"kind": "sklearn", "name": "olivetti"}, "'olivetti' is unknown"),
        ({"kind": "sklearn", "name": "iris", "scale": "loud"}, "'loud' is unknown"),
        ({"kind": "films"}, "'films' is unknown"),
    ],
)
def test_tables_that_name_nothing_are_refused(data: dict[str, Any], message: str) -> None:
    with pytest.raises(RecurosError, match=message):
        sources.load(data, {})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a,a\n1,2\n", r"d\.csv:1: two columns are called 'a'"),
        (b'text,label\n"open,1\nx,0\n', r"d\.csv:2: not CSV"),
        (b"text,label\nb\xffd,1\n", r"d\.csv:2: byte 12 is not UTF-8"),
        (b"text,label\n", "holds no usable row"),
        (b"", "holds no usable row"),
        (b"words,label\nx,1\n", r"d\.csv:2: column 'text' is missing; found columns 'label', 'words'"),
    ],
)
def test_csv_files_that_cannot_be_read_are_refused(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "d.csv").write_bytes(content)
    with pytest.raises(RecurosError, match=message):
        sources.load({"kind": "csv", "path": str(tmp_path / "d.csv"), "tokenizer": "bytes"}, TWO)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": np.zeros((4, 2))}, "has no array 'labels'; it has x"),
        ({"x": np.zeros(4), "labels": np.zeros(4, np.int64)}, r"'x' is float64 \[4\], expected numbers"),
        ({"x": np.zeros((4, 2)), "labels": np.zeros(3, np.int64)}, r"'labels' is int64 \[3\], expected integers \[4\]"),
        ({"x": np.asarray([[{}]]), "labels": np.zeros(1, np.int64)}, "cannot be read as a NumPy archive"),
        ({"x": np.zeros((0, 2)), "labels": np.zeros(0, np.int64)}, "holds no sample"),
    ],
)
def test_numpy_archives_of_another_form_are_refused(tmp_path: Path, arrays: dict[str, Any], message: str) -> None:
    np.savez(tmp_path / "d.npz", **arrays)
    with pytest.raises(RecurosError, match=message):
        sources.load({"kind": "numpy", "path": str(tmp_path / "d.npz")}, TWO)


def test_features_are_scaled_by_what_is_trained_on_alone(tmp_path: Path) -> None:
    table = sources.load(*_csv_features(tmp_path, False))
    x = table.columns("train")["x"].astype(np.float64)
    assert x.mean(axis=0) == pytest.approx([0, 0], abs=1e-6)
    assert x.std(axis=0) == pytest.approx([1, 1], rel=1e-5)
    assert table.scale is not None
    raw = sources.load({**_csv_features(tmp_path, False)[0], "scale": "none"}, TWO)
    assert table.columns("test")["x"] == pytest.approx(table.scale.apply(raw.columns("test")["x"]))


def test_code_without_a_path_is_the_standard_library_and_no_installed_package() -> None:
    import sysconfig

    root = Path(sysconfig.get_path("stdlib"))
    names = {path.relative_to(root).as_posix() for path in code_tree.files(root, (".py",))}
    assert {"json/decoder.py", "heapq.py"} <= names
    assert not any("site-packages" in name for name in names)


def test_a_small_network_learns_from_features(tmp_path: Path) -> None:
    import torch

    from servers.models.registry import build

    table = sources.load({"kind": "sklearn", "name": "iris"}, {})
    model = build({"kind": "mlp", "features": 4, "classes": 3, "width": 16}, seed=0)
    batch = {n: torch.from_numpy(v) for n, v in table.rows("train", np.arange(table.size("train"))).items()}
    optimizer = torch.optim.AdamW(model.module.parameters(), lr=1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model.forward(batch).logits, batch["labels"]).backward()
        optimizer.step()
    assert float((model.forward(batch).logits.argmax(1) == batch["labels"]).float().mean()) > 0.95
    assert [tuple(h.shape) for h in model.forward(batch, need_hidden=True).hidden] == [(len(batch["x"]), 1, 16)] * 3
    with pytest.raises(RecurosError, match=r"expected \[batch, 4\]"):
        model.forward({"x": torch.zeros(2, 5)})
