"""The servers of the kernel's benchmark: one that measures its own syscalls and pages on command, one learner that uses its budget.

Responsible for: what only a supervised server can do (offer pages, run windows); the benchmark speaks to the first over a socket in the
run directory. Refuses: to measure on its own account; between commands it only answers the kernel.
Entries: _kernel_server_gpu, _kernel_server_observer, _kernel_server_learner.
"""

from __future__ import annotations

import select
import socket
import sys
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgpack

from syscalls import abi
from syscalls.pages import WritePage
from syscalls.peer import Begun
from syscalls.serve import Kernel

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "live" / "fakes"))

from fake_learner import FakeLearner

IDLE_S = 0.1
STEP_NS = 2_000_000
USE = 0.75
"""The part of its budget that a window burns; what staging takes comes on top."""
METHOD = abi.METHOD_BY_NAME["gpu.telemetry"]
PAGE_LIST = abi.SYSCALL_BY_NAME["page_list"]


class Commanded:
    """Takes commands over a socket, one at a time, and answers each with seconds."""

    def __init__(self, kernel: Kernel, commands: dict[str, Callable[..., float]]) -> None:
        self.kernel = kernel
        self.commands_by_name = commands
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.listener.bind(str(Path(kernel.config["run"]) / "bench.sock"))
        self.listener.listen(1)
        self.commands: socket.socket | None = None

    def idle(self) -> bool:
        source = self.commands or self.listener
        if not select.select([source], [], [], IDLE_S)[0]:
            return True
        if self.commands is None:
            self.commands = self.listener.accept()[0]
            return True
        data = self.commands.recv(4096)
        if not data:
            self.commands.close()
            self.commands = None
            return True
        what, *args = msgpack.unpackb(data)
        self.commands.send(msgpack.packb(self.commands_by_name[what](*args)))
        return True

    def drain(self) -> None:
        self.listener.close()


class Calling(Commanded):
    """The observer's place, taken by one that measures its calls of the gpu server: over its channel, or through the kernel."""

    def __init__(self, kernel: Kernel) -> None:
        super().__init__(kernel, {"direct": self.calls, "direct window": self.window, "relayed": self.relayed})
        self.info: dict[str, Any] = {}
        scores = {"scores": {"student": {}, "teacher": {}}}
        self.handlers = {"trace": self.trace, "evaluate": lambda **_: scores, "calibrate": lambda **_: {"result": {}}}

    def trace(self, window: int, **_: Any) -> None:
        self.kernel.syscall("policy_submit", window=window, settings={}, pack="none")

    def calls(self, n: int) -> float:
        """Seconds of n calls over the channel, one after another."""
        begun = self.kernel.begin("gpu.telemetry")
        assert begun.channel is not None, "no channel stands"
        self.kernel.finish(begun)
        began = time.perf_counter()
        for _ in range(n):
            self.kernel.call("gpu.telemetry")
        return time.perf_counter() - began

    def window(self, n: int, outstanding: int) -> float:
        """Seconds of n calls with so many under way at a time."""
        waiting: deque[Begun] = deque()
        began = time.perf_counter()
        for _ in range(n):
            if len(waiting) >= outstanding:
                self.kernel.finish(waiting.popleft())
            waiting.append(self.kernel.begin("gpu.telemetry"))
        for begun in waiting:
            self.kernel.finish(begun)
        return time.perf_counter() - began

    def relayed(self, n: int) -> float:
        """Seconds of n calls that the kernel relays."""
        row = METHOD
        began = time.perf_counter()
        for _ in range(n):
            self.kernel.syscall("call", endpoint=self.kernel.caps["gpu"], method=row.nr, args=[])
        return time.perf_counter() - began


class Gauge(Commanded):
    """The gpu server's place, taken by one that measures."""

    def __init__(self, kernel: Kernel) -> None:
        super().__init__(kernel, {"syscall": self.syscalls, "window": self.window, "slab": self.slab})
        self.info: dict[str, Any] = {}
        self.handlers = {
            "inventory": lambda: {"devices": [], "host": {}, "note": "none"},
            "telemetry": lambda: {"devices": [], "host": {}},
        }

    def syscalls(self, n: int) -> float:
        """Seconds of n round trips, one after another."""
        began = time.perf_counter()
        for _ in range(n):
            self.kernel.syscall("page_list")
        return time.perf_counter() - began

    def window(self, n: int, outstanding: int) -> float:
        """Seconds of n syscalls with so many under way at a time."""
        kernel, waiting = self.kernel, []
        began = time.perf_counter()
        for _ in range(n):
            waiting.append(kernel._send_call(PAGE_LIST.nr, 1, []))
            if len(waiting) >= outstanding:
                kernel._await(waiting.pop(0), "page_list", None)
        for call in waiting:
            kernel._await(call, "page_list", None)
        return time.perf_counter() - began

    def slab(self, n: int, size: int) -> float:
        """Seconds of n hand-offs of a page that was written in place: offered to the kernel, mapped again, first and last byte read."""
        page = WritePage(size)
        page.view[0] = page.view[-1] = 7
        total = 0.0
        for _ in range(n):
            began = time.perf_counter()
            handle = self.kernel.offer(page)
            mapped = self.kernel.map(handle)
            assert mapped.view[0] + mapped.view[-1] == 14
            total += time.perf_counter() - began
            mapped.close()
            self.kernel.release(handle)
            self.kernel.syscall("page_list")
        page.close()
        return total


class Busy(FakeLearner):
    """A learner whose windows use their budget: CPU time in micro-steps, a look at the kernel between them."""

    def window(self, grant: dict[str, Any]) -> None:
        end_ns = time.process_time_ns() + int(grant["budget_ns"] * USE)
        while time.process_time_ns() < end_ns:
            step_ns = min(end_ns, time.process_time_ns() + STEP_NS)
            while time.process_time_ns() < step_ns:
                pass
            self.kernel.pump()
        super().window(grant)
