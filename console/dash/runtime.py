"""The live half of the dashboard: gauges that are no records.

Responsible for: one thread that speaks to the kernel (a session is for one thread), looks at it while somebody watches, and does what
handlers ask of it in between. A runtime that is not there, goes away or comes back is a gauge like any other: `up` says so, with the
reason. Refuses: to keep a session of an earlier boot.
"""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Final, TypeVar

from console.context import plain
from recuros import connect, listens
from syscalls.client import Client
from syscalls.errors import RecurosError

Found = TypeVar("Found")

PERIOD_S: Final = 0.5
PROBES_EVERY: Final = 4
"""Looks between two questions to the learner, which answers for its probes between steps."""
ANSWER_S: Final = 2.0
ASKED: Final = (("sched_show", "sched"), ("channel_list", "channels"))


class RuntimeThread:
    """Starts and ends with the dashboard. `tell` gets each new map of gauges, on this thread."""

    def __init__(self, run: Path, tell: Callable[[dict[str, Any]], None]) -> None:
        self._run = run
        self._tell = tell
        self._jobs: queue.SimpleQueue[tuple[Callable[[Client], Any], Future[Any]] | None] = queue.SimpleQueue()
        self._client: Client | None = None
        self._watchers = 0
        self._looks = 0
        self._probes: dict[str, Any] = {}
        self._thread = threading.Thread(target=self._work, name="dash-runtime", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End, with the session closed."""
        self._jobs.put(None)
        self._thread.join(ANSWER_S * 3)

    def watch(self, more: int) -> None:
        """One more (1) or less (-1) who wants gauges; with nobody the kernel is left alone."""
        self._watchers += more
        if more > 0:
            self._jobs.put((lambda _: None, Future()))  # look at once

    def submit(self, job: Callable[[Client], Found]) -> Future[Found]:
        """Have `job` done with a session; its future gets what the job returns or raises, E3-DOWN when there is no runtime."""
        future: Future[Found] = Future()
        self._jobs.put((job, future))
        return future

    def _work(self) -> None:
        while True:
            with contextlib.suppress(queue.Empty):
                job = self._jobs.get(timeout=PERIOD_S if self._watchers > 0 else None)
                if job is None:
                    self._close()
                    return
                self._do(*job)
            if self._watchers > 0 and self._jobs.empty():
                self._look()

    def _do(self, job: Callable[[Client], Any], future: Future[Any]) -> None:
        try:
            future.set_result(job(self._session()))
        except RecurosError as error:
            if error.code.startswith("E3-"):
                self._close()
            future.set_exception(error)
        except Exception as error:  # noqa: BLE001  # whoever waits for the future gets it; this thread serves others too
            future.set_exception(error)

    def _session(self) -> Client:
        if self._client is None or not listens(self._run):
            self._close()
            self._client = connect(self._run, timeout_s=ANSWER_S)
        return self._client

    def _look(self) -> None:
        try:
            gauges = self._ask(self._session())
        except RecurosError as error:
            busy = error.code == "E124-TIMEOUT" and listens(self._run)
            if not busy:
                self._close()
            gauges = {"up": busy, "busy": busy, "why": error.message, "code": error.code}
        self._tell({**gauges, "at": time.time() * 1e3})

    def _ask(self, client: Client) -> dict[str, Any]:
        gauges: dict[str, Any] = {"up": True, "busy": False, "denied": {}}
        gauges["status"] = client.status()["status"]
        for name, column in ASKED:
            try:
                gauges[column] = client.syscall(name)[column]
            except RecurosError as error:
                if error.code.startswith("E3-"):
                    raise
                gauges["denied"][column] = error.code
        if self._looks % PROBES_EVERY == 0:
            self._probes = self._ask_probes(client)
        self._looks += 1
        found: dict[str, Any] = plain({**gauges, **self._probes})
        return found

    def _ask_probes(self, client: Client) -> dict[str, Any]:
        try:
            return {"probes": client.probe_list()["probes"], "programs": client.probe_programs()["programs"]}
        except RecurosError as error:
            if error.code.startswith("E3-"):
                raise
            return {"probes_denied": error.code}

    def _close(self) -> None:
        self._looks, self._probes = 0, {}
        if self._client is not None:
            with contextlib.suppress(RecurosError):
                self._client.close()
            self._client = None
