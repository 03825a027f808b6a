"""The Observer's handlers on a real store and a real dataset service, with the kernel's part played by a loopback session."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest
import torch

from kfs.objects import NewObject, blob
from kfs.records import Record, RecordKind
from kfs.store import Store
from servers.dataset.server import DatasetService
from servers.models.evaluate import evaluate
from servers.models.model import Model
from servers.models.registry import build
from servers.observer.diagnostics import COLUMNS
from servers.observer.evaluation import fit_temperature, judged, load_role, tensors
from servers.observer.server import ObserverService
from syscalls.errors import RecurosError
from syscalls.pages import ReadPage, WritePage, pack_arrays, unpack_arrays

DATA = {"kind": "digits", "batch": 64}
TEACHER = {"kind": "patch", "layers": 2, "width": 16, "heads": 2}
STUDENT = {"kind": "patch", "layers": 1, "width": 8, "heads": 2}


class Loopback:
    """A session whose pages are the descriptors themselves and whose only server to call is a real dataset service."""

    def __init__(self, store: Path, policy: dict[str, Any] | None = None) -> None:
        self.config = {"store": str(store), "data": DATA, "policy": policy or {}, "kd": {"temperature": 2.0}, "seed": 1}
        self.pages: dict[int, tuple[int, int]] = {}
        self.submitted: list[dict[str, Any]] = []
        self.refuses: RecurosError | None = None
        self.checkpoints = 0
        self._next = 1
        self._dataset: DatasetService | None = None

    def offer(self, page: WritePage) -> int:
        self.pages[self._next] = (os.dup(page.fd), page.size)
        self._next += 1
        return self._next - 1

    def map(self, handle: int) -> ReadPage:
        fd, size = self.pages[handle]
        return ReadPage(os.dup(fd), size, handle)

    def release(self, handle: int) -> None:
        os.close(self.pages.pop(handle)[0])

    def syscall(self, name: str, **columns: Any) -> dict[str, Any]:
        assert name == "policy_submit"
        if self.refuses is not None:
            raise self.refuses
        if columns["blobs"]:
            page = self.map(columns["blobs"])
            arrays, _ = unpack_arrays(page.view)
            columns["arrays"] = {n: (a.dtype, a.shape, bytes(a.data)) for n, a in arrays.items()}
            self.release(columns["blobs"])
        self.submitted.append(columns)
        return {"seq": len(self.submitted)}

    def call(self, method: str, **columns: Any) -> dict[str, Any]:
        assert method == "dataset.split"
        if self._dataset is None:
            self._dataset = DatasetService(self)  # type: ignore[arg-type]
        return self._dataset.split(**columns)

    def checkpoint(self) -> None:
        self.checkpoints += 1


def observer(store: Path, policy: dict[str, Any] | None = None) -> tuple[ObserverService, Loopback]:
    session = Loopback(store, policy)
    return ObserverService(session), session  # type: ignore[arg-type]


def trace_page(session: Loopback, window: int, rows: int = 100) -> int:
    rng = np.random.default_rng(window)
    columns = {name: rng.random(rows) for name in COLUMNS}
    columns |= {
        "id": rng.permutation(1000)[:rows],
        "agree": rng.integers(0, 2, rows),
        "label_ok": rng.integers(0, 2, rows),
    }
    packed = [(n, d, (rows,), columns[n].astype(kind).data) for n, (d, kind) in COLUMNS.items()]
    page = pack_arrays(packed)
    try:
        return session.offer(page)
    finally:
        page.close()


def send(made: ObserverService, session: Loopback, window: int, **changes: Any) -> dict[str, Any]:
    call = {"snapshot": f"s{window}", "metrics": {"kd": 0.5, "generation": 0}, "maps": {}, "policy": {}}
    page = changes.pop("page", None)
    made.trace(window=window, page=trace_page(session, window) if page is None else page, **{**call, **changes})
    return session.submitted[-1]


def store_with_snapshot(path: Path) -> tuple[str, dict[str, Model]]:
    models = {"teacher": build(TEACHER, 1), "student": build(STUDENT, 2)}
    with Store.open_writer(path) as store:
        return put_snapshot(store, models), models


def put_snapshot(store: Any, models: dict[str, Model]) -> str:
    import json

    new: dict[str, NewObject] = {
        "policy/roles/state": blob(json.dumps({r: m.architecture for r, m in models.items()}).encode(), "snapshot")
    }
    for role, model in models.items():
        for name, tensor in model.module.named_parameters():
            module, _, leaf = name.rpartition(".")
            data = tensor.detach().numpy().tobytes()
            new[f"{role}/{module or '.'}/{leaf}"] = NewObject("F32", tuple(tensor.shape), data, "snapshot")
    refs = dict(zip(new, store.put(new.values()), strict=True))
    return str(store.put_snapshot(refs, {})[0])


# --- policies --------------------------------------------------------------------------------------------------------


def test_a_trace_is_answered_with_settings_weights_and_evidence(tmp_path: Path) -> None:
    made, session = observer(tmp_path / "store")
    answer = send(made, session, 0)
    assert answer["window"] == 0
    assert answer["pack"] == "starter"
    assert set(answer["settings"]) <= {"temperature", "weights", "evidence"}
    assert all(isinstance(v, float | str) for v in answer["settings"]["evidence"].values())
    dtype, shape, data = answer["arrays"]["weights"]
    assert (dtype, shape) == ("F32", (1000,))
    weights = np.frombuffer(data, "<f4")
    assert weights[weights > 0].mean() == pytest.approx(1.0, rel=1e-5)
    assert weights[weights > 0].min() >= 0.25
    assert (weights == 0).sum() == 20  # the lowest and the highest tenth of the teacher's entropies
    assert weights.max() <= 4.0
    document = msgpack.unpackb(answer["arrays"]["evidence"][2], strict_map_key=False)
    assert document["window"] == 0
    assert document["snapshot"] == "s0"
    assert document["diagnostics"]["rows"] == 100
    assert session.checkpoints >= 2
    assert not session.pages  # every page was given back or moved


@pytest.mark.parametrize(
    "changes", [{"metrics": {"loss": 1.0}, "page": 0}, {"page": 0}, {"metrics": {"loss": 1.0, "kd": 0.1}, "page": 0}]
)
def test_no_policy_while_no_teacher_runs(tmp_path: Path, changes: dict[str, Any]) -> None:
    made, session = observer(tmp_path / "store")
    answer = send(made, session, 0, **changes)
    assert answer == {"window": 0, "settings": {}, "pack": "starter", "blobs": 0}
    assert not session.pages


def test_an_unreadable_trace_is_answered_without_a_change(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made, session = observer(tmp_path / "store")
    page = pack_arrays([("id", "I64", (1,), b"\0" * 8)])
    assert send(made, session, 0, page=session.offer(page))["settings"] == {}
    assert "trace column 'label_ok' is missing" in capsys.readouterr().err
    page.close()


def test_evidence_that_makes_no_sense_is_a_refusal_and_counts_for_nothing(tmp_path: Path) -> None:
    straight, one = observer(tmp_path / "store")
    expected = [send(straight, one, window) for window in (0, 2)][-1]
    made, session = observer(tmp_path / "store")
    send(made, session, 0)
    columns = {name: np.zeros(4) for name in COLUMNS} | {"id": np.full(4, 5000)}
    page = pack_arrays([(n, d, (4,), columns[n].astype(kind).data) for n, (d, kind) in COLUMNS.items()])
    answer = send(made, session, 1, page=session.offer(page))
    page.close()
    assert answer["settings"] == {
        "refused": "the evidence cannot be used: trace names sample 5000; the training split has 1000"
    }
    assert answer["blobs"] == 0
    assert send(made, session, 2)["arrays"] == expected["arrays"]


def test_static_answers_no_change(tmp_path: Path) -> None:
    made, session = observer(tmp_path / "store", {"pack": "static"})
    assert send(made, session, 0)["settings"] == {}


def test_a_late_policy_is_no_fault_and_any_other_refusal_is(tmp_path: Path) -> None:
    made, session = observer(tmp_path / "store")
    session.refuses = RecurosError("E2-USAGE", "no policy is due for window 0")
    made.trace(window=0, snapshot="s", metrics={"kd": 1.0}, maps={}, policy={}, page=trace_page(session, 0))
    assert not session.pages
    session.refuses = RecurosError("E2-LIMIT", "temperature")  # the kernel recorded it; the run goes on
    made.trace(window=0, snapshot="s", metrics={"kd": 1.0}, maps={}, policy={}, page=trace_page(session, 0))
    session.refuses = RecurosError("E5-DENIED", "no right")
    with pytest.raises(RecurosError, match="no right"):
        made.trace(window=1, snapshot="s", metrics={"kd": 1.0}, maps={}, policy={}, page=trace_page(session, 1))


@pytest.mark.parametrize("source", ["ledger", "policy in force"])
def test_a_restarted_observer_goes_on_from_recorded_evidence(tmp_path: Path, source: str) -> None:
    made, session = observer(tmp_path / "store")
    for window in range(4):
        last = send(made, session, window)
    straight = send(made, session, 4)
    with Store.open_writer(tmp_path / "store") as store:
        (evidence,) = store.put([blob(last["arrays"]["evidence"][2], "cal")])
        if source == "ledger":
            args = {"window": 3, "applies_at": 5, "settings": {}, "pack": "starter"}
            store.append([Record(actor="observer", kind=RecordKind.POLICY, args=args, t_mono=1, input_ids=(evidence,))])
    again, other = observer(tmp_path / "store")
    answer = send(again, other, 4, policy={"evidence": evidence} if source != "ledger" else {})
    assert answer["arrays"] == straight["arrays"]
    assert answer["settings"] == straight["settings"]
    again.drain()


def test_a_window_that_rolled_back_is_folded_in_once(tmp_path: Path) -> None:
    straight, one = observer(tmp_path / "store")
    answers = [send(straight, one, window) for window in range(4)]
    repeated, two = observer(tmp_path / "store")
    for window in (0, 1, 2):
        send(repeated, two, window)
    for window in (1, 2, 3):
        answer = send(repeated, two, window)
    assert answer["arrays"] == answers[-1]["arrays"]


# --- held-out data ---------------------------------------------------------------------------------------------------


def test_evaluate_scores_the_snapshot_on_the_split(tmp_path: Path) -> None:
    root, models = store_with_snapshot(tmp_path / "store")
    made, session = observer(tmp_path / "store")
    scores = made.evaluate(root, "validation")["scores"]
    page = session.map(session.call("dataset.split", name="validation")["page"])
    data = tensors(unpack_arrays(page.view)[0])
    for role, model in models.items():
        expected = evaluate(model, data)
        assert scores[role] == pytest.approx(expected, rel=1e-9)
        assert set(scores[role]) >= {"accuracy", "nll", "ece", "brier", "params", "n"}
    assert scores["student"]["n"] == 197
    assert made.evaluate(root, "test")["scores"]["teacher"]["n"] == 600
    assert session.checkpoints > 4


def test_only_the_traced_snapshot_on_validation_feeds_the_policies(tmp_path: Path) -> None:
    root, _ = store_with_snapshot(tmp_path / "store")
    made, session = observer(tmp_path / "store")
    made.evaluate(root, "validation")  # nothing was traced yet
    send(made, session, 0, snapshot="another")
    made.evaluate(root, "validation")
    made.evaluate(root, "test")
    assert "held_out_ece" not in send(made, session, 1, snapshot=root)["settings"]["evidence"]
    scores = made.evaluate(root, "validation")["scores"]
    evidence = send(made, session, 2)["settings"]["evidence"]
    assert evidence["held_out_ece"] == scores["student"]["ece"]


def test_a_rise_of_held_out_ece_raises_the_temperature_once(tmp_path: Path) -> None:
    made, session = observer(tmp_path / "store", {"entropy-excess": 10.0})
    answer = send(made, session, 0)
    assert "temperature" not in answer["settings"]  # the operator's stands until the pack moves it
    assert made._state is not None
    for ece in (0.1, 0.2):
        made._state.held_out.add(ece, 0.9)
    assert send(made, session, 1)["settings"]["temperature"] == pytest.approx(2.2)
    for window in range(2, 8):
        answer = send(made, session, window)
    assert answer["settings"]["temperature"] == pytest.approx(2.2)
    assert answer["settings"]["evidence"].get("why") is None


def test_evaluate_needs_a_snapshot_and_a_whole_one(tmp_path: Path) -> None:
    root, _ = store_with_snapshot(tmp_path / "store")
    made, _session = observer(tmp_path / "store")
    with pytest.raises(RecurosError, match="no snapshot to score yet"):
        made.evaluate("", "validation")
    with Store.open_reader(tmp_path / "store") as store:
        leaves = store.snapshot(root)
        del leaves["student/head/weight"]
        with pytest.raises(RecurosError, match="has no student/head/weight"):
            load_role(store, leaves, "student")
        leaves["student/head/weight"] = leaves["student/head/bias"]
        with pytest.raises(RecurosError, match=r"student/head/weight is F32 \[10\]; the model needs"):
            load_role(store, leaves, "student")


def test_a_hugging_face_role_with_tied_weights_loads_from_its_own_architecture(tmp_path: Path) -> None:
    config = {"model_type": "gpt2", "n_layer": 1, "n_embd": 8, "n_head": 2, "vocab_size": 32, "n_positions": 16}
    spec = {"kind": "hf-config", "task": "causal-lm", "config": config}
    models = {"teacher": build(spec, 1), "student": build(spec, 2)}
    with Store.open_writer(tmp_path / "store") as store:
        leaves = store.snapshot(put_snapshot(store, models))
        loaded = load_role(store, leaves, "student")
    tokens = torch.arange(12).reshape(2, 6)
    batch = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
    models["student"].module.eval()
    with torch.no_grad():
        assert torch.equal(loaded.forward(batch).logits, models["student"].forward(batch).logits)


def test_calibration_is_judged_on_rows_it_was_not_fitted_on(tmp_path: Path) -> None:
    root, _ = store_with_snapshot(tmp_path / "store")
    made, _session = observer(tmp_path / "store")
    result = made.calibrate(root, "temperature")["result"]
    assert result["fitted_on"] == 99
    assert result["judged_on"] == 98
    assert result["temperature"] > 0
    with pytest.raises(RecurosError, match="mode 'magic' is unknown"):
        made.calibrate(root, "magic")


def test_fit_temperature_finds_the_scale_that_generated_the_labels() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(20_000, 5, generator=generator, dtype=torch.float64) * 2
    targets = torch.multinomial(torch.softmax(logits / 2.5, -1), 1, generator=generator)[:, 0]
    found = fit_temperature(logits, targets)
    assert found == pytest.approx(2.5, rel=0.05)
    best = judged(logits, targets, found)["nll"]
    grid = [judged(logits, targets, t)["nll"] for t in np.linspace(0.5, 6, 200)]
    assert best <= min(grid) + 1e-9
