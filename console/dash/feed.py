"""Following the ledger of a run directory, written by a runtime or not.

Responsible for: waking up when records are appended (inotify; a look every half second covers file systems that do not tell), and the
records in the form that the page takes: everything but what only a restart needs. Every subscriber has a cursor of its own, so none
can lose a record and a slow one holds nothing up. Refuses: records that do not decode; the ledger's damage is part of what it says.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import json
import os
from collections import deque
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, Final

from kfs import records
from kfs.ledger import LedgerReader
from kfs.log import render
from kfs.records import Record, RecordKind
from syscalls.errors import RecurosError

KEPT: Final = 4_096
"""Encoded records held for subscribers that are nearly up to date; older ones are read from the file again."""
CHUNK: Final = 256
LOOK_S: Final = 0.5
_IN_MODIFY: Final = 0x2
_IN_NONBLOCK: Final = os.O_NONBLOCK
_IN_CLOEXEC: Final = os.O_CLOEXEC
_LEFT_OUT: Final = {RecordKind.WINDOW_COMMIT: ("resume",)}


def brief(record: Record) -> dict[str, Any]:
    """A record as the page takes it: times in ms since 1970 and ns of the boot's clock, args without what only a restart needs."""
    row = render(record)
    left_out = _LEFT_OUT.get(record.kind, ())
    return {
        "seq": record.seq,
        "t": record.t_wall / 1e6,
        "mono": record.t_mono,
        "actor": record.actor,
        "kind": row["kind"],
        "gen": record.generation,
        "parent": record.parent_snap,
        "result": record.result_snap,
        "args": {name: value for name, value in row["args"].items() if name not in left_out},
    }


class Feed:
    """The records of one ledger file as JSON texts, by number, as they come. For one event loop, which `start` binds it to."""

    def __init__(self, ledger: Path) -> None:
        self._reader = LedgerReader(ledger)
        self._path = ledger
        self._texts: deque[str] = deque(maxlen=KEPT)
        self._first = self._reader.size  # number of the first text kept
        self._grown = asyncio.Event()
        self._inotify = -1
        self._tick: asyncio.Task[None] | None = None
        self.closed = False

    @property
    def size(self) -> int:
        """How many records there are."""
        return self._reader.size

    @property
    def damage(self) -> str:
        """What is wrong with the file beyond its last good record; empty for nothing, or for a frame that is being written."""
        found = self._reader.damage
        return found.reason if found is not None and found.valid_after else ""

    def start(self) -> None:
        """Begin to watch; call it inside the event loop."""
        self._inotify = _watch(self._path)
        if self._inotify >= 0:
            asyncio.get_running_loop().add_reader(self._inotify, self._woken)
        self._tick = asyncio.create_task(self._look_now_and_then())

    def stop(self) -> None:
        """End every subscription and let the file go."""
        self.closed = True
        if self._tick is not None:
            self._tick.cancel()
        if self._inotify >= 0:
            asyncio.get_running_loop().remove_reader(self._inotify)
            os.close(self._inotify)
            self._inotify = -1
        self._wake()
        self._reader.close()

    def text(self, seq: int) -> str:
        """Record `seq` as JSON."""
        if seq >= self._first and seq - self._first < len(self._texts):
            return self._texts[seq - self._first]
        return _text(self._reader.record(seq))

    def texts(self, start: int, stop: int) -> Iterator[str]:
        """Records start .. stop - 1 as JSON."""
        if start >= self._first:
            yield from (self.text(seq) for seq in range(start, min(stop, self.size)))
        else:
            yield from map(_text, self._reader.records(start, stop))

    async def follow(self, after: int) -> AsyncIterator[tuple[int, str]]:
        """(number, JSON) of each record beyond `after`, for as long as the feed runs. `after` beyond the end waits there."""
        at = max(after + 1, 0)
        while not self.closed:
            grown = self._grown
            stop = min(self.size, at + CHUNK)
            for text in self.texts(at, stop):
                yield at, text
                at += 1
            if at < self.size:
                await asyncio.sleep(0)  # others get their turn while a long history is sent
            else:
                await grown.wait()

    def _woken(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.read(self._inotify, 65_536)
        self._take()

    async def _look_now_and_then(self) -> None:
        while True:
            await asyncio.sleep(LOOK_S)
            self._take()

    def _take(self) -> None:
        before = self._reader.size
        self._reader.refresh()
        if self._reader.size == before:
            return
        for data in self._reader.records(before):
            if len(self._texts) == KEPT:
                self._first += 1
            self._texts.append(_text(data))
        self._wake()

    def _wake(self) -> None:
        grown, self._grown = self._grown, asyncio.Event()
        grown.set()


def _text(data: bytes) -> str:
    try:
        return json.dumps(brief(records.decode(data)), separators=(",", ":"))
    except RecurosError as error:
        raise RecurosError("E9-INTEGRITY", f"a record does not decode: {error.message}") from error


def _watch(path: Path) -> int:
    """A descriptor that is readable when the file was written to; -1 where the kernel has no inotify for us."""
    libc = ctypes.CDLL(None, use_errno=True)
    fd = int(libc.inotify_init1(_IN_NONBLOCK | _IN_CLOEXEC))
    if fd >= 0 and libc.inotify_add_watch(fd, os.fsencode(path), _IN_MODIFY) < 0:
        os.close(fd)
        return -1
    return fd
