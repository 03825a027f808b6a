"""A gpu server without a device."""

from __future__ import annotations

from syscalls.harden import harden

harden()

# ruff: noqa: E402 - hardened before anything else is imported, as every server
from typing import Any

from syscalls.serve import Kernel, serve


class FakeGpu:
    def __init__(self, kernel: Kernel) -> None:
        self.info: dict[str, Any] = {}
        self.handlers = {
            "inventory": lambda: {"devices": [], "host": {}, "note": "none"},
            "telemetry": lambda: {"devices": [], "host": {}},
        }

    def idle(self) -> bool:
        return False

    def drain(self) -> None:
        """Nothing to finish."""


if __name__ == "__main__":
    raise SystemExit(serve("gpu", FakeGpu))
