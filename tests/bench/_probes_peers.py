"""Peers of the benchmark of probes: each in an environment of its own, with its own process, driven over a pipe.

Responsible for: making build/peers/NAME/.venv with pip, under the project's pin of torch, and `Peer`, which has a peer's cases take
turns with ours inside one process of that environment, on one model. Refuses: to pretend; a peer that cannot be set up is a reason.
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
from tests.bench._probes_time import Samples
from tests.bench._rows import ROOT

PACKAGES = {"numba": "numba", "nnsight": "nnsight", "transformer_lens": "transformer_lens"}
OURS = ("torch", "msgpack", "llvmlite", "numpy")
"""What the probes need of the environment, in the versions that the tests run with."""


class PeerError(RuntimeError):
    """A peer is not there, or its process did not answer; the message says why."""


def environment(name: str) -> Path:
    """The Python of a peer's environment, which is made where it is missing. Raises PeerError."""
    folder = PEERS / name
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
    for command in (
        [sys.executable, "-m", "venv", str(folder / ".venv")],
        [*pip, next(line for line in kept if line.startswith("torch=="))],
        [*pip, *OURS, PACKAGES[name]],
    ):
        if not _ran(command, folder):
            raise PeerError(f"{name} could not be installed")
    finished.write_text("", encoding="utf-8")
    return python


class Peer:
    """The process of a peer. `arguments`: of its module in tests/bench/peers. Raises PeerError when it does not come up."""

    def __init__(self, name: str, *arguments: str) -> None:
        python = environment(name)
        paths = os.pathsep.join((str(ROOT), os.environ.get("PYTHONPATH", ""))).rstrip(os.pathsep)
        held = {**os.environ, "PYTHONPATH": paths, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
        self.name = name
        self.errors = (PEERS / name / "stderr.log").open("w", encoding="utf-8")
        self._process = subprocess.Popen(
            [str(python), "-m", f"tests.bench.peers.{name}", *arguments],
            cwd=ROOT,
            env=held,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            text=True,
        )
        self.info: dict[str, Any] = self._answer()["info"]

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait()
        self.errors.close()

    def rounds(self, count: int, calls: int, inner: int = 1) -> Samples:
        """As `_probes_time.rounds`, over there."""
        found: Samples = {}
        for _ in range(count):
            assert self._process.stdin is not None
            print(json.dumps({"calls": calls, "inner": inner}), file=self._process.stdin, flush=True)
            for case, ns in self._answer()["ns"].items():
                found.setdefault(case, []).append(ns)
        return found

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._process.wait()
            self.errors.flush()
            said = Path(self.errors.name).read_text(encoding="utf-8").strip().splitlines()[-1:] or ["nothing"]
            raise PeerError(f"{self.name} ended with {self._process.returncode}: {said[0][:200]}")
        answer: dict[str, Any] = json.loads(line)
        return answer
