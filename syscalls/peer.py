"""A peer of the kernel: one DEALER socket, syscalls out, replies and deliveries in.

Responsible for: what servers (`syscalls.serve`) and operators (`syscalls.client`) share. Refuses: retries of its own;
a call that gets no answer in time raises E124-TIMEOUT and the caller decides. Not thread-safe: one thread, one peer.
"""

from __future__ import annotations

import os
import time
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import zmq

from syscalls import abi, limits, wire
from syscalls.errors import RecurosError

LOOK_S = 0.5
"""How often a waiting caller looks whether the runtime is still there."""
if TYPE_CHECKING:
    from syscalls.direct import Outgoing
    from syscalls.remote import Card

REFUSED_EVENTS = zmq.EVENT_HANDSHAKE_FAILED_AUTH | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
PING_NR = abi.METHOD_BY_NAME["any.ping"].nr
CALL_ROW = abi.SYSCALL_BY_NAME["call"]


class Begun(NamedTuple):
    """A call that has been sent and not answered yet; `channel` is the direct one that it went over, None: through the kernel."""

    id: int
    row: abi.Row
    channel: Outgoing | None = None


class Peer:
    """A session with the kernel. `caps` maps names ("self", "archivist", ...) to the slots that hello handed out."""

    def __init__(self, endpoint: Path | Card, *, timeout_s: float = 30.0) -> None:
        if isinstance(endpoint, Path) and not endpoint.exists():
            raise RecurosError(
                "E3-DOWN",
                f"no runtime listens at {endpoint}",
                hint="recuros boot --detach, or name the run directory with --run",
            )
        self.timeout_s = timeout_s
        self._endpoint = endpoint
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.DEALER)
        self._socket.setsockopt(zmq.LINGER, 500)
        self._socket.setsockopt(zmq.MAXMSGSIZE, limits.KERNEL_FRAME_BYTES_MAX)
        self._socket.setsockopt(zmq.SNDHWM, 0)
        self._socket.setsockopt(zmq.RCVHWM, 0)
        self._monitor: zmq.Socket[bytes] = self._socket.get_monitor_socket(REFUSED_EVENTS)
        if isinstance(endpoint, Path):
            self._socket.connect(f"ipc://{endpoint}")
        else:
            self._connect_remote(endpoint)
        self._poller = zmq.Poller()
        self._poller.register(self._socket, zmq.POLLIN)
        self._next_id = 1
        self._replies: dict[int, wire.Reply] = {}
        self._waiting: set[int] = set()
        self.deliveries: deque[wire.Deliver] = deque()
        self.principal = ""
        self.boot = ""
        self.caps: dict[str, int] = {}
        self.config: dict[str, Any] = {}

    def hello(self) -> None:
        """Open the session; E9-VERSION when the kernel speaks another ABI."""
        answer = self.syscall("hello", major=abi.ABI_MAJOR, minor=abi.ABI_MINOR)
        self.principal, self.boot = answer["principal"], answer["boot"]
        self.caps, self.config = answer["caps"], answer["config"]

    def syscall(self, name: str, /, *, slot: int = 1, timeout_s: float | None = None, **args: Any) -> dict[str, Any]:
        """One syscall by name on the capability in `slot`; returns the reply columns as a dict, raises what the kernel answered."""
        row = abi.SYSCALL_BY_NAME.get(name)
        if row is None:
            raise RecurosError("E2-USAGE", f"no syscall is called {name!r}", hint="recuros syscall --list")
        values = row.bind(args)
        if row.oneway:
            self._socket.send(wire.encode(wire.Call(0, row.nr, slot, values)))
            return {}
        return row.check_reply(self._round_trip(row.nr, slot, values, row.name, timeout_s))

    def call(self, method: str, /, *, timeout_s: float | None = None, **args: Any) -> dict[str, Any]:
        """Call `server.method` through the kernel; needs an endpoint capability for the server."""
        return self.finish(self.begin(method, **args), timeout_s=timeout_s)

    def begin(self, method: str, /, **args: Any) -> Begun:
        """Send a call and go on; its answer must be taken with `finish`, whatever happens in between."""
        server, _, name = method.partition(".")
        row = abi.method_of(server, name)
        slot = self.caps.get(server)
        if slot is None:
            raise RecurosError(
                "E5-DENIED",
                f"{self.principal} holds no endpoint for {server!r}",
                hint=f"add {server!r} to its `calls` in the manifest",
            )
        return Begun(self._send_call(CALL_ROW.nr, slot, [slot, row.nr, row.bind(args)]), row)

    def finish(self, begun: Begun, *, timeout_s: float | None = None) -> dict[str, Any]:
        """The answer to a call that was begun; raises what the server answered."""
        reply = CALL_ROW.check_reply(self._await(begun.id, begun.row.qualified, timeout_s))
        return begun.row.check_reply(reply["reply"])

    def _round_trip(self, nr: int, cap: int, values: list[Any], what: str, timeout_s: float | None) -> list[Any]:
        return self._await(self._send_call(nr, cap, values), what, timeout_s)

    def _send_call(self, nr: int, cap: int, values: list[Any]) -> int:
        call_id = self._next_id
        self._next_id += 1
        frame = wire.encode(wire.Call(call_id, nr, cap, values))
        self._waiting.add(call_id)
        self._socket.send(frame)
        return call_id

    def _await(self, call_id: int, what: str, timeout_s: float | None) -> list[Any]:
        limit_s = self.timeout_s if timeout_s is None else timeout_s
        deadline = time.monotonic() + limit_s
        try:
            while call_id not in self._replies:
                left = deadline - time.monotonic()
                if self.receive(max(0.0, min(left, LOOK_S))) and left > 0:
                    continue
                self._check_there(what)
                if time.monotonic() >= deadline:
                    raise RecurosError(
                        "E124-TIMEOUT", f"{what}: no answer in {limit_s:g} s", hint="recuros status; raise --timeout"
                    )
        finally:
            self._waiting.discard(call_id)
        reply = self._replies.pop(call_id)
        if not reply.ok:
            raise RecurosError.from_wire(reply.payload)
        return reply.payload

    def _connect_remote(self, card: Card) -> None:
        self._socket.curve_serverkey = card.server.encode()
        self._socket.curve_publickey = card.public.encode()
        self._socket.curve_secretkey = card.secret.encode()
        self._socket.connect(card.address)

    def _check_there(self, what: str) -> None:
        """Raise what a runtime that has gone, or that does not let this peer in, comes to."""
        # The supervisor removes the socket with its kernel.
        if isinstance(self._endpoint, Path) and not self._endpoint.exists():
            raise RecurosError("E3-GONE", f"{what}: the runtime has gone", hint="recuros logs kernel; recuros boot")
        if not self._monitor.poll(0):
            return
        self._monitor.recv_multipart()
        if isinstance(self._endpoint, Path):
            raise RecurosError(
                "E5-DENIED",
                f"{what}: the runtime at {self._endpoint} refused this process, pid {os.getpid()}",
                hint="no server, and nothing that one started, is an operator; recuros kfs log --kind fault says why",
            )
        raise RecurosError(
            "E5-DENIED",
            f"the runtime at {self._endpoint.address} refused the key {self._endpoint.public}",
            hint="[remote] allow in its manifest lists the keys; recuros remote key FILE shows this one",
        )

    def receive(self, timeout_s: float = 0.0) -> bool:
        """Take at most one frame off the socket; True when there was one. Pings are answered here, whatever else goes on."""
        if not int(self._socket.getsockopt(zmq.EVENTS)) & zmq.POLLIN and (
            timeout_s <= 0 or not self._poller.poll(max(1, int(timeout_s * 1000)))
        ):
            return False
        frame = wire.decode(self._socket.recv())
        if isinstance(frame, wire.Reply):
            if frame.id in self._waiting:  # a late answer to a call that timed out has nobody to go to
                self._replies[frame.id] = frame
        elif isinstance(frame, wire.Deliver):
            if frame.nr == PING_NR:
                self.answer(frame, {})
            else:
                self.deliveries.append(frame)
        return True

    def answer(self, request: wire.Deliver, values: dict[str, Any]) -> None:
        """Reply to a delivery; the kernel drops a second reply to the same one."""
        row = abi.METHOD_BY_NR[request.nr]
        self._socket.send(wire.encode(wire.Reply(request.id, True, row.bind_reply(values))))

    def answer_error(self, request: wire.Deliver, error: RecurosError) -> None:
        """Reply to a delivery with an error."""
        self._socket.send(wire.encode(wire.Reply(request.id, False, error.to_wire())))

    def close(self) -> None:
        """Close the socket; what was sent is given half a second to leave."""
        self._socket.disable_monitor()
        self._monitor.close(0)
        self._socket.close()
        self._context.term()

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
