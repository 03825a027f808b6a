"""`recuros top`: the runtime as it moves."""

from __future__ import annotations

import os
import select
import sys
import termios
import time
import tty
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

import click

from console.context import Context
from console.verb import verb
from syscalls.errors import RecurosError

if TYPE_CHECKING:
    from rich.console import Console

    from console.top import Sample
    from syscalls.client import Client

QUIT: Final = b"qQ\x03\x04\x1b"
ANSWER_S: Final = 2.0
PLAIN_WIDTH: Final = 100


@verb(
    "top",
    "Servers, lanes, windows, utilisation, mailboxes, probes and memory as they move; q quits. Off a terminal it prints once.",
    examples=("recuros top", "recuros top --period 0.5", "recuros top --json"),
    exits=(3, 124, 130),
)
@click.option("--period", type=click.FloatRange(0.1, 3600), default=1.0, metavar="S", help="Seconds between looks [1].")
@click.option("--once", is_flag=True, help="Print once, also on a terminal.")
def top(ctx: Context, period: float, once: bool) -> None:
    """Draw until q; a runtime that goes away ends it with E3-GONE."""
    from console.top import document, look, screen

    with ctx.client() as client:
        moving = sys.stdin.isatty() and sys.stdout.isatty() and os.environ.get("TERM") != "dumb"
        if ctx.output == "table" and moving and not once:
            _follow(ctx, client, period)
            return
        sample = look(client, ctx.timeout_s)
    if ctx.output != "table":
        ctx.emit(document(sample))
        return
    console = _console(ctx)
    console.print(screen(sample, console.width, {}))


def _console(ctx: Context) -> Console:
    from rich.console import Console

    width = None if sys.stdout.isatty() or "COLUMNS" in os.environ else PLAIN_WIDTH
    return Console(no_color=not ctx.color, highlight=False, width=width, markup=False, emoji=False)


def _follow(ctx: Context, client: Client, period_s: float) -> None:
    from rich.live import Live

    from console.top import look, rates, screen
    from recuros import listens

    console = _console(ctx)
    before: Sample | None = None
    with _keys() as pressed, Live(console=console, screen=True, auto_refresh=False, transient=True) as live:
        while True:
            began = time.monotonic()
            note = f"q quits; every {period_s:g} s"
            now: Sample | None = None
            try:
                now = look(client, ANSWER_S)
            except RecurosError as error:
                if error.code != "E124-TIMEOUT" or not listens(ctx.run):
                    raise
                note = f"no answer in {ANSWER_S:g} s; it is busy, and this is what it said before. {note}"
            if now is not None and now.status.get("error"):
                raise RecurosError.from_wire(now.status["error"])
            if (shown := now or before) is not None:
                live.update(screen(shown, console.width, rates(before, shown), note), refresh=True)
                before = shown
            if pressed(max(0.05, period_s - (time.monotonic() - began))):
                return


@contextmanager
def _keys() -> Iterator[Callable[[float], bool]]:
    """Single keys without Enter; the terminal is as before afterwards, whatever happens. Ctrl-C goes on to be a signal."""
    fd = sys.stdin.fileno()
    before = termios.tcgetattr(fd)

    def pressed(wait_s: float) -> bool:
        deadline = time.monotonic() + wait_s
        while (left := deadline - time.monotonic()) > 0:
            if select.select([fd], [], [], left)[0]:
                key = os.read(fd, 1)
                if not key or key in QUIT:
                    return True
        return False

    try:
        tty.setcbreak(fd)
        yield pressed
    finally:
        termios.tcsetattr(fd, termios.TCSADRAIN, before)
