"""`recuros tour`: the first five minutes."""

from __future__ import annotations

import contextlib
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import click

from console.context import Context
from console.verb import verb
from syscalls.errors import RecurosError


@verb(
    "tour",
    "See what a runtime does, faults included, in a scratch run directory: a few minutes, every step checked.",
    examples=("recuros tour", "recuros tour --step", "recuros tour --run runs/tour --json"),
    exits=(1, 3, 9, 130),
)
@click.option("--step", is_flag=True, help="Wait for Enter before each next step.")
def tour(ctx: Context, step: bool) -> None:
    """With --run the run directory is kept; it must be new."""
    from console.main import run
    from console.tour import Tour

    json = ctx.output != "table"
    with _place(ctx) as place, contextlib.redirect_stdout(sys.stderr) if json else contextlib.nullcontext():
        walk = Tour(ctx, place, run, lambda text: print(text, flush=True))
        if step and sys.stdin.isatty():
            walk.wait_for_enter = _enter
        steps = walk.go()
    doc = {"schema": "recuros.tour.walk/v1", "ok": True, "run": str(place), "steps": steps}
    seconds = sum(s["seconds"] for s in steps)
    where = f"; {place} is kept" if "run_option" in ctx.flags else ""
    ctx.emit(doc, f"\nThat was the tour: {len(steps)} steps in {seconds:.0f} s{where}. Next: docs/tutorial/by-hand.md")


def _enter() -> None:
    input("\nEnter goes on, Ctrl-C ends the tour. ")


@contextlib.contextmanager
def _place(ctx: Context) -> Iterator[Path]:
    """The run directory: the one that --run names, which must be new, or a scratch one that goes with the tour."""
    if "run_option" in ctx.flags:
        if (ctx.run / "store").exists():
            raise RecurosError(
                "E2-USAGE",
                f"{ctx.run} holds a run already; the tour breaks things",
                hint="name a new directory, or none",
            )
        yield ctx.run
        return
    folder = Path(tempfile.mkdtemp(prefix="recuros-tour-"))
    try:
        yield folder / "run"
    finally:
        shutil.rmtree(folder, ignore_errors=True)
