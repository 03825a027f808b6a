"""`recuros logs`: what the supervisor, the kernel and the servers wrote into RUN/log."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Final

import click

from console.context import Context, no_such
from console.verb import verb
from syscalls.errors import RecurosError

POLL_S: Final = 0.2
LINES_DEFAULT: Final = 50
TAIL_BYTES: Final = 1 << 20


@verb(
    "logs",
    "What the processes wrote: of one SERVER, or of all with their names in front.",
    examples=("recuros logs", "recuros logs learner -n 200", "recuros logs -f observer"),
    exits=(4, 130),
)
@click.argument("server", required=False)
@click.option("-f", "--follow", is_flag=True, help="Go on printing what is written; ends with Ctrl-C.")
@click.option(
    "-n",
    "--lines",
    type=click.IntRange(0),
    default=LINES_DEFAULT,
    metavar="N",
    help="Lines of each log to begin with [50].",
)
def logs(ctx: Context, server: str | None, follow: bool, lines: int) -> None:
    """Print the ends of the log files; works without a runtime."""
    folder = ctx.run / "log"
    files = {path.stem: path for path in sorted(folder.glob("*.log"))} if folder.is_dir() else {}
    if not files:
        raise RecurosError("E4-NOENT", f"{folder} holds no logs", hint="recuros boot, or --run DIR")
    if server is not None and server not in files:
        raise no_such("log", server, list(files))
    chosen = files if server is None else {server: files[server]}
    ends = {name: _tail(ctx, name, path, lines, prefix=server is None) for name, path in chosen.items()}
    while follow:
        time.sleep(POLL_S)
        for name, path in chosen.items():
            ends[name] = _more(ctx, name, path, ends[name], prefix=server is None)


def _tail(ctx: Context, name: str, path: Path, lines: int, *, prefix: bool) -> int:
    """Print the last lines; returns the offset up to which the file was read."""
    size = path.stat().st_size
    with open(path, "rb") as file:
        file.seek(max(0, size - TAIL_BYTES))
        data = file.read(size - file.tell())
    kept = data.decode("utf-8", "replace").splitlines()
    _print(ctx, name, kept[len(kept) - min(lines, len(kept)) :], prefix=prefix)
    return size


def _more(ctx: Context, name: str, path: Path, offset: int, *, prefix: bool) -> int:
    """Print whole lines written since `offset`; a file that became shorter is read from its start."""
    size = path.stat().st_size
    if size < offset:
        offset = 0
    with open(path, "rb") as file:
        data = os.pread(file.fileno(), size - offset, offset)
    whole = data[: data.rfind(b"\n") + 1]
    _print(ctx, name, whole.decode("utf-8", "replace").splitlines(), prefix=prefix)
    return offset + len(whole)


def _print(ctx: Context, name: str, lines: list[str], *, prefix: bool) -> None:
    import json

    for line in lines:
        if ctx.output in ("json", "jsonl"):
            print(json.dumps({"log": name, "line": line}), flush=True)
        else:
            print(f"{name}: {line}" if prefix else line, flush=True)
