"""A run in work: its app, its directory, its ledger, and whoever shows progress.

Responsible for: one place for every path of a run directory, atomic JSON files, data sets made once, and the begin and done records of
stages. Refuses: nothing by itself.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from kfs.records import RecordKind
from nexus.app import App, CapabilityTable
from nexus.data import sets
from nexus.data.samples import Progress, Samples, silent
from nexus.ledger import CapState, RunLedger, State, digest_of


@dataclass(frozen=True)
class Paths:
    """Where everything of a run lies."""

    root: Path

    def __getattr__(self, name: str) -> Path:
        try:
            return self.root / LAYOUT[name]
        except KeyError:
            raise AttributeError(name) from None


LAYOUT = {
    "configs": "configs",
    "seed": "configs/seed.txt",
    "global_config": "configs/global_config.json",
    "teacher_registry": "configs/teacher_registry.json",
    "student_arch": "configs/student_arch.json",
    "contracts": "retention_contracts.md",
    "profiles": "profiles",
    "originals": "originals",
    "teachers": "teachers",
    "cache": "cache",
    "student": "student",
    "backbone": "checkpoints/backbone",
    "checkpoints": "checkpoints",
    "windows": "windows",
    "gate": "gate",
    "candidate": "gate/candidate",
    "verify_report": "verify_report.json",
    "repro_manifest": "repro_manifest.json",
    "bundle": "nexus_bundle_v1",
    "refinement": "refinement",
}


@dataclass
class Context:
    """What every stage gets."""

    app: App
    root: Path
    ledger: RunLedger
    progress: Progress = silent
    _sets: dict[str, dict[str, Samples]] = field(default_factory=dict)

    @cached_property
    def paths(self) -> Paths:
        """The layout."""
        return Paths(self.root)

    @property
    def state(self) -> State:
        """What the ledger says."""
        return self.ledger.state

    def cap(self, name: str) -> CapState:
        """A capability's state."""
        return self.state.cap(name)

    def live(self) -> list[CapabilityTable]:
        """Capabilities that are not dropped, with their teachers."""
        return [
            c
            for c in self.app.table.capability
            if self.cap(c.name).status != "dropped" and c.teacher not in self.state.dropped
        ]

    def data(self, capability: str) -> dict[str, Samples]:
        """The splits of a capability, made once in this process."""
        if capability not in self._sets:
            kind, options = self.app.data_options(self.app.capability(capability).data)
            self._sets[capability] = sets.make(kind, options, self.app.seed, self.app.table.student.context)
        return self._sets[capability]

    def metric(self, capability: str) -> str:
        """What its items are scored by."""
        return self.app.contracts[capability].metric

    @contextmanager
    def stage(self, number: int, capability: str = "") -> Iterator[Work]:
        """Record that a stage begins, and that it is done when the block ends well."""
        attempt = self.cap(capability).attempt if capability else 0
        base = {"stage": number, "capability": capability, "attempt": attempt}
        self.ledger.append(RecordKind.NEXUS_STAGE, {**base, "state": "begun", "artifacts": {}, "figures": {}})
        work = Work(self.root)
        yield work
        args = {**base, "state": "done", "artifacts": work.artifacts, "figures": work.figures}
        self.ledger.append(RecordKind.NEXUS_STAGE, args)

    def loop(self, edge: str, capability: str, reason: str, change: dict[str, Any]) -> None:
        """Record that a failure loop was taken."""
        attempt = self.cap(capability).attempt + 1
        args = {"edge": edge, "capability": capability, "attempt": attempt, "reason": reason, "change": change}
        self.ledger.append(RecordKind.NEXUS_LOOP, args)

    def teacher(self, teacher: str, act: str, reason: str = "", capability: str = "", **figures: Any) -> None:
        """Record what became of a teacher."""
        args = {"teacher": teacher, "capability": capability, "act": act, "reason": reason, "figures": figures}
        self.ledger.append(RecordKind.NEXUS_TEACHER, args)


@dataclass
class Work:
    """What a stage leaves: artifacts by their path in the run directory, and figures."""

    root: Path
    artifacts: dict[str, str] = field(default_factory=dict)
    figures: dict[str, Any] = field(default_factory=dict)

    def wrote(self, paths: Iterable[Path]) -> None:
        """Note artifacts with their digests."""
        for path in paths:
            self.artifacts[str(path.relative_to(self.root))] = digest_of(path)


def write_json(path: Path, value: Any) -> Path:
    """A JSON file, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    with part.open("w", encoding="utf-8") as file:
        file.write(json.dumps(value, indent=2, sort_keys=True, allow_nan=False) + "\n")
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, path)
    return path


def read_json(path: Path) -> Any:
    """Its inverse."""
    return json.loads(path.read_text(encoding="utf-8"))


def replace_folder(part: Path, path: Path) -> None:
    """Let a finished folder take the place of what was there."""
    shutil.rmtree(path, ignore_errors=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    os.rename(part, path)
