"""A server's direct channels: opened when a call first needs one, served beside the kernel's deliveries.

Responsible for: the way of a call (direct where the manifest and the kernel grant it, through the kernel otherwise), dispatching what
callers send, pages that travel beside a frame (their handles are negative: the kernel does not know them), the account that the kernel
gets, and closing what a revocation or a death ended. Refuses: methods that the grant does not name, calls that are read after a
revocation, callers that break the rules.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import time
from collections import deque
from typing import TYPE_CHECKING, Any, Final

import zmq

from syscalls import abi, direct, limits, wire
from syscalls.errors import RecurosError
from syscalls.pages import ReadPage, WritePage, check_seals
from syscalls.peer import Begun

if TYPE_CHECKING:
    from syscalls.serve import Kernel

REPORT_CALLS: Final = 256
REPORT_CPU_NS: Final = 20_000_000
"""After so many calls, or so much CPU time for one caller, the kernel is told."""
QUICK_NS: Final = 50_000
"""A method that took less than this the last time is quick: answers that wait to go in one system call are held up by it so much."""


class Switch:
    """Everything direct of one server."""

    def __init__(self, kernel: Kernel, control: zmq.Socket[bytes]) -> None:
        self._kernel = kernel
        self._control = control
        self._poller = select.poll()
        self._poller.register(int(control.getsockopt(zmq.FD)), select.POLLIN)
        self._out: dict[str, direct.Outgoing] = {}
        self._in: dict[int, direct.Incoming] = {}
        self._ends: dict[int, direct.Channel] = {}
        self.calls: deque[direct.DirectCall] = deque()
        self.granted: set[str] = set()  # servers that the manifest lets this one reach directly
        self._offered: dict[int, int] = {}  # the kernel's handle -> descriptor, of pages that may go over a channel
        self._local: dict[int, int] = {}  # own (negative) handle -> descriptor
        self._next_local = -1
        self._serving: direct.DirectCall | None = None
        self._holding: dict[int, direct.Incoming] = {}  # channels with answers that have not left yet
        self._took_ns: dict[int, int] = {}  # method -> its CPU time the last time
        # This process's CPU time at the end of the last call, if nothing else was done since; 0: it is not known.
        self._mark_ns = 0
        self._methods: dict[str, tuple[str, abi.Row]] = {}  # "server.method" -> server, row

    # --- the loop ---------------------------------------------------------------------------------------------------------

    @property
    def idle(self) -> bool:
        """Whether there is no channel, so that the kernel's socket is all there is to wait for."""
        return not self._ends

    def wait(self, timeout_s: float) -> bool:
        """Wait for the kernel or an end; takes what ends have. True when the kernel's socket has something.

        The descriptor of a ZeroMQ socket speaks of edges: its state is asked before the wait, which also arms it, and again after.
        """
        self.pause()
        control = self._control
        kernel = bool(int(control.getsockopt(zmq.EVENTS)) & zmq.POLLIN)
        wait_ms = 0 if kernel or timeout_s <= 0 else max(1, int(timeout_s * 1000))
        for fd, _ in self._poller.poll(wait_ms):
            channel = self._ends.get(fd)
            if channel is not None:
                self._on(channel)
            elif not kernel:
                kernel = bool(int(control.getsockopt(zmq.EVENTS)) & zmq.POLLIN)
        return kernel

    def _on(self, channel: direct.Channel) -> None:
        if isinstance(channel, direct.Incoming):
            try:
                channel.end.flush()
                self.calls.extend(channel.read())
            except RecurosError as error:
                self._drop_incoming(channel, error.message if error.code == "E2-WIRE" else "")
        elif isinstance(channel, direct.Outgoing):
            channel.read()
            if channel.broken is not None:
                self._drop_outgoing(channel)
        self._watch(channel)

    def _watch(self, channel: direct.Channel) -> None:
        """Wake up when there is room again for what the other side has not had room for."""
        wants = channel.end.backlog > 0
        if wants is not channel.wants_out and (fd := channel.end.fileno()) in self._ends:
            channel.wants_out = wants
            self._poller.modify(fd, select.POLLIN | (select.POLLOUT if wants else 0))

    def _add(self, channel: direct.Channel) -> None:
        self._ends[channel.end.fileno()] = channel
        self._poller.register(channel.end.fileno(), select.POLLIN)

    def _forget(self, channel: direct.Channel) -> None:
        fd = channel.end.fileno()
        if self._ends.pop(fd, None) is not None:
            self._poller.unregister(fd)

    # --- the caller's side ----------------------------------------------------------------------------------------------------

    def begin(self, method: str, args: dict[str, Any]) -> Begun | None:
        """Send a call over a channel; None where it goes through the kernel."""
        if method not in self._methods:
            server, _, name = method.partition(".")
            if server not in self.granted:
                return None
            self._methods[method] = server, abi.method_of(server, name)
        server, row = self._methods[method]
        if server not in self.granted:
            return None
        values, fds = row.bind(args), []
        if row.pages:
            handles = [values[i] for i in row.pages if values[i]]
            if any(h not in self._offered for h in handles):
                return None  # a page of somebody else's: the kernel relays it
            fds = [self._offered[h] for h in handles]
            for i in row.pages:
                values[i] = 1 if values[i] else 0
        channel = self._channel(server)
        if channel is None:
            return None
        number = channel.send(row, values, fds)
        self._watch(channel)
        return Begun(number, row, channel)

    def finish(self, begun: Begun, timeout_s: float) -> dict[str, Any]:
        """The answer of a call that was begun; deliveries and other calls that arrive meanwhile are kept."""
        number, _, channel = begun
        assert channel is not None, "it went through the kernel"
        deadline = 0.0 if number in channel.replies else time.monotonic() + timeout_s
        while number not in channel.replies:
            if channel.broken is not None:
                raise channel.why()
            left = deadline - time.monotonic()
            if left <= 0:
                what = begun.row.qualified
                raise RecurosError(
                    "E124-TIMEOUT", f"{what}: no answer in {timeout_s:g} s", hint="recuros status; raise --timeout"
                )
            self._kernel.receive(left)
        reply, values, fds = channel.replies.pop(number)
        if not reply.ok:
            raise RecurosError.from_wire(reply.payload)
        for name in begun.row.reply_pages:
            if values[name]:
                fd = fds.pop(0)
                try:
                    check_seals(fd)
                except RecurosError as error:
                    for left in (fd, *fds):
                        os.close(left)
                    channel.broken = RecurosError("E2-WIRE", f"{begun.row.qualified}: {error.message}")
                    self._drop_outgoing(channel)
                    raise channel.why() from error
                values[name] = self._keep(fd)
        return values

    def _channel(self, server: str) -> direct.Outgoing | None:
        channel = self._out.get(server)
        if channel is not None and not channel.stands and not channel.open:
            self._drop_outgoing(channel)
            channel = None
        return channel or self._open(server)

    def _open(self, server: str) -> direct.Outgoing | None:
        kernel = self._kernel
        if server not in kernel.caps:
            return None  # an operator took the endpoint before this process was born; the call itself says so
        mine, theirs = direct.pair()
        try:
            end = kernel.offer_end(theirs)
            told = kernel.syscall("channel_open", endpoint=kernel.caps[server], end=end)
        except RecurosError as error:
            mine.close()
            if error.code == "E5-DENIED":
                self.granted.discard(server)  # taken back for this boot; what goes through the kernel is judged there
                return None
            if error.code in ("E75-AGAIN", "E3-GONE"):
                return None
            raise
        finally:
            theirs.close()
        table = kernel.map(told["table"])
        kernel.release(told["table"])
        stream = direct.End(mine, limits.FRAME_BYTES_MAX, told["bytes"])
        channel = direct.Outgoing(
            told["channel"], server, stream, table, told["index"], told["generation"], told["messages"], told["bytes"]
        )
        if (pid := stream.took()) != told["pid"]:
            channel.close()
            raise RecurosError(
                "E9-INTEGRITY", f"pid {pid} took the channel to {server}, the kernel names {told['pid']}"
            )
        self._out[server] = channel
        self._add(channel)
        return channel

    def _drop_outgoing(self, channel: direct.Outgoing) -> None:
        broken = channel.broken or RecurosError("E3-GONE", "it was closed")
        channel.broken = channel.why()
        if broken.code == "E2-WIRE":
            self._accuse(channel, broken.message)
        self._forget(channel)
        if self._out.get(channel.peer) is channel:
            del self._out[channel.peer]
        channel.close()

    def _accuse(self, channel: direct.Outgoing, reason: str) -> None:
        """The callee broke the rules: the kernel is told, and cuts the channel."""
        self._kernel.syscall(
            "channel_report", channel=channel.id, calls=0, refused=0, cpu_ns=0, reason=reason[:500], fatal=True
        )

    # --- the callee's side ------------------------------------------------------------------------------------------------------

    def accept(
        self, channel: int, caller: str, pid: int, index: int, generation: int, methods: list[int], messages: int, bytes: int,
        end: int, table: int,
    ) -> None:  # fmt: skip
        """The kernel granted a channel to this server: take its end if the process that it names made it."""
        fd = self._kernel.map_end(end)
        made = direct.maker(fd)
        if made != pid:
            os.close(fd)
            raise RecurosError("E5-DENIED", f"pid {made} made the channel of {caller}, whose pid is {pid}")
        stream = direct.End(socket.socket(fileno=fd), limits.FRAME_BYTES_MAX, bytes)
        incoming = direct.Incoming(
            channel, caller, stream, self._kernel.map(table), index, generation, messages, bytes,
            methods=frozenset(methods),
        )  # fmt: skip
        stream.take()
        self._in[channel] = incoming
        self._add(incoming)

    def cut(self, number: int) -> None:
        """The kernel took a channel back: what waits on it is refused, then it closes."""
        if (incoming := self._in.get(number)) is not None:
            self._refuse_waiting(incoming)
            self._drop_incoming(incoming, "")
        for outgoing in list(self._out.values()):
            if outgoing.id == number:
                outgoing.read()
                self._drop_outgoing(outgoing)

    def _refuse_waiting(self, channel: direct.Incoming) -> None:
        with contextlib.suppress(RecurosError):  # it has gone, or what it sent is nothing to answer
            self.calls.extend(channel.read())
        for call in [c for c in self.calls if c.channel is channel]:
            self.calls.remove(call)
            self._refuse(call, _revoked(channel))

    def _drop_incoming(self, channel: direct.Incoming, reason: str) -> None:
        """`reason`: how the caller broke the rules, empty when it did not."""
        self._forget(channel)
        self._in.pop(channel.id, None)
        for call in [c for c in self.calls if c.channel is channel]:
            call.close()
            self.calls.remove(call)
        self._report(channel, reason=reason, fatal=True)
        channel.close()

    def dispatch(self, call: direct.DirectCall) -> None:
        """Serve one call; the generation is read here, after everything that had to be waited for."""
        channel, frame = call.channel, call.frame
        if not channel.stands:
            self._refuse(call, _revoked(channel))
            return
        row = abi.METHOD_BY_NR.get(frame.nr)
        if row is None or frame.nr not in channel.methods:
            what = row.qualified if row else f"method {frame.nr}"
            self._refuse(call, RecurosError("E5-DENIED", f"{channel.peer} may not call {what} directly"))
            self._report(channel, reason=f"a call of {what}, which its rights do not allow")
            return
        if self._took_ns.get(frame.nr, QUICK_NS) >= QUICK_NS:
            self.release_held()  # who has been answered need not wait for this one
        began_ns = self._mark_ns or time.process_time_ns()
        self._serving, kept_from = call, self._next_local
        try:
            values = row.check_args(frame.args)
            for i in row.pages:
                if frame.args[i]:
                    fd = call.fds.pop(0)
                    try:
                        check_seals(fd)
                    except RecurosError:
                        os.close(fd)
                        raise
                    values[row.args[i].name] = self._keep(fd)
            answer = self._kernel.serve(row, values, began_ns)
            self._answer(call, row, answer)
        except RecurosError as error:
            self._refuse(call, error)
        finally:
            self._serving = None
            for handle in range(kept_from, self._next_local, -1):
                self.release(handle)
            call.close()
        self._mark_ns = time.process_time_ns()
        self._took_ns[frame.nr] = took_ns = self._mark_ns - began_ns
        channel.calls += 1
        channel.cpu_ns += took_ns
        if channel.calls - channel.told_calls >= REPORT_CALLS or channel.cpu_ns >= REPORT_CPU_NS:
            self._report(channel)

    def pause(self) -> None:
        """This server is about to wait, or to do something else than serving channels."""
        self._mark_ns = 0
        self.release_held()

    def release_held(self) -> None:
        """Send the answers that waited for one another; before this server waits for anything, or does something long."""
        while self._holding:
            _, channel = self._holding.popitem()
            try:
                channel.end.release()
                self._watch(channel)
            except RecurosError:
                if channel.id in self._in:
                    self._drop_incoming(channel, "")

    def _answer(self, call: direct.DirectCall, row: abi.Row, values: dict[str, Any]) -> None:
        fds = []
        if row.reply_pages:
            values = dict(values)
            for name in row.reply_pages:
                if values.get(name):
                    fds.append(self._local[values[name]])
                    values[name] = 1
        self._send(call, wire.Reply(call.frame.id, True, row.bind_reply(values)), fds)

    def _refuse(self, call: direct.DirectCall, error: RecurosError) -> None:
        call.channel.refused += 1
        call.close()
        self._send(call, wire.Reply(call.frame.id, False, error.to_wire()), [])

    def _send(self, call: direct.DirectCall, reply: wire.Reply, fds: list[int]) -> None:
        channel = call.channel
        hold = bool(self.calls) and channel.id in self._in  # more to serve right away: their answers go together
        try:
            channel.answer(call, reply, fds, hold=hold)
            if hold:
                self._holding[channel.id] = channel
            else:
                self._watch(channel)
        except RecurosError as error:
            if error.code == "E2-LIMIT":
                call.channel.waiting += 1
                call.channel.waiting_bytes += call.size
                self._send(call, wire.Reply(call.frame.id, False, error.to_wire()), [])
            elif call.channel.id in self._in:
                self._drop_incoming(call.channel, "it does not read its answers" if error.code == "E75-FULL" else "")

    def _report(self, channel: direct.Incoming, *, reason: str = "", fatal: bool = False) -> None:
        calls, refused = channel.calls - channel.told_calls, channel.refused - channel.told_refused
        channel.told_calls, channel.told_refused = channel.calls, channel.refused
        cpu_ns, channel.cpu_ns = channel.cpu_ns, 0
        self._kernel.syscall(
            "channel_report",
            channel=channel.id,
            calls=calls,
            refused=refused,
            cpu_ns=cpu_ns,
            reason=reason[:500],
            fatal=fatal,
        )

    # --- pages -------------------------------------------------------------------------------------------------------------------

    @property
    def caller(self) -> str:
        """Who is being served over a channel right now; empty when nobody is."""
        return self._serving.channel.peer if self._serving else ""

    def keep_offered(self, handle: int, page: WritePage) -> None:
        """A page that the kernel knows may also go over a channel: its descriptor is kept until the handle is released."""
        if self.granted:
            self._offered[handle] = os.dup(page.fd)

    def offer(self, page: WritePage) -> int:
        """A page for the caller that is being served."""
        return self._keep(os.dup(page.fd))

    def _keep(self, fd: int) -> int:
        handle, self._next_local = self._next_local, self._next_local - 1
        self._local[handle] = fd
        return handle

    def map(self, handle: int) -> ReadPage:
        """Map a page that came over a channel."""
        if handle not in self._local:
            raise RecurosError("E5-DENIED", f"no page came over a channel under {handle}")
        fd = os.dup(self._local[handle])
        return ReadPage(fd, os.fstat(fd).st_size, handle)

    def release(self, handle: int) -> None:
        """Close the descriptor behind a handle, if one was kept."""
        fd = (self._local if handle < 0 else self._offered).pop(handle, -1)
        if fd >= 0:
            os.close(fd)

    def close(self) -> None:
        """Close every channel and descriptor; answers that were held leave first."""
        self.release_held()
        for channel in list(self._ends.values()):
            self._forget(channel)
            channel.close()
        for handle in [*self._local, *self._offered]:
            self.release(handle)


def _revoked(channel: direct.Incoming) -> RecurosError:
    return RecurosError(
        "E5-DENIED",
        f"the direct channel of {channel.peer} was revoked before this call was taken",
        hint="recuros cap ls",
    )
