"""The shell: the command line's own verbs over one connection.

Responsible for: reading lines (on a terminal with a live prompt, completion and history), running each through the same parser,
`watch`, recording what was typed, and stopping a script at its first error. Refuses: a shell within a shell.
"""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final, TextIO

import click

from console.context import Context
from console.verb import verb
from syscalls.errors import RecurosError

LEAVE: Final = ("exit", "quit")
WATCH_PERIOD_S: Final = 2.0
CLEAR: Final = "\x1b[H\x1b[2J\x1b[3J"


@verb(
    "shell",
    "The same verbs over one connection, with `watch`, history and completion; a script on stdin stops at its first error.",
    examples=("recuros shell", "recuros shell --record night.txt --run runs/first", "recuros shell < script"),
    exits=(1, 3, 4, 5, 6, 7, 8, 9, 75, 124, 130),
)
@click.option(
    "--record",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Append each line that worked to FILE, and those that did not as comments; `shell < FILE` does it again.",
)
def shell(ctx: Context, record: Path | None) -> int:
    """Prompt: learner@step, generation, and the session's rights: read-trace, steer, attach probes (t), interrupt (x)."""
    interactive = sys.stdin.isatty()
    tape = _open(record)
    session = _Session(ctx, tape)
    try:
        for line in _prompted(ctx) if interactive else sys.stdin:
            status = session.run(line)
            if session.left:
                break
            if status and not interactive:
                ctx.message(f"stopped at: {line.strip()}")
                return status
    finally:
        drop(ctx)
        if tape is not None:
            tape.close()
    return 0 if interactive else session.status


def _open(record: Path | None) -> TextIO | None:
    if record is None:
        return None
    try:
        return record.open("a", encoding="utf-8", buffering=1)
    except OSError as error:
        raise RecurosError("E2-USAGE", f"cannot write {record}: {error.strerror}", hint="name another file") from error


class _Session:
    """One shell: what the last line came to, and whether it was the last one."""

    def __init__(self, ctx: Context, tape: TextIO | None) -> None:
        self._ctx = ctx
        self._tape = tape
        self.status = 0
        self.left = False

    def run(self, line: str) -> int:
        """Run a line; its exit status."""
        words = _split(self._ctx, line)
        if words == []:
            return self.status if not line.strip() else 0
        if words and words[0] in LEAVE:
            self.left = True
            return self.status
        self.status = 2 if words is None else self._one(words)
        if self._tape is not None:
            mark = "" if self.status == 0 else f"# exit {self.status}: "
            self._tape.write(f"{mark}{line.strip()}\n")
        return self.status

    def _one(self, words: list[str]) -> int:
        if words[0] == "watch":
            return self._watch(words[1:])
        if words[0] == "help":
            words = [*words[1:], "--help"]
        return one(self._ctx, words)

    def _watch(self, words: list[str]) -> int:
        """`watch [-n SECONDS] [-c COUNT] VERB ...`: again and again, until it fails, COUNT is reached, or Ctrl-C."""
        period_s, count = WATCH_PERIOD_S, 0
        try:
            while words and words[0] in ("-n", "-c"):
                period_s, count = (float(words[1]), count) if words[0] == "-n" else (period_s, int(words[1]))
                words = words[2:]
            if not words or words[0] in ("watch", "shell", *LEAVE) or not 0.01 <= period_s <= 86_400 or count < 0:
                raise ValueError
        except (ValueError, IndexError):
            hint = "watch -n 1 probe stats 3"
            self._ctx.message(
                str(RecurosError("E2-USAGE", "watch takes [-n SECONDS] [-c COUNT] and a verb", hint=hint))
            )
            return 2
        return self._again(words, period_s, count)

    def _again(self, words: list[str], period_s: float, count: int) -> int:
        moving = self._ctx.color
        try:
            done = 0
            while True:
                if moving:
                    sys.stdout.write(
                        f"{CLEAR}every {period_s:g} s: {shlex.join(words)}    {time.strftime('%H:%M:%S')}\n\n"
                    )
                status = one(self._ctx, words)
                done += 1
                if status or done == count:
                    return status
                time.sleep(period_s)
        except KeyboardInterrupt:
            return 0  # the way to end it


def _split(ctx: Context, line: str) -> list[str] | None:
    """Words as a POSIX shell reads them, comments left out; None when quotes do not match."""
    try:
        words = shlex.split(line, comments=True)
    except ValueError as error:
        ctx.message(str(RecurosError("E2-USAGE", f"{line.strip()!r:.80}: {error}", hint="close the quote")))
        return None
    return words[1:] if words[:1] == ["recuros"] else words


def one(ctx: Context, words: list[str]) -> int:
    """Run one line with a copy of the global options, over the shared connection when there is one."""
    from console.main import run

    if words[0] == "shell":
        ctx.message(str(RecurosError("E2-USAGE", "this is the shell already", hint="exit")))
        return 2
    connect(ctx)
    status = run(words, ctx.for_line())
    if status in (3, 124) or words[0] in ("boot", "halt"):
        drop(ctx)  # the runtime may be another one now
    return status


def connect(ctx: Context) -> None:
    """Open the shared connection where a runtime listens; verbs that need one say themselves that there is none."""
    if ctx.shared is None:
        from recuros import connect as open_session

        try:
            ctx.shared = open_session(ctx.run, timeout_s=ctx.timeout_s)
        except RecurosError:
            ctx.shared = None


def drop(ctx: Context) -> None:
    """Close the shared connection."""
    if ctx.shared is not None:
        ctx.shared.close()
        ctx.shared = None


def _prompted(ctx: Context) -> Iterator[str]:
    """Lines from a terminal."""
    from console import terminal

    session = terminal.open_session(ctx)
    while True:
        try:
            yield session.prompt()
        except EOFError:
            return
        except KeyboardInterrupt:
            continue
