"""Leases on a device's memory, shared by every runtime of this user: one small locked file a holder.

Responsible for: granting bytes while the sum of what living holders have fits the device and the manifest's budget; saying who holds
what when it does not. A holder is alive as long as its process has its file locked, so a killed runtime's lease ends with it and
nothing has to be cleaned up. Refuses: over-commitment (E6-ADMIT with the numbers); leases of another user's files.

    DIRECTORY/DEVICE/lock          taken while one lease is decided
    DIRECTORY/DEVICE/PID.lease     JSON {"pid", "bytes", "run"}; flock'ed by its holder for as long as it lives
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from syscalls.errors import RecurosError

MIB: Final = 1 << 20
LOCK_S: Final = 5.0
"""How long a decision of another runtime is waited for: it takes under a millisecond, unless its process was stopped in the middle."""
_NAME = re.compile(r"[^A-Za-z0-9.-]")


@dataclass(frozen=True)
class Holder:
    """Somebody else's lease."""

    pid: int
    bytes: int
    run: str


class Leases:
    """The leases of one device; `capacity_bytes` is its memory, `budget_bytes` what this runtime may take of it (0: all)."""

    def __init__(self, directory: Path, device: str, capacity_bytes: int, budget_bytes: int, run: str) -> None:
        self._folder = directory / _NAME.sub("_", device)
        self._device = device
        self._capacity = capacity_bytes
        self._budget = budget_bytes or capacity_bytes
        self._run = run
        self._fd = -1
        self.held_bytes = 0

    def take(self, wanted: int) -> dict[str, Any]:
        """Lease `wanted` bytes in place of what this process holds; E6-ADMIT says what is missing, and who has it."""
        if wanted < 0:
            raise RecurosError(
                "E2-LIMIT", f"a lease of {wanted} bytes of {self._device}", hint="ask for 0 bytes or more"
            )
        if wanted > self._budget:
            raise RecurosError(
                "E6-ADMIT",
                f"{_mib(wanted)} of {self._device} were asked for; the budget of this runtime is {_mib(self._budget)}",
                hint="raise [device] memory-mb, or use a smaller model or batch",
                details={"wanted": wanted, "budget": self._budget, "capacity": self._capacity},
            )
        with self._decided():
            others = list(self.others())
            taken = sum(holder.bytes for holder in others)
            if wanted + taken > self._capacity:
                who = ", ".join(f"pid {h.pid} ({h.run}) has {_mib(h.bytes)}" for h in others)
                raise RecurosError(
                    "E6-ADMIT",
                    f"{_mib(wanted)} of {self._device} were asked for; {_mib(self._capacity - taken)} of {_mib(self._capacity)} "
                    f"are free: {who or 'nobody else holds a lease'}",
                    hint="halt one of them, or give both a [device] memory-mb that fits together",
                    details={"wanted": wanted, "taken": taken, "capacity": self._capacity},
                )
            self._write(wanted)
        return {"granted": wanted, "budget": self._budget, "capacity": self._capacity, "others": taken}

    def others(self) -> Iterator[Holder]:
        """Living holders but this process."""
        for path in sorted(self._folder.glob("*.lease")):
            if path.stem == str(os.getpid()):
                continue
            with contextlib.suppress(OSError), path.open("r+b") as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    with contextlib.suppress(ValueError, KeyError, TypeError):
                        found = json.loads(file.read())
                        yield Holder(int(found["pid"]), int(found["bytes"]), str(found["run"]))
                else:
                    path.unlink(missing_ok=True)  # its holder has gone

    def give_back(self) -> None:
        """End this process's lease."""
        if self._fd >= 0:
            (self._folder / f"{os.getpid()}.lease").unlink(missing_ok=True)
            os.close(self._fd)
            self._fd, self.held_bytes = -1, 0

    @contextlib.contextmanager
    def _decided(self) -> Iterator[None]:
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        fd = os.open(self._folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            self._lock(fd)
            yield
        finally:
            os.close(fd)

    def _lock(self, fd: int) -> None:
        """Like a blocking flock, but not for longer than LOCK_S: a runtime that hangs must not take another one's server with it."""
        deadline = time.monotonic() + LOCK_S
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    raise RecurosError(
                        "E124-TIMEOUT",
                        f"leases of {self._device}: another runtime has held {self._folder / 'lock'} for {LOCK_S:g} s",
                        hint=f"end the process that holds it: lslocks, or fuser {self._folder / 'lock'}",
                    ) from None
                time.sleep(0.01)
            else:
                return

    def _write(self, count: int) -> None:
        if self._fd < 0:
            path = self._folder / f"{os.getpid()}.lease"
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            self._lock(self._fd)
        data = json.dumps({"pid": os.getpid(), "bytes": count, "run": self._run}).encode()
        os.pwrite(self._fd, data, 0)
        os.ftruncate(self._fd, len(data))
        self.held_bytes = count


def _mib(count: int) -> str:
    return f"{count / MIB:.1f} MiB"
