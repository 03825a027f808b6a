"""Entry of the benchmark's learner server; see _kernel_server."""

from __future__ import annotations

from syscalls.harden import harden

harden()

# ruff: noqa: E402 - hardened before anything else is imported, as every server
from syscalls.serve import serve
from tests.bench._kernel_server import Busy

if __name__ == "__main__":
    raise SystemExit(serve("learner", Busy))
