"""What the pages ask of the store, beside the feed.

Responsible for: one record in full, its proof, the state as of it, the figures of layers that probes left in each window's evidence, the
sizes of the store and a preview of a collection. Everything is read from the run directory, with or without a runtime. Not for more
than one thread. Refuses: writing.
"""

from __future__ import annotations

import json
import time
from collections import Counter, deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from console.context import plain
from console.dash.feed import brief
from console.evidence import Figures, evidence_of, read_layers
from kfs import records
from kfs.log import Filter, render
from kfs.merkle import leaf_hash
from kfs.records import Record, RecordKind
from kfs.store import Store
from syscalls.errors import RecurosError

ROWS_MAX: Final = 2_000
LAYER_WINDOWS_MAX: Final = 600
SIZES_AGE_S: Final = 5.0
"""Sizes look at the header of every pack: asked again sooner, they are given as they were."""


class Queries:
    """A reader of one store, and what it has worked out already."""

    def __init__(self, run: Path) -> None:
        self._run = run
        self._store = Store.open_reader(run / "store")
        self._layers: dict[str, dict[str, Figures]] = {}
        self._sizes: tuple[float, dict[str, Any]] = (-SIZES_AGE_S, {})

    def close(self) -> None:
        """Let the files go."""
        self._store.close()

    def record(self, seq: int) -> dict[str, Any]:
        """One record in full, its size, and the hash of its leaf."""
        data = self._store.record_bytes(seq)
        row: dict[str, Any] = plain(render(records.decode(data)))
        return {**row, "bytes": len(data), "leaf": leaf_hash(data).hex()}

    def proof(self, seq: int) -> dict[str, Any]:
        """The document of `recuros kfs prove`: the page recomputes it."""
        from kfs.prover import Prover

        self._store.record_bytes(seq)
        prover = Prover(self._store)
        return {**prover.document(seq).to_json(), "notes": prover.notes}

    def at(self, seq: int) -> dict[str, Any]:
        """The whole state as of a record."""
        from kfs.at import state_at

        self._store.record_bytes(seq)
        found: dict[str, Any] = plain(state_at(self._store, seq).to_map())
        return found

    def report(self, seq: int) -> dict[str, Any]:
        """The JSON document that a record rests on, such as a gate's report; E4-NOENT when it rests on none."""
        record = records.decode(self._store.record_bytes(seq))
        for name in record.input_ids:
            if self._store.entry(name)[1].kind == "report":
                try:
                    return {"id": name, "report": plain(json.loads(bytes(self._store.get(name).data)))}
                except ValueError as error:
                    raise RecurosError("E9-INTEGRITY", f"object {name} is no JSON document") from error
        raise RecurosError("E4-NOENT", f"record {seq} rests on no report", hint=f"recuros kfs show {seq}")

    def search(self, *, text: str, kind: str, actor: str, before: int, limit: int) -> dict[str, Any]:
        """The newest records below `before` that match, newest first, and from where an older search would go on."""
        self._store.refresh()
        stop = self._store.size if before < 0 else min(before, self._store.size)
        wanted = Filter(actor=actor or None, kind=kind or None)
        found: deque[dict[str, Any]] = deque()
        needle = text.lower()
        for record in self._backwards(stop):
            if wanted.matches(record) and (not needle or needle in _text_of(record)):
                found.append(brief(record))
                if len(found) == min(limit, ROWS_MAX):
                    break
        first = found[-1]["seq"] if found else 0
        return {"records": list(found), "before": first if len(found) == limit else 0, "size": self._store.size}

    def _backwards(self, stop: int) -> Iterator[Record]:
        while stop > 0:
            start = max(0, stop - 512)
            yield from reversed(list(self._store.records(start, stop)))
            stop = start

    def layers(self, after: int) -> dict[str, Any]:
        """The figures by layer of each committed window beyond record `after`: {program: {layer: {figure: value}}}."""
        self._store.refresh()
        commits: deque[Record] = deque(maxlen=LAYER_WINDOWS_MAX)
        for record in self._store.records(max(0, after + 1)):
            if record.kind is RecordKind.WINDOW_COMMIT:
                commits.append(record)
        rows = [row for record in commits if (row := self._layer_row(record))["values"] or row["gone"]]
        return {"rows": rows, "size": self._store.size, "windows_max": LAYER_WINDOWS_MAX}

    def _layer_row(self, record: Record) -> dict[str, Any]:
        args = record.args
        evidence = evidence_of(record)
        row = {"seq": record.seq, "window": args["window"], "step": args["step0"] + args["steps"]}
        gone = ""
        if evidence and evidence not in self._layers:
            try:
                if len(self._layers) >= 4 * LAYER_WINDOWS_MAX:
                    self._layers.clear()
                self._layers[evidence] = read_layers(self._store, evidence)
            except RecurosError as error:
                gone = error.message
        return {**row, "generation": record.generation, "values": self._layers.get(evidence, {}), "gone": gone}

    def sizes(self) -> dict[str, Any]:
        """Objects, bytes and packs by kind, what is reachable, and what waits in the trash."""
        from kfs.gc import plan
        from kfs.trash import waiting

        if time.monotonic() - self._sizes[0] < SIZES_AGE_S:
            return self._sizes[1]
        self._store.refresh()
        objects: Counter[str] = Counter()
        sizes: Counter[str] = Counter()
        for _, entry in self._store.objects():
            objects[entry.kind] += 1
            sizes[entry.kind] += entry.length
        packs = [pack.path.stat().st_size for pack in self._store.catalog.packs() if pack.path.exists()]
        trash = [item.path.stat().st_size for item in waiting(self._store.layout) if item.path.exists()]
        made = plan(self._store)
        found = {
            "kinds": [
                {"kind": k, "objects": objects[k], "bytes": sizes[k]} for k in sorted(sizes, key=sizes.__getitem__)
            ],
            "packs": {"count": len(packs), "bytes": sum(packs)},
            "trash": {"count": len(trash), "bytes": sum(trash)},
            "ledger_bytes": self._store.layout.records.stat().st_size,
            "records": self._store.size,
            "snapshots": made.snapshots,
            "pins": made.pins,
            "reachable_bytes": made.bytes_after,
            "stored_bytes": made.bytes_now,
            "unreferenced_packs": made.unreferenced,
            "damaged": {name: error.message for name, error in self._store.damaged.items()},
        }
        self._sizes = (time.monotonic(), found)
        return found

    def collection(self, percent: float) -> dict[str, Any]:
        """What `recuros kfs gc --budget N%` would choose. Nothing is changed."""
        from kfs.gc import plan

        self._store.refresh()
        now = self.sizes()["stored_bytes"]
        made = plan(self._store, budget=int(now * percent / 100))
        rows = [
            {"id": c.name, "what": c.what, "window": c.window, "seq": c.seq, "score": c.score, "bytes": c.bytes}
            for c in made.choices
        ]
        return plain(  # type: ignore[no-any-return]  # a map in, a map out
            {
                "bytes_now": made.bytes_now,
                "bytes_after": made.bytes_after,
                "budget": made.budget,
                "reason": made.reason,
                "collect": rows,
            }
        )


def _text_of(record: Record) -> str:
    row = render(record)
    return f"{row['kind']} {row['actor']} {row['args']} {row['parent_snap']} {row['result_snap']} {row['input_ids']}".lower()
