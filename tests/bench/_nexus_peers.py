"""peft as a peer of the benchmark of Nexus: in an environment of its own, in a process of its own, driven over a pipe.

Responsible for: making build/peers/peft/.venv and asking its process for times. Refuses: to pretend; without it there are no rows of it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Any

from tests.bench._peers import PEERS, _ran
from tests.bench._rows import ROOT

OURS = ("torch", "transformers", "tokenizers", "safetensors", "huggingface_hub", "numpy")
SCRIPT = Path(__file__).parent / "peers" / "peft_lora.py"


def environment() -> Path | None:
    """The Python of an environment with peft under the project's pins, made where it is missing; None where that fails."""
    folder = PEERS / "peft"
    python = folder / ".venv" / "bin" / "python"
    finished = folder / ".made"
    if finished.exists() and python.exists():
        return python
    folder.mkdir(parents=True, exist_ok=True)
    pins = [line.strip() for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()]
    kept = [line for line in pins if line.partition("==")[0] in OURS]
    (folder / "constraints.txt").write_text("\n".join(kept) + "\n", encoding="utf-8")
    pip = [
        str(python),
        "-m",
        "pip",
        "install",
        "-q",
        "--disable-pip-version-check",
        "-c",
        str(folder / "constraints.txt"),
    ]
    torch = next(line for line in kept if line.startswith("torch=="))
    for command in ([sys.executable, "-m", "venv", str(folder / ".venv")], [*pip, torch], [*pip, *kept, "peft"]):
        if not _ran(command, folder):
            return None
    finished.write_text("", encoding="utf-8")
    return python


class Peft:
    """The peer's process."""

    def __init__(self, python: Path, backbone: Path, folder: Path, rank: int) -> None:
        environ = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            [str(python), str(SCRIPT), str(backbone), str(folder), str(rank)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environ,
        )
        self.version = self._read()["version"]

    def ask(self, case: str) -> float:
        """Seconds of one turn of a case: bare_prefill, bare_decode, lora_prefill, lora_decode, from_pretrained, load_seven."""
        assert self._process.stdin is not None
        self._process.stdin.write(case + "\n")
        self._process.stdin.flush()
        return float(self._read()["seconds"])

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError("the process of peft ended")
        found: dict[str, Any] = json.loads(line)
        return found

    def __enter__(self) -> Peft:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()
