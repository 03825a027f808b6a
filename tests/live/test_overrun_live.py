"""Budgets of real processes: windows that use too much, and a fair server that does not come to a micro-step."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from harness import Live, document

from kfs.records import Record, RecordKind
from kfs.store import Store


@contextlib.contextmanager
def runtime(
    run: Path, *, window: dict[str, int] | None = None, steps: int = 1, **stanzas: dict[str, Any]
) -> Iterator[Live]:
    """A runtime whose servers differ from the harness's as `stanzas` say; "config" is added to."""
    doc = document(run)
    doc["window"] |= window or {}
    for phase in doc["phases"]:
        phase["steps"] = steps
    for stanza in doc["servers"]:
        changed = stanzas.get(stanza["name"], {})
        stanza |= {**changed, "config": {**stanza["config"], **changed.get("config", {})}}
    live = Live(run, doc)
    try:
        live.up()
        yield live
    finally:
        live.clean()


PATIENT_S = 280.0
"""At nice 19 on a machine that is busy with other things, seconds of CPU time are minutes."""


def ledger(live: Live) -> list[Record]:
    with Store.open_reader(live.run / "store") as store:
        return [store.record(i) for i in range(store.size)]


def overruns(live: Live, policy: str) -> list[dict[str, Any]]:
    events = live.client.events(limit=4096)["events"]
    return [e for e in events if e["kind"] == "overrun" and e["policy"].startswith(policy)]


@pytest.mark.parametrize("policy", ["rollback", "throttle", "postpone", "degrade", "kill"])
def test_a_learner_over_its_budget_is_dealt_with_as_its_manifest_says(tmp_path: Path, policy: str) -> None:
    """Steps of 25 ms of CPU time, four a window, in a budget of 40 ms: every window is over it after its second step."""
    burning = {"overrun": policy, "config": {"burn_ms": 25}}
    times = {"budget_ms": 40, "period_ms": 1_000, "deadline_ms": 1_000}
    with runtime(tmp_path / "run", window=times, steps=4, learner=burning) as live:
        live.until(lambda: len(overruns(live, policy)) >= 3, "three overruns")
        if policy == "kill":
            live.until(lambda: live.server("learner")["incarnation"] >= 2, "the learner was replaced")
            return
        live.until(lambda: live.status()["done_windows"] >= 2, "windows commit all the same")
        live.halt()
        commits = [r for r in ledger(live) if r.kind is RecordKind.WINDOW_COMMIT]
        told = [r.args["message"] for r in ledger(live) if r.kind is RecordKind.FAULT and r.args["code"] == "E7-BUDGET"]
        assert told
        assert told[0].startswith(f"overrun, {policy}: window")
        done = {c.args["metrics"]["steps"] for c in commits[:-1]}  # the last one may have been let go on for the drain
        assert done <= ({1, 2, 3} if policy == "degrade" else {4}), done
        if policy == "throttle":
            grants = {r.args["window"]: r for r in ledger(live) if r.kind is RecordKind.WINDOW_GRANT}
            took = [c.t_mono - grants[c.args["window"]].t_mono for c in commits[:-1]]
            assert min(took) >= 1_000_000_000, "it stood still until its next period"


def test_a_fair_server_that_never_comes_to_a_micro_step_is_slowed_down_and_stopped_and_is_back_after_it(
    tmp_path: Path,
) -> None:
    with runtime(tmp_path / "run", observer={"config": {"spin_s": 4.0}}) as live:
        live.until(lambda: overruns(live, "stopped"), "stopped", timeout_s=PATIENT_S)
        assert overruns(live, "nice 19")
        done = live.status()["done_windows"]
        live.until(lambda: live.status()["done_windows"] > done + 5, "windows go on after it", timeout_s=PATIENT_S)
        assert live.server("observer")["restarts"] == 0
        told = [r.args for r in ledger(live) if r.kind is RecordKind.FAULT]
        assert {f["name"] for f in told} == {"observer"}
        assert {f["code"] for f in told} == {"E7-BUDGET"}
        live.halt()
