"""One writer per store, held by flock.

Responsible for: taking `LOCK`, naming the holder to a second writer, telling a reader whether a writer is alive. Refuses:
waiting. The lock goes away with its holder, so nothing stale is left by kill -9.
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from syscalls.errors import RecurosError


class WriterLock:
    """An exclusive flock on a file that holds the holder's process id."""

    def __init__(self, path: Path) -> None:
        """Take the lock; E3-BUSY names the process that has it."""
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as e:
            holder = os.pread(self._fd, 20, 0).decode("ascii", "replace").strip() or "unknown"
            os.close(self._fd)
            raise RecurosError(
                "E3-BUSY",
                f"{path.parent} already has a writer, process {holder}",
                hint="recuros status, or recuros halt",
            ) from e
        os.ftruncate(self._fd, 0)
        os.pwrite(self._fd, f"{os.getpid()}\n".encode(), 0)

    def release(self) -> None:
        """Let the next writer in."""
        os.close(self._fd)


def has_writer(path: Path) -> bool:
    """Whether some process holds the lock now.

    Read from /proc/locks rather than by trying the lock: trying it would make a writer that starts in that instant fail.
    """
    try:
        inode = f":{path.stat().st_ino} "
        return any("FLOCK" in line and inode in line for line in Path("/proc/locks").read_text().splitlines())
    except OSError:
        return False
