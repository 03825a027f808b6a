"""The server loop: what a user-space server is built on.

A server is a folder with a `__main__.py` of four lines:

    from syscalls.harden import harden
    harden()                                   # before anything of its own is imported
    from servers.NAME.server import main
    raise SystemExit(main())

and a `server.py` whose `main` is `return serve("NAME", build)`, where `build(kernel)` returns a `Service`:

    class Service:
        handlers: Mapping[str, Callable[..., dict | None]]   # method name -> function of the method's columns as keywords
        info: dict                                           # told to the kernel with `ready`
        def idle(self) -> bool: ...                          # own work between deliveries; True = there is more, do not block
        def drain(self) -> None: ...                         # finish; the process exits 0 afterwards

`kernel` is a `Kernel`: `kernel.config` (the manifest stanza's [config] plus what the launcher adds: "store", "run",
"app", "seed"), `kernel.syscall(name, **columns)`, `kernel.call("archivist.stage", **columns)`, `kernel.offer(page) ->
handle`, `kernel.map(handle) -> ReadPage`, `kernel.release(handle)`, `kernel.pump()` (dispatch what has arrived,
without blocking: call it at every micro-step), `kernel.checkpoint()` (fair servers: call it at every micro-step;
gives the slice up when it is used).

Responsible for: hello, ready, dispatch, typed errors to the caller, faults to the kernel. Refuses: to answer for a
handler that raises something untyped: that is a fault, the process exits, and the supervisor applies the restart
policy.
"""

from __future__ import annotations

import os
import socket
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from syscalls import abi, limits, wire
from syscalls.errors import RecurosError
from syscalls.pages import PageSocket, ReadPage, WritePage
from syscalls.peer import Begun, Peer
from syscalls.switch import Switch

Handler = Callable[..., "dict[str, Any] | None"]


class Service(Protocol):
    """What `build` returns; see the module docstring."""

    handlers: Mapping[str, Handler]
    info: dict[str, Any]

    def idle(self) -> bool:
        """Do own work; True when there is more of it right away."""
        ...

    def drain(self) -> None:
        """Finish and release everything."""
        ...


class Kernel(Peer):
    """A server's session with the kernel."""

    def __init__(self, directory: Path, name: str) -> None:
        super().__init__(directory / "server.sock", timeout_s=120.0)
        self.name = name
        self.stopping = False
        self._directory = directory
        self._pages: PageSocket | None = None
        self._handlers: Mapping[str, Handler] = {}
        self._in_slice = False
        self._slice_end_ns = 0
        self._slice_ns = limits.SLICE_NS_DEFAULT
        self._direct = Switch(self, self._socket)

    def hello(self) -> None:
        """Open the session; the configuration names the servers that may be reached directly.

        Pages come after it: by then the supervisor has told the kernel which server this process is.
        """
        super().hello()
        self._pages = PageSocket(self._directory / "pages.sock")
        self._direct.granted = set(self.config.get("direct", ()))

    @property
    def direct_caller(self) -> str:
        """The server whose direct call is being served; empty when it came through the kernel."""
        return self._direct.caller

    @property
    def pages(self) -> PageSocket:
        """The side socket of pages."""
        if self._pages is None:
            raise RecurosError("E2-USAGE", f"{self.name} has not said hello yet", hint="kernel.hello()")
        return self._pages

    def offer(self, page: WritePage) -> int:
        """Register a page; the handle may then be sent in a `page` column. The writer may close its own mapping afterwards."""
        if self._direct.caller:
            return self._direct.offer(page)
        handle = self.pages.offer(page)
        self._direct.keep_offered(handle, page)
        return handle

    def offer_end(self, end: socket.socket) -> int:
        """Register one end of a pair of sockets that this process made."""
        return self.pages.offer_end(end.fileno())

    def map(self, handle: int) -> ReadPage:
        """Map a handle that arrived in a `page` column."""
        return self._direct.map(handle) if handle < 0 else self.pages.map(handle)

    def map_end(self, handle: int) -> int:
        """The descriptor of an end that the kernel handed to this server."""
        return self.pages.map_end(handle)

    def release(self, handle: int) -> None:
        """Give a handle back; the page dies with its last handle."""
        self._direct.release(handle)
        if handle > 0:
            self.syscall("page_release", page=handle)

    def begin(self, method: str, /, **args: Any) -> Begun:
        """Send a call and go on: over a direct channel where one is granted, through the kernel otherwise."""
        return self._direct.begin(method, args) or super().begin(method, **args)

    def finish(self, begun: Begun, *, timeout_s: float | None = None) -> dict[str, Any]:
        """The answer to a call that was begun; raises what the server answered."""
        if begun.channel is not None:
            return self._direct.finish(begun, self.timeout_s if timeout_s is None else timeout_s)
        return super().finish(begun, timeout_s=timeout_s)

    def receive(self, timeout_s: float = 0.0) -> bool:
        """Take at most one frame off the kernel's socket, and whatever direct channels have; True when there was something."""
        if self._direct.idle:
            return super().receive(timeout_s)
        before = len(self._direct.calls)
        kernel = self._direct.wait(timeout_s)
        return (kernel and super().receive()) or len(self._direct.calls) > before

    def start(self, service: Service) -> None:
        """Announce that the service takes work."""
        self._handlers = service.handlers
        self.syscall("ready", info=service.info)

    def pump(self, timeout_s: float = 0.0) -> None:
        """Take every frame that has arrived (waiting up to `timeout_s` for the first) and dispatch each delivery in order."""
        if not self.deliveries and not self._direct.calls and not self.receive(timeout_s):
            return
        while self.receive():
            pass
        while self.deliveries or self._direct.calls:
            if self.deliveries:
                self._direct.pause()
                self._dispatch(self.deliveries.popleft())
            if self._direct.calls:
                self._direct.dispatch(self._direct.calls.popleft())

    def checkpoint(self) -> None:
        """At a micro-step of fair work: if this slice's CPU time is used, yield and wait for the next grant."""
        if self._in_slice and time.process_time_ns() >= self._slice_end_ns:
            self.syscall("sched_yield")
            self._slice_end_ns = time.process_time_ns() + self._slice_ns

    def _dispatch(self, request: wire.Deliver) -> None:
        row = abi.METHOD_BY_NR.get(request.nr)
        if row is None:
            self.answer_error(request, RecurosError("E2-WIRE", f"no method has number {request.nr}"))
            return
        if row.name == "drain":
            self.stopping = True
            return
        try:
            values = (
                self._own(row, request.args) if row.server == "any" else self.serve(row, row.check_args(request.args))
            )
        except RecurosError as error:
            if request.id:
                self.answer_error(request, error)
            else:
                print(f"{row.qualified}: {error}", file=sys.stderr, flush=True)  # noqa: T201 - the server's log
                raise
        else:
            if request.id:
                self.answer(request, values)

    def _own(self, row: abi.Row, args: list[Any]) -> dict[str, Any]:
        """What every server is asked by the kernel and answers here."""
        columns = row.check_args(args)
        if row.name == "channel":
            self._direct.accept(**columns)
        elif row.name == "channel_cut":
            self._direct.cut(columns["channel"])
        else:
            raise RecurosError("E1-NOSYS", f"{self.name} does not serve {row.qualified}")
        return {}

    def serve(self, row: abi.Row, columns: dict[str, Any], began_ns: int = 0) -> dict[str, Any]:
        """Run the service's handler of a method; `began_ns` is this process's CPU time where the caller has just looked."""
        handler = self._handlers.get(row.name)
        if handler is None or row.server != self.name:
            raise RecurosError("E1-NOSYS", f"{self.name} does not serve {row.qualified}")
        self._in_slice, self._slice_end_ns = True, (began_ns or time.process_time_ns()) + self._slice_ns
        try:
            return handler(**columns) or {}
        finally:
            self._in_slice = False

    def close(self) -> None:
        """Close direct channels, the page socket and the session."""
        self._direct.close()
        if self._pages is not None:
            self._pages.close()
        super().close()


def serve(name: str, build: Callable[[Kernel], Service]) -> int:
    """Run a server to its end; the exit status is 0 after a drain and 1 after a fault that was reported."""
    kernel = Kernel(Path(os.environ["RECUROS_SOCKETS"]), name)
    try:
        kernel.hello()
        service = build(kernel)
        kernel.start(service)
        while not kernel.stopping:
            busy = service.idle()
            kernel.pump(0.0 if busy else 3600.0)
        service.drain()
    except RecurosError as error:
        print(error, file=sys.stderr, flush=True)  # noqa: T201 - the server's log
        kernel.syscall("fault", code=error.code, message=error.message, hint=error.hint)
        return 1
    except KeyboardInterrupt:
        return 130
    except Exception as error:  # noqa: BLE001 - the last line of a process: report, then die
        traceback.print_exc()
        where = traceback.extract_tb(error.__traceback__)[-1]
        kernel.syscall(
            "fault",
            code="E3-BOOT",
            message=f"{name} failed: {type(error).__name__}: {error} ({Path(where.filename).name}:{where.lineno})"[
                :2000
            ],
            hint=f"recuros logs {name}",
        )
        return 1
    finally:
        kernel.close()
    return 0
