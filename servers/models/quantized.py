"""Teachers in 8 or 4 bits, through bitsandbytes: frozen models that take a quarter or an eighth of the memory.

Responsible for: what transformers is told to load one, whether it runs on this machine, and its `architecture`: the weights are those of
its directory, so a snapshot names the directory and a digest of its files instead of holding tensors. Refuses: sizes that bitsandbytes'
kernels do not take here, and a directory whose files are others than a snapshot says; each is E2-MODEL.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import torch
from blake3 import blake3

from servers.models.directory import WEIGHT_FILES
from servers.models.model import Task
from syscalls.errors import RecurosError

LOADS: Final = ("float32", "int8", "nf4")


def options(load: str) -> dict[str, Any]:
    """Keywords of `from_pretrained` for one of LOADS."""
    if load not in LOADS:
        raise RecurosError("E2-MODEL", f"load {load!r} is unknown", hint=f"one of {', '.join(LOADS)}")
    if load == "float32":
        return {}
    from transformers import BitsAndBytesConfig

    config: Any = BitsAndBytesConfig
    if load == "int8":
        return {"quantization_config": config(load_in_8bit=True)}
    return {"quantization_config": config(load_in_4bit=True, bnb_4bit_quant_type="nf4")}


@contextmanager
def as_it_is() -> Iterator[None]:
    """bitsandbytes warns of the 16 bits that its 8-bit product computes in, and of faster kernels; we know."""
    logger = logging.getLogger("bitsandbytes")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="MatMul8bitLt: inputs will be cast")
            yield
    finally:
        logger.setLevel(level)


@torch.no_grad()
def why_not(module: Any) -> str:
    """Why this module does not run here, "" when it does; better to know it when it is loaded than in the middle of a window."""
    device = next(module.parameters()).device
    try:
        with as_it_is():
            module(input_ids=torch.ones(1, 4, dtype=torch.int64, device=device))
    except (AssertionError, RuntimeError, ValueError, NotImplementedError) as error:
        lines = str(error).strip().splitlines()
        return f"{type(error).__name__}: {lines[0] if lines else 'no reason given'}"[:300]
    return ""


def digest_of(path: Path) -> str:
    """`b3:HEX` over the weight files of a model directory, by name."""
    hasher = blake3()
    for file in sorted(f for f in path.iterdir() if f.suffix == ".safetensors" or f.name in WEIGHT_FILES):
        hasher.update(f"{file.name}\0{file.stat().st_size}\0".encode())
        hasher.update_mmap(file)
    return f"b3:{hasher.hexdigest()}"


def architecture(path: Path, task: Task, attention: str, load: str, expected: str) -> dict[str, Any]:
    """What a snapshot says of such a model: where it is, and which files they were. `expected`: an earlier digest, or ""."""
    found = digest_of(path)
    if expected and expected != found:
        raise RecurosError(
            "E2-MODEL",
            f"model directory {path} holds {found}; the state was made with {expected}",
            hint="put the same files there: an 8 or 4 bit teacher is read from its directory, and not kept in snapshots",
        )
    return {
        "kind": "hf",
        "path": str(path),
        "task": task,
        "attention": attention,
        "load": load,
        "weights": found,
    }
