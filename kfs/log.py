"""Reading the ledger for people and scripts: filters, and one record as plain JSON data.

Responsible for: what `recuros kfs log` and `recuros kfs show` print. Refuses: interpreting records.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from kfs.ids import is_object_id
from kfs.records import FIELDS, Record
from kfs.store import Store

ID_CHARS: Final = 11
"""Of an object's id, in a line for people: as many as a table shows; `kfs show` has all of them."""


@dataclass(frozen=True, slots=True)
class Filter:
    """Which records: exact actor, or what stands before its colon (`operator`, `kernel`); exact kind, or a prefix that
    ends in a dot (`window.`); a snapshot that it names as parent, result or input; sequence numbers since (inclusive) and
    until (exclusive); archivist's time in ns since 1970, after (inclusive) and before (exclusive).
    """

    actor: str | None = None
    kind: str | None = None
    snapshot: str | None = None
    since: int = 0
    until: int | None = None
    after_ns: int = 0
    before_ns: int | None = None

    def matches(self, record: Record) -> bool:
        """Whether the record passes everything but the range of numbers."""
        if record.t_wall < self.after_ns or (self.before_ns is not None and record.t_wall >= self.before_ns):
            return False
        if self.actor is not None and self.actor not in (record.actor, record.actor.partition(":")[0]):
            return False
        if self.kind is not None and not (
            record.kind.value == self.kind or (self.kind.endswith(".") and record.kind.startswith(self.kind))
        ):
            return False
        return self.snapshot is None or self.snapshot in (record.parent_snap, record.result_snap, *record.input_ids)


def select(store: Store, wanted: Filter) -> Iterator[Record]:
    """The records that pass, in ledger order; a negative `since` counts from the end."""
    since = wanted.since if wanted.since >= 0 else max(0, store.size + wanted.since)
    return (record for record in store.records(since, wanted.until) if wanted.matches(record))


def render(record: Record) -> dict[str, Any]:
    """A record as JSON data: fields in ledger order, bytes as hex, floats that JSON lacks as text, `time` in ISO 8601 UTC."""
    row = {name: _plain(getattr(record, name)) for name in FIELDS}
    row["time"] = datetime.fromtimestamp(record.t_wall / 1e9, UTC).isoformat(timespec="milliseconds")
    return row


def summary(record: Record, width: int = 100) -> str:
    """The args in one line of at most `width` characters: `window=3 late_ns=40`."""
    text = " ".join(f"{name}={_brief(value)}" for name, value in record.args.items())
    return text if len(text) <= width else text[: width - 1] + "…"


def _brief(value: Any) -> str:
    match value:
        case float():
            return f"{value:.4g}"
        case dict():
            return "{" + ",".join(f"{k}={_brief(v)}" for k, v in value.items()) + "}"
        case list():
            return "[" + ",".join(map(_brief, value)) + "]"
        case bytes():
            return f"{len(value)} bytes"
        case None:
            return "-"
        case str() if is_object_id(value):
            return value[:ID_CHARS]
    return str(value)


def _plain(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, str) else value
