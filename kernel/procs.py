"""What the host says of a process: its parent, its memory, its CPU time.

Responsible for: reading /proc and CPU clocks. Refuses: to guess; where nothing can be read, the answer says so.
"""

from __future__ import annotations

import os
import time
from pathlib import Path


def cpu_ns(pid: int) -> int:
    """CPU time of a process, all threads, from its POSIX CPU clock; 0 when it has gone."""
    try:
        return time.clock_gettime_ns((~pid << 3) | 2)
    except OSError:
        return 0


def rss_bytes(pid: int) -> int:
    """Resident bytes of a process, 0 when it has gone."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")
    except (OSError, IndexError, ValueError):
        return 0


def parent_pid(pid: int) -> int | None:
    """The parent's pid, 0 when it is outside of this pid namespace; None when the process has gone."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    return int(stat.rsplit(")", 1)[1].split()[1])


def ancestors(pid: int) -> list[int] | None:
    """The process and its ancestors, youngest first, up to init; None when nobody can tell them any more.

    An ancestor may end during the walk: its children then have another parent, and the walk begins again. Where the host hides other
    users' processes (hidepid) the walk ends at the first of those: no server can become, or start, a process of another user.
    """
    for _ in range(3):
        line, at = [pid], pid
        while at > 1:
            above = parent_pid(at)
            if above is None and _is_anothers(at):
                return line
            if above is None:
                break
            line.append(above)
            at = above
        else:
            return line
        if at == pid:
            return None
    return None


def _is_anothers(pid: int) -> bool:
    """Whether a process is there and belongs to another user."""
    try:
        os.kill(pid, 0)
    except PermissionError:
        return True
    except OSError:
        return False
    return False


def has_file(pid: int, device: int, inode: int) -> bool | None:
    """Whether a process maps a file or has it open; None where this process may not look."""
    try:
        with open(f"/proc/{pid}/maps", "rb") as maps:
            for line in maps:
                _, _, _, where, number, *_ = line.split(None, 5)
                major, _, minor = where.partition(b":")
                if int(number) == inode and os.makedev(int(major, 16), int(minor, 16)) == device:
                    return True
        for descriptor in os.listdir(f"/proc/{pid}/fd"):
            try:
                found = os.stat(f"/proc/{pid}/fd/{descriptor}")
            except FileNotFoundError:
                continue  # closed meanwhile
            if (found.st_dev, found.st_ino) == (device, inode):
                return True
    except PermissionError:
        return None
    except OSError:
        return False  # it has gone
    return False


def describe(pid: int) -> str:
    """State, CPU time and (where this process may know) the place in the host's kernel, of a process that does not answer."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
        place = Path(f"/proc/{pid}/wchan").read_text().strip("0\n")
    except OSError:
        return "gone"
    used_s = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return f"state {fields[0]}, {used_s:.2f} s of CPU time" + (f", in {place}" if place else "")
