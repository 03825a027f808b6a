"""Make the batches of recorded windows again: `python -m servers.dataset.replay`.

Responsible for: one process that reads a plan (msgpack) from stdin and writes one answer a window to stdout, for the process that
re-executes them: 8 bytes little-endian length and a page as `dataset.fill` makes it, whose meta says the batch digest and the
data digest; or, where a window's batches cannot be made, a page without arrays whose meta holds the error. Refuses: to serve a
runtime. Everything is read from the store and from the data files that the run's papers name.
"""

from __future__ import annotations

import sys
from typing import Any, BinaryIO

import msgpack
from numpy.typing import NDArray

from kfs.store import Store
from servers.dataset.augment import augment_of
from servers.dataset.extension import Streams
from servers.dataset.server import BATCH_DEFAULT, read_array
from servers.dataset.sources import load, options
from servers.dataset.stream import Stream, Window, page_rows, sample_order, sample_weights
from syscalls.errors import RecurosError
from syscalls.pages import pack_arrays


class Source:
    """The stream of one set of papers, and the digest of its data."""

    def __init__(self, papers: dict[str, Any], store: Store) -> None:
        data = options(papers)
        seed = int(papers.get("seed", 0))
        table = load(data, papers.get("model") or {}, seed)
        batch = int(data.get("batch") or BATCH_DEFAULT)
        self.stream = Stream(table, seed, batch, augment_of(data))
        self.digest = table.digest()
        model = papers.get("model") or {}
        self.streams = Streams(self.stream, data, model, lambda name: bytes(store.get(name).data), self.stream.augment)

    def window(self, store: Store, window: dict[str, Any]) -> Window:
        """The batches of a recorded window, with its recorded sample weights, gate and order."""

        def read(name: str, dtype: str) -> NDArray[Any]:
            return read_array(store, name, dtype)

        gate = dict(window["gate"])
        stream = self.streams.at(gate)
        weights = sample_weights(stream.n_train, str(window["weights"]), gate, read, stream.sizes)
        order = sample_order(stream.n_train, gate, read, stream.sizes)
        return stream.window(phase_name(window), window["step0"], window["steps"], weights, order)


def phase_name(window: dict[str, Any]) -> str:
    """The name that seeds the stream of the window's phase."""
    return str(window["phase"]["name"])


def answer(out: BinaryIO, rows: list[Any], meta: dict[str, Any]) -> None:
    """Write one page."""
    page = pack_arrays(rows, meta)
    try:
        out.write(page.size.to_bytes(8, "little"))
        out.write(page.view)
        out.flush()
    finally:
        page.close()


def run(plan: dict[str, Any], out: BinaryIO) -> None:
    """Answer for every window of the plan, in order."""
    sources: dict[str, Source] = {}
    with Store.open_reader(plan["store"]) as store:
        for window in plan["windows"]:
            try:
                name = window["config"]
                if name not in sources:
                    papers = plan["configs"][name]
                    if papers is None:
                        raise RecurosError("E4-NOENT", "the record names no papers of its run")
                    sources[name] = Source(papers, store)
                source = sources[name]
                made = source.window(store, window)
            except RecurosError as error:
                answer(out, [], {"error": error.to_wire()})
                continue
            rows = [row for i, columns in enumerate(made.batches) for row in page_rows(f"b{i}/", columns)]
            answer(out, rows, {"batch": made.digest, "data": source.digest})


if __name__ == "__main__":
    run(msgpack.unpackb(sys.stdin.buffer.read(), strict_map_key=False), sys.stdout.buffer)
