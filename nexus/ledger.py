"""The ledger of a Nexus run, and the state that is folded from it.

Responsible for: being the only writer of the run directory's store while Nexus works in it (the same lock as the archivist's), the four
nexus.* records, and what a resumed run knows: nothing but what they say. Refuses: a second writer (E3-BUSY).
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Final

from blake3 import blake3

from kfs.objects import blob
from kfs.records import Record, RecordKind
from kfs.store import Store

ACTOR: Final = "nexus"
FINISHED: Final = ("passed", "dropped")


@dataclass
class CapState:
    """Where a capability stands. `rank`, `steps`, `alpha` (the anchor's weight): what the loops have made of the plan's; 0 until
    one did. `anchor`: how its error went in the last training: falling, stable, rising or off."""

    attempt: int = 0
    rank: int = 0
    steps: int = 0
    alpha: float = 0.0
    anchor: str = ""
    status: str = "open"
    reason: str = ""
    edges: list[str] = field(default_factory=list)
    done: set[int] = field(default_factory=set)


@dataclass
class State:
    """The fold of the nexus.* records."""

    stages: dict[int, dict[str, Any]] = field(default_factory=dict)
    caps: dict[str, CapState] = field(default_factory=dict)
    removed: set[str] = field(default_factory=set)
    known: set[str] = field(default_factory=set)
    dropped: dict[str, str] = field(default_factory=dict)
    gates: list[dict[str, Any]] = field(default_factory=list)
    artifacts: dict[str, str] = field(default_factory=dict)

    def cap(self, name: str) -> CapState:
        """A capability's state, new where nothing was recorded."""
        return self.caps.setdefault(name, CapState())

    def fold(self, record: Record) -> None:
        """Take one record in."""
        args = record.args
        match record.kind:
            case RecordKind.NEXUS_STAGE:
                self._stage(args)
            case RecordKind.NEXUS_LOOP:
                self._loop(args)
            case RecordKind.NEXUS_TEACHER:
                self._teacher(args)
            case RecordKind.NEXUS_GATE:
                self.gates.append(dict(args))

    def _stage(self, args: Mapping[str, Any]) -> None:
        if args["state"] != "done":
            return
        self.artifacts |= args["artifacts"]
        if args["capability"]:
            found = self.cap(args["capability"])
            found.done.add(args["stage"])
            if args["stage"] == 4:
                found.anchor = str(args["figures"].get("anchor", {}).get("verdict", ""))
            if args["stage"] == 5:
                found.status = "passed"
        elif args["stage"] != 5 or args["figures"].get("verdict") == "pass":  # a gate that did not pass is not done
            self.stages[args["stage"]] = dict(args["figures"])

    def _loop(self, args: Mapping[str, Any]) -> None:
        found = self.cap(args["capability"])
        found.edges.append(args["edge"])
        found.attempt = args["attempt"]
        found.rank = int(args["change"].get("rank", found.rank))
        found.steps = int(args["change"].get("steps", found.steps))
        found.alpha = float(args["change"].get("alpha", found.alpha))
        found.done.discard(4)
        found.done.discard(5)
        found.status = "open"
        for stage in (5, 6):
            self.stages.pop(stage, None)

    def _teacher(self, args: Mapping[str, Any]) -> None:
        teacher, act = args["teacher"], args["act"]
        self.known.add(teacher)
        if act == "removed":
            self.removed.add(teacher)
        elif act in ("restored", "registered"):
            self.removed.discard(teacher)
        elif act == "added":
            for stage in (1, 3, 5, 6):
                self.stages.pop(stage, None)
            self.dropped.pop(teacher, None)
        elif act == "dropped" and args["capability"]:
            found = self.cap(args["capability"])
            found.status, found.reason = "dropped", args["reason"]
            for stage in (5, 6):
                self.stages.pop(stage, None)
        elif act == "dropped":
            self.dropped[teacher] = args["reason"]


class RunLedger:
    """The store of a run directory, open for writing."""

    def __init__(self, run: Path) -> None:
        run.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.run = run
        self._store = Store.open_writer(run / "store")
        self.state = State()
        for record in self._store.records():
            self.state.fold(record)

    def __enter__(self) -> RunLedger:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._store.close()

    @property
    def size(self) -> int:
        """Records so far."""
        return self._store.size

    def append(self, kind: RecordKind, args: dict[str, Any], inputs: Sequence[str] = ()) -> int:
        """Append one record, durably, and fold it; returns its number."""
        record = Record(actor=ACTOR, kind=kind, args=args, t_mono=time.monotonic_ns(), input_ids=tuple(inputs))
        (seq,) = self._store.append([record])
        self.state.fold(record)
        return seq

    def report(self, document: Mapping[str, Any]) -> str:
        """Store a JSON document as an object of kind report; its id."""
        data = json.dumps(document, sort_keys=True, indent=1).encode()
        (found,) = self._store.put([blob(data, "report")])
        return found

    def proof(self) -> dict[str, Any]:
        """The signed head over everything recorded so far."""
        head = self._store.checkpoint()
        return {"store": self._store.format.store_id, "size": head.size, "root": head.root.hex()}


def digest_of(path: Path) -> str:
    """BLAKE3 of a file, or of a directory's files with their names."""
    if path.is_file():
        return blake3(path.read_bytes()).hexdigest()
    hasher = blake3()
    for file in sorted(p for p in path.rglob("*") if p.is_file()):
        hasher.update(str(file.relative_to(path)).encode() + b"\0" + blake3(file.read_bytes()).digest())
    return hasher.hexdigest()
