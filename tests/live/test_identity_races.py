"""Who a peer is while that is just changing: a server that is faster than its supervisor's word, and what servers leave behind.

The kernel's process and its sockets are the real ones; the test plays the supervisor, so that it decides when a word is said.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgpack
import pytest
import zmq
from harness import PATIENCE_S, ROOT, document

from syscalls import harden
from syscalls.client import Client
from syscalls.rundir import make_socket_dir

SERVER = """
import sys
from pathlib import Path
from syscalls.pages import WritePage
from syscalls.serve import Kernel
kernel = Kernel(Path(sys.argv[1]), "archivist")
print("connecting", flush=True)
kernel.hello()
print(kernel.principal, kernel.offer(WritePage(4096)) > 0, flush=True)
sys.stdin.read()
"""
ORPHAN = """
import os, sys, time
from pathlib import Path
from syscalls.client import Client
from syscalls.errors import RecurosError
if os.fork():  # the server: its child's child is to be nobody's
    os.wait()
    sys.stdin.read()
    os._exit(0)
parent = os.getpid()
if os.fork():
    os._exit(0)
while os.getppid() == parent:  # until it has been adopted
    time.sleep(0.001)
try:
    Client(Path(sys.argv[1]), timeout_s=20.0)
    found = "admitted"
except RecurosError as error:
    found = error.code
print(os.getpid(), found, flush=True)
"""


class Played:
    """A kernel process whose supervisor is this one."""

    def __init__(self, run: Path) -> None:
        for name in ("log", "store", "keys"):
            (run / name).mkdir(parents=True)
        self.run, self.sockets = run, make_socket_dir(run)
        doc = {**document(run), "sockets": str(self.sockets)}
        self.control, end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.control.settimeout(PATIENCE_S)
        env = {**os.environ, "PYTHONPATH": str(ROOT), "RECUROS_PARENT": str(os.getpid())}
        self.kernel = subprocess.Popen(
            [sys.executable, "-P", "-m", "kernel"],
            stdin=subprocess.PIPE,
            env={**env, "RECUROS_CONTROL": str(end.fileno())},
            pass_fds=(end.fileno(),),
        )
        end.close()
        assert self.kernel.stdin is not None
        self.kernel.stdin.write(msgpack.packb(doc))
        self.kernel.stdin.close()
        self.children: list[subprocess.Popen[str]] = []
        while self.heard()[:2] != ["spawn", "archivist"]:
            pass

    def heard(self) -> list[Any]:
        message: list[Any] = msgpack.unpackb(self.control.recv(1 << 20))
        return message

    def start(self, code: str, *args: str) -> subprocess.Popen[str]:
        child = subprocess.Popen(
            [sys.executable, "-P", "-c", code, *args],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        self.children.append(child)
        return child

    def announce(self, child: subprocess.Popen[str]) -> None:
        """The word of a supervisor that has started a server."""
        pidfd = os.pidfd_open(child.pid)
        socket.send_fds(self.control, [msgpack.packb(["spawned", "archivist", 1, child.pid])], [pidfd])
        os.close(pidfd)

    def close(self) -> None:
        for child in self.children:
            child.kill()
            child.communicate()
        self.kernel.kill()
        self.kernel.wait()
        self.control.close()


@pytest.fixture
def played(tmp_path: Path) -> Iterator[Played]:
    played = Played(tmp_path / "run")
    try:
        yield played
    finally:
        played.close()
        for path in played.sockets.iterdir():
            path.unlink()
        played.sockets.rmdir()


def line(child: subprocess.Popen[str]) -> str:
    assert child.stdout is not None
    return child.stdout.readline().strip()


GREETING = b"\xff" + bytes(8) + b"\x7f" + b"\x03\x01" + b"NULL".ljust(20, b"\0") + bytes(32)
"""ZMTP 3.1: its signature, its version, the mechanism NULL."""


def refused_at(path: Path) -> None:
    """Connect as somebody who is not let in, and wait until that is said."""
    context = zmq.Context()
    sock = context.socket(zmq.DEALER)
    monitor = sock.get_monitor_socket(zmq.EVENT_HANDSHAKE_FAILED_AUTH)
    sock.connect(f"ipc://{path}")
    assert monitor.poll(PATIENCE_S * 1000)
    sock.disable_monitor()
    monitor.close(0)
    sock.close(0)
    context.term()


def test_a_server_that_is_faster_than_its_supervisors_word_is_let_in_after_it(played: Played) -> None:
    """Two boots in six hundred hung on this: a refusal is for good, and nobody tells the process."""
    child = played.start(SERVER, str(played.sockets))
    assert line(child) == "connecting"
    refused_at(played.sockets / "server.sock")  # handshakes are taken in their order: the server's was before
    played.announce(child)
    assert line(child) == "archivist True", "it has a session, and its pages are a server's"
    with Client(played.run) as client:
        assert client.status()["status"]["refused"]["handshake"] >= 1


def test_a_process_that_was_not_announced_is_no_operator_either(played: Played) -> None:
    """It is the supervisor's child, as every server: which one it is, or that it is none, the supervisor has yet to say."""
    code = "import sys\nfrom syscalls.client import Client\nfrom pathlib import Path\nClient(Path(sys.argv[1]), timeout_s=20.0)"
    child = played.start(code, str(played.run))
    assert child.wait(PATIENCE_S) == 1
    with Client(played.run) as client:
        messages = [e.get("message", "") for e in client.events(limit=4096)["events"]]
        assert client.status()["status"]["refused"]["handshake"] == 1, messages


def test_what_a_server_disowns_is_no_operator(played: Played) -> None:
    """It is adopted by the supervisor, from which no operator descends."""
    harden.prctl(harden.PR_SET_CHILD_SUBREAPER, 1)
    try:
        server = played.start(ORPHAN, str(played.run))
        played.announce(server)
        pid, found = line(server).split()
        os.waitpid(int(pid), 0)
    finally:
        harden.prctl(harden.PR_SET_CHILD_SUBREAPER, 0)
    assert found == "E5-DENIED"


def test_a_connection_of_a_process_that_has_gone_makes_nobody_an_operator(played: Played) -> None:
    """Who opened it, and what that process came from, nobody can tell any more; whoever holds it now may be a server's child."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    pid = os.fork()
    if not pid:
        sock.connect(str(played.sockets / "operator.sock"))
        os._exit(0)
    os.waitpid(pid, 0)
    sock.settimeout(PATIENCE_S)
    sock.sendall(GREETING)
    ready = b"\x05READY\x0bSocket-Type\x00\x00\x00\x06DEALER\x08Identity\x00\x00\x00\x00"
    got = b""
    while len(got) < 64:
        got += sock.recv(4096)
    sock.sendall(bytes([4, len(ready)]) + ready)
    answer = got[64:]
    while b"ERROR" not in answer and b"READY" not in answer:
        data = sock.recv(4096)
        assert data, "hung up without a word"
        answer += data
    assert b"ERROR\x03400" in answer
    sock.close()
