"""Direct channels between real processes: windows are staged over one, it is taken back in mid-use, and a caller lies on its own."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from harness import Live, document

from kfs.records import RecordKind
from kfs.store import Store
from syscalls.errors import RecurosError


def booted(run: Path, **stanzas: dict[str, Any]) -> Live:
    doc = document(run)
    for stanza in doc["servers"]:
        stanza.update(stanzas.get(stanza["name"], {}))
        stanza["config"] = {**stanza["config"], "direct": stanza.get("direct", [])}
    return Live(run, doc)


@pytest.fixture
def runtime(tmp_path: Path) -> Iterator[Live]:
    live = booted(tmp_path / "run", learner={"direct": ["archivist"]})
    try:
        live.up()
        yield live
        live.halt()
    finally:
        live.clean()


def channels(runtime: Live, callee: str) -> list[dict[str, Any]]:
    row = next(c for c in runtime.client.channel_list()["channels"] if c["server"] == callee)
    direct: list[dict[str, Any]] = row["direct"]
    return direct


def direct_calls(runtime: Live) -> int:
    return sum(c["calls"] for c in channels(runtime, "archivist") if c["caller"] == "learner")


def test_windows_are_staged_over_a_channel_whoever_dies(runtime: Live) -> None:
    """The learner's snapshots do not pass the kernel; both ends die, and the next channel stands with the next incarnation."""
    runtime.until(lambda: direct_calls(runtime) > 0, "the archivist told of its direct calls")
    for name in ("archivist", "learner"):
        before = channels(runtime, "archivist")
        assert [c["state"] for c in before] == ["open"]
        pid = runtime.server(name)["pid"]
        os.kill(pid, signal.SIGKILL)
        runtime.until(
            lambda n=name, p=pid: (s := runtime.server(n))["pid"] != p and s["state"] == "ready", f"{name} is back"
        )
        runtime.goes_on()
        runtime.until(
            lambda b=before: (now := channels(runtime, "archivist")) and now[0]["channel"] != b[0]["channel"], "another"
        )
    with Store.open_reader(runtime.run / "store") as store:
        grants = [r for r in map(store.record, range(store.size)) if r.kind is RecordKind.CAP_DERIVE]
    assert len(grants) >= 3
    assert {r.actor for r in grants} == {"learner"}
    assert runtime.refused("direct channel") == 0


def test_a_channel_that_is_taken_back_ends_at_once_and_calls_go_through_the_kernel(runtime: Live) -> None:
    runtime.until(lambda: channels(runtime, "archivist"), "a channel stands")
    (channel,) = channels(runtime, "archivist")
    runtime.client.cap_take(principal="learner", cap=channel["slot"])
    assert channels(runtime, "archivist") == []
    runtime.goes_on()
    assert channels(runtime, "archivist") == [], "what an operator took is not granted again"
    status = runtime.status()
    assert {s["name"]: s["restarts"] for s in status["servers"]}["learner"] == 0


def test_revoking_the_endpoint_takes_the_channel_with_it(runtime: Live) -> None:
    """No call of the learner's gets through any more, on either way: the plan stops, and says for what right."""
    runtime.until(lambda: channels(runtime, "archivist"), "a channel stands")
    (channel,) = channels(runtime, "archivist")
    caps = runtime.client.cap_list(principal="learner")["caps"]
    parent = next(c["parent"] for c in caps if c["slot"] == channel["slot"])
    removed = runtime.client.cap_take(principal=parent[0], cap=parent[1])["removed"]
    assert removed >= 2
    assert channels(runtime, "archivist") == []
    done = runtime.status()["done_windows"]
    runtime.until(
        lambda: runtime.status()["state"] != "running" or runtime.refused("overrun") or _denied(runtime), "denied"
    )
    assert runtime.status()["done_windows"] <= done + 2


def _denied(runtime: Live) -> bool:
    return any(
        e["kind"] == "window.miss" and "E5-DENIED" in e["reason"] for e in runtime.client.events(limit=4096)["events"]
    )


def test_a_caller_that_breaks_the_rules_is_refused_counted_and_recorded_and_nobody_else_notices(tmp_path: Path) -> None:
    liar = {"entry": "fake_liar", "calls": ["dataset", "gpu"], "direct": ["dataset"]}
    runtime = booted(tmp_path / "run", observer=liar)
    try:
        runtime.up()
        report = runtime.run / "liar.json"
        runtime.until(report.exists, "the lies are told")
        found = json.loads(report.read_text())
        assert found.pop("split").startswith("direct")
        assert found.pop("the good one again").startswith("direct")
        denied = ["what only the kernel asks", "a method of another server", "no such method"]
        denied += ["an end of a stranger", "a server that is not granted"]
        assert {name: found.pop(name) for name in denied} == dict.fromkeys(denied, "E5-DENIED")
        assert found.pop("wrong arguments") == "E2-WIRE"
        assert found.pop("an end that is a file") == "E2-WIRE"
        assert set(found.values()) == {"closed"}, found
        assert len(found) == 6
        assert runtime.refused("direct channel") >= 6
        runtime.goes_on()
        assert all(s["restarts"] == 0 for s in runtime.status()["servers"])
        with Store.open_reader(runtime.run / "store") as store:
            records = [store.record(i) for i in range(store.size)]
        faults = [r.args for r in records if r.kind is RecordKind.FAULT and "direct channel" in str(r.args["message"])]
        assert faults
        assert {f["name"] for f in faults} == {"observer"}
        with pytest.raises(RecurosError):
            runtime.client.syscall("channel_open", endpoint=1, end=1)
        runtime.halt()
    finally:
        runtime.clean()


def test_a_callee_that_lies_about_its_result_is_found_out_counted_and_recorded_and_harms_nobody(tmp_path: Path) -> None:
    asker = {"entry": "fake_asker", "calls": ["dataset"], "direct": ["dataset"]}
    runtime = booted(tmp_path / "run", observer=asker, dataset={"entry": "fake_lying_dataset"})
    try:
        runtime.up()
        report = runtime.run / "asked.json"
        runtime.until(report.exists, "the lies are told")
        found = json.loads(report.read_text())
        honest = {after for _, after in found["direct"].values()}
        assert len(honest) == 1, "after each lie a new channel stands, and serves as before"
        assert honest.pop().startswith("direct")
        direct = {lie: came for lie, (came, _) in found["direct"].items()}
        assert direct.pop("two answers") == "succeeded", "the first one was an answer; the second broke the channel"
        assert set(direct.values()) == {"E3-GONE"}, direct
        told = runtime.refused("direct channel")  # the callee's word that its caller closed may come first
        assert len(direct) - 3 <= told <= len(direct) + 1
        kernel = found["kernel"]
        assert kernel.pop("two answers") == kernel.pop("another call's answer first") == "succeeded"
        assert {kernel.pop(lie) for lie in ("a page of nobody", "its own capability")} == {"E5-DENIED"}
        assert set(kernel.values()) == {"E2-WIRE"}, kernel
        runtime.goes_on()
        assert runtime.refused("malformed reply") == 4
        assert runtime.refused("stray reply") == 2
        assert all(s["restarts"] == 0 for s in runtime.status()["servers"])
        with Store.open_reader(runtime.run / "store") as store:
            records = [store.record(i) for i in range(store.size)]
        faults = [r.args for r in records if r.kind is RecordKind.FAULT]
        assert {f["name"] for f in faults if "direct channel, as observer says" in str(f["message"])} == {"dataset"}
        assert {f["name"] for f in faults if "malformed reply" in str(f["message"])} == {"dataset"}
        runtime.halt()
    finally:
        runtime.clean()
