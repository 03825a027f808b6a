"""The Chrome trace of a simulated ledger shows each window and each dispatch that it holds."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import pytest
from world import Faults, S, World, document

from console.trace import chrome
from kernel.replay import Decision, Schedule, replay
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
    bars = [e for e in events if e["ph"] == "X" and e["name"].startswith("window ")]
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
    names = {(e["pid"], e["tid"]): e["args"]["name"] for e in events if e["name"] == "thread_name"}
    assert len(set(names.values())) * len(schedules) >= len(names)
    assert {names[e["pid"], e["tid"]] for e in bars} == {"lane learner"}
    lives = [e for e in events if e["ph"] == "X" and not e["name"].startswith("window ")]
    assert {names[e["pid"], e["tid"]] for e in lives} == {
        f"server {name}" for name in ("archivist", "gpu", "dataset", "learner", "observer")
    }
    assert len(lives) == kinds.count(RecordKind.SPAWN)


def overlaps(events: list[dict[str, Any]]) -> list[tuple[str, str]]:
    """Neighbouring bars of one track of which the second begins before the first has ended; a nanosecond is rounding."""
    tracks: dict[tuple[int, int], list[dict[str, Any]]] = {}
    for event in events:
        if event["ph"] == "X":
            tracks.setdefault((event["pid"], event["tid"]), []).append(event)
    found = []
    for bars in tracks.values():
        bars.sort(key=lambda e: e["ts"])
        for a, b in pairwise(bars):
            if a["ts"] + a["dur"] > b["ts"] + 0.001:
                found.append((a["name"], b["name"]))
    return found


@pytest.mark.parametrize("seed", range(6))
def test_no_two_bars_of_a_track_overlap_whatever_happened(seed: int) -> None:
    world = World(seed, document(windows=(3, 4)), faults=Faults(late=0.3, crash=0.1))
    world.boot()
    world.run(lambda: world.state is not None and world.state.committed_window >= 2, 60 * S)
    world.power_cut()
    world.boot()
    world.run(lambda: world.state is not None and world.state.phase == "done", 300 * S)
    events = chrome(replay(world.disk.log), world.disk.log)
    assert sum(e["ph"] == "X" for e in events) > 10
    assert not overlaps(events)


def test_a_window_granted_while_the_last_one_is_still_open_ends_that_ones_bar() -> None:
    def decision(t_ns: int, what: str, window: int) -> Decision:
        args = {"steps": 1, "budget_ns": 5, "deadline_ns": 9} if what == "window.grant" else {"metrics": {"loss": 1.0}}
        return Decision(t_ns, what, "learner", t_ns, window, args)

    order = [(10, "window.grant", 1), (40, "window.grant", 2), (60, "window.commit", 1), (70, "window.rollback", 2)]
    events = chrome([Schedule("b", [decision(*row) for row in order])], [])
    first, second = [e for e in events if e["ph"] == "X"]
    assert (first["ts"], first["dur"], first["args"]["ended_ns"]) == (0.01, 0.03, 60)
    assert (second["cat"], second["cname"], second["ts"]) == ("rolled back", "terrible", 0.04)
    assert not overlaps(events)
