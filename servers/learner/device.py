"""Where the learner computes, and what it does when memory runs out there.

Responsible for: the torch device of the manifest's `[device]` table, refused when it is not there; how many bytes the state of an
engine takes; turning the allocator's errors into E7-MEMORY with the numbers, so that a window rolls back and is tried in smaller
parts. Refuses: to fall back. `cuda` without CUDA is an error; only `auto` may choose the CPU, and `describe` says which it was.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from syscalls.errors import RecurosError

_ALLOCATOR = re.compile(r"can't allocate memory|not enough memory|out of memory", re.IGNORECASE)


def resolve(table: Mapping[str, Any]) -> torch.device:
    """The device that `[device]` names; E2-MANIFEST when torch or the host does not have it."""
    kind, index = str(table.get("kind", "cpu")), int(table.get("index", 0))
    if kind == "cpu" or (kind == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        built = "has no CUDA" if torch.version.cuda is None else "finds no CUDA device"
        raise RecurosError(
            "E2-MANIFEST",
            f"[device] kind = {kind!r}, but torch {torch.__version__} {built}",
            hint='kind = "cpu" or "auto", or install a CUDA build of torch (docs/how-to/use-a-gpu.md)',
        )
    if index >= torch.cuda.device_count():
        raise RecurosError(
            "E2-MANIFEST",
            f"[device] index = {index}, and this host has {torch.cuda.device_count()} CUDA device(s)",
            hint="count from 0; recuros doctor lists them",
        )
    return torch.device("cuda", index)


def prepare(device: torch.device, memory_mb: int | None) -> None:
    """Before the first allocation: deterministic matrix products, and the manifest's budget as the allocator's bound."""
    if device.type != "cuda":
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.backends.cudnn.benchmark = False
    torch.backends.cuda.matmul.allow_tf32 = False
    if memory_mb:
        total = torch.cuda.get_device_properties(device).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, (memory_mb << 20) / total), device)


def describe(device: torch.device) -> str:
    """For people: "cpu", or the device's name."""
    return "cpu" if device.type == "cpu" else f"{device}: {torch.cuda.get_device_name(device)}"


@contextmanager
def memory_errors(device: torch.device, parts: int) -> Iterator[None]:
    """The allocator's refusals inside become E7-MEMORY."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise _out_of_memory(device, parts, str(error)) from error
    except RuntimeError as error:
        if not _ALLOCATOR.search(str(error)):
            raise
        raise _out_of_memory(device, parts, str(error)) from error


def _out_of_memory(device: torch.device, parts: int, what: str) -> RecurosError:
    if device.type == "cuda":
        torch.cuda.empty_cache()
    first = what.strip().splitlines()[0] if what.strip() else "no memory"
    pieces = "as a whole" if parts == 1 else f"in {parts} parts"
    return RecurosError(
        "E7-MEMORY",
        f"{device}: a batch {pieces} does not fit: {first:.300}",
        hint="a smaller [data] batch or model; [device] micro-batches-max allows smaller parts",
    )
