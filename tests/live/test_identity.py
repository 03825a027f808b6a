"""Who may speak, and what the others notice of it when somebody tries who may not: real processes, real sockets."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import zmq
from harness import OPERATOR, Live, live

from kfs.records import RecordKind
from kfs.store import Store
from syscalls import abi, limits, wire
from syscalls.client import Client
from syscalls.errors import RecurosError
from syscalls.pages import PageSocket, WritePage

Sock = zmq.Socket[bytes]
HELLO = wire.encode(wire.Call(1, 0, 1, [abi.ABI_MAJOR, abi.ABI_MINOR]))


class Peers:
    """Raw sockets of one test, all closed at its end."""

    def __init__(self) -> None:
        self.context: zmq.Context[Sock] = zmq.Context()
        self.made: list[Sock] = []


@pytest.fixture(scope="module")
def runtime(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    with live(tmp_path_factory.mktemp("identity") / "run") as running:
        yield running
        running.halt()


@pytest.fixture
def context() -> Iterator[Peers]:
    peers = Peers()
    yield peers
    for sock in peers.made:
        sock.close(linger=0)
    peers.context.term()


def dealer(context: Peers, runtime: Live, name: str, routing_id: bytes = b"") -> Sock:
    sock = context.context.socket(zmq.DEALER)
    context.made.append(sock)
    sock.setsockopt(zmq.LINGER, 0)
    if routing_id:
        sock.setsockopt(zmq.ROUTING_ID, routing_id)
    sock.connect(f"ipc://{runtime.sockets / name}")
    return sock


def answer(sock: Sock, timeout_ms: int = 20_000) -> wire.Frame | None:
    return wire.decode(sock.recv()) if sock.poll(timeout_ms) else None


def faults(runtime: Live) -> list[str]:
    """Messages of the fault records that are durable."""
    with Store.open_reader(runtime.run / "store") as store:
        found = [store.record(i) for i in range(store.size)]
    return [str(r.args["message"]) for r in found if r.kind is RecordKind.FAULT]


def test_a_process_that_nobody_spawned_is_refused_at_the_servers_socket_and_recorded(
    runtime: Live, context: Peers
) -> None:
    before = runtime.refused("handshake")
    sock = dealer(context, runtime, "server.sock")
    sock.send(HELLO)
    runtime.until(lambda: runtime.refused("handshake") > before, "the handshake is counted")
    assert answer(sock, 100) is None
    runtime.until(lambda: any("was not spawned" in m for m in faults(runtime)), "the refusal is in the ledger")
    runtime.goes_on()


def test_a_taken_routing_id_takes_nothing_from_its_owner(runtime: Live, context: Peers) -> None:
    owner = dealer(context, runtime, "operator.sock", b"same")
    owner.send(HELLO)
    first = answer(owner)
    assert isinstance(first, wire.Reply)
    assert first.ok
    thief = dealer(context, runtime, "operator.sock", b"same")
    thief.send(HELLO)
    status = abi.SYSCALL_BY_NAME["status"].nr
    owner.send(wire.encode(wire.Call(2, status, 1, [])))
    second = answer(owner)
    assert isinstance(second, wire.Reply)
    assert (second.id, second.ok) == (2, True)
    assert answer(thief, 100) is None
    runtime.goes_on()


def test_the_routing_id_of_a_server_makes_nobody_that_server(runtime: Live, context: Peers) -> None:
    for routing_id in (b"learner", b"server/learner/1", b"kernel"):
        sock = dealer(context, runtime, "operator.sock", routing_id)
        sock.send(HELLO)
        hello = answer(sock)
        assert isinstance(hello, wire.Reply)
        assert str(hello.payload[0]).startswith(f"operator:{os.getpid()}.")
        row = abi.SYSCALL_BY_NAME["window_staged"]
        sock.send(wire.encode(wire.Call(2, row.nr, 1, [1, "", {}, {}, 0])))
        refused = answer(sock)
        assert isinstance(refused, wire.Reply)
        assert refused.payload[0] == "E5-DENIED"
        sock.close()


def test_an_answer_in_the_name_of_a_server_is_refused(runtime: Live, context: Peers) -> None:
    before = runtime.refused("a frame that only the kernel sends")
    sock = dealer(context, runtime, "operator.sock")
    sock.send(HELLO)
    answer(sock)
    for delivery in range(200):
        sock.send(wire.encode(wire.Reply(delivery, True, [])))
    runtime.until(lambda: runtime.refused("a frame that only the kernel sends") >= before + 200, "every one is counted")
    runtime.goes_on()


@pytest.mark.parametrize(
    "parts",
    [
        [b""],
        [b"\xc1"],
        [os.urandom(100)],
        [b"\x91" * 5000],
        [b"\xdd\xff\xff\xff\xff"],
        [HELLO, b"and more"],
        [b"", HELLO],
        [HELLO + b"\0"],
        [wire.encode(wire.Call(1, 9999, 1, []))],
        [wire.encode(wire.Call(1, 0, 1, ["1", "0"]))],
        [wire.encode(wire.Call(1, 3, 1, []))],
    ],
    ids=[
        "empty",
        "reserved",
        "noise",
        "deep",
        "huge-claim",
        "two-parts",
        "empty-part",
        "trailing",
        "no-such-nr",
        "wrong-type",
        "no-hello",
    ],
)
def test_a_malformed_message_faults_its_sender_only(runtime: Live, context: Peers, parts: list[bytes]) -> None:
    before = runtime.refused("malformed") + runtime.refused("malformed call")
    sock = dealer(context, runtime, "operator.sock")
    sock.send_multipart(parts)
    runtime.until(
        lambda: runtime.refused("malformed") + runtime.refused("malformed call") > before, "the message is counted"
    )
    sock.send(HELLO)
    while (frame := answer(sock)) is not None:
        if isinstance(frame, wire.Reply) and frame.ok:
            break
    assert frame is not None, "the sender itself may go on, in good manners"
    runtime.goes_on(1)


def test_a_giant_frame_costs_its_sender_the_connection(runtime: Live, context: Peers) -> None:
    sock = dealer(context, runtime, "operator.sock")
    monitor = sock.get_monitor_socket(zmq.EVENT_DISCONNECTED)
    sock.send(bytes(limits.FRAME_BYTES_MAX + 1))
    assert monitor.poll(20_000), "libzmq hangs up at MAXMSGSIZE"
    sock.disable_monitor()
    monitor.close()
    runtime.goes_on()


def test_an_operator_on_the_page_socket_maps_what_its_own_sessions_hold_and_nothing_else(runtime: Live) -> None:
    """A handle is nothing without its session, and no session of another process can be named, neither to map nor to offer."""
    path = runtime.sockets / "pages.sock"
    mine = PageSocket(path, runtime.client.principal)
    for handle in (0, 1, 2, 1 << 40):
        with pytest.raises(RecurosError) as refused:
            mine.map(handle)
        assert refused.value.code == "E5-DENIED"
    before = runtime.refused("malformed page message")
    for principal in ("operator:1.1", "learner", ""):
        other = PageSocket(path, principal)
        with pytest.raises(RecurosError) as refused:
            other.map(1)
        assert refused.value.code == "E2-WIRE"
        other.close()
    page = WritePage(64)
    other = PageSocket(path, "operator:1.1")
    with pytest.raises(RecurosError) as refused:
        other.offer(page)
    assert refused.value.code == "E2-WIRE"
    other.close()
    page.close()
    mine.close()
    assert runtime.refused("malformed page message") == before + 4
    runtime.goes_on(1)


def test_a_flood_of_strangers_keeps_nobody_out_for_long(runtime: Live, context: Peers) -> None:
    before = runtime.refused("handshake")
    for _ in range(limits.HANDSHAKES_PER_SECOND_MAX + 50):
        dealer(context, runtime, "server.sock").send(HELLO)
    runtime.until(lambda: runtime.refused("handshake") > before + 20, "strangers are counted")
    pid = runtime.server("gpu")["pid"]
    os.kill(pid, signal.SIGKILL)
    runtime.until(
        lambda: (s := runtime.server("gpu"))["pid"] != pid and s["state"] == "ready",
        "a spawned server gets in all the same",
    )
    runtime.watch()
    with Client(runtime.run) as late:
        assert late.status()["status"]["state"] == "running", "an operator that came in the flood is let in after it"
    runtime.goes_on(1)


def test_operators_have_the_rights_of_the_manifest_and_no_others(runtime: Live) -> None:
    with Client(runtime.run) as client:
        (own,) = client.cap_list()["caps"]
        assert set(own["rights"]) == set(OPERATOR)
        with pytest.raises(RecurosError) as caught:
            client.window_rolled_back(window=1, code="E1-NO", reason="", restored="")
        assert caught.value.code == "E5-DENIED"


def test_a_derived_capability_is_seen_used_and_revoked(runtime: Live) -> None:
    with Client(runtime.run) as client, Client(runtime.run) as other:
        given = client.cap_derive(cap=1, rights=["interrupt"], to=other.principal, badge="night shift")
        assert given["seq"] >= 0, "a derivation is a record"
        derived = next(c for c in other.cap_list()["caps"] if c["slot"] == given["slot"])
        assert (derived["rights"], derived["badge"]) == (["interrupt"], "night shift")
        other.syscall("interrupt", slot=given["slot"], kind="resume")
        with pytest.raises(RecurosError, match="steer"):
            other.syscall("rl_set_kd", slot=given["slot"], temperature=2.0)
        assert client.cap_revoke(cap=1)["removed"] == 1
        with pytest.raises(RecurosError, match="holds no capability"):
            other.syscall("interrupt", slot=given["slot"], kind="resume")
    runtime.goes_on(1)


def test_a_hostile_observer_gets_nowhere_and_nobody_else_notices(tmp_path: Path) -> None:
    with live(tmp_path / "run", hostile=True) as runtime:
        report = runtime.run / "hostile.json"
        runtime.until(report.exists, "the attacks are over")
        runtime.until(
            lambda: runtime.server("observer")["incarnation"] == 2, "the write to the page killed the observer"
        )
        runtime.until(lambda: runtime.server("observer")["state"] == "ready", "and it was restarted")
        found = json.loads(report.read_text())
        assert len(found) > 50
        assert not {k: v for k, v in found.items() if v in ("succeeded", "admitted")}
        for attack, result in found.items():
            if attack.startswith(("syscall", "map slot", "call")):
                assert result == "E5-DENIED", (attack, result)
            elif attack == "operator of a server":
                assert result == "E5-DENIED", result
            else:
                assert result in ("EPERM", "EACCES"), (attack, result)
        assert "write page" not in found, "the process went on after its write"
        exits = [
            e for e in runtime.client.events(limit=4096)["events"] if e["kind"] == "exit" and e["name"] == "observer"
        ]
        assert [e["status"] for e in exits] == [-signal.SIGSEGV]
        others = {s["name"]: s["restarts"] for s in runtime.status()["servers"] if s["name"] != "observer"}
        assert set(others.values()) == {0}
        runtime.goes_on()
        status = runtime.status()
        assert status["windows"]["missed"] == status["windows"]["rolled_back"] == 0
        assert any("descends from server observer" in m for m in faults(runtime))
        runtime.halt()
        assert not runtime.sockets.exists()
