"""A process without network and without certain directories, traced.

Responsible for: namespaces (network and mount; a user namespace where this is not root), empty unreadable directories over everything
hidden, and strace over what runs inside, whose log names every file that any thread or child opened, however it opened it. Refuses: to
run without these means: E1-NO names what is missing. Nothing is simulated, and nothing can be switched off.

Run as `python -m nexus.gate.sandbox SPEC.json`: {"hide": [DIR, ...], "trace": FILE, "command": [...]}. It execs the command.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from syscalls.errors import RecurosError

CLONE_NEWNS: Final = 0x00020000
CLONE_NEWUSER: Final = 0x10000000
CLONE_NEWNET: Final = 0x40000000
MS_REC_PRIVATE: Final = 0x4000 | 0x40000
TRACED: Final = "%file,openat2,open_by_handle_at,connect,socket"
TIMEOUT_S: Final = 1800
_CALL: Final = re.compile(r"^(?:\d+ +)?(\w+)\((.*)$")
_OPENS: Final = ("open", "openat", "openat2", "creat", "execve", "open_by_handle_at")
_QUOTED: Final = re.compile(r'"((?:[^"\\]|\\.)*)"')
_BASE: Final = re.compile(r"(?:AT_FDCWD|\d+)<([^>]*)>")
_OUTSIDE: Final = re.compile(r"/proc/\d+/(?:root|cwd|fd|map_files)(?:/|\Z)")
_FAMILY: Final = re.compile(r"AF_INET6?\b")


@dataclass(frozen=True)
class Traced:
    """What a traced process did. `opened`: every path that it tried to open or execute; `network`: its attempts to connect."""

    returncode: int
    opened: list[str]
    network: list[str]
    stderr: str

    def under(self, folders: Sequence[Path]) -> list[str]:
        """Paths that lie in one of some directories, or in another process's view of the file system, which could be anywhere."""
        roots = [os.path.realpath(f) for f in folders]
        return sorted(
            {p for p in self.opened if _OUTSIDE.match(p) or any(p == r or p.startswith(r + "/") for r in roots)}
        )


def means() -> str:
    """What this host isolates and traces with; E1-NO where it cannot."""
    if shutil.which("strace") is None:
        raise RecurosError(
            "E1-NO",
            "no trace of opened files is possible here: strace is not installed",
            hint="install strace; the gate has no other way",
        )
    return ("" if os.geteuid() == 0 else "user, ") + "network and mount namespaces; strace -f of every open"


def run(command: Sequence[str], hide: Sequence[Path], trace: Path, cwd: Path) -> Traced:
    """Run a command in the sandbox and read its trace."""
    means()
    trace.parent.mkdir(parents=True, exist_ok=True)
    trace.unlink(missing_ok=True)
    spec = trace.with_suffix(".sandbox.json")
    document = {"hide": [str(h) for h in hide], "trace": str(trace), "command": list(command)}
    spec.write_text(json.dumps(document), encoding="utf-8")
    env = {k: v for k, v in os.environ.items() if k in ("PATH", "HOME", "LANG", "LC_ALL", "PYTHONPATH", "VIRTUAL_ENV")}
    env |= {
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    done = subprocess.run(
        [sys.executable, "-m", "nexus.gate.sandbox", str(spec)],
        capture_output=True,
        text=True,
        cwd=cwd,
        env=env,
        timeout=TIMEOUT_S,
        check=False,
    )
    if not trace.is_file():
        raise RecurosError(
            "E1-NO",
            f"the gate's process could not be isolated or traced: {done.stderr.strip()[-400:]}",
            hint="run where namespaces and strace are allowed; there is no way around the proof",
        )
    opened, network = read_trace(trace, cwd)
    return Traced(done.returncode, opened, network, done.stderr)


def read_trace(trace: Path, cwd: Path) -> tuple[list[str], list[str]]:
    """(paths opened or tried, attempts at the network) of an strace log. Links are resolved, so that no name hides a file.

    strace says for each call what its directory was (-y), so that neither chdir nor an open directory does.
    """
    opened: set[str] = set()
    network: list[str] = []
    with trace.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            match = _CALL.match(line)
            if match is None:
                continue
            call, rest = match.groups()
            if call in _OPENS:
                quoted, base = _QUOTED.search(rest), _BASE.match(rest)
                if quoted is not None:
                    opened.add(_real(quoted.group(1), cwd if base is None else Path(base.group(1))))
            elif call in ("connect", "socket") and _FAMILY.search(rest):
                network.append(line.strip()[:200])
    return sorted(opened), network


def _real(text: str, cwd: Path) -> str:
    raw = text.encode("ascii", "replace").decode("unicode_escape").encode("latin-1").decode("utf-8", "replace")
    path = os.path.normpath(os.path.join(cwd, raw))
    return path if _OUTSIDE.match(path) else os.path.realpath(path)


def _enter(hide: Sequence[str]) -> None:
    """New namespaces; empty directories without rights over what is hidden."""
    libc = ctypes.CDLL(None, use_errno=True)
    uid, gid = os.getuid(), os.getgid()
    flags = CLONE_NEWNS | CLONE_NEWNET | (0 if uid == 0 else CLONE_NEWUSER)
    _check(libc.unshare(flags), "unshare")
    if uid != 0:
        Path("/proc/self/setgroups").write_text("deny", encoding="ascii")
        Path("/proc/self/uid_map").write_text(f"0 {uid} 1", encoding="ascii")
        Path("/proc/self/gid_map").write_text(f"0 {gid} 1", encoding="ascii")
    _check(libc.mount(b"none", b"/", None, MS_REC_PRIVATE, None), "mount private")
    for folder in hide:
        if os.path.isdir(folder):
            _check(libc.mount(b"tmpfs", folder.encode(), b"tmpfs", 1, b"size=4k,mode=000"), f"hide {folder}")


def _check(status: int, what: str) -> None:
    if status != 0:
        error = ctypes.get_errno()
        raise OSError(error, f"{what}: {os.strerror(error)}")


def main() -> None:
    """Isolate this process, then become the traced command."""
    spec = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    _enter(spec["hide"])
    strace = shutil.which("strace") or "strace"
    os.execv(
        strace,
        [strace, "-f", "-qq", "-y", "-s", "4096", "-e", f"trace={TRACED}", "-o", spec["trace"], *spec["command"]],
    )


if __name__ == "__main__":
    main()
