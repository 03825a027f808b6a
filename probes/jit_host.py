"""What compiled code depends on besides its program: processor, compiler, code generator.

Responsible for: one key for all of it, computed without loading LLVM, so that a cached image is found in microseconds and never
used on a machine or by a version that it was not made for. Standard library only.
Refuses: to guess at other operating systems and machines; `unsupported` says why there is no compiled code here.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import platform
import sys
from functools import lru_cache
from pathlib import Path

from probes.isa import ISA_VERSION
from probes.jit_code import CODEGEN_VERSION


@lru_cache(maxsize=1)
def unsupported() -> str:
    """Why programs cannot be compiled here, or ""."""
    if sys.platform != "linux" or platform.machine() not in ("x86_64", "AMD64"):
        return f"images are made for Linux on x86-64; this is {sys.platform} on {platform.machine()}"
    if importlib.util.find_spec("llvmlite") is None:
        return "llvmlite is not installed"
    return ""


@lru_cache(maxsize=1)
def host_key() -> str:
    """SHA-256 in hex of the ISA and generator versions, the compiler's version and the processor's model and features."""
    parts = [str(ISA_VERSION), str(CODEGEN_VERSION), importlib.metadata.version("llvmlite"), platform.machine()]
    parts += sorted(
        {
            line.strip()
            for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
            if line.partition(":")[0].strip() in ("model name", "flags", "model", "cpu family", "stepping")
        }
    )
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def cache_key(program_digest: str) -> str:
    """Under which an image is cached: its program and everything it depends on."""
    return hashlib.sha256(f"obpf-image:{program_digest}:{host_key()}".encode()).hexdigest()
