"""The watched process's end of its archivist.

Responsible for: starting the child that holds the store, requests that are answered at once, and one commit at a time that is
answered later. Refuses: to block the training step for a disk; a commit that is still under way is asked about, not waited for.
"""

from __future__ import annotations

import os
import select
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Final

import msgpack

from servers.archivist.child import MESSAGE_BYTES_MAX
from syscalls import wire
from syscalls.errors import RecurosError
from syscalls.pages import WritePage

START_TIMEOUT_S: Final = 60.0
TIMEOUT_S: Final = 120.0
_SHIM: Final = (
    "import os, sys; fd = int(sys.argv[1]); os.dup2(fd, 3); os.set_inheritable(3, True); "
    "os.execv(sys.executable, [sys.executable, '-P', '-m', 'servers.archivist.child', sys.argv[2]])"
)


class Writer:
    """The archivist of one store; E3-BUSY when another process writes it."""

    def __init__(self, store: Path, log: Path) -> None:
        mine, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._sock = mine
        self._number = 0
        self._under_way = -1
        self._answers: dict[int, list[Any]] = {}
        self._owner = os.getpid()
        for side in (mine, theirs):
            side.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2 * MESSAGE_BYTES_MAX)
        with theirs, log.open("ab") as out:
            command = [sys.executable, "-P", "-c", _SHIM, str(theirs.fileno()), str(store)]
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, pass_fds=(theirs.fileno(),),
                start_new_session=True,  # a Ctrl-C at the script's terminal is not meant for it
            )  # fmt: skip
        try:
            self._await(0, START_TIMEOUT_S)
        except BaseException:
            self._process.kill()
            self._process.wait()
            mine.close()
            raise

    @property
    def pid(self) -> int:
        """Of the child."""
        return self._process.pid

    def ask(self, method: str, **args: Any) -> dict[str, Any]:
        """A request and its answer."""
        return self._await(self._send(method, args), TIMEOUT_S)

    def commit(self, page: WritePage, draft: bytes) -> None:
        """Send a commit; `done` tells when it is durable. There is one at a time."""
        self._under_way = self._send("commit", {"draft": draft}, page.fd)

    @property
    def busy(self) -> bool:
        """Whether a commit is under way."""
        return self._under_way >= 0

    def done(self, timeout_s: float = 0.0) -> dict[str, Any] | None:
        """The answer to the commit under way, None while it is not there; raises what the archivist answered."""
        if self._under_way < 0:
            return None
        deadline = time.monotonic() + timeout_s
        while self._under_way not in self._answers:
            if not self._receive(max(0.0, deadline - time.monotonic())):
                return None
        number, self._under_way = self._under_way, -1
        return self._taken(number)

    def close(self) -> int:
        """Let the child sign and end; its exit status. In a forked process only this end is closed."""
        self._sock.close()
        return self._process.wait(TIMEOUT_S) if os.getpid() == self._owner else 0

    def _send(self, method: str, args: dict[str, Any], fd: int = -1) -> int:
        self._number += 1
        data = msgpack.packb([self._number, method, args], use_bin_type=True)
        if len(data) > MESSAGE_BYTES_MAX:
            raise RecurosError("E2-LIMIT", f"a request of {len(data)} bytes; the limit is {MESSAGE_BYTES_MAX}")
        try:
            socket.send_fds(self._sock, [data], [fd] if fd >= 0 else [])
        except OSError as error:
            raise self._gone() from error
        return self._number

    def _await(self, number: int, timeout_s: float) -> dict[str, Any]:
        deadline = time.monotonic() + timeout_s
        while number not in self._answers:
            left = deadline - time.monotonic()
            if not self._receive(max(0.0, left)) and left <= 0:
                raise RecurosError("E124-TIMEOUT", f"the archivist (pid {self.pid}) did not answer in {timeout_s:g} s")
        return self._taken(number)

    def _taken(self, number: int) -> dict[str, Any]:
        _, ok, value = self._answers.pop(number)
        if not ok:
            raise RecurosError.from_wire(value)
        found: dict[str, Any] = value
        return found

    def _receive(self, timeout_s: float) -> bool:
        if not select.select([self._sock], [], [], timeout_s)[0]:
            return False
        try:
            data = self._sock.recv(MESSAGE_BYTES_MAX)
        except OSError as error:  # a killed child resets a connection that it had not read to the end
            raise self._gone() from error
        if not data:
            raise self._gone()
        answer = wire.unpack(data)
        self._answers[answer[0]] = answer
        return True

    def _gone(self) -> RecurosError:
        return RecurosError(
            "E3-GONE",
            f"the archivist (pid {self.pid}) has gone",
            hint="what it acknowledged is in the store: recuros kfs verify",
        )
