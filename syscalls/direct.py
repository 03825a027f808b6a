"""Direct channels: the two ends of a connection between servers that the kernel granted.

The caller makes a pair of connected sockets and gives one end to the kernel, which checks who made it and hands it to the callee
together with the caller's pid, the methods that its rights allow, credits in messages and bytes, and a generation. Frames are those
of `syscalls.wire`, each after four bytes of length; a page travels as its descriptor beside the frame that names it.

Responsible for: attesting the other process (SO_PEERCRED of the pair tells the callee who made it, SCM_CREDENTIALS of the first byte
tells the caller who took it), bounded buffers in both directions that never block, and the generation: a word in a page that the
kernel writes and both ends read before every message, so that a revocation holds from the moment that the kernel stores it. Refuses:
everything that the grant does not name; a caller that breaks the rules loses the channel and is reported.
"""

from __future__ import annotations

import array
import contextlib
import os
import socket
from collections import deque
from dataclasses import dataclass, field
from typing import Any, Final

from syscalls import abi, wire
from syscalls.errors import RecurosError
from syscalls.pages import ReadPage

READ_BYTES: Final = 1 << 16
FDS_MAX: Final = 16
"""Descriptors that may have arrived and not been named by a frame."""
ABOUT_BYTES: Final = socket.CMSG_SPACE(4 * FDS_MAX) + socket.CMSG_SPACE(12)
LENGTH: Final = 4
SO_PASSCRED: Final = socket.SO_PASSCRED
SCM_CREDENTIALS: Final = socket.SCM_CREDENTIALS
TAKEN: Final = b"\x01"
HELD_BYTES_MAX: Final = 1 << 15
"""Answers that wait to go in one system call."""


def pair() -> tuple[socket.socket, socket.socket]:
    """The caller's own end and the one that goes to the callee."""
    mine, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    mine.setblocking(False)
    mine.setsockopt(socket.SOL_SOCKET, SO_PASSCRED, 1)  # the first byte will say which process took the other end
    return mine, theirs


def maker(fd: int) -> int:
    """The pid that made the pair which this end belongs to; E2-WIRE when it is not an end of a Unix stream."""
    try:
        with socket.socket(fileno=os.dup(fd)) as end:
            if end.family != socket.AF_UNIX or end.type != socket.SOCK_STREAM:
                raise RecurosError("E2-WIRE", "an end of a channel is a Unix stream socket")
            return int.from_bytes(end.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)[:4], "little")
    except OSError as e:
        raise RecurosError("E2-WIRE", f"an offered end of a channel is not a socket: {e.strerror}") from e


class Generations:
    """The page that says which channels stand; a reader's view, or (in the kernel) the writer's."""

    def __init__(self, view: memoryview) -> None:
        self._words = view.cast("Q")

    def __getitem__(self, index: int) -> int:
        return self._words[index]

    def __setitem__(self, index: int, generation: int) -> None:
        self._words[index] = generation

    def close(self) -> None:
        """Let go of the page."""
        self._words.release()


class End:
    """One end: frames and descriptors in and out, without blocking."""

    def __init__(self, sock: socket.socket, frame_max: int, backlog_max: int) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._frame_max, self._backlog_max = frame_max, backlog_max
        self._in = b""
        self._held = bytearray()
        self._space = memoryview(bytearray(READ_BYTES))
        self._out: deque[tuple[memoryview, list[int]]] = deque()
        self._out_bytes = 0
        self.fds: deque[int] = deque()

    def fileno(self) -> int:
        """For pollers."""
        return self._sock.fileno()

    @property
    def backlog(self) -> int:
        """Bytes that the other side has not had room for."""
        return self._out_bytes

    def send(self, data: bytes, fds: list[int], *, hold: bool = False) -> None:
        """Queue a frame and send what fits; the descriptors are duplicated. E75-FULL when the other side does not read.

        With `hold` the frame may wait for others that go with it in one system call, until `release` or the next frame without it.
        """
        if self._out_bytes + len(self._held) + len(data) > self._backlog_max:
            raise RecurosError("E75-FULL", f"{self._out_bytes} bytes wait for a peer that does not read")
        framed = len(data).to_bytes(LENGTH, "little") + data
        if self._held or hold:
            self._held += framed
            if hold and not fds and len(self._held) < HELD_BYTES_MAX:
                return
            framed = bytes(self._held)
            self._held.clear()
        self._put(framed, fds)

    def release(self) -> None:
        """Send what was held."""
        if self._held:
            held = bytes(self._held)
            self._held.clear()
            self._put(held, [])

    def _put(self, framed: bytes, fds: list[int]) -> None:
        if not fds and not self._out:
            try:
                sent = self._sock.send(framed)
            except BlockingIOError:
                sent = 0
            except OSError as e:
                raise RecurosError("E3-GONE", f"the other end has gone: {e.strerror}") from e
            if sent == len(framed):
                return
            framed = framed[sent:]
        packed = memoryview(framed)
        self._out.append((packed, [os.dup(fd) for fd in fds]))
        self._out_bytes += len(packed)
        self.flush()

    def flush(self) -> None:
        """Send what fits now; E3-GONE when the other side has gone."""
        while self._out:
            data, fds = self._out[0]
            about = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
            try:
                sent = self._sock.sendmsg([data], about)
            except BlockingIOError:
                return
            except OSError as e:
                raise RecurosError("E3-GONE", f"the other end has gone: {e.strerror}") from e
            for fd in fds:
                os.close(fd)
            self._out_bytes -= sent
            if sent < len(data):
                self._out[0] = (data[sent:], [])
            else:
                self._out.popleft()

    def receive(self) -> list[bytes]:
        """Whole frames that have arrived, at most about READ_BYTES at a time. E3-GONE at the end; E2-WIRE breaks the channel."""
        try:
            size, about, flags, _ = self._sock.recvmsg_into(
                [self._space], ABOUT_BYTES, socket.MSG_CMSG_CLOEXEC | socket.MSG_DONTWAIT
            )
        except BlockingIOError:
            return []
        except OSError as e:
            raise RecurosError("E3-GONE", f"the other end has gone: {e.strerror}") from e
        for level, kind, body in about:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                got = array.array("i")
                got.frombytes(body[: len(body) - len(body) % got.itemsize])
                self.fds.extend(got)
        if flags & socket.MSG_CTRUNC or len(self.fds) > FDS_MAX:
            raise RecurosError("E2-WIRE", f"more than {FDS_MAX} descriptors that no frame names")
        if not size:
            raise RecurosError("E3-GONE", "the other end was closed")
        return self._frames(self._in + self._space[:size] if self._in else bytes(self._space[:size]))

    def _frames(self, data: bytes) -> list[bytes]:
        frames = []
        at, end = 0, len(data)
        while end - at >= LENGTH:
            length = int.from_bytes(data[at : at + LENGTH], "little")
            if length > self._frame_max:
                raise RecurosError("E2-WIRE", f"a frame of {length} bytes; the channel takes {self._frame_max}")
            after = at + LENGTH + length
            if after > end:
                break
            frames.append(data[at + LENGTH : after])
            at = after
        self._in = data[at:]
        return frames

    def took(self) -> int:
        """The caller's first read: the pid of the process that holds the other end, 0 while it has said nothing."""
        try:
            data, about, _, _ = self._sock.recvmsg(len(TAKEN), socket.CMSG_LEN(12), socket.MSG_DONTWAIT)
        except BlockingIOError:
            return 0
        self._sock.setsockopt(socket.SOL_SOCKET, SO_PASSCRED, 0)
        for level, kind, body in about:
            if data == TAKEN and level == socket.SOL_SOCKET and kind == SCM_CREDENTIALS:
                return int.from_bytes(body[:4], "little")
        return -1

    def take(self) -> None:
        """The callee's first byte."""
        self._sock.send(TAKEN)

    def close(self) -> None:
        """Close the socket and every descriptor that was not handed on; what was held leaves first, where there is room for it."""
        with contextlib.suppress(RecurosError):
            self.release()
        with contextlib.suppress(OSError):
            self._sock.close()
        for fds in (list(self.fds), *(fds for _, fds in self._out)):
            for fd in fds:
                os.close(fd)
        self.fds.clear()
        self._out.clear()
        self._held.clear()
        self._out_bytes = 0


@dataclass
class Channel:
    """What both ends know of a channel."""

    id: int
    peer: str
    end: End
    table: ReadPage
    index: int
    generation: int
    messages_max: int
    bytes_max: int
    words: Generations = field(init=False)
    closed: bool = False
    wants_out: bool = False  # whether it is watched for room

    def __post_init__(self) -> None:
        self.words = Generations(self.table.view)

    @property
    def stands(self) -> bool:
        """Whether the kernel has not taken it back."""
        return not self.closed and self.words[self.index] == self.generation

    def close(self) -> None:
        """Give everything back, the mapping of the page of generations too."""
        self.closed = True
        self.end.close()
        self.words.close()
        self.table.close()


@dataclass
class Outgoing(Channel):
    """The caller's side."""

    open: dict[int, tuple[int, abi.Row]] = field(default_factory=dict)  # calls under way -> their bytes, their method
    replies: dict[int, tuple[wire.Reply, dict[str, Any], list[int]]] = field(default_factory=dict)
    next_id: int = 1
    open_bytes: int = 0
    broken: RecurosError | None = None

    def send(self, row: abi.Row, values: list[Any], fds: list[int]) -> int:
        """Send a call within the credits; returns its number. E75-FULL as the broker's reject, E5-DENIED after a revocation."""
        if not self.stands:
            raise self.revoked()
        number = self.next_id
        data = wire.encode(wire.Call(number, row.nr, self.id, values))
        if len(self.open) >= self.messages_max or self.open_bytes + len(data) > self.bytes_max:
            raise RecurosError(
                "E75-FULL",
                f"direct channel to {self.peer}: {len(self.open)} calls, {self.open_bytes} bytes under way;"
                f" limits {self.messages_max} and {self.bytes_max}",
                hint="wait for replies before sending more",
            )
        self.next_id += 1
        self.open[number] = (len(data), row)
        self.open_bytes += len(data)
        self.end.send(data, fds)
        return number

    def revoked(self) -> RecurosError:
        """The generation has moved on."""
        return RecurosError("E5-DENIED", f"the direct channel to {self.peer} was revoked", hint="recuros cap ls")

    def read(self) -> None:
        """Take in answers; an end that breaks is remembered in `broken`."""
        try:
            for data in self.end.receive():
                frame = wire.decode(data)
                if not isinstance(frame, wire.Reply) or frame.id not in self.open:
                    raise RecurosError("E2-WIRE", "an answer to a call that is not under way")
                size, row = self.open.pop(frame.id)
                self.open_bytes -= size
                values = row.check_reply(frame.payload) if frame.ok else {}
                fds = []
                if values and row.reply_pages:
                    named = sum(bool(values[name]) for name in row.reply_pages)
                    if named > len(self.end.fds):
                        raise RecurosError(
                            "E2-WIRE", f"an answer names {named} pages, {len(self.end.fds)} descriptors came"
                        )
                    fds = [self.end.fds.popleft() for _ in range(named)]
                self.replies[frame.id] = (frame, values, fds)
        except RecurosError as error:
            self.broken = error

    def why(self) -> RecurosError:
        """What calls under way come to when the channel has ended; what it was when it was closed stays the reason."""
        if self.closed and self.broken is not None:
            return self.broken
        if self.broken is not None and self.broken.code == "E2-WIRE":
            return RecurosError("E3-GONE", f"{self.peer} broke the rules of its direct channel: {self.broken.message}")
        if not self.stands:
            return self.revoked()
        reason = self.broken.message if self.broken else "it was closed"
        return RecurosError("E3-GONE", f"{self.peer} died before it answered: {reason}", hint="try again")


@dataclass
class Incoming(Channel):
    """The callee's side: `methods` are the numbers that the caller's rights allow."""

    methods: frozenset[int] = frozenset()
    waiting: int = 0  # calls that arrived and are not answered
    waiting_bytes: int = 0
    calls: int = 0
    refused: int = 0
    told_calls: int = 0
    told_refused: int = 0
    cpu_ns: int = 0

    def read(self) -> list[DirectCall]:
        """Calls that have arrived. E2-WIRE when the caller broke the rules, E3-GONE when it has gone."""
        calls = []
        for data in self.end.receive():
            frame = wire.decode(data)
            if not isinstance(frame, wire.Call) or frame.cap != self.id or frame.id <= 0:
                raise RecurosError("E2-WIRE", "a frame that is no call on this channel")
            self.waiting += 1
            self.waiting_bytes += len(data)
            if self.waiting > self.messages_max or self.waiting_bytes > self.bytes_max:
                raise RecurosError(
                    "E2-WIRE",
                    f"{self.waiting} calls, {self.waiting_bytes} bytes without an answer; the credits are"
                    f" {self.messages_max} and {self.bytes_max}",
                )
            row = abi.METHOD_BY_NR.get(frame.nr)
            fds = []
            if row is not None and row.pages:
                named = sum(1 for i in row.pages if i < len(frame.args) and frame.args[i])
                if named > len(self.end.fds):
                    raise RecurosError("E2-WIRE", f"a call names {named} pages, {len(self.end.fds)} descriptors came")
                fds = [self.end.fds.popleft() for _ in range(named)]
            calls.append(DirectCall(self, frame, len(data), fds))
        return calls

    def answer(self, call: DirectCall, reply: wire.Reply, fds: list[int], *, hold: bool = False) -> None:
        """Answer, once; E75-FULL when the caller does not read. `hold`: others will go with it."""
        self.waiting -= 1
        self.waiting_bytes -= call.size
        self.end.send(wire.encode(reply), fds, hold=hold)


@dataclass(slots=True)
class DirectCall:
    """A call that arrived over a channel."""

    channel: Incoming
    frame: wire.Call
    size: int
    fds: list[int]

    def close(self) -> None:
        """Close descriptors that nobody took."""
        for fd in self.fds:
            os.close(fd)
        self.fds.clear()
