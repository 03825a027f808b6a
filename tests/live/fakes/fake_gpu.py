"""A gpu server without a device."""

from __future__ import annotations

from syscalls.harden import harden

harden()

from typing import Any

from syscalls.serve import Kernel, serve


class FakeGpu:
    info: dict[str, Any] = {}

    def __init__(self, kernel: Kernel) -> None:
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
