"""The operator's session: what the command line, the shell and `recuros.connect()` use.

Responsible for: finding the runtime of a run directory and speaking to it with typed stubs. Refuses: to guess; a run
directory without a live runtime is E3-DOWN, with the way to start one.
"""

from __future__ import annotations

from pathlib import Path

from syscalls.rundir import socket_dir
from syscalls.stubs import Stubs


class Client(Stubs):
    """A connection to the runtime of `run`; use it as a context manager."""

    def __init__(self, run: Path, *, timeout_s: float = 30.0) -> None:
        super().__init__(socket_dir(run) / "operator.sock", timeout_s=timeout_s)
        self.run = run
        try:
            self.hello()
        except BaseException:
            self.close()
            raise
