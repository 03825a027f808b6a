"""Progress of what takes longer than two seconds, on stderr.

Responsible for: a bar on a terminal, a line every few seconds elsewhere, nothing for what is quick. Refuses: stdout.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

QUICK_S: Final = 2.0
PLAIN_PERIOD_S: Final = 5.0
Advance = Callable[[str], None]


@contextmanager
def progress(title: str, total: int, *, moving: bool, quiet: bool) -> Iterator[Advance]:
    """Call what is given after each of `total` parts, with a word about it."""
    shown = _Shown(title, total, moving) if not quiet else None
    try:
        yield shown.advance if shown else lambda _: None
    finally:
        if shown:
            shown.close()


class _Shown:
    def __init__(self, title: str, total: int, moving: bool) -> None:
        self._title, self._total, self._moving = title, total, moving
        self._done = 0
        self._began = self._told = time.monotonic()
        self._bar: Any = None
        self._task: Any = None

    def advance(self, word: str) -> None:
        self._done += 1
        now = time.monotonic()
        if now - self._began < QUICK_S or (self._done >= self._total and self._bar is None):
            return
        if self._moving:
            self._move(word)
        elif now - self._told >= PLAIN_PERIOD_S or self._told == self._began:
            self._told = now
            print(f"{self._title}: {self._done} of {self._total} ({word})", file=sys.stderr, flush=True)

    def _move(self, word: str) -> None:
        if self._bar is None:
            from rich.console import Console
            from rich.progress import Progress

            self._bar = Progress(console=Console(stderr=True), transient=True)
            self._bar.start()
            self._task = self._bar.add_task(self._title, total=self._total)
        self._bar.update(self._task, completed=self._done, description=f"{self._title}: {word}")

    def close(self) -> None:
        if self._bar is not None:
            self._bar.stop()
