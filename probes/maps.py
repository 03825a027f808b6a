"""Bounded maps: where a probe puts what it measures.

Responsible for: fixed memory, allocated when the probe is attached; counted drops where a map is full and counted NaNs
(a NaN never enters an accumulator, where it would wipe out every earlier value); a JSON-able form and its inverse.
Refuses: growth. Plain Python, so the torch-free side reads and restores the same maps.

In the JSON-able form infinities are the strings "inf" and "-inf", because JSON has none.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from array import array
from collections.abc import Iterable, Sequence
from typing import Any

from syscalls.errors import RecurosError

SLOTS_MAX = 1 << 20


class Map(ABC):
    """A bounded map with a single writer. `drops`: writes that found no room; `nans`: NaN values not folded in."""

    kind: str

    def __init__(self) -> None:
        self.drops = 0
        self.nans = 0

    def to_dict(self) -> dict[str, Any]:
        """A JSON-able document that `load` restores exactly."""
        return {"kind": self.kind, "drops": self.drops, "nans": self.nans, **self._body()}

    def load(self, document: dict[str, Any]) -> None:
        """Restore from `to_dict`; E2-LIMIT when the document describes a map of another shape."""
        if document.get("kind") != self.kind:
            raise RecurosError("E2-LIMIT", f"cannot restore a map of kind {document.get('kind')!r} into a {self.kind}")
        self._restore(document)
        self.drops, self.nans = int(document["drops"]), int(document["nans"])

    @abstractmethod
    def _body(self) -> dict[str, Any]: ...

    @abstractmethod
    def _restore(self, document: dict[str, Any]) -> None: ...


class Array(Map):
    """A fixed number of floats, all zero at first. An index outside it is a counted drop."""

    kind = "array"

    def __init__(self, size: int) -> None:
        super().__init__()
        self.values = array("d", bytes(8 * _bounded("array size", size)))

    def add(self, index: int, value: float) -> None:
        """Fold `value` into one cell."""
        if not 0 <= index < len(self.values):
            self.drops += 1
        elif value != value:  # noqa: PLR0124 - the fastest NaN test
            self.nans += 1
        else:
            self.values[index] += value

    def add_all(self, values: Iterable[float]) -> None:
        """Fold one value into each cell, from the first on."""
        for index, value in enumerate(values):
            self.add(index, value)

    def _body(self) -> dict[str, Any]:
        return {"values": _encode(self.values)}

    def _restore(self, document: dict[str, Any]) -> None:
        self.values = _decode("array", document["values"], len(self.values))


class Table(Map):
    """A per-layer array: named rows of named float fields, rows taken in order of first use, all zero at first.

    A new row name beyond `rows_max` is a counted drop.
    """

    kind = "per-layer"

    def __init__(self, fields: Sequence[str], rows_max: int = 512) -> None:
        super().__init__()
        self.fields = tuple(fields)
        self.rows_max = rows_max
        self.rows: dict[str, int] = {}
        self._field = {name: i for i, name in enumerate(self.fields)}
        self._cells = array("d", bytes(8 * _bounded("table cells", rows_max * len(self.fields))))

    def add(self, row: str, **values: float) -> None:
        """Add each value to its field."""
        base = self._base(row)
        if base >= 0:
            for name, value in values.items():
                if value != value:  # noqa: PLR0124 - the fastest NaN test
                    self.nans += 1
                else:
                    self._cells[base + self._field[name]] += value

    def put(self, row: str, **values: float) -> None:
        """Overwrite each field."""
        base = self._base(row)
        if base >= 0:
            for name, value in values.items():
                if value != value:  # noqa: PLR0124 - the fastest NaN test
                    self.nans += 1
                else:
                    self._cells[base + self._field[name]] = value

    def raise_to(self, row: str, **values: float) -> None:
        """Keep the larger of the field and the value."""
        base = self._base(row)
        if base >= 0:
            for name, value in values.items():
                if value != value:  # noqa: PLR0124 - the fastest NaN test
                    self.nans += 1
                elif value > self._cells[base + self._field[name]]:
                    self._cells[base + self._field[name]] = value

    def scale(self, row: str, factor: float, *fields: str) -> None:
        """Multiply fields, for an exponentially weighted sum."""
        base = self._base(row)
        if base >= 0:
            for name in fields:
                self._cells[base + self._field[name]] *= factor

    def get(self, row: str) -> dict[str, float]:
        """The fields of a row that exists."""
        base = self.rows[row] * len(self.fields)
        return {name: self._cells[base + i] for i, name in enumerate(self.fields)}

    def _base(self, row: str) -> int:
        index = self.rows.get(row)
        if index is None:
            if len(self.rows) >= self.rows_max:
                self.drops += 1
                return -1
            index = self.rows[row] = len(self.rows)
        return index * len(self.fields)

    def _body(self) -> dict[str, Any]:
        width = len(self.fields)
        used = self._cells[: len(self.rows) * width]
        return {"fields": list(self.fields), "rows": list(self.rows), "values": _encode(used)}

    def _restore(self, document: dict[str, Any]) -> None:
        rows, width = document["rows"], len(self.fields)
        if tuple(document["fields"]) != self.fields or len(rows) > self.rows_max:
            raise RecurosError(
                "E2-LIMIT",
                f"cannot restore {len(rows)} rows of {document['fields']} into {self.rows_max} rows of "
                f"{list(self.fields)}",
            )
        used = _decode("table", document["values"], len(rows) * width)
        self._cells = used + array("d", bytes(8 * (self.rows_max * width - len(used))))
        self.rows = {name: i for i, name in enumerate(rows)}


class Histogram(Map):
    """Counts of values in `bins` bins over [low, high), with bins below, above and for NaN.

    `scale` "linear": equal widths. "log2": equal widths in log2 of the value (low > 0), so one bin per octave when
    `bins == log2(high / low)`; values <= 0 count as below.
    """

    kind = "histogram"

    def __init__(self, bins: int, low: float, high: float, scale: str = "linear") -> None:
        super().__init__()
        if scale not in ("linear", "log2") or not low < high or (scale == "log2" and low <= 0):
            raise RecurosError("E2-LIMIT", f"no {scale} histogram over [{low}, {high})")
        self.bins, self.low, self.high, self.scale = _bounded("histogram bins", bins), float(low), float(high), scale
        self._offset = math.log2(low) if scale == "log2" else self.low
        span = (math.log2(high) if scale == "log2" else self.high) - self._offset
        self._per_unit = bins / span
        self.counts = array("d", bytes(8 * bins))
        self.below = 0
        self.above = 0

    def add(self, value: float) -> None:
        """Count one value."""
        if value != value:  # noqa: PLR0124 - the fastest NaN test
            self.nans += 1
        elif value < self.low:
            self.below += 1
        elif value >= self.high:
            self.above += 1
        else:
            position = math.log2(value) if self.scale == "log2" else value
            # Rounding can put a value just under `high` into the bin after the last.
            self.counts[min(int((position - self._offset) * self._per_unit), self.bins - 1)] += 1

    def add_counts(self, counts: Sequence[float], below: int = 0, above: int = 0, nans: int = 0) -> None:
        """Fold in values that the caller has binned by the same edges."""
        if len(counts) != self.bins:
            raise RecurosError("E2-LIMIT", f"{len(counts)} counts for a histogram of {self.bins} bins")
        for index, count in enumerate(counts):
            self.counts[index] += count
        self.below += below
        self.above += above
        self.nans += nans

    def edges(self) -> list[float]:
        """The bins + 1 edges."""
        marks = [self._offset + i / self._per_unit for i in range(self.bins + 1)]
        return [2.0**mark for mark in marks] if self.scale == "log2" else marks

    def _body(self) -> dict[str, Any]:
        shape = {"scale": self.scale, "low": self.low, "high": self.high}
        return {**shape, "below": self.below, "above": self.above, "counts": list(self.counts)}

    def _restore(self, document: dict[str, Any]) -> None:
        if (document["scale"], document["low"], document["high"]) != (self.scale, self.low, self.high):
            raise RecurosError("E2-LIMIT", "cannot restore a histogram over other bins")
        self.counts = _decode("histogram", document["counts"], self.bins)
        self.below, self.above = int(document["below"]), int(document["above"])


class BoundedHash(Map):
    """Keys (text or integers) to floats, at most `capacity` keys; a new key beyond it is a counted drop."""

    kind = "hash"

    def __init__(self, capacity: int) -> None:
        super().__init__()
        self.capacity = _bounded("hash capacity", capacity)
        self._slot: dict[str | int, int] = {}
        self._values = array("d", bytes(8 * capacity))

    def add(self, key: str | int, value: float = 1.0) -> None:
        """Fold `value` into the key's cell."""
        slot = self._slot.get(key)
        if slot is None and len(self._slot) >= self.capacity:
            self.drops += 1
        elif value != value:  # noqa: PLR0124 - the fastest NaN test
            self.nans += 1
        else:
            if slot is None:
                slot = self._slot[key] = len(self._slot)
            self._values[slot] += value

    def get(self, key: str | int) -> float | None:
        """The key's value, or None."""
        slot = self._slot.get(key)
        return None if slot is None else self._values[slot]

    def __len__(self) -> int:
        return len(self._slot)

    def _body(self) -> dict[str, Any]:
        return {"items": [[key, *_encode([self._values[slot]])] for key, slot in self._slot.items()]}

    def _restore(self, document: dict[str, Any]) -> None:
        items = document["items"]
        if len(items) > self.capacity:
            raise RecurosError("E2-LIMIT", f"cannot restore {len(items)} keys into a hash of {self.capacity}")
        values = _decode("hash", [value for _, value in items], len(items))
        self._values = values + array("d", bytes(8 * (self.capacity - len(items))))
        self._slot = {key: i for i, (key, _) in enumerate(items)}


def _bounded(what: str, size: int) -> int:
    if not 0 < size <= SLOTS_MAX:
        raise RecurosError("E2-LIMIT", f"{what} {size} is outside 1..{SLOTS_MAX}")
    return size


def _encode(values: Iterable[float]) -> list[float | str]:
    return [value if math.isfinite(value) else str(value) for value in values]


def _decode(what: str, values: Sequence[float | str], size: int) -> array[float]:
    if len(values) != size:
        raise RecurosError("E2-LIMIT", f"cannot restore {len(values)} values into a {what} of {size}")
    return array("d", [float(value) for value in values])
