"""The dataset server's handlers.

Responsible for: `fill` (the batches of a window in a page) and `split` (a whole split in a page). Refuses: to train on what
is held out: `fill` reads the training split only.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from kfs.store import Store
from servers.dataset.augment import augment_of, check_augment
from servers.dataset.extension import Streams
from servers.dataset.sources import load, options
from servers.dataset.stream import Stream, page_rows, sample_order, sample_weights
from servers.dataset.table import SPLITS, data_error
from syscalls.pages import WritePage, pack_arrays
from syscalls.serve import Handler, Kernel, serve

BATCH_DEFAULT: Final = 32
_NUMPY: Final = {"F32": "<f4", "U8": "u1"}


class DatasetService:
    """Streams and splits of one table."""

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        data = options(kernel.config)
        seed = int(kernel.config.get("seed", 0))
        self.table = load(data, kernel.config.get("model") or {}, seed)
        augment = augment_of(data)
        check_augment(data, self.table.columns("train"), self.table.task)
        batch = int(data.get("batch") or BATCH_DEFAULT)
        self.stream = Stream(self.table, seed, batch, augment)
        self.streams = Streams(self.stream, data, kernel.config.get("model") or {}, self._bytes, augment)
        self._store = Path(str(kernel.config["store"]))
        self._reader: Store | None = None
        for what, count in self.table.notes.items():
            if count:
                print(f"{count} rows {what}", file=sys.stderr, flush=True)  # noqa: T201 - the server's log
        for problem in self.table.problems:
            print(f"skipped {problem}", file=sys.stderr, flush=True)  # noqa: T201 - the server's log
        self.handlers: Mapping[str, Handler] = {"fill": self.fill, "split": self.split, "check": self.check}
        self.info: dict[str, Any] = {
            "task": self.table.task,
            "classes": self.table.classes,
            "train": self.table.size("train"),
            "validation": self.table.size("validation"),
            "test": self.table.size("test"),
            "batch": batch,
            "data": self.table.digest(),
            **self.table.notes,
            "problems": list(self.table.problems),
        }

    def idle(self) -> bool:
        """Nothing to do between deliveries."""
        return False

    def drain(self) -> None:
        """Close the store; pages belong to their readers."""
        if self._reader is not None:
            self._reader.close()

    def fill(
        self, *, window: int, phase: dict[str, Any], step0: int, steps: int, weights: str, gate: dict[str, Any]
    ) -> dict[str, Any]:
        """The batches of a window: arrays "b<i>/<column>" in a page, and the digest of their ids and weights."""
        name = str(phase.get("name", ""))
        stream = self.streams.at(gate)
        chosen = sample_weights(stream.n_train, weights, gate, self._object, stream.sizes)
        order = sample_order(stream.n_train, gate, self._object, stream.sizes)
        made = stream.window(name, step0, steps, chosen, order)
        rows = [row for i, columns in enumerate(made.batches) for row in page_rows(f"b{i}/", columns)]
        meta: dict[str, Any] = {"window": window, "phase": name, "step0": step0, "steps": steps}
        if made.unweighted:
            meta["unweighted"] = made.unweighted
        return {"page": self._offer(pack_arrays(rows, meta)), "batch": made.digest}

    def check(self, objects: list[list[str]]) -> dict[str, Any]:
        """Read new data through: how many samples it has, and how many there are with all that came before."""
        parts = [self.streams.part(object_id, name) for object_id, name in objects]
        counts = [len(next(iter(part.values()))) for part in parts]
        return {"rows": counts[-1], "total": self.stream.n_train + sum(counts)}

    def split(self, name: str) -> dict[str, Any]:
        """Every sample of a split, without augmentation or weights, in a page."""
        size = self.table.size(name)
        ids = np.arange(size, dtype=np.int64)
        meta = {
            "split": name,
            "n": size,
            "sizes": {split: self.table.size(split) for split in SPLITS},
            "task": self.table.task,
            "classes": self.table.classes,
            "class_names": list(self.table.class_names),
        }
        return {"page": self._offer(pack_arrays(page_rows("", {**self.table.rows(name, ids), "ids": ids}), meta))}

    def _offer(self, page: WritePage) -> int:
        try:
            return self._kernel.offer(page)
        finally:
            page.close()

    def _bytes(self, object_id: str) -> bytes:
        """An object's bytes, checked against its id; what was stored a moment ago, too."""
        if self._reader is None:
            self._reader = Store.open_reader(self._store)
        self._reader.refresh()
        return bytes(self._reader.get(object_id).data)

    def _object(self, object_id: str, dtype: str) -> NDArray[Any]:
        """An object of the store, checked against its id; the store exists once anything has been put into it."""
        if self._reader is None:
            self._reader = Store.open_reader(self._store)
        return read_array(self._reader, object_id, dtype)


def read_array(reader: Store, object_id: str, dtype: str) -> NDArray[Any]:
    """An object of the store as an array; E2-DATA when its type is another."""
    found = reader.get(object_id)
    if found.dtype != dtype:
        raise data_error(f"object {object_id} is {found.dtype}, expected {dtype}", "name an object of that type")
    return np.frombuffer(found.data, dtype=_NUMPY[dtype]).reshape(found.shape)


def main() -> int:
    """Serve until drained."""
    return serve("dataset", DatasetService)
