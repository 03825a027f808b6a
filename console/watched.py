"""The probes of a training script that `recuros.watch` watches, read from its run directory by another process.

Responsible for: which probes there are (from the ledger), and their maps as the last recorded window left them. Refuses: asking the
script; a watched process has no kernel and answers nobody.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from syscalls.errors import RecurosError

if TYPE_CHECKING:
    from kfs.records import Record
    from probes.isa import Bytecode


@dataclass
class Seen:
    """`rows` by id, `maps` by id, and the window and step that they are of (-1: none is recorded yet)."""

    window: int = -1
    step: int = -1
    ended: bool = False
    rows: dict[int, dict[str, Any]] = field(default_factory=dict)
    maps: dict[int, dict[str, Any]] = field(default_factory=dict)
    objects: dict[int, str] = field(default_factory=dict)

    @property
    def when(self) -> str:
        """As of when, for people."""
        if self.window < 0:
            return "no window is recorded yet"
        return f"as of window {self.window}, step {self.step}" + ("; the script has ended" if self.ended else "")

    def row(self, number: int) -> dict[str, Any]:
        """A probe's row; E4-NOENT names those there are."""
        if number not in self.rows:
            there = ", ".join(map(str, self.rows)) or "none"
            raise RecurosError("E4-NOENT", f"no probe has id {number}; there are: {there}", hint="recuros probe ls")
        return self.rows[number]

    def read(self, number: int) -> dict[str, Any]:
        """A probe's maps; E75-AGAIN before the first window that has them."""
        self.row(number)
        if number not in self.maps:
            raise RecurosError(
                "E75-AGAIN",
                f"no recorded window holds maps of probe {number} yet",
                hint="they are stored with each window: recuros kfs log --kind window.commit",
            )
        return self.maps[number]


def is_watched(run: Path) -> bool:
    """Whether the run directory is that of a watched script."""
    from recuros import WATCH_MARKER

    return (run / WATCH_MARKER).is_file()


def look(run: Path) -> Seen:
    """The last session's probes, and their maps as its last window left them."""
    from console.evidence import evidence_of
    from kfs.store import Store

    with Store.open_reader(run / "store") as store:
        seen, last = _fold(store.records())
        evidence = evidence_of(last) if last is not None else ""
        if evidence:
            _take_maps(seen, bytes(store.get(evidence).data))
    return seen


def _fold(records: Any) -> tuple[Seen, Record | None]:
    seen, last = Seen(), None
    for record in records:
        args = record.args
        match record.kind.value:
            case "boot":  # probes are of one session of the script
                seen, last = Seen(), None
            case "halt":
                seen.ended = True
            case "probe.attach":
                prog = str(args["prog"])
                seen.rows[args["id"]] = {
                    "id": args["id"], "hook": args["hook"], "program": prog.partition(",")[0],
                    "every": _every(prog), "fired": 0, "evicted": "", "sites": args["sites"], "prog": prog,
                }  # fmt: skip
                seen.objects[args["id"]] = record.input_ids[0] if record.input_ids else ""
            case "probe.evict":
                seen.rows.get(args["id"], {})["evicted"] = args["reason"]
            case "window.commit":
                last = record
                seen.window, seen.step = args["window"], args["step0"] + args["steps"]
    return seen, last


def _every(prog: str) -> int:
    text = prog.rpartition("every=")[2].partition(",")[0]
    return int(text) if text.isdecimal() else 0


def _take_maps(seen: Seen, data: bytes) -> None:
    try:
        found = json.loads(data)
    except ValueError as error:
        raise RecurosError("E9-INTEGRITY", f"what the last window left of its probes is no JSON: {error}") from error
    for text, held in found.items() if isinstance(found, Mapping) else ():
        number = int(text) if text.isdecimal() else -1
        if number in seen.rows and isinstance(held, Mapping) and isinstance(held.get("map"), dict):
            labels = [str(site).partition(":")[2] or str(site) for site in seen.rows[number]["sites"]]
            seen.maps[number] = {"sites": labels, **held["map"]}
            seen.rows[number]["program"] = held["map"].get("program", seen.rows[number]["program"])
            seen.rows[number] |= {"fired": held["map"].get("fired", 0), **dict(held.get("cost") or {})}


def program(run: Path, seen: Seen, number: int) -> tuple[Bytecode | None, str]:
    """A probe's bytecode and its digest; none for a built-in, which goes by its name."""
    from kfs.store import Store
    from probes import isa

    object_id = seen.objects[number]
    if not object_id:
        return None, ""
    with Store.open_reader(run / "store") as store:
        data = bytes(store.get(object_id).data)
    return isa.decode(data), isa.digest(data)
