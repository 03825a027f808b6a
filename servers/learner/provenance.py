"""What a window depends on besides its recorded inputs: code and environment.

Responsible for: the digest of the sources that decide a step's result, and the facts about machine and libraries under which
bit-exact replay is promised. Refuses: to read the environment's variables or anything outside the package.
"""

from __future__ import annotations

import platform
from pathlib import Path

import torch
from blake3 import blake3

SOURCES = ("servers/learner", "servers/models", "servers/dataset", "probes", "kfs", "syscalls")


def code_digest() -> str:
    """`b3:` and the BLAKE3 of names and bytes of every Python file below SOURCES, in sorted order."""
    root = Path(__file__).resolve().parents[2]
    hasher = blake3()
    for folder in SOURCES:
        for file in sorted((root / folder).rglob("*.py")):
            data = file.read_bytes()
            hasher.update(f"{file.relative_to(root).as_posix()} {len(data)}\n".encode())
            hasher.update(data)
    return f"b3:{hasher.hexdigest()}"


def code_files() -> dict[str, str]:
    """Path -> 16 digits of the BLAKE3 of each file that `code_digest` covers, and of the policies', so that a change has a name."""
    root = Path(__file__).resolve().parents[2]
    files = [file for folder in (*SOURCES, "servers/observer") for file in sorted((root / folder).rglob("*.py"))]
    return {file.relative_to(root).as_posix(): blake3(file.read_bytes()).hexdigest()[:16] for file in files}


def environment_digest(facts: dict[str, str]) -> str:
    """`b3:` and the BLAKE3 of the facts in sorted order: the ledger's `env_id`."""
    text = "".join(f"{key}={facts[key]}\n" for key in sorted(facts))
    return f"b3:{blake3(text.encode()).hexdigest()}"


def environment() -> dict[str, str]:
    """Versions and the instruction set in use: what must be equal for two runs to agree bit for bit."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "platform": f"{platform.system()} {platform.machine()}",
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "threads": str(torch.get_num_threads()),
        "deterministic": str(torch.are_deterministic_algorithms_enabled()).lower(),
    }
