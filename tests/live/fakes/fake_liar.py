"""An observer that uses its direct channel to the dataset server well first, and then in every way that it must not.

What came of each goes to RUN/liar.json; afterwards it is a good observer again.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
from typing import Any

from fake_observer import FakeObserver, outcome

from syscalls import abi, direct, wire
from syscalls.serve import Kernel, serve

SPLIT = abi.METHOD_BY_NAME["dataset.split"].nr
FILL = abi.METHOD_BY_NAME["dataset.fill"].nr
APPEND = abi.METHOD_BY_NAME["archivist.append"].nr
STRANGER = """
import socket, sys
back = socket.socket(fileno=int(sys.argv[1]))
mine, theirs = socket.socketpair()
socket.send_fds(back, [b"x"], [theirs.fileno()])
back.recv(1)
"""


class Raw:
    """A channel opened by hand; what is sent on it is the test's own."""

    def __init__(self, kernel: Kernel) -> None:
        self.sock, theirs = direct.pair()
        told = kernel.syscall("channel_open", endpoint=kernel.caps["dataset"], end=kernel.offer_end(theirs))
        theirs.close()
        kernel.release(told["table"])
        self.id = told["channel"]
        self.sock.setblocking(True)
        self.sock.settimeout(20.0)
        assert self.sock.recv(1) == direct.TAKEN

    def send(self, data: bytes) -> None:
        self.sock.sendall(len(data).to_bytes(4, "little") + data)

    def call(self, nr: int, args: list[Any], channel: int = 0, number: int = 1) -> None:
        self.send(wire.encode(wire.Call(number, nr, channel or self.id, args)))

    def told(self) -> str:
        """The code of the next answer, or "closed"."""
        try:
            size = int.from_bytes(self.sock.recv(4, socket.MSG_WAITALL), "little")
            data = self.sock.recv(size, socket.MSG_WAITALL) if size else b""
        except ConnectionResetError:
            return "closed"
        if not data:
            return "closed"
        reply = wire.decode(data)
        assert isinstance(reply, wire.Reply)
        return "answered" if reply.ok else str(reply.payload[0])

    def last(self) -> str:
        """What comes after every answer."""
        while (told := self.told()) == "answered":
            pass
        return told


class Liar(FakeObserver):
    def trace(self, window: int, page: int, **rest: Any) -> None:
        report = self.report.with_name("liar.json")
        if window >= 3 and not report.exists():
            found = {"split": self.split(), **self.lies()}
            report.with_suffix(".part").write_text(json.dumps(found))
            report.with_suffix(".part").rename(report)
        super().trace(window, page, **rest)

    def split(self) -> str:
        handle = int(self.kernel.call("dataset.split", name="validation")["page"])
        source = self.kernel.map(handle)
        size = source.size
        source.close()
        self.kernel.release(handle)
        return f"{'direct' if handle < 0 else 'kernel'} {size}"

    def lies(self) -> dict[str, str]:
        found = {name: self.lie(lie) for name, lie in LIES.items()}
        found["an end of a stranger"] = outcome(self.stranger)
        found["an end that is a file"] = outcome(lambda: self.kernel.pages.offer_end(os.memfd_create("x")))
        mine, theirs = direct.pair()
        end = self.kernel.offer_end(theirs)
        open_gpu = {"endpoint": self.kernel.caps["gpu"], "end": end}
        found["a server that is not granted"] = outcome(lambda: self.kernel.syscall("channel_open", **open_gpu))
        mine.close()
        theirs.close()
        found["the good one again"] = self.split()
        return found

    def lie(self, lie: Any) -> str:
        raw = Raw(self.kernel)
        with contextlib.suppress(BrokenPipeError, ConnectionResetError, TimeoutError):
            lie(raw)
        told = raw.last()
        raw.sock.close()
        return told

    def stranger(self) -> None:
        here, there = socket.socketpair()
        child = subprocess.Popen([sys.executable, "-c", STRANGER, str(there.fileno())], pass_fds=(there.fileno(),))
        _, (end,), _, _ = socket.recv_fds(here, 1, 1)
        try:
            self.kernel.pages.offer_end(end)
        finally:
            os.close(end)
            here.send(b"x")
            child.wait()
            here.close()
            there.close()


def descriptors(raw: Raw) -> None:
    fds = [os.dup(raw.sock.fileno()) for _ in range(12)]
    for _ in range(3):
        socket.send_fds(raw.sock, [b"\xff"], fds)
    for fd in fds:
        os.close(fd)


def flood(raw: Raw) -> None:
    frames = [wire.encode(wire.Call(i, SPLIT, raw.id, ["train"])) for i in range(1, 2_000)]
    raw.sock.sendall(b"".join(len(f).to_bytes(4, "little") + f for f in frames))


LIES: dict[str, Any] = {
    "what only the kernel asks": lambda raw: raw.call(FILL, []),
    "a method of another server": lambda raw: raw.call(APPEND, [[]]),
    "no such method": lambda raw: raw.call(9999, []),
    "wrong arguments": lambda raw: raw.call(SPLIT, [1, 2, 3]),
    "another channel's number": lambda raw: raw.call(SPLIT, ["train"], channel=raw.id + 1),
    "an answer": lambda raw: raw.send(wire.encode(wire.Reply(1, True, []))),
    "noise": lambda raw: raw.send(os.urandom(100)),
    "a giant": lambda raw: raw.sock.sendall(b"\xff\xff\xff\x7f" + bytes(1000)),
    "descriptors": descriptors,
    "a flood": flood,
}


if __name__ == "__main__":
    raise SystemExit(serve("observer", Liar))
