"""The maps of attached probes: read them once, or follow them while the learner runs."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

import click

from console import maps as drawn
from console import watched
from console.context import Context, plain
from console.verb import verb

if TYPE_CHECKING:
    from syscalls.client import Client

BUILTIN: Final = "builtin:"
PERIOD_S: Final = 0.5
Reader = Callable[[], dict[str, Any]]


@contextmanager
def reader(client: Client, probe_id: int, *, take: bool = False) -> Iterator[tuple[Reader, str]]:
    """How to read a probe's maps, and the way it goes: "page" (a mapping, nobody is asked) or "learner" (at a micro-step).

    `take`: through the learner in any case, which takes what a ring holds out of it.
    """
    handle = 0 if take else client.probe_page(id=probe_id)["page"]
    if not handle:
        yield lambda: dict(client.probe_read(id=probe_id)["maps"]), "learner"
        return
    from probes import cells

    page = client.map(handle)
    try:
        yield lambda: cells.read(page.view), "page"
    finally:
        page.close()


@verb(
    "stats",
    "Read the maps of probe ID while the learner runs; histograms are drawn as bars.",
    examples=("recuros probe stats 1", "recuros probe stats 1 --json", "recuros probe stats 2 --timeout 5"),
    right="read-trace",
    exits=(3, 4, 5, 124),
)
@click.argument("probe_id", metavar="ID", type=int)
def stats(ctx: Context, probe_id: int) -> None:
    """Print the figures of a built-in, then the maps."""
    if watched.is_watched(ctx.run):
        seen = watched.look(ctx.run)
        found = seen.read(probe_id)
        ctx.message(f"a script that recuros.watch watches: {seen.when}")
        _print(ctx, probe_id, found, "ledger")
        return
    with ctx.client() as client, reader(client, probe_id) as (read, way):
        found = read()
        running = client.status()["status"]["probes"]
    prog = next((str(probe["prog"]) for probe in running if probe["id"] == probe_id), "")
    if way == "page" and prog.startswith(BUILTIN):
        from probes import library

        found["summary"] = library.summary(prog, found)
    _print(ctx, probe_id, found, way)


def _print(ctx: Context, probe_id: int, found: dict[str, Any], way: str) -> None:
    shown = plain(found)
    figures = [f"{name}  {value}" for name, value in drawn.leaves({"summary": shown.get("summary") or {}})]
    lines = [*(line for line in figures if way != "learner"), *drawn.lines_of(shown)]
    ctx.emit(
        {"schema": "recuros.probe.stats/v1", "id": probe_id, "maps": found, "read": way},
        "\n".join(lines) or "its maps are empty",
    )


@verb(
    "trace",
    "Follow probe ID: each new entry of its rings, else each figure that changed; until interrupted.",
    examples=(
        "recuros probe trace 3",
        "recuros probe trace 3 --count 10 --json",
        "recuros probe trace 2 --period 0.1 -o jsonl",
    ),
    right="read-trace",
    exits=(3, 4, 5, 124, 130),
)
@click.argument("probe_id", metavar="ID", type=int)
@click.option("--count", type=click.IntRange(0), default=0, metavar="N", help="Stop after N lines [0: never].")
@click.option(
    "--period", type=click.FloatRange(0.01), default=PERIOD_S, metavar="S", help=f"Seconds between looks [{PERIOD_S}]."
)
def trace(ctx: Context, probe_id: int, count: int, period: float) -> None:
    """Print lines as they come."""
    with ctx.client() as client:
        with reader(client, probe_id) as (read, _):
            rings = any(isinstance(m, Mapping) and m.get("kind") == "ring" for m in read().get("maps", {}).values())
        with reader(client, probe_id, take=rings) as (read, _):
            for shown, (line, document) in enumerate(_follow(read, period, rings=rings), 1):
                ctx.emit({"schema": "recuros.probe.trace/v1", "id": probe_id, **document}, line)
                if shown == count:
                    return


def _follow(read: Reader, period_s: float, *, rings: bool) -> Iterator[tuple[str, dict[str, Any]]]:
    before: dict[str, Any] = {}
    while True:
        after = plain(read())
        yield from _entries(after) if rings else _changes(before, after)
        before = after
        time.sleep(period_s)


def _entries(document: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    sites = document.get("sites") or []
    for name, held in document["maps"].items():
        if held.get("kind") == "ring":
            for entry, line in zip(held["entries"], drawn.ring_lines(held["entries"], sites), strict=True):
                step, site, tag, value = entry
                yield f"@{name}  {line}", {"map": name, "step": step, "site": site, "tag": tag, "value": value}


def _changes(before: dict[str, Any], after: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for line in drawn.changes(before.get("maps", {}), after.get("maps", {})):
        name, delta, value = line.split("  ")
        yield f"@{line}", {"map": name, "delta": delta, "value": value}
