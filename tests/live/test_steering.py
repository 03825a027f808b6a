"""Every syscall that steers the learner, on a live one, and its effect as the ledger has it: from records and objects alone."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_lifecycle import records, short_manifest, status_when

import recuros
from console.main import run as recuros_command
from kfs.records import Record, RecordKind
from kfs.store import Store
from servers.models.registry import from_checkout


def first(rows: list[Record], kind: RecordKind, after: int = -1) -> Record:
    return next(r for r in rows if r.kind is kind and r.seq > after)


def commits_from(rows: list[Record], window: int) -> list[Record]:
    return [r for r in rows if r.kind is RecordKind.WINDOW_COMMIT and r.args["window"] >= window]


def test_what_an_operator_asks_for_happens_and_the_ledger_tells(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    plan = {"windows = 16": "windows = 2", "windows = 20": "windows = 400", "eval-every = 10": "eval-every = 0"}
    seen: dict[str, dict[str, Any]] = {}
    with contextlib.ExitStack() as stack:
        runtime = recuros.boot(config=short_manifest(tmp_path / "m.toml", **plan), run=run, detach=True)
        stack.callback(runtime.kill)
        client = runtime.client

        def metric(name: str, holds: Any) -> dict[str, Any]:
            status = status_when(runtime, lambda s: name in s["metrics"] and holds(s["metrics"][name]), f"{name} holds")
            metrics: dict[str, Any] = status["metrics"]
            return metrics

        before = metric("kd", lambda value: value > 0)
        seen["kd"] = client.rl_set_kd(temperature=3.0, mix=0.6, terms={"cka": 0.2, "calibration": 0.1})
        metric("term.cka", lambda value: value > 0)
        seen["gate"] = client.rl_gate_samples(criteria={"drop_low": 0.2, "drop_high": 0.2})
        seen["heads"] = client.rl_prune(mask_spec={"method": "heads", "heads": [[1, 1], [2, 3]]})
        smaller = metric("student_params", lambda value: value < before["student_params"])
        seen["movement"] = client.rl_prune(mask_spec={"method": "movement", "target": 0.5, "steps": 30})
        metric("sparsity", lambda value: value > 0.4)
        seen["calibrate"] = client.syscall("rl_calibrate", timeout_s=120.0)
        seen["swap"] = client.rl_swap_roles(mode="snapshot")
        metric("generation", lambda value: value == 1)
        seen["named"] = client.rl_snapshot(name="steered")
        seen["schedule"] = client.rl_schedule(window={"budget_ms": 3500, "period_ms": 5000}, deadline=5000)
        at = runtime.status()["windows"]["committed"]
        status_when(runtime, lambda s: s["windows"]["committed"] >= at + 4, "a few more windows")
        status = runtime.status()
        runtime.halt()
        assert status["windows"]["rolled_back"] == status["windows"]["missed"]
    rows = records(run)

    kd = first(rows, RecordKind.KD_SET)
    assert kd.seq == seen["kd"]["seq"]
    assert kd.args["terms"] == {"cka": 0.2, "calibration": 0.1}
    after = commits_from(rows, kd.args["window"] + 1)[0].args["metrics"]
    assert (after["temperature"], after["mix"]) == (3.0, 0.6)
    assert {"term.cka", "term.calibration"} <= after.keys()
    assert not {"term.cka", "term.calibration"} & commits_from(rows, 3)[0].args["metrics"].keys()

    gate = first(rows, RecordKind.GATE_SET)
    assert gate.args["criteria"] == {"drop_low": 0.2, "drop_high": 0.2}
    last = commits_from(rows, 1)[-1].args["window"]
    decided = [r for r in rows if r.kind is RecordKind.POLICY and r.seq > gate.seq and len(r.input_ids) == 2]
    policy = [r for r in decided if r.args["applies_at"] <= last][-1]
    with Store.open_reader(run / "store") as store:
        weights = np.frombuffer(store.get(policy.input_ids[0]).data, dtype="<f4")
        assert 0.05 < float((weights == 0).mean()) <= 0.41, "samples at both ends are left out"
        assert float(weights[weights > 0].mean()) == pytest.approx(1.0, abs=0.05)
        filled = [(r.args["inputs"] or {}).get("weights") for r in commits_from(rows, policy.args["applies_at"])]
        assert policy.input_ids[0] in filled, "and a window is filled by them"

        heads, movement = [r for r in rows if r.kind is RecordKind.PRUNE]
        assert heads.args["mask_spec"] == {"method": "heads", "heads": [[1, 1], [2, 3]]}
        cut = commits_from(rows, heads.args["window"])
        assert before["student_params"] - smaller["student_params"] == 2 * (4 * 5 * 20 + 3 * 5)
        architecture = json.loads(bytes(store.get(store.snapshot(cut[1].result_snap or "")["policy/roles/state"]).data))
        assert architecture["student"]["layer_heads"] == [3, 3]
        shares = [r.args["metrics"]["sparsity"] for r in commits_from(rows, movement.args["window"] + 1)]
        assert shares[0] < 0.05, "nothing is zero before the last third"
        assert 0.4 < shares[-1] < 0.5

        swap = first(rows, RecordKind.SWAP)
        assert swap.args["mode"] == "snapshot"
        swapped = commits_from(rows, swap.args["window"] + 1)[0]
        assert swapped.generation == 1
        assert swapped.args["metrics"]["teacher_params"] == smaller["student_params"]

        named = first(rows, RecordKind.SNAPSHOT)
        assert named.result_snap == seen["named"]["snapshot"]
        assert store.snapshot(seen["named"]["snapshot"])

    fitted = first(rows, RecordKind.CALIBRATE).args["result"]
    assert fitted["temperature"] > 0
    assert fitted["nll_after"] <= fitted["nll_before"]
    schedule = first(rows, RecordKind.SCHED_SET, after=seen["named"]["seq"])
    grant = first(rows, RecordKind.WINDOW_GRANT, after=schedule.seq)
    assert grant.args["budget_ns"] == 3_500_000_000

    capsys.readouterr()
    assert recuros_command(["kfs", "checkout", "steered", str(tmp_path / "out"), "--json", "--run", str(run)]) == 0
    form = json.loads(capsys.readouterr().out)["form"]
    assert form["kind"] == "smaller, sparse"
    assert form["removed"] == {"heads": 2, "neurons": 0, "parameters": 2 * (4 * 5 * 20 + 3 * 5)}
    assert from_checkout(tmp_path / "out").param_count == smaller["student_params"]
    asked = f"w{heads.args['window']}..w{swap.args['window'] + 1}"
    assert recuros_command(["replay", asked, "--json", "-q", "--run", str(run)]) == 0, capsys.readouterr()
    assert json.loads(capsys.readouterr().out)["verdict"] == "equal"
