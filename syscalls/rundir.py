"""Where a run directory is, and where its sockets are.

Responsible for: `--run` > RECUROS_RUN > ./.recuros, and the socket directory that belongs to it (socket paths are
limited to 107 bytes, so they do not live in the run directory). Refuses: a socket directory that somebody else owns
or can enter.
"""

from __future__ import annotations

import hashlib
import os
import stat
from pathlib import Path

from syscalls import limits
from syscalls.errors import RecurosError


def resolve_run(option: str | None) -> Path:
    """The run directory as an absolute path; it need not exist yet."""
    return Path(option or os.environ.get("RECUROS_RUN") or ".recuros").absolute()


def user_dir() -> Path:
    """What all runtimes of this user share; nothing is created."""
    base = os.environ.get("XDG_RUNTIME_DIR")
    return Path(base) / "recuros" if base and Path(base).is_dir() else Path(f"/tmp/recuros-{os.getuid()}")


def socket_dir(run: Path) -> Path:
    """The 0700 directory of the sockets of `run`; nothing is created."""
    digest = hashlib.sha256(os.fsencode(os.path.realpath(run))).hexdigest()[:16]
    path = user_dir() / digest
    if len(os.fsencode(path / "operator.sock")) > limits.RUN_PATH_BYTES_MAX:
        path = Path(f"/tmp/recuros-{os.getuid()}") / digest
    return path


def make_socket_dir(run: Path) -> Path:
    """Create (or check) the socket directory; E5-DENIED when it is not private to this user."""
    path = socket_dir(run)
    for directory in (path.parent, path):
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        info = directory.lstat()
        if not stat.S_ISDIR(info.st_mode) or info.st_uid != os.getuid() or info.st_mode & 0o077:
            raise RecurosError(
                "E5-DENIED",
                f"socket directory {directory} must be a directory of uid {os.getuid()} with mode 0700, "
                f"it has uid {info.st_uid} and mode {info.st_mode & 0o777:o}",
                hint=f"rm -r {directory}, or set XDG_RUNTIME_DIR",
            )
    return path
