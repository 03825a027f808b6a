"""Progress of what takes longer than two seconds, on stderr.

Responsible for: bars on a terminal, a line every few seconds elsewhere (one JSON document a line where the data is JSON), nothing for
what is quick. Refuses: stdout.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

from kfs.tell import Tell, silent

QUICK_S: Final = 2.0
PLAIN_PERIOD_S: Final = 5.0
SCHEMA: Final = "recuros.progress/v1"


@contextmanager
def progress(title: str, *, moving: bool, quiet: bool, as_json: bool = False) -> Iterator[Tell]:
    """What is given takes (what, done, total); a total of 0 is one that nobody knows."""
    if quiet:
        yield silent
        return
    shown = _Shown(title, moving, as_json)
    try:
        yield shown
    finally:
        shown.close()


class _Shown:
    def __init__(self, title: str, moving: bool, as_json: bool) -> None:
        self._title, self._moving, self._as_json = title, moving, as_json
        self._began = time.monotonic()
        self._told = 0.0
        self._parts: dict[str, float] = {}  # what -> since when it is worked on; inf: it was told that it is done
        self._bar: Any = None
        self._tasks: dict[str, Any] = {}

    def __call__(self, what: str, done: int, total: int) -> None:
        now = time.monotonic()
        if what not in self._parts:
            self._parts[what] = now
        if not what or now - self._began < QUICK_S:
            return
        if self._moving:
            self._move(what, done, total)
            return
        ended = 0 < total <= done
        # A part that took long has a last line, and no part has two of them.
        last = ended and now - self._parts[what] >= QUICK_S
        if last or (not ended and now - self._told >= PLAIN_PERIOD_S):
            self._told = now
            self._line(what, done, total, now - self._began)
        if last:
            self._parts[what] = float("inf")

    def _line(self, what: str, done: int, total: int, elapsed_s: float) -> None:
        if self._as_json:
            numbers = {"done": done, "total": total or None, "elapsed_s": round(elapsed_s, 1)}
            text = json.dumps({"schema": SCHEMA, "verb": self._title, "what": what, **numbers})
        else:
            text = f"{self._title}: {what} {done}" + (f" of {total}" if total else "")
        print(text, file=sys.stderr, flush=True)

    def _move(self, what: str, done: int, total: int) -> None:
        if self._bar is None:
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                TextColumn("{task.fields[count]}"),
                TimeElapsedColumn(),
            )
            self._bar = Progress(*columns, console=Console(stderr=True), transient=True)
            self._bar.start()
        if what not in self._tasks:
            self._tasks[what] = self._bar.add_task(f"{self._title}: {what}", total=total or None, count="")
        count = f"{done} of {total}" if total else str(done)
        self._bar.update(self._tasks[what], completed=done, total=total or None, count=count)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.stop()
