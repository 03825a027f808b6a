"""The operator's session: what the command line, the shell and `recuros.connect()` use.

Responsible for: finding the runtime of a run directory and speaking to it with typed stubs. Refuses: to guess; a run
directory without a live runtime is E3-DOWN, with the way to start one.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from syscalls import abi
from syscalls.errors import RecurosError
from syscalls.rundir import socket_dir
from syscalls.stubs import Stubs

if TYPE_CHECKING:
    from syscalls.pages import PageSocket, ReadPage
    from syscalls.remote import Card


class Client(Stubs):
    """A connection to the runtime of `run`; use it as a context manager."""

    def __init__(self, run: Path, *, timeout_s: float = 30.0, card: Card | None = None) -> None:
        """With a `card` the runtime is the one at its address; `run` is then a directory on this machine, and may have no runtime."""
        super().__init__(card or socket_dir(run) / "operator.sock", timeout_s=timeout_s)
        self.run, self.remote = run, card is not None
        self._pages: PageSocket | None = None
        try:
            self.hello()
        except BaseException:
            self.close()
            raise

    def change(
        self, name: str, /, *, reason: str = "", dry_run: bool = False, timeout_s: float | None = None, **args: Any
    ) -> dict[str, Any]:
        """A syscall that changes something, with a reason for its record; its reply.

        With `dry_run` only the question: {"seq": -1, "step", "dry_run": True} and what the change would answer, when that is known
        before, where it would be accepted; its own error where not.
        """
        if not reason and not dry_run:
            return self.syscall(name, timeout_s=timeout_s, **args)
        row = abi.SYSCALL_BY_NAME[name]
        answer = self.syscall(
            "propose", timeout_s=timeout_s, syscall=row.nr, args=row.bind(args), reason=reason, dry_run=dry_run
        )
        if dry_run:
            known = row.check_reply(answer["reply"]) if answer["reply"] else {}
            return {**known, "seq": -1, "step": answer["step"], "dry_run": True}
        return row.check_reply(answer["reply"])

    def _repr_html_(self) -> str:
        """What a notebook shows of the runtime behind this session."""
        from syscalls import html

        return html.status(self.status()["status"])

    def map(self, handle: int) -> ReadPage:
        """Map a page that the kernel gave this session a handle for, read-only; its writer may go on writing."""
        return self._page_socket().map(handle)

    def offer(self, data: bytes) -> int:
        """Offer bytes as the array `data` of a page; the handle is to be given to a syscall, which takes the page over."""
        from syscalls.pages import pack_arrays

        page = pack_arrays([("data", "U8", (len(data),), data)])
        try:
            return self._page_socket().offer(page)
        finally:
            page.close()

    def _page_socket(self) -> PageSocket:
        from syscalls.pages import PageSocket  # most sessions have nothing to do with pages

        if self.remote:
            raise RecurosError("E1-NO", "pages stay on the machine of the runtime", hint="run the command there")
        if self._pages is None:
            self._pages = PageSocket(socket_dir(self.run) / "pages.sock", self.principal)
        return self._pages

    def close(self) -> None:
        """Close the session; pages already mapped stay mapped."""
        if self._pages is not None:
            self._pages.close()
        super().close()
