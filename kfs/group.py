"""Group commit: many threads append through one writer, and what arrives while one write is on its way goes to the disk as the next.

Responsible for: one thread that owns the open store (its sequencer), and a queue before it. A caller of `append` sleeps until its
records are durable, and takes its numbers home; a draft that is refused is refused to its sender alone. Refuses: to acknowledge early; to
take more after the store was poisoned; a queue without end: a caller waits while `WAITING_MAX` others do.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, TypeVar

from kfs.files import Files
from kfs.records import Record
from kfs.store import Store, StoreWriter
from syscalls.errors import RecurosError

WAITING_MAX: Final = 1_024
"""Requests in the queue; further callers wait for room."""
RECORDS_PER_COMMIT_MAX: Final = 512
_GATHER: Final = 8
"""A commit waits at most this part of the last one's time for the callers that it has just let go to come back."""
_Result = TypeVar("_Result")


class _Request:
    """One call: its drafts or its job, and the lock that its caller sleeps on until `finish` lets it go."""

    __slots__ = ("_sleep", "drafts", "error", "job", "result")

    def __init__(self, drafts: Sequence[Record], job: Callable[[StoreWriter], object] | None = None) -> None:
        self.drafts = drafts
        self.job = job
        self.result: object = None
        self.error: BaseException | None = None
        self._sleep = threading.Lock()
        self._sleep.acquire()

    def finish(self, result: object = None, error: BaseException | None = None) -> None:
        self.result, self.error = result, error
        self._sleep.release()

    def wait(self) -> object:
        self._sleep.acquire()
        if self.error is not None:
            raise self.error
        return self.result


class GroupCommit:
    """An open store that any number of threads may append to; see the module. Close it, or use it as a context."""

    def __init__(self, store_dir: Path | str, files: Files | None = None) -> None:
        """Open the store for writing in a thread of its own: E3-BUSY and the rest of `Store.open_writer`."""
        self.commits = 0
        self._mutex = threading.Lock()
        self._work = threading.Condition(self._mutex)
        self._room = threading.Condition(self._mutex)
        self._queue: deque[_Request] = deque()
        self._closing = False
        self._wanted = 0  # length of the queue at which a gathering sequencer is woken
        self._callers = 0  # in and behind the last commit; and how long it took
        self._took_s = 0.0
        opened = _Request(())
        self._thread = threading.Thread(
            target=self._run, args=(store_dir, files, opened), name="kfs-sequencer", daemon=True
        )
        self._thread.start()
        opened.wait()

    def __enter__(self) -> GroupCommit:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def append(self, drafts: Sequence[Record]) -> list[int]:
        """As `StoreWriter.append`, from any thread: durable when it returns."""
        seqs = self._ask(_Request(list(drafts)))
        assert isinstance(seqs, list)
        return seqs

    def run(self, job: Callable[[StoreWriter], _Result]) -> _Result:
        """Do something else with the store, in its thread and in its turn: put objects, sign, read the head."""
        return self._ask(_Request((), job))  # type: ignore[return-value]

    def close(self) -> None:
        """Finish what is queued, sign, and let the lock go. A second call does nothing."""
        with self._mutex:
            if self._closing:
                return
            self._closing = True
            self._work.notify()
            self._room.notify_all()
        self._thread.join()
        if self._failed is not None:
            raise self._failed

    def _ask(self, request: _Request) -> object:
        with self._mutex:
            while len(self._queue) >= WAITING_MAX and not self._closing:
                self._room.wait()
            if self._closing:
                raise RecurosError("E75-AGAIN", "the store is being closed", hint="open it again")
            self._queue.append(request)
            if len(self._queue) in (1, self._wanted):
                self._work.notify()
        return request.wait()

    # --- the sequencer's thread ----------------------------------------------------------------------------------------

    def _run(self, store_dir: Path | str, files: Files | None, opened: _Request) -> None:
        self._failed: BaseException | None = None
        try:
            store = Store.open_writer(store_dir, files)
        except BaseException as e:  # noqa: BLE001 - raised in the thread that opens
            opened.finish(error=e)
            return
        opened.finish()
        while batch := self._take():
            self._do(store, batch)
        try:
            store.close()
        except BaseException as e:  # noqa: BLE001 - raised by `close`
            self._failed = e

    def _take(self) -> list[_Request]:
        """What is waiting, in order, as far as it fits one commit; a job comes alone. Empty: it is closed and nothing is left."""
        with self._mutex:
            while not self._queue:
                if self._closing:
                    return []
                self._work.wait()
            if len(self._queue) < self._callers:
                # Without this, callers split into two groups, and each waits for the other's commit as well as for its own.
                self._wanted = self._callers
                self._work.wait(self._took_s / _GATHER)
                self._wanted = 0
            batch = [self._queue.popleft()]
            records = len(batch[0].drafts)
            while self._queue and batch[0].job is None and self._queue[0].job is None:
                records += len(self._queue[0].drafts)
                if records > RECORDS_PER_COMMIT_MAX:
                    break
                batch.append(self._queue.popleft())
            self._room.notify(len(batch))
            return batch

    def _do(self, store: StoreWriter, batch: list[_Request]) -> None:
        drafts = [draft for request in batch for draft in request.drafts]
        try:
            if batch[0].job is not None:
                batch[0].finish(batch[0].job(store))
                return
            began = time.monotonic()
            seqs = store.append(drafts)
            self._took_s, self._callers = time.monotonic() - began, len(batch) + len(self._queue)
            self.commits += 1
        except BaseException as e:  # noqa: BLE001 - raised in the thread that asked
            if len(batch) == 1:
                batch[0].finish(error=e)
                return
            # Somebody's draft was refused, or the disk was full: each by itself. What went through already is known by its bytes.
            for request in batch:
                self._do(store, [request])
            return
        at = 0
        for request in batch:
            at += len(request.drafts)
            request.finish(seqs[at - len(request.drafts) : at])
