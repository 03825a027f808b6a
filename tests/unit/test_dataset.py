"""The dataset server's streams, sources and page: everything below the socket."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kfs.objects import NewObject
from kfs.store import Store
from servers.dataset import augment, digits
from servers.dataset.server import DatasetService
from servers.dataset.stream import Stream, batch_weights, generator
from servers.dataset.table import Table, content_digest, split_by_content
from syscalls.errors import RecurosError
from syscalls.pages import ReadPage, WritePage, unpack_arrays

NUMPY = {"F32": "<f4", "I64": "<i8"}


def small_table(n: int = 10) -> Table:
    images = np.arange(n * 64, dtype=np.float32).reshape(n, 8, 8)
    columns = {"x": images, "labels": np.arange(n, dtype=np.int64) % 3}
    return Table({"train": columns, "validation": columns, "test": columns}, "classify", 3)


class Session:
    """The two things a service uses of its kernel session: a config, and a page socket (here: the descriptor itself)."""

    def __init__(self, config: dict[str, Any]) -> None:
        self.config = config
        self.pages: dict[int, ReadPage] = {}

    def offer(self, page: WritePage) -> int:
        import os

        handle = len(self.pages) + 1
        self.pages[handle] = ReadPage(os.dup(page.fd), page.size, handle)
        return handle

    def arrays(self, handle: int) -> tuple[dict[str, np.ndarray[Any, Any]], dict[str, Any]]:
        arrays, meta = unpack_arrays(self.pages[handle].view)
        return {n: np.frombuffer(a.data, NUMPY[a.dtype]).reshape(a.shape) for n, a in arrays.items()}, meta


def service(tmp_path: Path, data: dict[str, Any], **config: Any) -> tuple[DatasetService, Session]:
    session = Session({"store": str(tmp_path / "store"), "seed": 42, "data": data, **config})
    return DatasetService(session), session  # type: ignore[arg-type]


def write_rows(path: Path, rows: list[Any]) -> dict[str, Any]:
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows), encoding="utf-8")
    return {"kind": "jsonl", "path": str(path), "tokenizer": "bytes", "seq-len": 16, "batch": 4}


# --- streams ---------------------------------------------------------------------------------------------------------


@given(
    n=st.integers(1, 40),
    batch=st.integers(1, 50),
    epochs=st.integers(1, 4),
    seed=st.integers(0, 9),
    phase=st.text(max_size=5),
)
@settings(max_examples=60, deadline=None)
def test_batches_laid_end_to_end_are_whole_epochs(n: int, batch: int, epochs: int, seed: int, phase: str) -> None:
    stream = Stream(small_table(n), seed, batch)
    steps = -(-n * epochs // batch)
    ids = np.concatenate([stream.ids(phase, p) for p in range(steps)])[: n * epochs]
    assert (np.sort(ids.reshape(epochs, n)) == np.arange(n)).all()


def test_a_batch_is_a_function_of_seed_phase_and_position_alone() -> None:
    table = small_table(10)
    first, again = Stream(table, 1, 4, augment.shift), Stream(table, 1, 4, augment.shift)
    again.window("distil", 0, 9, None)  # another history
    for name, values in first.make("distil", 7, None)[0].items():
        assert (values == again.make("distil", 7, None)[0][name]).all(), name
    assert first.window("distil", 5, 3, None).digest == again.window("distil", 5, 3, None).digest
    digests = {
        Stream(table, seed, 4).window(phase, step0, 3, None).digest
        for seed, phase, step0 in [(1, "distil", 5), (2, "distil", 5), (1, "teacher", 5), (1, "distil", 6)]
    }
    assert len(digests) == 4


def test_windows_join_without_a_seam() -> None:
    stream = Stream(small_table(10), 3, 4)
    whole = stream.window("p", 0, 6, None).batches
    parts = stream.window("p", 0, 2, None).batches + stream.window("p", 2, 4, None).batches
    assert all((a["ids"] == b["ids"]).all() for a, b in zip(whole, parts, strict=True))


def test_permutations_do_not_depend_on_the_numpy_release() -> None:
    assert Stream(small_table(10), 42, 10).ids("distil", 0).tolist() == [1, 5, 4, 6, 9, 2, 7, 0, 3, 8]


@given(st.lists(st.floats(-1, 4, width=32), min_size=8, max_size=8))
@settings(max_examples=80, deadline=None)
def test_weights_have_mean_one_and_what_is_not_positive_counts_nothing(values: list[float]) -> None:
    weights = np.asarray(values, dtype=np.float32)
    ids = np.asarray([0, 3, 3, 7, 1], dtype=np.int64)
    weight, fell_back = batch_weights(weights, ids)
    assert weight.dtype == np.float32
    assert weight.mean() == pytest.approx(1.0, rel=1e-5)
    assert fell_back == bool((weights[ids] <= 0).all())
    if not fell_back:
        assert (weight[weights[ids] <= 0] == 0).all()


def test_shift_moves_by_one_pixel_at_most_and_fills_with_zero() -> None:
    images = np.random.default_rng(0).random((200, 8, 8)).astype(np.float32) + 0.5
    moved = augment.shift({"x": images}, generator("x"))["x"]
    seen = set()
    for image, result in zip(images, moved, strict=True):
        padded = np.pad(image, 1)
        match = [(r, c) for r in range(3) for c in range(3) if (padded[r : r + 8, c : c + 8] == result).all()]
        assert len(match) == 1
        seen.add(match[0])
    assert len(seen) == 9


def test_a_curriculum_shows_easy_samples_first_in_each_epoch_and_every_one_once() -> None:
    stream = Stream(small_table(40), 3, 8)
    difficulty = np.random.default_rng(0).random(40).astype(np.float32)
    ids = np.concatenate([stream.ids("p", position, difficulty) for position in range(10)]).reshape(2, 40)
    tenth = np.argsort(np.argsort(difficulty)) // 4
    for epoch in range(2):
        assert sorted(ids[epoch].tolist()) == list(range(40))
        assert (np.diff(tenth[ids[epoch]]) >= 0).all()
    assert (ids[0] != ids[1]).any()
    plain = np.concatenate([stream.ids("p", position) for position in range(5)])
    for step in range(10):  # inside a tenth the order is the permutation's
        inside = [i for i in plain.tolist() if tenth[i] == step]
        assert [i for i in ids[0].tolist() if tenth[i] == step] == inside


def test_mixup_is_a_function_of_the_position_and_keeps_the_larger_share() -> None:
    table = small_table(10)
    stream, again = (Stream(table, 1, 6, augment.mixup(0.4)) for _ in range(2))
    again.window("distil", 0, 9, None)  # another history
    columns, plain = stream.make("distil", 7, None)[0], Stream(table, 1, 6).make("distil", 7, None)[0]
    for name, values in columns.items():
        assert (values == again.make("distil", 7, None)[0][name]).all(), name
    assert not (stream.make("distil", 8, None)[0]["share_other"] == columns["share_other"]).all()
    share = columns["share_other"]
    assert share.dtype == np.float32
    assert 0 <= share.min() <= share.max() <= 0.5
    assert (columns["labels"] == plain["labels"]).all()
    for i in range(6):  # each row is its own sample and one other of the batch, whose label it carries
        found = [
            j
            for j in range(6)
            if np.allclose(columns["x"][i], plain["x"][i] * (1 - share[i]) + plain["x"][j] * share[i], rtol=1e-5)
            and plain["labels"][j] == columns["labels_other"][i]
        ]
        assert found


@pytest.mark.parametrize("alpha", [0.2, 0.5, 1.0])
def test_shares_follow_the_beta_distribution(alpha: float) -> None:
    from scipy.stats import beta, kstest

    draws = augment.beta(generator("beta", str(alpha)), alpha, 4000)
    assert kstest(draws, beta(alpha, alpha).cdf).pvalue > 0.01


# --- sources ---------------------------------------------------------------------------------------------------------


def test_digits_split_is_fixed_stratified_and_disjoint() -> None:
    table = digits.load({})
    assert [table.size(name) for name in ("train", "validation", "test")] == [1000, 197, 600]
    contents = {n: {image.tobytes() for image in table.columns(n)["x"]} for n in ("train", "validation", "test")}
    assert not contents["train"] & contents["test"]
    assert not contents["train"] & contents["validation"]
    assert table.columns("train")["x"].dtype == np.float32
    assert table.columns("train")["x"].max() == 1.0
    counts = np.bincount(table.columns("test")["labels"], minlength=10)
    assert counts.min() >= 57
    assert counts.max() <= 62
    assert table.digest()[:16] == "28f6bb25802df8b2"


@given(st.lists(st.integers(0, 30), min_size=6, max_size=120))
@settings(max_examples=80, deadline=None)
def test_equal_samples_share_a_split_whatever_their_order(values: list[int]) -> None:
    if len(set(values)) < 3:
        return
    digests = [content_digest(str(v).encode()) for v in values]
    splits = split_by_content(digests, {}, "data")
    assert sorted(np.concatenate(list(splits.values())).tolist()) == list(range(len(values)))
    assert all(len(index) for index in splits.values())
    sets = [{values[i] for i in index} for index in splits.values()]
    assert sum(len(s) for s in sets) == len(set(values))
    mirrored = split_by_content(digests[::-1], {}, "data")
    assert [sorted(values[::-1][i] for i in mirrored[n]) for n in splits] == [
        sorted(values[i] for i in splits[n]) for n in splits
    ]


def test_distinct_samples_split_by_the_fractions() -> None:
    digests = [content_digest(str(v).encode()) for v in range(200)]
    splits = split_by_content(digests, {"fractions": [0.7, 0.2, 0.1]}, "data")
    assert [len(splits[n]) for n in ("train", "validation", "test")] == [140, 40, 20]


def test_jsonl_classification_maps_strings_in_sorted_order(tmp_path: Path) -> None:
    rows = [{"text": f"sample {i}", "label": ["pos", "neg"][i % 2]} for i in range(30)]
    made, session = service(tmp_path, write_rows(tmp_path / "d.jsonl", rows))
    arrays, meta = session.arrays(made.split("train")["page"])
    assert meta["class_names"] == ["neg", "pos"]
    assert meta["n"] == 24
    for tokens, mask, label in zip(arrays["input_ids"], arrays["attention_mask"], arrays["labels"], strict=True):
        text = bytes(tokens[mask == 1].tolist()).decode()
        assert label == 1 - int(text.split()[1]) % 2


def test_jsonl_takes_the_label_ids_of_the_teachers_own_head(tmp_path: Path) -> None:
    labels = {"label2id": {"pos": 0, "neg": 1}, "id2label": {"0": "pos", "1": "neg"}, "vocab_size": 300}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert", **labels}))
    rows = [{"text": f"sample {i}", "label": ["pos", "neg"][i % 2]} for i in range(30)]
    model = {"teacher": {"kind": "hf", "path": str(tmp_path)}}
    made, session = service(tmp_path, write_rows(tmp_path / "d.jsonl", rows), model=model)
    assert session.arrays(made.split("train")["page"])[1]["class_names"] == ["pos", "neg"]


def test_a_label_that_the_teacher_does_not_know_is_refused_with_the_ones_it_does(tmp_path: Path) -> None:
    labels = {"label2id": {"pos": 0, "neg": 1}, "id2label": {"0": "pos", "1": "neg"}, "vocab_size": 300}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert", **labels}))
    rows = [{"text": f"sample {i}", "label": ["pos", "good"][i == 6]} for i in range(30)]
    with pytest.raises(RecurosError, match=r"d\.jsonl:7: .* is 'good', none of the model's labels: pos, neg"):
        service(
            tmp_path,
            write_rows(tmp_path / "d.jsonl", rows),
            model={"teacher": {"kind": "hf", "path": str(tmp_path)}},
        )


@pytest.mark.parametrize(("role", "length"), [("teacher", 9), ("student", 17)])
def test_a_sequence_longer_than_a_models_context_is_refused(tmp_path: Path, role: str, length: int) -> None:
    rows = write_rows(tmp_path / "d.jsonl", [{"text": f"sample {i}", "label": 0} for i in range(30)])
    positions = {"teacher": 8 if role == "teacher" else 64, "student": 16}
    model = {name: {"config": {"model_type": "bert", "max_position_embeddings": n}} for name, n in positions.items()}
    says = f"data.seq-len = {length} is longer than the {role}'s context of {length - 1} tokens"
    with pytest.raises(RecurosError, match=says) as caught:
        service(tmp_path, {**rows, "seq_len": length}, model=model)
    assert f"data.seq-len = {length - 1}" in caught.value.hint


def test_jsonl_language_model_labels_are_its_own_tokens_and_padding_is_left_out(tmp_path: Path) -> None:
    rows = [{"text": "ab" * (1 + i % 3) + str(i)} for i in range(20)]
    data = {**write_rows(tmp_path / "d.jsonl", rows), "task": "causal-lm"}
    made, session = service(tmp_path, data)
    page = made.fill(window=1, phase={"name": "p"}, step0=0, steps=2, weights="", gate={})["page"]
    arrays, meta = session.arrays(page)
    tokens, mask, labels = (arrays[f"b1/{name}"] for name in ("input_ids", "attention_mask", "labels"))
    assert (labels == np.where(mask == 1, tokens, -100)).all()
    assert (mask == 0).any()
    assert meta == {"window": 1, "phase": "p", "step0": 0, "steps": 2}


def test_text_is_cut_into_chunks_that_are_split_once(tmp_path: Path) -> None:
    text = "".join(f"line {i}\n" for i in range(200))
    (tmp_path / "t.txt").write_text(text)
    made, session = service(
        tmp_path, {"kind": "text", "path": str(tmp_path / "t.txt"), "tokenizer": "bytes", "seq_len": 32}
    )
    seen = []
    for name in ("train", "validation", "test"):
        arrays, _ = session.arrays(made.split(name)["page"])
        rows = zip(arrays["input_ids"], arrays["attention_mask"], strict=True)
        seen += [bytes(tokens[mask == 1].tolist()).decode() for tokens, mask in rows]
    assert len(seen) == -(-len(text) // 32)
    assert sorted(seen) == sorted(text[i : i + 32] for i in range(0, len(text), 32))


def test_a_tokenizer_file_beside_the_teacher_is_used(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers

    vocabulary = {"[UNK]": 0, "sample": 1, **{str(i): i + 2 for i in range(30)}}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "config.json").write_text(
        json.dumps({"model_type": "bert", "vocab_size": 32, "pad_token_id": 0, "num_labels": 2})
    )
    data = write_rows(tmp_path / "d.jsonl", [{"text": f"sample {i}", "label": i % 2} for i in range(30)])
    model = {"teacher": {"kind": "hf", "path": str(tmp_path)}}
    made, session = service(tmp_path, {**data, "tokenizer": "teacher"}, model=model)
    arrays, _ = session.arrays(made.split("test")["page"])
    assert (arrays["input_ids"][:, 0] == 1).all()
    assert (arrays["labels"] == (arrays["input_ids"][:, 1] - 2) % 2).all()
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert", "vocab_size": 31}))
    with pytest.raises(RecurosError, match=r"has 32 ids, the teacher.s vocab_size is 31"):
        service(tmp_path, {**data, "tokenizer": "teacher"}, model=model)


GOOD = [{"text": f"row {i}", "label": i % 2} for i in range(8)]
BAD_ROWS = [
    ("{nope", r"d\.jsonl:9: not JSON"),
    ([1], r"d\.jsonl:9: found an array, expected an object"),
    ({"txt": "a", "label": 0}, r"d\.jsonl:9: column 'text' is missing; found columns 'label', 'txt'"),
    ({"text": "a"}, r"d\.jsonl:9: column 'label' is missing; found columns 'text'"),
    ({"text": 7, "label": 0}, r"d\.jsonl:9: column 'text' is an integer, expected a string"),
    ({"text": "", "label": 0}, r"d\.jsonl:9: column 'text' is an empty string"),
    ({"text": "a", "label": 0.5}, r"d\.jsonl:9: column 'label' is a number, expected an integer or a string"),
    ({"text": "a", "label": True}, r"d\.jsonl:9: column 'label' is a boolean"),
    ({"text": "a", "label": "x"}, r"d\.jsonl:1: column 'label' is an integer, but other rows have strings"),
    ({"text": "a", "label": 2}, r"d\.jsonl:9: column 'label' is 2, expected one of 2 classes, 0\.\.1"),
    ({"text": "a", "label": -1}, r"d\.jsonl:9: column 'label' is -1, expected one of 2 classes"),
]


@pytest.mark.parametrize(("row", "message"), BAD_ROWS)
def test_bad_rows_are_refused_with_their_place(tmp_path: Path, row: Any, message: str) -> None:
    data = write_rows(tmp_path / "d.jsonl", [*GOOD, row])
    with pytest.raises(RecurosError, match=message) as caught:
        service(tmp_path, data, model={"teacher": {"kind": "patch", "classes": 2}})
    assert caught.value.code == "E2-DATA"
    assert caught.value.hint


def test_bad_rows_can_be_skipped_and_are_counted(tmp_path: Path) -> None:
    data = {**write_rows(tmp_path / "d.jsonl", [*GOOD, "{nope", {"text": "a"}]), "on-error": "skip"}
    made, _ = service(tmp_path, data)
    assert made.info["skipped"] == 2
    assert sum(made.info[name] for name in ("train", "validation", "test")) == 8


@pytest.mark.parametrize(
    ("content", "extra", "message"),
    [
        ("", {}, "holds no usable row"),
        ('{"text": "a", "label": 0}\n', {}, "holds 1 different samples"),
        ('{"text": "a", "label": 0}\n' * 9, {"fractions": [0.5, 0.1, 0.1]}, "add up to 1"),
        ('{"text": "a", "label": 0}\n', {"tokenizer": "/nowhere"}, "no tokenizer at /nowhere"),
        ('{"text": "a", "label": 0}\n', {"tokenizer": "teacher"}, "the teacher has no directory"),
        ('{"text": "a", "label": 0}\n', {"task": "sing"}, "'sing' is unknown"),
        ('{"text": "a"}\n', {"task": "causal-lm"}, r"d\.jsonl:1: the text has 1 tokens, expected at least 2"),
        ('{"text": "a", "label": 0}\n', {"augment": "shift", "fractions": [0.5, 0.25, 0.25]}, "holds 1 different"),
    ],
)
def test_unusable_files_are_refused(tmp_path: Path, content: str, extra: dict[str, Any], message: str) -> None:
    data = write_rows(tmp_path / "d.jsonl", [])
    (tmp_path / "d.jsonl").write_text(content)
    with pytest.raises(RecurosError, match=message) as caught:
        service(tmp_path, {**data, **extra})
    assert caught.value.code == "E2-DATA"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"kind": "pictures"}, "'pictures' is unknown"),
        ({"kind": "text"}, "needs a path"),
        ({"kind": "text", "path": "/nowhere.txt"}, r"no data file at /nowhere\.txt"),
        ({"kind": "digits", "augment": "flip"}, "'flip' is unknown"),
        ({"kind": "digits", "augment": "mixup", "mixup_alpha": 1.5}, r"mixup-alpha = 1.5 is outside \(0, 1\]"),
    ],
)
def test_unusable_data_tables_are_refused(tmp_path: Path, data: dict[str, Any], message: str) -> None:
    with pytest.raises(RecurosError, match=message):
        service(tmp_path, data)


def test_text_that_is_not_utf8_names_the_line(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models

    Tokenizer(models.WordLevel({"a": 0}, unk_token="a")).save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "t.txt").write_bytes(b"one\ntwo \xff\n")
    with pytest.raises(RecurosError, match=r"t\.txt:2: byte 8 is not UTF-8"):
        service(tmp_path, {"kind": "text", "path": str(tmp_path / "t.txt"), "tokenizer": str(tmp_path)})


# --- the server ------------------------------------------------------------------------------------------------------


def test_fill_reads_weights_and_gate_from_the_store(tmp_path: Path) -> None:
    made, session = service(
        tmp_path, write_rows(tmp_path / "d.jsonl", [{"text": f"r{i}", "label": 0} for i in range(10)])
    )
    n = made.stream.n_train
    weights = np.arange(n, dtype=np.float32)
    mask = np.ones(n, dtype=np.uint8)
    mask[n - 1] = 0
    with Store.open_writer(tmp_path / "store") as store:
        weights_id, mask_id, zero_id, short_id, nan_id = store.put(
            [
                NewObject("F32", (n,), weights.tobytes(), "policy"),
                NewObject("U8", (n,), mask.tobytes(), "mask"),
                NewObject("F32", (n,), np.zeros(n, np.float32).tobytes(), "policy"),
                NewObject("F32", (n - 1,), weights[1:].tobytes(), "policy"),
                NewObject("F32", (n,), np.full(n, np.nan, np.float32).tobytes(), "policy"),
            ]
        )
    call = {"window": 3, "phase": {"name": "p"}, "step0": 4, "steps": 3}
    plain = made.fill(**call, weights="", gate={})
    weighted = made.fill(**call, weights=weights_id, gate={"mask": mask_id})
    assert plain["batch"] != weighted["batch"]
    arrays, meta = session.arrays(weighted["page"])
    assert "unweighted" not in meta
    for i in range(3):
        ids, weight = arrays[f"b{i}/ids"], arrays[f"b{i}/weight"]
        expected = (weights * mask)[ids].astype(np.float64)
        assert weight == pytest.approx(expected / expected.mean(), rel=1e-5)
    fallen, meta = session.arrays(made.fill(**call, weights=zero_id, gate={})["page"])
    assert meta["unweighted"] == [4, 5, 6]
    assert (fallen["b0/weight"] == 1).all()
    for bad, message in [
        (short_id, "expected \\[8\\]"),
        (nan_id, "is nan at sample 0"),
        (mask_id, "is U8, expected F32"),
    ]:
        with pytest.raises(RecurosError, match=message):
            made.fill(**call, weights=bad, gate={})
    ordered = session.arrays(made.fill(**call, weights="", gate={"order": weights_id})["page"])[0]
    assert (
        np.concatenate([ordered[f"b{i}/ids"] for i in range(3)]).tolist()
        == np.concatenate([made.stream.ids("p", 4 + i, weights) for i in range(3)]).tolist()
    )
    with pytest.raises(RecurosError, match=r"order .* is nan at sample 0"):
        made.fill(**call, weights="", gate={"order": nan_id})
    with pytest.raises(RecurosError, match="'drop_low' is not a list of samples"):
        made.fill(**call, weights="", gate={"drop_low": 0.1})
    made.drain()


def test_a_digits_window_has_the_columns_of_the_patch_model(tmp_path: Path) -> None:
    made, session = service(tmp_path, {"kind": "digits", "batch": 50, "augment": "shift"})
    arrays, _ = session.arrays(
        made.fill(window=0, phase={"name": "teacher"}, step0=0, steps=2, weights="", gate={})["page"]
    )
    assert {name: (values.dtype.str, values.shape) for name, values in arrays.items() if name.startswith("b0/")} == {
        "b0/x": ("<f4", (50, 8, 8)),
        "b0/labels": ("<i8", (50,)),
        "b0/ids": ("<i8", (50,)),
        "b0/weight": ("<f4", (50,)),
    }
    truth = made.table.columns("train")
    assert (arrays["b0/labels"] == truth["labels"][arrays["b0/ids"]]).all()
    with pytest.raises(RecurosError, match="no split is called 'dev'"):
        made.split("dev")
    assert made.idle() is False


def test_the_server_imports_no_torch() -> None:
    import subprocess
    import sys

    code = "import sys, servers.dataset.server as s; s.load({'kind': 'digits'}, {}); print('torch' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "False"
