"""`recuros bench`: how fast this host is at what a runtime does all the time.

Responsible for: a few seconds of measuring with the real code, in a scratch directory, each row with its spread. Refuses: to compare
with other programs; that is `make bench` in a clone, whose figures are on docs/benchmarks.md.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import click

from console.context import Context, Table
from console.verb import verb

PARTS: Final = ("wire", "store", "pages", "runtime")
ROUNDS: Final = 5
Row = dict[str, Any]


@verb(
    "bench",
    "Measure this host: messages, durable records, object hashing, page sharing and, where one runs, the runtime's answers.",
    examples=("recuros bench", "recuros bench store --seconds 5 --json", "recuros bench runtime --run runs/first"),
    exits=(3, 124),
)
@click.argument("part", type=click.Choice(PARTS), required=False)
@click.option(
    "--seconds", type=click.FloatRange(0.05, 60), default=1.0, metavar="S", help="Time for each row, about [1]."
)
def bench(ctx: Context, part: str | None, seconds: float) -> None:
    """Run the rows of a part, or of all that can run here."""
    from recuros import listens

    chosen = [part] if part else [p for p in PARTS if p != "runtime" or listens(ctx.run)]
    rows: list[Row] = []
    with ctx.progress("measure") as tell:
        for n, name in enumerate(chosen):
            tell(name, n, len(chosen))
            rows += MEASURES[name](ctx, seconds)
    columns = {"row": "ROW", "value": "VALUE", "unit": "UNIT", "low": "LOW", "high": "HIGH"}
    ctx.emit(
        {"schema": "recuros.bench.host/v1", "cores": os.cpu_count(), "rows": rows}, Table(rows, columns, key="row")
    )


def _rate(row: str, unit: str, work: Callable[[], float], seconds: float) -> Row:
    """Units of work a second: the median of a few rounds, with the lowest and the highest."""
    work()
    rounds = []
    for _ in range(ROUNDS):
        done, began = 0.0, time.perf_counter()
        while (spent := time.perf_counter() - began) < seconds / ROUNDS:
            done += work()
        rounds.append(done / spent)
    return {"row": row, "value": statistics.median(rounds), "unit": unit, "low": min(rounds), "high": max(rounds)}


def _wire(ctx: Context, seconds: float) -> list[Row]:
    from syscalls import wire

    frame = wire.Call(7, 52, 1, [3.0, -1.0, "", 0.5])

    def work() -> float:
        for _ in range(200):
            wire.decode(wire.encode(frame))
        return 200

    return [_rate("frames encoded and decoded", "frames/s", work, seconds)]


def _store(ctx: Context, seconds: float) -> list[Row]:
    from kfs.objects import NewObject, object_id
    from kfs.records import Record, RecordKind
    from kfs.store import Store

    data = os.urandom(8 << 20)
    clock = _clock()

    def hashing() -> float:
        object_id("U8", (len(data),), memoryview(data))
        return len(data) / 1e6

    with (
        tempfile.TemporaryDirectory(prefix="recuros-bench-") as folder,
        Store.open_writer(Path(folder) / "store") as store,
    ):

        def append() -> float:
            args = {"name": "bench", "code": "E1-NO", "message": "a record of the usual size, so to say"}
            store.append([Record("kernel", RecordKind.FAULT, args, t_mono=next(clock)) for _ in range(16)])
            return 16

        def put() -> float:
            fresh = next(clock).to_bytes(8, "little") + data[8 : 1 << 20]
            store.put([NewObject("U8", (len(fresh),), memoryview(fresh), "report")])
            return len(fresh) / 1e6

        return [
            _rate("object hashing", "MB/s", hashing, seconds),
            _rate("durable records, 16 at a time", "records/s", append, seconds),
            _rate("durable objects of 1 MiB", "MB/s", put, seconds),
        ]


def _clock() -> Iterator[int]:
    now = time.monotonic_ns()
    while True:
        now += 1
        yield now


def _pages(ctx: Context, seconds: float) -> list[Row]:
    from syscalls.pages import ReadPage, WritePage

    block = bytes(4 << 20)

    def work() -> float:
        page = WritePage(len(block), "bench")
        page.view[:] = block
        reader = ReadPage(os.dup(page.fd), page.size)
        reader.close()
        page.close()
        return len(block) / 1e6

    return [_rate("sealed pages written and mapped", "MB/s", work, seconds)]


def _runtime(ctx: Context, seconds: float) -> list[Row]:
    times: list[float] = []
    with ctx.client() as client:
        until = time.monotonic() + seconds
        while time.monotonic() < until or len(times) < 20:
            began = time.perf_counter()
            client.cap_list()
            times.append((time.perf_counter() - began) * 1e6)
    times.sort()
    at = {p: times[min(len(times) - 1, len(times) * p // 100)] for p in (5, 50, 95, 99)}
    return [
        {"row": "syscall, median", "value": at[50], "unit": "us", "low": at[5], "high": at[95]},
        {"row": "syscall, 99th percentile", "value": at[99], "unit": "us", "low": at[50], "high": times[-1]},
    ]


MEASURES: Final[dict[str, Callable[[Context, float], list[Row]]]] = {
    "wire": _wire,
    "store": _store,
    "pages": _pages,
    "runtime": _runtime,
}
