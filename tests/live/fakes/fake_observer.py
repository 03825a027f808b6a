"""An observer that decides little, and attacks everybody when its configuration asks for it.

What came of each attack goes to RUN/hostile.json.
"""

from __future__ import annotations

from syscalls.harden import harden

harden()

# ruff: noqa: E402 - hardened before anything else is imported, as every server
import ctypes
import errno
import json
import mmap
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from syscalls.errors import RecurosError
from syscalls.serve import Kernel, serve

libc = ctypes.CDLL(None, use_errno=True)
libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p]
PTRACE_ATTACH, PTRACE_SEIZE = 16, 0x4206
SYS_PROCESS_VM_READV, SYS_PROCESS_VM_WRITEV, SYS_PIDFD_GETFD = 310, 311, 438
ATTACK_AT = 20
"""The window whose evidence brings the attack: by then the learner, with three pages a window, holds numbers that this server does not."""
OPERATOR = """
import sys
from pathlib import Path
from syscalls.client import Client
from syscalls.errors import RecurosError
try:
    Client(Path(sys.argv[1]), timeout_s=1.5)
except RecurosError as error:
    print(error.code)
else:
    print("admitted")
"""


def outcome(attack: Callable[[], Any]) -> str:
    """What the attack came to: the errno's name, an error code, or "succeeded"."""
    try:
        attack()
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    except RecurosError as error:
        return error.code
    return "succeeded"


def checked(result: int) -> None:
    if result == -1:
        raise OSError(ctypes.get_errno(), "refused")


def vm(number: int, pid: int) -> None:
    """process_vm_readv or writev of 8 bytes at an address that is mapped in every process of this interpreter."""
    buffer = ctypes.create_string_buffer(8)
    here = (ctypes.c_void_p * 2)(ctypes.addressof(buffer), 8)
    there = (ctypes.c_void_p * 2)(id(None), 8)
    checked(libc.syscall(number, pid, here, ctypes.c_ulong(1), there, ctypes.c_ulong(1), ctypes.c_ulong(0)))


def steal_descriptor(pid: int) -> None:
    pidfd = os.pidfd_open(pid)
    try:
        checked(libc.syscall(SYS_PIDFD_GETFD, pidfd, 3, 0))
    finally:
        os.close(pidfd)


def address_of(mapping: mmap.mmap) -> int:
    class Buffer(ctypes.Structure):
        _fields_ = [("buf", ctypes.c_void_p), ("rest", ctypes.c_byte * 128)]

    view = Buffer()
    get = ctypes.pythonapi.PyObject_GetBuffer
    get.argtypes = [ctypes.py_object, ctypes.c_void_p, ctypes.c_int]
    if get(mapping, ctypes.byref(view), 0) != 0:
        raise OSError(errno.EFAULT, "no buffer")
    return int(view.buf or 0)


class FakeObserver:
    def __init__(self, kernel: Kernel) -> None:
        self.info: dict[str, Any] = {}
        self.kernel = kernel
        self.report = Path(kernel.config["run"]) / "hostile.json"
        self.spun = Path(kernel.config["run"]) / "spun"
        self.flooded = Path(kernel.config["run"]) / "flood.json"
        scores = {"scores": {"student": {"accuracy": 0.5}, "teacher": {"accuracy": 0.5}}}
        self.handlers = {"trace": self.trace, "evaluate": lambda **_: scores, "calibrate": lambda **_: {"result": {}}}

    def trace(self, window: int, page: int, **_: Any) -> None:
        if self.kernel.config.get("hostile") and window >= ATTACK_AT and not self.report.exists():
            self.attack(page)
        if (spin_s := float(self.kernel.config.get("spin_s", 0))) and window >= 3 and not self.spun.exists():
            self.spun.touch()
            end = time.process_time() + spin_s
            while time.process_time() < end:
                pass
        if (calls := int(self.kernel.config.get("flood", 0))) and not self.flooded.exists():
            self.flood(calls)
        settings = {"temperature": 2.0 + 0.1 * (window % 3)}
        try:
            self.kernel.syscall("policy_submit", window=window, settings=settings, pack="fake")
        except RecurosError as error:
            if error.code != "E2-USAGE":  # it came too late, and its absence is on record
                raise

    def flood(self, calls: int) -> None:
        """Send all calls before any answer is taken, then count the answers by their code."""
        begun = [self.kernel.begin("gpu.telemetry") for _ in range(calls)]
        told: dict[str, int] = {}
        for call in begun:
            try:
                self.kernel.finish(call)
                code = "answered"
            except RecurosError as error:
                code = error.code
            told[code] = told.get(code, 0) + 1
        part = self.flooded.with_suffix(".part")
        part.write_text(json.dumps(told))
        part.rename(self.flooded)

    def held(self) -> set[int]:
        """The slots that the kernel says are this server's own."""
        return {c["slot"] for c in self.kernel.syscall("cap_list")["caps"]}

    def attack(self, handle: int) -> None:
        """Everything that must fail, then the one thing that must kill only this process."""
        page = self.kernel.map(handle)
        at = address_of(page._map)
        pids = {s["name"]: s["pid"] for s in self.kernel.syscall("status")["status"]["servers"]}
        pids |= {"kernel": self.kernel.syscall("status")["status"]["pid"], "supervisor": os.getppid()}
        found = {
            f"{how} {name}": outcome(lambda attack=attack, pid=pid: attack(pid))
            for name, pid in pids.items()
            if name != "observer"
            for how, attack in ATTACKS.items()
        }
        found["mprotect page"] = outcome(lambda: checked(libc.mprotect(at, page.size, 3)))
        # Slots of a holder are numbered upwards and never again: beyond its last one lie numbers that only others have at
        # this window, and the traces that come meanwhile do not get that far.
        beyond = max(self.held()) + 16
        for slot in (1, 2, handle - 1, *range(beyond, beyond + 10)):
            found[f"map slot {slot}"] = outcome(lambda slot=slot: self.kernel.map(slot).close())
        for name, args in FORBIDDEN:
            found[f"syscall {name}"] = outcome(lambda name=name, args=args: self.kernel.syscall(name, **args))
        found["call archivist by slot"] = outcome(
            lambda: self.kernel.syscall("call", endpoint=9, method=111, args=[[]])
        )
        found["call dataset.fill"] = outcome(
            lambda: self.kernel.call("dataset.fill", window=1, phase={}, step0=0, steps=1, weights="", gate={})
        )
        run = self.kernel.config["run"]
        child = subprocess.run([sys.executable, "-c", OPERATOR, run], capture_output=True, text=True, check=False)
        found["operator of a server"] = child.stdout.strip() or child.stderr[-200:]
        self.report.write_text(json.dumps(found))
        ctypes.memmove(at, b"overwritten", 11)
        self.report.write_text(json.dumps({**found, "write page": "succeeded"}))

    def idle(self) -> bool:
        return False

    def drain(self) -> None:
        """Nothing to finish."""


ATTACKS: dict[str, Callable[[int], Any]] = {
    "read memory": lambda pid: os.close(os.open(f"/proc/{pid}/mem", os.O_RDONLY)),
    "write memory": lambda pid: os.close(os.open(f"/proc/{pid}/mem", os.O_RDWR)),
    "open a descriptor": lambda pid: os.close(os.open(f"/proc/{pid}/fd/0", os.O_RDONLY)),
    "follow a descriptor": lambda pid: os.readlink(f"/proc/{pid}/fd/0"),
    "read environment": lambda pid: Path(f"/proc/{pid}/environ").read_bytes(),
    "ptrace attach": lambda pid: checked(libc.ptrace(PTRACE_ATTACH, pid, None, None)),
    "ptrace seize": lambda pid: checked(libc.ptrace(PTRACE_SEIZE, pid, None, None)),
    "process_vm_readv": lambda pid: vm(SYS_PROCESS_VM_READV, pid),
    "process_vm_writev": lambda pid: vm(SYS_PROCESS_VM_WRITEV, pid),
    "pidfd_getfd": steal_descriptor,
}
FORBIDDEN: tuple[tuple[str, dict[str, Any]], ...] = (
    ("shutdown", {}),
    ("rl_set_kd", {"temperature": 2.0}),
    ("rl_swap_roles", {"mode": "ema"}),
    ("interrupt", {"kind": "pause"}),
    ("rl_schedule", {"window": {}, "deadline": 100}),
    ("window_staged", {"window": 1, "snapshot": "", "metrics": {}, "maps": {}, "trace": 0}),
    ("window_rolled_back", {"window": 1, "code": "E7-MISSED", "reason": "", "restored": ""}),
    ("cap_derive", {"cap": 1, "rights": ["steer"]}),
    ("cap_revoke", {"cap": 1}),
)


if __name__ == "__main__":
    raise SystemExit(serve("observer", FakeObserver))
