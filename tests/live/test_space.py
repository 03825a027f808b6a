"""Collection and compaction in a runtime that is up: windows go on, the plan is carried out, readers keep their bytes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from harness import Live, document

from kfs.gc import plan
from kfs.records import RecordKind
from kfs.store import Store
from kfs.verify import verify
from syscalls.errors import RecurosError


def made(run: Path, **options: Any) -> Any:
    with Store.open_reader(run / "store") as store:
        return plan(store, **options)


def test_a_runtime_collects_and_compacts_while_its_windows_go_on(tmp_path: Path) -> None:
    doc = document(tmp_path / "run")
    next(s for s in doc["servers"] if s["name"] == "archivist")["config"] |= {"compact": True}
    runtime = Live(tmp_path / "run", doc)
    try:
        runtime.up()
        runtime.goes_on(24)
        wanted = made(runtime.run, budget=0, keep_last=8)
        assert len(wanted.ids) >= 10
        call = {"ids": wanted.ids, "scores": wanted.scores}
        assert runtime.client.kfs_gc(**call, dry_run=True)["seq"] == -1
        answer = runtime.client.kfs_gc(**call, reason="a test")
        assert answer["seq"] in answer["pending"]
        with pytest.raises(RecurosError) as caught:
            runtime.client.kfs_gc(**call)
        assert caught.value.code == "E4-NOENT"
        newest = runtime.status()["snapshot"]
        with pytest.raises(RecurosError) as caught:
            runtime.client.kfs_gc(ids=[newest], scores=[0.0])
        assert caught.value.code == "E2-USAGE"
        trash, packs = runtime.run / "store" / "trash", runtime.run / "store" / "packs"
        runtime.until(lambda: any(trash.iterdir()), "packs in the trash")
        done = lambda: any(r.kind is RecordKind.GC_DONE for r in records(runtime.run))  # noqa: E731
        runtime.until(done, "the plan is done")
        runtime.goes_on(3)
        runtime.until(lambda: any(map(compacted, packs.iterdir())), "a compacted pack")
        runtime.halt()
    finally:
        runtime.clean()
    plan_record = next(r for r in records(runtime.run) if r.kind is RecordKind.GC_PLAN)
    assert plan_record.actor.startswith("operator")
    assert plan_record.args["reason"] == "a test"
    report = verify(runtime.run / "store")
    assert report.ok, report.problems
    assert report.collected == len(wanted.ids)


def compacted(pack: Path) -> bool:
    """Whether the pack is there and was written by the compactor, which takes its time: it works when nothing else does."""
    try:
        return b'"kfs.pack":"2"' in pack.read_bytes()
    except FileNotFoundError:  # replaced between the listing and the look
        return False


def records(run: Path) -> list[Any]:
    with Store.open_reader(run / "store") as store:
        return list(store.records())
