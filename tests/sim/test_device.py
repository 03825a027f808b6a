"""The device in a whole simulated runtime: heat postpones windows, a lost device gives them up, and memory is met with smaller parts."""

from __future__ import annotations

from typing import Any

import pytest
from invariants import check_ledger
from world import S, World, digest, document

from kfs.records import RecordKind


def running(windows: int, **device: Any) -> World:
    doc = document(windows=(2, windows))
    doc["device"] = device
    world = World(3, doc)
    world.boot()
    assert world.run(lambda: world.state is not None and world.state.phase == "running", 10 * S)
    return world


def counts(world: World) -> dict[str, int]:
    assert world.state is not None
    return world.state.counts


def verdict(world: World, name: str) -> None:
    world.gauges = {"guard": {"verdict": name, "reason": f"a test says {name}"}}
    assert world.run(lambda: world.state is not None and world.state.verdict == name, 20 * S)


def done(world: World) -> None:
    assert world.run(lambda: world.state is not None and world.state.phase == "done", 300 * S)
    check_ledger(world.disk, built=digest("built"))


def device_records(world: World) -> list[dict[str, Any]]:
    return [r.args for r in world.disk.log if r.kind is RecordKind.DEVICE]


def test_a_hot_device_postpones_windows_and_none_is_missed() -> None:
    world = running(200)
    world.run(lambda: counts(world)["committed"] >= 3, 60 * S)
    verdict(world, "soft")
    assert world.run(lambda: not world.state.windows, 20 * S)  # type: ignore[union-attr] # what runs ends
    granted = counts(world)["granted"]
    world.run(lambda: counts(world)["granted"] > granted, 60 * S)
    assert counts(world)["granted"] == granted
    verdict(world, "ok")
    done(world)
    assert counts(world)["missed"] == counts(world)["rolled_back"] == 0
    assert counts(world)["committed"] == 202
    assert [a["verdict"] for a in device_records(world)] == ["soft", "ok"]
    assert device_records(world)[0]["reason"] == "a test says soft"


@pytest.mark.parametrize("bad", ["hard", "lost"])
def test_a_device_past_its_hard_limit_gives_the_running_window_up(bad: str) -> None:
    world = running(400)
    world.run(lambda: counts(world)["committed"] >= 3, 60 * S)
    verdict(world, bad)
    assert world.run(lambda: not world.state.windows, 20 * S)  # type: ignore[union-attr]
    given_up = counts(world)["rolled_back"]
    assert given_up <= 1
    assert counts(world)["committed"] == counts(world)["granted"] - given_up
    verdict(world, "ok")
    done(world)
    assert counts(world)["committed"] == 402
    reasons = [r.args["reason"] for r in world.disk.log if r.kind is RecordKind.WINDOW_MISS]
    assert all("E75-AGAIN: the device is not fit to go on" in reason for reason in reasons)
    assert len(reasons) == given_up


def test_out_of_memory_retries_with_smaller_parts_as_far_as_the_manifest_allows() -> None:
    world = running(6, micro_batches_max=8)
    world.parts_needed = 4
    done(world)
    assert counts(world)["committed"] == 8
    assert [a["micro_batches"] for a in device_records(world)] == [2, 4]
    assert {a["event"] for a in device_records(world)} == {"micro-batches"}


def test_out_of_memory_stops_the_plan_with_the_reason_when_nothing_smaller_is_allowed() -> None:
    world = running(6, micro_batches_max=2)
    world.parts_needed = 4
    done(world)
    assert world.state is not None
    assert world.state.error is not None
    assert world.state.error[0] == "E7-MEMORY"
    assert "ran out of memory 5 times in a row: no room for a batch in 2 parts" in world.state.error[1]
    assert [a["micro_batches"] for a in device_records(world)] == [2]


def test_the_joules_of_a_window_are_in_its_commit_where_the_device_counts_energy() -> None:
    world = running(30)
    device = {"index": 0, "energy_mj": 7_000, "power_w": 100.0}
    world.gauges = {"devices": [device], "host": {}, "driver": {"index": 0}}
    done(world)
    joules = [r.args["metrics"].get("joules") for r in world.disk.log if r.kind is RecordKind.WINDOW_COMMIT]
    known = [j for j in joules if j is not None]
    assert known
    assert joules[0] is None  # before the first sample
    assert all(0 <= j < 100.0 * 60 for j in known)
    assert any(j > 0 for j in known)
