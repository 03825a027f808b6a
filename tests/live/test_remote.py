"""Operators over TCP: a listed key is a principal with the operator's rights, everybody and everything else comes to nothing."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import zmq
from harness import OPERATOR, Live, document

from kfs.records import RecordKind
from kfs.store import Store
from syscalls import abi, wire
from syscalls.client import Client
from syscalls.errors import RecurosError
from syscalls.remote import Card, load_card, make_card, server_keys

WAIT_S = 20.0


@pytest.fixture(scope="module")
def remote(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Live, Card]]:
    """A runtime that lets one key in, and that operator's card."""
    base = tmp_path_factory.mktemp("remote")
    (base / "run").mkdir()
    public, _ = server_keys(base / "run")
    made = make_card(base / "me.toml", "tcp://127.0.0.1:1", public)
    doc = document(base / "run")
    doc["remote"] = {"listen": "127.0.0.1:*", "allow": [made.public]}
    live = Live(base / "run", doc)
    try:
        live.up()
        at = live.status()["kernel"]["remote"]
        assert at["key"] == public
        text = (base / "me.toml").read_text().replace("tcp://127.0.0.1:1", at["address"])
        (base / "me.toml").write_text(text)
        yield live, load_card(base / "me.toml")
        live.halt()
    finally:
        live.clean()


def port(card: Card) -> int:
    return int(card.address.rpartition(":")[2])


def interrupts(live: Live) -> int:
    """Durable records of pauses and resumes."""
    with Store.open_reader(live.run / "store") as store:
        return sum(r.kind is RecordKind.INTERRUPT for r in map(store.record, range(store.size)))


def connect(card: Card) -> Client:
    return Client(Path("nowhere"), timeout_s=WAIT_S, card=card)


def test_a_listed_key_is_a_principal_with_the_operators_rights_and_no_pages(remote: tuple[Live, Card]) -> None:
    live, card = remote
    with connect(card) as client:
        assert client.principal.startswith("operator:key-")
        assert client.status()["status"]["state"] == "running"
        (own,) = client.cap_list()["caps"]
        assert set(own["rights"]) == set(OPERATOR)
        before = interrupts(live)
        client.interrupt(kind="pause")
        client.interrupt(kind="resume")
        assert interrupts(live) == before + 2
        with pytest.raises(RecurosError) as refused:
            client.probe_page(id=1)
        assert refused.value.code == "E1-NO"
        with pytest.raises(RecurosError, match="stay on the machine"):
            client.map(1)
        with pytest.raises(RecurosError) as refused:
            client.window_rolled_back(window=1, code="E1-NO", reason="", restored="")
        assert refused.value.code == "E5-DENIED"
    live.goes_on(1)


def test_the_command_line_connects_with_the_file(remote: tuple[Live, Card], tmp_path: Path) -> None:
    live, _ = remote
    file = live.run.parent / "me.toml"
    done = subprocess.run(
        [sys.executable, "-P", "-m", "console.main", "--run", str(tmp_path), "status", "--json"],
        env={**os.environ, "RECUROS_REMOTE": str(file)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert '"app": "live"' in done.stdout or '"app":"live"' in done.stdout
    file.chmod(0o644)
    try:
        with pytest.raises(RecurosError, match="others may read") as refused:
            load_card(file)
    finally:
        file.chmod(0o600)
    assert refused.value.code == "E5-DENIED"


def test_another_key_is_refused_counted_and_told_so(remote: tuple[Live, Card]) -> None:
    live, card = remote
    before = live.refused("handshake")
    public, secret = (key.decode() for key in zmq.curve_keypair())
    with pytest.raises(RecurosError, match="refused the key") as refused:
        connect(Card(card.address, card.server, public, secret))
    assert refused.value.code == "E5-DENIED"
    assert live.refused("handshake") > before
    live.goes_on(1)


def test_the_listed_key_without_its_secret_or_at_another_server_is_nobody(remote: tuple[Live, Card]) -> None:
    live, card = remote
    _, other = (key.decode() for key in zmq.curve_keypair())
    stranger, _ = (key.decode() for key in zmq.curve_keypair())
    for wrong in (
        Card(card.address, card.server, card.public, other),
        Card(card.address, stranger, card.public, card.secret),
    ):
        with pytest.raises(RecurosError) as refused:
            Client(Path("nowhere"), timeout_s=1.0, card=wrong)
        assert refused.value.code in ("E5-DENIED", "E124-TIMEOUT")
    live.goes_on(1)


@pytest.mark.parametrize(
    "data",
    [b"", os.urandom(4000), b"GET / HTTP/1.1\r\n\r\n", b"\xff" + bytes(8) + b"\x7f\x03\x00NULL"],
    ids=["nothing", "noise", "http", "null"],
)
def test_bytes_that_are_no_handshake_do_nothing(remote: tuple[Live, Card], data: bytes) -> None:
    live, card = remote
    sock = socket.create_connection(("127.0.0.1", port(card)), timeout=WAIT_S)
    with sock, contextlib.suppress(OSError):  # it may be cut off at the first byte, or at any later one
        sock.sendall(data)
        sock.shutdown(socket.SHUT_WR)
        while sock.recv(4096):
            pass
    live.goes_on(1)


def test_a_peer_without_curve_is_never_heard(remote: tuple[Live, Card]) -> None:
    live, card = remote
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    sock = context.socket(zmq.DEALER)
    sock.setsockopt(zmq.LINGER, 0)
    sock.connect(card.address)
    sock.send(wire.encode(wire.Call(1, 0, 1, [abi.ABI_MAJOR, abi.ABI_MINOR])))
    live.goes_on(2)
    assert not sock.poll(100)
    sock.close()
    context.term()


def test_a_recorded_session_that_is_played_again_does_nothing(remote: tuple[Live, Card]) -> None:
    """Every byte of a session that paused and resumed the plan, to the same port: the keys of the connection are gone."""
    live, card = remote
    listener = socket.create_server(("127.0.0.1", 0))
    recorded: list[bytes] = []

    def relay() -> None:
        here, _ = listener.accept()
        there = socket.create_connection(("127.0.0.1", port(card)))

        def back() -> None:
            with contextlib.suppress(OSError):
                while data := there.recv(4096):
                    here.sendall(data)

        answers = threading.Thread(target=back)
        answers.start()
        with contextlib.suppress(OSError):
            while data := here.recv(4096):
                recorded.append(data)
                there.sendall(data)
        with contextlib.suppress(OSError):
            there.shutdown(socket.SHUT_RDWR)
        answers.join()
        there.close()
        here.close()

    proxy = threading.Thread(target=relay)
    proxy.start()
    through = Card(f"tcp://127.0.0.1:{listener.getsockname()[1]}", card.server, card.public, card.secret)
    with connect(through) as client:
        client.interrupt(kind="pause")
        client.interrupt(kind="resume")
    proxy.join(WAIT_S)
    listener.close()
    before = interrupts(live)
    assert before >= 2
    assert sum(map(len, recorded)) > 200
    with socket.create_connection(("127.0.0.1", port(card)), timeout=WAIT_S) as sock:
        sock.sendall(b"".join(recorded))
        sock.shutdown(socket.SHUT_WR)
        with contextlib.suppress(ConnectionResetError, TimeoutError):
            while sock.recv(4096):
                pass
    live.goes_on(2)
    assert live.status()["state"] == "running"
    assert interrupts(live) == before


def test_a_port_that_is_taken_fails_the_boot_with_its_reason(remote: tuple[Live, Card], tmp_path: Path) -> None:
    _, card = remote
    doc = document(tmp_path / "run")
    doc["remote"] = {"listen": f"127.0.0.1:{port(card)}", "allow": [card.public]}
    live = Live(tmp_path / "run", doc)
    try:
        events = live.ended()
        failed = next(e for e in events if e["event"] == "failed")
        assert failed["error"][0] == "E3-BOOT"
        assert "Address already in use" in failed["error"][1]
    finally:
        live.clean()
