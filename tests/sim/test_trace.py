"""The Chrome trace of a simulated ledger shows each window and each dispatch that it holds."""

from __future__ import annotations

import json

from world import Faults, S, World, document

from console.trace import chrome
from kernel.replay import replay
from kfs.records import RecordKind


def test_a_trace_shows_every_window_dispatch_and_overrun_of_a_ledger() -> None:
    doc = document(windows=(2, 6))
    next(s for s in doc["servers"] if s["name"] == "dataset").update(budget_ms=1, period_ms=100)
    world = World(7, doc, faults=Faults(late=0.2))
    world.boot()
    world.run(lambda: world.state is not None and world.state.committed_window >= 3, 60 * S)
    world.power_cut()
    world.boot()
    assert world.run(lambda: world.state is not None and world.state.phase == "done", 300 * S)
    schedules = replay(world.disk.log)
    events = json.loads(json.dumps(chrome(schedules, world.disk.log)))
    kinds = [r.kind for r in world.disk.log]
    bars = [e for e in events if e["ph"] == "X"]
    assert sum(e["cat"] == "committed" for e in bars) == kinds.count(RecordKind.WINDOW_COMMIT)
    assert len(bars) == kinds.count(RecordKind.WINDOW_GRANT)
    assert all(e["dur"] >= 0 for e in bars)
    marks = [e["name"] for e in events if e["ph"] == "i"]
    assert marks.count("dataset.fill") == sum(
        d.args.get("method") == "dataset.fill" for s in schedules for d in s.decisions
    )
    assert "overrun" in marks
    assert "sched.admit" in marks
    tracks = {(e["pid"], e["tid"]) for e in events if e["name"] == "thread_name"}
    assert {(e["pid"], e["tid"]) for e in events if e["ph"] in "Xi"} <= tracks
    assert {e["args"]["name"] for e in events if e["name"] == "process_name"} == {f"boot {s.boot}" for s in schedules}
