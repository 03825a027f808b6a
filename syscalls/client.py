"""The operator's session: what the command line, the shell and `recuros.connect()` use.

Responsible for: finding the runtime of a run directory and speaking to it with typed stubs. Refuses: to guess; a run
directory without a live runtime is E3-DOWN, with the way to start one.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from syscalls.rundir import socket_dir
from syscalls.stubs import Stubs

if TYPE_CHECKING:
    from syscalls.pages import PageSocket, ReadPage


class Client(Stubs):
    """A connection to the runtime of `run`; use it as a context manager."""

    def __init__(self, run: Path, *, timeout_s: float = 30.0) -> None:
        super().__init__(socket_dir(run) / "operator.sock", timeout_s=timeout_s)
        self.run = run
        self._pages: PageSocket | None = None
        try:
            self.hello()
        except BaseException:
            self.close()
            raise

    def map(self, handle: int) -> ReadPage:
        """Map a page that the kernel gave this session a handle for, read-only; its writer may go on writing."""
        from syscalls.pages import PageSocket  # most sessions map nothing

        if self._pages is None:
            self._pages = PageSocket(socket_dir(self.run) / "pages.sock", self.principal)
        return self._pages.map(handle)

    def close(self) -> None:
        """Close the session; pages already mapped stay mapped."""
        if self._pages is not None:
            self._pages.close()
        super().close()
