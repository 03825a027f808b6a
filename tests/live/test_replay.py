"""Replay of a real run: everything is equal, and whatever was tampered with is found and named.

One short digits run serves all of it: an operator overrides a policy, swaps and prunes, and everything is killed in the middle.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from test_lifecycle import short_manifest, status_when

import recuros
from console.main import run as recuros_command
from kfs import records
from kfs.at import state_at
from kfs.checkpoint import Signer, TreeHead
from kfs.files import Files
from kfs.ledger import MAGIC, frame
from kfs.merkle import CompactRange, leaf_hash
from kfs.objects import blob
from kfs.records import Record, RecordKind
from kfs.store import Store

Change = Callable[[Record], Record | None]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A finished run, and its last status while it was up."""
    base = tmp_path_factory.mktemp("replay")
    run = base / "run"
    killed = recuros.boot(config=short_manifest(base / "m.toml"), run=run)
    status_when(killed, lambda s: s["windows"]["committed"] >= 4, "distillation has begun")
    killed.client.rl_set_kd(temperature=3.0)
    killed.client.rl_prune(mask_spec={"sparsity": 0.2})
    status_when(killed, lambda s: s["windows"]["committed"] >= 6, "six commits")
    killed.kill()  # SIGKILL to the supervisor, which takes everybody with it
    with recuros.boot(run=run) as runtime:
        status = status_when(runtime, lambda s: s["state"] == "done", "done")
    return run, status


@pytest.fixture
def copied(finished: tuple[Path, dict[str, Any]], tmp_path: Path) -> Path:
    """A copy that a test may spoil."""
    shutil.copytree(finished[0], tmp_path / "run")
    return tmp_path / "run"


def all_records(run: Path) -> list[Record]:
    with Store.open_reader(run / "store") as store:
        return list(store.records())


def commit_of(run: Path, window: int) -> Record:
    kind = RecordKind.WINDOW_COMMIT
    return next(r for r in all_records(run) if r.kind is kind and r.args["window"] == window)


def decided(run: Path) -> list[Record]:
    return [r for r in all_records(run) if r.kind is RecordKind.POLICY and r.input_ids]


def rewrite(run: Path, change: Change, *, sign: bool) -> None:
    """Change records the way the owner of the machine can: valid frames throughout, and a valid signature where asked."""
    changed = [records.encode(change(r) or r) for r in all_records(run)]
    (run / "store" / "ledger" / "records").write_bytes(MAGIC + frame(0, changed))
    if not sign:
        return
    with Store.open_reader(run / "store") as store:
        layout, form = store.layout, store.format
    layout.signed(form.store_id).write_text(f"0 {hashlib.sha256(b'').hexdigest()}\n")
    tree = CompactRange()
    for data in changed:
        tree.append(leaf_hash(data))
    signer = Signer(Files(), layout.signing_key(form.store_id), layout.signed(form.store_id))
    layout.checkpoint.write_bytes(signer.sign(TreeHead(len(changed), tree.root())))


def only(seq: int, **fields: Any) -> Change:
    """Replace fields of one record; `args` replaces some of its args."""

    def change(r: Record) -> Record | None:
        if r.seq != seq:
            return None
        new = dict(fields)
        if "args" in new:
            new["args"] = {**r.args, **new["args"]}
        return dataclasses.replace(r, **new)

    return change


def replay(capsys: pytest.CaptureFixture[str], run: Path, *argv: str) -> tuple[int, dict[str, Any]]:
    capsys.readouterr()
    status = recuros_command(["replay", *argv, "--json", "-q", "--run", str(run)])
    captured = capsys.readouterr()
    assert captured.err == ""
    found: dict[str, Any] = json.loads(captured.out)
    assert found["schema"] == "recuros.replay/v1"
    assert (status == 0) == (found["verdict"] == "equal")
    return status, found


def named(found: dict[str, Any]) -> set[str]:
    return {f["what"] for f in found["findings"]}


def test_every_window_and_every_decision_is_equal(
    capsys: pytest.CaptureFixture[str], finished: tuple[Path, dict[str, Any]]
) -> None:
    run, _ = finished
    status, found = replay(capsys, run, "0..")
    assert found["findings"] == []
    assert status == 0
    assert [w["window"] for w in found["windows"]] == list(range(1, 12))
    assert {w["verdict"] for w in found["windows"]} == {"equal"}
    assert all(w["here"] == w["recorded"] for w in found["windows"])
    policies = [r for r in all_records(run) if r.kind is RecordKind.POLICY]
    assert [d["seq"] for d in found["decisions"]] == [r.seq for r in policies]
    assert any(r.input_ids for r in policies)
    assert any(r.kind is RecordKind.KD_SET for r in all_records(run))


def test_the_fold_of_the_ledger_agrees_with_the_status(finished: tuple[Path, dict[str, Any]]) -> None:
    run, status = finished
    with Store.open_reader(run / "store") as store:
        last = next(r.seq for r in store.records() if r.kind is RecordKind.HALT and r.args["boot"] == status["boot"])
        found = state_at(store, last - 1).to_map()
    assert found["committed"]["window"] == status["done_windows"]
    assert found["committed"]["snapshot"] == status["snapshot"]
    for key in ("generation", "gate", "directives", "windows", "scores", "reference", "resumed_from", "boot", "app"):
        assert found[key] == status[key], key
    assert found["kd"]["asked"] == status["kd"]
    assert found["policy"]["in_force"] == status["policy"]
    assert [(p["id"], p["prog"]) for p in found["probes"]] == [(p["id"], p["prog"]) for p in status["probes"]]
    pids = {s["name"]: (s["pid"], s["incarnation"]) for s in status["servers"]}
    assert {s["name"]: (s["pid"], s["incarnation"]) for s in found["servers"]} == pids
    assert found["committed"]["config"]


@pytest.mark.parametrize("sign", [True, False], ids=["signed again", "not signed"])
def test_a_policy_that_was_changed_is_named(capsys: pytest.CaptureFixture[str], copied: Path, *, sign: bool) -> None:
    policy = decided(copied)[0]
    settings = {**policy.args["settings"], "temperature": 3.5}
    rewrite(copied, only(policy.seq, args={"settings": settings}), sign=sign)
    status, found = replay(capsys, copied, str(policy.seq), "--decisions")
    assert status == 9
    assert named(found) == ({"policy"} if sign else {"policy", "ledger"})
    detail = next(f["detail"] for f in found["findings"] if f["what"] == "policy")
    assert "temperature 3.5 where" in detail


def test_weights_of_another_decision_are_named(capsys: pytest.CaptureFixture[str], copied: Path) -> None:
    one, two = decided(copied)[:2]
    settings = {**one.args["settings"], "weights": two.input_ids[0]}
    inputs = (two.input_ids[0], one.input_ids[1])
    rewrite(copied, only(one.seq, args={"settings": settings}, input_ids=inputs), sign=True)
    status, found = replay(capsys, copied, str(one.seq), "--decisions")
    assert status == 9
    assert f"weights '{two.input_ids[0]}' where" in found["findings"][0]["detail"]


def test_a_policy_that_was_made_to_vanish_is_missed_by_its_window(
    capsys: pytest.CaptureFixture[str], copied: Path
) -> None:
    policy = next(
        r for r in decided(copied) if r.args["settings"].get("weights")
    )  # one that changes nothing leaves no trace
    rewrite(copied, only(policy.seq, actor="kernel", args={"settings": {}, "pack": "timeout"}, input_ids=()), sign=True)
    status, found = replay(capsys, copied, f"w{policy.args['applies_at']}", "--decisions")
    assert status == 9
    assert found["findings"][0]["what"] == "policy"
    assert "not recorded" in found["findings"][0]["detail"]


def test_batches_and_results_that_were_changed_are_named(capsys: pytest.CaptureFixture[str], copied: Path) -> None:
    five, seven, eight = (commit_of(copied, n) for n in (5, 7, 8))
    metrics = {**five.args["metrics"], "batch": "0" * 64}

    def change(r: Record) -> Record | None:
        return only(five.seq, args={"metrics": metrics})(r) or only(eight.seq, result_snap=seven.result_snap)(r)

    rewrite(copied, change, sign=True)
    status, found = replay(capsys, copied, "w5..w8", "--state")
    assert status == 9
    rows = {w["window"]: w for w in found["windows"]}
    assert [rows[n]["verdict"] for n in (5, 6, 7, 8)] == ["differs", "equal", "equal", "differs"]
    assert rows[5]["findings"][0]["what"] == "batch"
    assert "0" * 64 in rows[5]["findings"][0]["detail"]
    assert rows[8]["findings"][0]["what"] == "snapshot"
    assert "tensors differ: cursor/engine/state" in rows[8]["findings"][0]["detail"]


def test_a_bit_of_a_base_is_named_with_its_pack(capsys: pytest.CaptureFixture[str], copied: Path) -> None:
    base = commit_of(copied, 6).result_snap
    assert base is not None
    with Store.open_reader(copied / "store") as store:
        path, entry = store.entry(store.snapshot(base)["student/head/weight"])
    data = bytearray(path.read_bytes())
    data[entry.offset] ^= 1
    path.write_bytes(data)
    status, found = replay(capsys, copied, "w7", "--state")
    assert status == 9
    (finding,) = found["findings"]
    assert finding["what"] == "snapshot"
    assert path.name in finding["detail"]


def test_another_environment_is_named_and_never_called_equal(capsys: pytest.CaptureFixture[str], copied: Path) -> None:
    from blake3 import blake3

    commit = commit_of(copied, 9)
    name = commit.args["inputs"]["config"]
    with Store.open_writer(copied / "store") as store:
        papers = json.loads(bytes(store.get(name).data))
        here = papers["env"]["torch"]
        papers["env"]["torch"] = "0.0.1"
        (other,) = store.put([blob(json.dumps(papers).encode(), "report")])
    text = "".join(f"{key}={papers['env'][key]}\n" for key in sorted(papers["env"]))
    env_id = f"b3:{blake3(text.encode()).hexdigest()}"
    inputs = {**commit.args["inputs"], "config": other}
    rewrite(copied, only(commit.seq, env_id=env_id, args={"inputs": inputs}), sign=True)
    status, found = replay(capsys, copied, "w9", "--state")
    assert status == 75
    assert found["verdict"] == found["windows"][0]["verdict"] == "environment"
    assert found["windows"][0]["differences"] == [f"torch: recorded 0.0.1, here {here}"]
    assert found["windows"][0]["here"] == ""
    status, found = replay(capsys, copied, "w9", "--state", "--force")
    assert (status, found["windows"][0]["verdict"]) == (0, "equal")
    assert found["windows"][0]["differences"]


@pytest.mark.parametrize(
    ("span", "status", "code"),
    [("0..3", 4, "E4-NOENT"), ("w99", 4, "E4-NOENT"), ("9..3", 2, "E2-USAGE"), ("soon", 2, "E2-USAGE")],
)
def test_a_range_without_anything_to_replay_is_refused(
    capsys: pytest.CaptureFixture[str], finished: tuple[Path, dict[str, Any]], span: str, status: int, code: str
) -> None:
    assert recuros_command(["replay", span, "--run", str(finished[0])]) == status
    assert code in capsys.readouterr().err
