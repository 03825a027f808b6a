"""A dataset server whose batches are 64 bytes."""

from __future__ import annotations

from syscalls.harden import harden

harden()

# ruff: noqa: E402 - hardened before anything else is imported, as every server
from typing import Any

from syscalls.pages import pack_arrays
from syscalls.serve import Kernel, serve


class FakeDataset:
    def __init__(self, kernel: Kernel) -> None:
        self.info: dict[str, Any] = {}
        self.kernel = kernel
        self.handlers = {"fill": self.fill, "split": lambda name: {"page": self.page()}}

    def page(self) -> int:
        page = pack_arrays([("b0/x", "U8", (64,), bytes(64))])
        handle = self.kernel.offer(page)
        page.close()
        return handle

    def fill(self, **asked: Any) -> dict[str, Any]:
        return {"page": self.page(), "batch": f"{asked['step0']}"}

    def idle(self) -> bool:
        return False

    def drain(self) -> None:
        """Nothing to finish."""


if __name__ == "__main__":
    raise SystemExit(serve("dataset", FakeDataset))
