"""Finished runs, one JSON line each, so that an experiment that was cut off goes on where it was.

Responsible for: what names a run, appending its result whole, and leaving out a line that was torn. Refuses: two results of one
run (the first stands).
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final

from blake3 import blake3

ROOT: Final = Path(__file__).resolve().parents[2]
SOURCES: Final = ("servers/learner", "servers/models", "servers/dataset", "servers/observer")

Job = dict[str, Any]
Result = dict[str, Any]


def key(job: Job) -> str:
    """The name of a run: every setting that it depends on, in one digest."""
    return blake3(json.dumps(job, sort_keys=True).encode()).hexdigest()[:20]


def code_digest(own: Iterable[Path]) -> str:
    """BLAKE3 of the sources that decide a result: the servers', and the experiment's `own`."""
    hasher = blake3()
    files = [file for folder in SOURCES for file in (ROOT / folder).rglob("*.py")]
    for file in sorted({*files, *(path.resolve() for path in own)}):
        data = file.read_bytes()
        hasher.update(f"{file.relative_to(ROOT).as_posix()} {len(data)}\n".encode())
        hasher.update(data)
    return hasher.hexdigest()[:12]


class Journal:
    """The results in one file. Processes may append at once: a line is one write."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def rows(self) -> Iterator[tuple[Job, Result]]:
        """Every run with its result, in the order they were finished; torn and repeated lines are left out."""
        seen: set[str] = set()
        for line in self.path.read_bytes().splitlines() if self.path.exists() else []:
            try:
                row = json.loads(line)
                job, result = row["job"], row["result"]
            except (ValueError, KeyError, TypeError):
                continue
            if key(job) not in seen:
                seen.add(key(job))
                yield job, result

    def results(self) -> dict[str, Result]:
        """Key -> result."""
        return {key(job): result for job, result in self.rows()}

    def append(self, job: Job, result: Result) -> None:
        """Add a result; it is on the disk when this returns."""
        line = json.dumps({"job": job, "result": result}, sort_keys=True, allow_nan=False).encode() + b"\n"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            size = os.fstat(descriptor).st_size
            if size and os.pread(descriptor, 1, size - 1) != b"\n":
                line = b"\n" + line  # the line before was torn
            os.write(descriptor, line)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
