"""Capabilities, mailboxes and replays in a real runtime: what is lost is counted, and what is revoked is over at once."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq
from harness import Live, document, live

from console import main as console
from syscalls import abi, wire
from syscalls.client import Client

STATUS = abi.SYSCALL_BY_NAME["status"].nr
HELLO = wire.encode(wire.Call(1, 0, 1, [abi.ABI_MAJOR, abi.ABI_MINOR]))


@pytest.fixture(scope="module")
def runtime(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    with live(tmp_path_factory.mktemp("rights") / "run") as running:
        yield running
        running.halt()


def command(runtime: Live, capsys: pytest.CaptureFixture[str], *line: str, status: int = 0) -> dict[str, Any]:
    """One command line with --json; its document."""
    assert console.run([*line, "--run", str(runtime.run), "--json"]) == status
    captured = capsys.readouterr()
    return json.loads(captured.out) if status == 0 else {"error": captured.err}


def test_a_grant_is_explained_used_and_revoked_by_other_sessions(
    runtime: Live, capsys: pytest.CaptureFixture[str]
) -> None:
    with Client(runtime.run) as other:
        to = other.principal
        dry = command(runtime, capsys, "cap", "grant", to, "--rights", "interrupt", "--dry-run")
        assert (dry["slot"], dry["seq"]) == (0, -1)
        assert len(other.cap_list()["caps"]) == 1
        slot = command(runtime, capsys, "cap", "grant", to, "--rights", "interrupt", "--badge", "night")["slot"]
        used = other.syscall("interrupt", slot=slot, kind="resume")["seq"]
        runtime.goes_on(2)
        told = command(runtime, capsys, "cap", "explain", to, str(slot))
        assert next(row["holder"] for row in told["chain"]) == to
        assert [row["holder"] for row in told["chain"]][-2:] == ["operator", "kernel"]
        assert [u["seq"] for u in told["used"]] == [used]
        assert len(told["snapshots"]) >= 1
        assert all(x["seq"] > used for x in told["snapshots"])
        dry = command(runtime, capsys, "cap", "revoke", to, str(slot), "--dry-run")
        assert (dry["removed"], dry["seq"]) == (1, -1)
        gone = command(runtime, capsys, "cap", "revoke", to, str(slot))
        assert gone["removed"] == 1
        assert gone["ended_seq"] == gone["seq"]
        assert {x["id"] for x in told["snapshots"]} <= {x["id"] for x in gone["snapshots"]}
        refused = command(runtime, capsys, "cap", "explain", to, str(slot), status=4)
        assert "E4-NOENT" in refused["error"]
    denied = command(runtime, capsys, "cap", "grant", "observer", "--rights", "write-params", status=5)
    assert "write-params" in denied["error"]
    assert "E2-MANIFEST" in command(runtime, capsys, "cap", "grant", "observer", "--rights", "fly", status=2)["error"]
    assert "E5-DENIED" in command(runtime, capsys, "cap", "revoke", "kernel", "1", status=5)["error"]
    runtime.goes_on(1)


def test_a_replayed_frame_does_nothing_is_counted_and_the_session_goes_on(runtime: Live) -> None:
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    sock = context.socket(zmq.DEALER)
    sock.setsockopt(zmq.LINGER, 0)
    sock.connect(f"ipc://{runtime.sockets / 'operator.sock'}")
    before = runtime.refused("replayed call")

    def told() -> wire.Frame:
        assert sock.poll(20_000)
        return wire.decode(sock.recv())

    sock.send(HELLO)
    assert isinstance(told(), wire.Reply)
    for number in (2, 2, 3, 2, 3, 4):
        sock.send(wire.encode(wire.Call(number, STATUS, 1, [])))
    answers = [told() for _ in range(3)]
    assert [a.id for a in answers if isinstance(a, wire.Reply) and a.ok] == [2, 3, 4]
    assert not sock.poll(100)
    sock.close()
    context.term()
    assert runtime.refused("replayed call") == before + 3
    runtime.goes_on(1)


@pytest.mark.parametrize(("policy", "calls"), [("reject", 60_000), ("block", 5_000), ("drop-oldest", 5_000)])
def test_a_flood_loses_nothing_that_is_not_counted(tmp_path: Path, policy: str, calls: int) -> None:
    """Every call is answered or refused, caller and kernel count the same, and windows go on beside it."""
    doc = document(tmp_path / "run")
    for stanza in doc["servers"]:
        if stanza["name"] == "observer":
            stanza["calls"] = ["dataset", "gpu"]
            stanza["config"] = {**stanza["config"], "flood": calls}
        if stanza["name"] == "gpu":
            stanza["mailbox"] = {"messages": 32, "bytes": 1 << 16, "policy": policy}
    runtime = Live(tmp_path / "run", doc)
    try:
        runtime.up()
        report = runtime.run / "flood.json"
        runtime.until(report.exists, "the flood is over", timeout_s=240)
        told = json.loads(report.read_text())
        assert sum(told.values()) == calls
        assert set(told) <= {"answered", "E75-FULL"}
        box = next(c for c in runtime.client.channel_list()["channels"] if c["server"] == "gpu")
        assert (box["policy"], box["messages"], box["blocked"]) == (policy, 0, 0)
        assert box["accepted"] + box["refused"] == calls
        assert box["accepted"] - box["dropped"] == told["answered"]
        assert box["refused"] + box["dropped"] == told.get("E75-FULL", 0)
        assert (box["dropped"] > 0) == (policy == "drop-oldest")
        assert runtime.refused("unread answer") == 0
        runtime.goes_on()
        assert all(s["restarts"] == 0 for s in runtime.status()["servers"])
        runtime.halt()
    finally:
        runtime.clean()
