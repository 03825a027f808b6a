"""What interrupts do: the semantic loss of a constraint, the stream with new samples, and the policy's verdicts."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from servers.dataset import sources
from servers.dataset.extension import Streams
from servers.dataset.stream import Stream, sample_order, sample_weights
from servers.learner.engine import Engine
from servers.learner.entry import enter
from servers.learner.losses import TERMS, KdSettings, Rows
from servers.learner.losses.semantic import SemanticTerm
from servers.observer.mediation import consider
from syscalls.errors import RecurosError

# --- the semantic loss ---------------------------------------------------------------------------------------------------


@given(
    seed=st.integers(0, 99),
    allow=st.sets(st.integers(0, 4), min_size=2, max_size=5),
    implied=st.sets(st.integers(0, 4), min_size=1, max_size=5),
)
@settings(max_examples=60, deadline=None)
def test_the_semantic_loss_counts_the_worlds_that_satisfy_the_constraint(
    seed: int, allow: set[int], implied: set[int]
) -> None:
    if not allow & implied:
        return
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(6, 5, generator=generator, dtype=torch.float64) * 2
    targets = torch.tensor([0, 1, 2, 3, 4, 2])
    kd = KdSettings().changed(allow=sorted(allow), implies=[[2, sorted(implied)]], semantic=1.0)
    p = torch.softmax(logits, -1).numpy()
    expected = 0.0
    for row, label in zip(p, targets.tolist(), strict=True):
        count = 0.0
        for world in itertools.product([0, 1], repeat=5):  # every assignment of the class variables
            chosen = [c for c in range(5) if world[c]]
            one_answer = len(chosen) == 1
            if one_answer and chosen[0] in allow and (label != 2 or chosen[0] in implied):
                count += row[chosen[0]]
        expected -= np.log(count) / 6
    rows = Rows(student=logits.requires_grad_(), targets=targets, weight=torch.ones(6, dtype=torch.float64))
    value = SemanticTerm().value(rows, kd)
    assert float(value.detach()) == pytest.approx(expected, rel=1e-9, abs=1e-12)
    value.backward()  # type: ignore[no-untyped-call]
    assert rows.student.grad is not None
    assert torch.isfinite(rows.student.grad).all()


def test_a_term_without_a_constraint_is_off() -> None:
    assert SemanticTerm().coefficient(KdSettings(semantic=2.0)) == 0.0
    assert SemanticTerm().coefficient(KdSettings(semantic=2.0, allow=(1,))) == 2.0
    assert any(isinstance(term, SemanticTerm) for term in TERMS)


SPEC: dict[str, Any] = {
    "teacher": {"kind": "mlp", "layers": 1, "width": 8},
    "student": {"kind": "mlp", "layers": 1, "width": 8},
}
PHASE = {"name": "distil", "index": 0, "train": "student", "steps_total": 40, "lr": 1e-2, "schedule": "constant"}


def batch(seed: int) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    x = rng.random((16, 8, 8), dtype=np.float32)
    return {"x": torch.from_numpy(x), "labels": torch.from_numpy(rng.integers(0, 10, 16))}


def test_a_constraint_steers_the_answers_and_travels_in_the_snapshot() -> None:
    engine = Engine(SPEC, 1)
    directives = [["constrain", {"forbid": [3, 4], "weight": 50.0}]]
    enter(engine, 1, PHASE, 0, {}, directives, lambda: None, lambda _name: {})
    first = engine.micro_step(batch(0)).terms["semantic"]
    for step in range(1, 20):
        last = engine.micro_step(batch(step % 2)).terms["semantic"]
    assert last < first / 3
    leaves = engine.capture()
    again = Engine(SPEC, 2)
    again.restore(leaves)
    assert again.digest() == engine.digest()
    for step in range(3):
        assert again.micro_step(batch(step)).loss == engine.micro_step(batch(step)).loss
    assert again.digest() == engine.digest()
    engine.constrain()
    assert "semantic" not in engine.micro_step(batch(1)).terms


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"allow": [10]}, "names class 10; the model has 10"),
        ({"forbid": list(range(10))}, "leaves a row no class"),
        ({"forbid": [1], "implies": [[2, [1]]]}, "leaves a row no class"),
    ],
)
def test_a_constraint_that_cannot_be_kept_is_refused_and_changes_nothing(body: dict[str, Any], message: str) -> None:
    engine = Engine(SPEC, 1)
    before = engine.digest()
    with pytest.raises(RecurosError, match=message) as caught:
        engine.constrain(**body)
    assert caught.value.code == "E2-LIMIT"
    assert engine.digest() == before


# --- new samples -----------------------------------------------------------------------------------------------------------


def streams(tmp_path: Path, kind: str) -> tuple[Streams, dict[str, bytes]]:
    held: dict[str, bytes] = {}
    if kind == "digits":
        data: dict[str, Any] = {"kind": "digits"}
    elif kind == "iris":
        data = {"kind": "sklearn", "name": "iris"}
    else:
        rows = [json.dumps({"text": f"row {i}", "label": ["no", "yes"][i % 2]}) for i in range(40)]
        (tmp_path / "d.jsonl").write_text("\n".join(rows))
        data = {"kind": "jsonl", "path": str(tmp_path / "d.jsonl"), "tokenizer": "bytes", "seq_len": 16}
    base = Stream(sources.load(data, {}), 3, 8)
    return Streams(base, data, {}, held.__getitem__, None), held


def lines(*rows: dict[str, Any]) -> bytes:
    return "\n".join(map(json.dumps, rows)).encode()


NEW: dict[str, list[dict[str, Any]]] = {
    "digits": [{"x": [[0.5] * 8] * 8, "label": 3}, {"x": [[0.25] * 8] * 8, "label": 9}],
    "iris": [{"x": [5.0, 3.0, 1.5, 0.2], "label": "setosa"}, {"x": [6.0, 3.0, 5.0, 2.0], "label": 2}],
    "jsonl": [{"text": "a new one", "label": "yes"}, {"text": "x" * 99, "label": "no"}],
}


@pytest.mark.parametrize("kind", NEW)
def test_new_samples_join_from_the_recorded_batch_on(tmp_path: Path, kind: str) -> None:
    made, held = streams(tmp_path, kind)
    held["b3:one"] = lines(*NEW[kind])
    n = made.base.n_train
    gate = {"extra": [["b3:one", "distil", 5, n + 2, "new.jsonl"]]}
    stream = made.at(gate)
    assert stream.n_train == n + 2
    per_epoch = -(-stream.n_train // 8)
    ids = np.concatenate([stream.ids("distil", 5 + p) for p in range(per_epoch)])[: stream.n_train]
    assert sorted(ids.tolist()) == list(range(n + 2))  # epochs are counted from the batch that they came at
    columns = stream.table.rows("train", np.asarray([n, n + 1]))
    assert columns["labels"].tolist() == {"digits": [3, 9], "iris": [0, 2], "jsonl": [1, 0]}[kind]
    held_out = {split: stream.table.columns(split) for split in ("validation", "test")}
    assert all(held_out[split] is made.base.table.columns(split) for split in held_out)
    assert made.at({}) is made.base
    assert made.at(gate) is stream
    again, _ = streams(tmp_path, kind)
    again._read = held.__getitem__
    assert again.at(gate).window("distil", 7, 2, None).digest == stream.window("distil", 7, 2, None).digest
    assert stream.ids("later", 0).tolist() != made.base.ids("later", 0).tolist()
    with pytest.raises(RecurosError, match="lies before the new samples"):
        stream.ids("distil", 4)


def test_features_of_new_samples_are_scaled_as_the_old_ones_are(tmp_path: Path) -> None:
    made, held = streams(tmp_path, "iris")
    held["b3:one"] = lines(*NEW["iris"])
    x = made.part("b3:one", "new.jsonl")["x"]
    scale = made.base.table.scale
    assert scale is not None
    assert x[0] == pytest.approx((np.asarray([5.0, 3.0, 1.5, 0.2]) - scale.mean) / scale.deviation, rel=1e-5)


def test_csv_is_read_by_its_name_and_two_extensions_add_up(tmp_path: Path) -> None:
    made, held = streams(tmp_path, "jsonl")
    held["b3:one"] = lines(*NEW["jsonl"])
    held["b3:two"] = b"text,label\nthird,yes\n"
    n = made.base.n_train
    gate = {"extra": [["b3:one", "p", 5, n + 2, "a.jsonl"], ["b3:two", "p", 9, n + 3, "b.csv"]]}
    stream = made.at(gate)
    assert stream.n_train == n + 3
    assert stream.since == {"p": 9}
    with pytest.raises(RecurosError, match=f"makes {n + 3} samples; {n + 9} are recorded"):
        made.at({"extra": [*gate["extra"][:1], ["b3:two", "p", 9, n + 9, "b.csv"]]})


@pytest.mark.parametrize(
    ("kind", "raw", "message"),
    [
        ("digits", lines({"x": [1.0] * 63, "label": 1}), r"n\.jsonl:1: the sample has 63 numbers, expected 64"),
        ("digits", lines(NEW["digits"][0], {"x": [[0.0] * 8] * 8, "label": 10}), r"n\.jsonl:2: column 'label' is 10"),
        ("iris", lines({"x": [1, 2, 3, None], "label": 0}), r"n\.jsonl:1: column 'x' is null, expected a number"),
        ("jsonl", lines({"text": "a", "label": "maybe"}), r"n\.jsonl:1: .*'maybe', none of no, yes"),
        ("jsonl", b'{"text": "a", "label": "no"}\n{nope', r"n\.jsonl:2: not JSON"),
        ("jsonl", b"\n\n", "holds no row"),
        ("jsonl", b"\xff\xfe", r"n\.jsonl:1: byte 1 is not UTF-8"),
    ],
)
def test_new_samples_that_do_not_fit_are_refused_with_their_line(
    tmp_path: Path, kind: str, raw: bytes, message: str
) -> None:
    made, held = streams(tmp_path, kind)
    held["b3:one"] = raw
    with pytest.raises(RecurosError, match=message) as caught:
        made.part("b3:one", "n.jsonl")
    assert caught.value.code == "E2-DATA"


def test_weights_and_order_from_before_leave_the_new_samples_in_the_middle() -> None:
    objects = {"w": np.full(4, 2.0, np.float32), "m": np.asarray([1, 0, 1, 1], np.uint8), "o": np.zeros(4, np.float32)}
    read = lambda name, _dtype: objects[name]  # noqa: E731
    weights = sample_weights(6, "w", {"mask": "m", "extra": []}, read, (4, 6))
    assert weights is not None
    assert weights.tolist() == [2, 0, 2, 2, 1, 1]
    order = sample_order(6, {"order": "o"}, read, (4, 6))
    assert order is not None
    assert order.tolist() == [0, 0, 0, 0, 0.5, 0.5]
    with pytest.raises(RecurosError, match=r"has shape \[4\], expected \[6\]"):
        sample_weights(6, "w", {}, read)


# --- verdicts --------------------------------------------------------------------------------------------------------------

LABELS = np.asarray([0] * 50 + [1] * 45 + [2] * 5)
NUMBERS = {"temperature_min": 1.0, "temperature_max": 3.0}


@pytest.mark.parametrize(
    ("kind", "body", "pack", "accept", "why"),
    [
        ("objective", {"mix": 0.5}, "starter", True, "within"),
        ("objective", {"temperature": 3.5}, "starter", False, "outside the pack's 1..3"),
        ("objective", {"mix": 0.5}, "static", False, "is a control"),
        ("objective", {"mix": 0.5}, "tinybert", False, "keeps its paper's objective"),
        ("constraint", {"forbid": [2]}, "static", True, "rules out 5% of"),
        ("constraint", {"forbid": [1]}, "starter", False, "rules out 45% of"),
        ("constraint", {"implies": [[0, [0, 1]]]}, "starter", True, "rules out 0% of"),
        ("constraint", {"implies": [[0, [1]]]}, "starter", False, "rules out 50% of"),
        ("constraint", {"forbid": [3]}, "starter", False, "class 3 is none of the model's 3"),
        ("constraint", {"allow": [0], "implies": [[1, [1]]]}, "starter", False, "nothing is left to rows of class 1"),
        ("constraint", {"forbid": [0, 1, 2]}, "starter", False, "no class is left"),
        ("data", {"name": "x", "rows": 30, "total": 130}, "starter", True, "30 new samples beside 100"),
        ("data", {"name": "x", "rows": 1001, "total": 1101}, "starter", False, "would be another run"),
    ],
)
def test_the_policys_verdict_and_its_reason(kind: str, body: dict[str, Any], pack: str, accept: bool, why: str) -> None:
    found, reason = consider(kind, body, pack, NUMBERS, LABELS, 3)
    assert found is accept
    assert why in reason


def test_without_held_out_labels_a_constraint_is_taken() -> None:
    assert consider("constraint", {"forbid": [7]}, "starter", NUMBERS, LABELS[:0], 1 << 10)[0]
