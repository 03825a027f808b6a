"""What a run stores beside its snapshots, byte for byte: papers, trace, and the evidence of a policy."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from servers.learner import papers
from servers.learner.papers import papers_of
from servers.observer.diagnostics import Samples, read_trace
from servers.observer.policy import Decision
from servers.observer.state import State, encode_evidence, read_evidence
from syscalls.pages import pack_arrays, unpack_arrays

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "kfs"
ENV = {"torch": "2.0", "threads": "1"}


def same_as_golden(name: str, data: bytes) -> None:
    """UPDATE_GOLDEN=1 writes the file: a change here is a change of the format."""
    path = GOLDEN / name
    if os.environ.get("UPDATE_GOLDEN"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    assert path.read_bytes() == data


def test_papers_are_the_golden_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(papers, "code_files", lambda: {"servers/learner/engine.py": "0" * 16})
    config = {"app": "a", "seed": 7, "model": {"ema": 0.99}, "data": {"kind": "digits"}, "run": "/not/told"}
    name, extras = papers_of(config, ENV, "b3:" + "1" * 64)
    ((kind, leaf),) = extras.values()
    assert (kind, leaf.id) == ("report", name)
    assert "run" not in json.loads(bytes(leaf.data))
    same_as_golden("papers.json", bytes(leaf.data))


def test_papers_name_the_tokenizer_that_the_run_reads(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    (tmp_path / "model.safetensors").write_text("not told")
    config = {"model": {"teacher": {"kind": "hf", "path": str(tmp_path)}}, "data": {"kind": "text"}}
    name, extras = papers_of(config, ENV, "")
    assert list(json.loads(bytes(extras[name][1].data))["files"]) == ["tokenizer.json"]
    assert len(extras) == 2
    _, extras = papers_of({**config, "data": {"tokenizer": "bytes"}}, ENV, "")
    assert len(extras) == 1


def test_a_trace_is_the_golden_one() -> None:
    columns = {"id": ("I64", 8), "label_ok": ("U8", 1), "agree": ("U8", 1)}
    columns |= {name: ("F32", 4) for name in ("confidence", "entropy_s", "entropy_t", "kl")}
    rows = [(n, dtype, (2,), bytes(range(1, 2 * size + 1))) for n, (dtype, size) in columns.items()]
    page = pack_arrays(rows, {"window": 3, "maps": {"1": {"program": "builtin:cka", "hook": "on_kd_step", "map": {}}}})
    data = bytes(page.view)
    page.close()
    arrays, meta = unpack_arrays(memoryview(data))
    assert len(read_trace(arrays)) == 2
    assert meta["window"] == 3
    same_as_golden("trace.page", data)


def test_evidence_is_the_golden_one_and_names_what_it_started_from() -> None:
    state = State(2.0, 2.0, Samples(3), window=4)
    first = encode_evidence(
        state, "b3:" + "2" * 64, {"kl": 0.5}, Decision({"temperature": 2.0}), {"a": 1.0}, state.origin()
    )
    assert read_evidence(first)["before"]["evidence"] == ""
    assert state.origin() == {"evidence": state.evidence, "held_out": [0, 0.0, 0.0, False, None, None, ""]}
    state.window = 5
    second = encode_evidence(state, "b3:" + "3" * 64, {}, Decision(), {}, state.origin())
    assert read_evidence(second)["before"]["evidence"].startswith("b3:")
    same_as_golden("evidence.msgpack", first)
