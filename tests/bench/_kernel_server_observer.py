"""Entry of the benchmark's observer, which measures calls to the gpu server; see _kernel_server."""

from __future__ import annotations

from syscalls.harden import harden

harden()

# ruff: noqa: E402 - hardened before anything else is imported, as every server
from syscalls.serve import serve
from tests.bench._kernel_server import Calling

if __name__ == "__main__":
    raise SystemExit(serve("observer", Calling))
