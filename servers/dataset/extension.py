"""Samples that came while the run went on: the table and the stream with them.

Responsible for: reading an object of new samples (JSON Lines, or CSV where its file was called so) in the form of the table that is
there, and the stream from the point they came at as a function of the recorded list of them. Refuses: rows that do not fit, with file
and line; a list whose counts are not what the objects hold (E9-INTEGRITY). New samples are trained on; what is held out stays as it was.

An entry of the list is [object, phase, batch position in that phase's stream, training samples from then on, file name].
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

import numpy as np

from servers.dataset import csv_rows, jsonl, rows
from servers.dataset.augment import Augment
from servers.dataset.stream import Stream
from servers.dataset.table import Columns, Table
from syscalls.errors import RecurosError

KEPT: Final = 4
"""Streams kept in memory: two windows can be outstanding on either side of an interrupt."""


class Streams:
    """The base stream, and those with what came later. `read(object id)` gives an object's bytes."""

    def __init__(
        self,
        base: Stream,
        data: dict[str, Any],
        model: dict[str, Any],
        read: Callable[[str], bytes],
        augment: Augment | None,
    ) -> None:
        self.base, self._data, self._model, self._read, self._augment = base, data, model, read, augment
        self._parts: dict[str, Columns] = {}
        self._made: dict[tuple[Any, ...], Stream] = {}

    def at(self, gate: Mapping[str, Any]) -> Stream:
        """The stream of a window whose gate lists these extensions."""
        extra = [tuple(row) for row in gate.get("extra") or ()]
        if not extra:
            return self.base
        key = tuple(extra)
        if key not in self._made:
            table = self.table([(row[0], row[4]) for row in extra])
            if table.size("train") != extra[-1][3]:
                raise RecurosError(
                    "E9-INTEGRITY", f"new data makes {table.size('train')} samples; {extra[-1][3]} are recorded"
                )
            sizes = (self.base.n_train, *(row[3] for row in extra))
            since = {str(row[1]): int(row[2]) for row in extra}
            made = Stream(table, self.base.seed, self.base.batch, self._augment, since=since, sizes=sizes)
            self._made = {**dict(list(self._made.items())[-KEPT + 1 :]), key: made}
        return self._made[key]

    def table(self, named: Sequence[tuple[str, str]]) -> Table:
        """The table with the samples of these (object, file name), oldest first, after its own."""
        table = self.base.table
        parts = [self.part(object_id, name) for object_id, name in named]
        train = {
            c: np.concatenate([values, *(part[c] for part in parts)]) for c, values in table.columns("train").items()
        }
        return replace(table, splits={**table.splits, "train": train})

    def part(self, object_id: str, name: str) -> Columns:
        """The columns of one object; E2-DATA names file and line of what does not fit."""
        if object_id not in self._parts:
            raw = self._read(object_id)
            if name.endswith(".csv"):
                found = csv_rows.read(raw, name, rows.Form.of(self._data | {"task": "classify"}, self._model).label)
                self._parts[object_id] = rows.extend(list(found), name, self.base.table, self._data, self._model)
            else:
                lines = jsonl.read(raw.splitlines(keepends=True), name)
                self._parts[object_id] = rows.extend(lines, name, self.base.table, self._data, self._model)
        return self._parts[object_id]
