"""Who computes what asynchronous helpers were asked for: between two steps, in the learner, with its time measured.

Responsible for: `Worker`, which takes jobs off the queue, folds each into the state of its helper at its site, and hands the figures
back; what each helper takes of its views (`chosen`). States are values that are replaced and never changed, so that a window that
did not happen is taken back by putting the old ones in again.
Why not another thread or process: a thread shares the interpreter and the core of the learner's lane with the step; another process
would make the figures of a window depend on when it came to run, and decisions rest on them. docs/reference/probes.md has the times.
Refuses: to raise: a helper that does fails its program, which is evicted at its next firing with the reason.
"""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter_ns
from typing import Any, Final

import torch
from torch import Tensor

from probes.helpers import cca, cka, examine, outliers, rows, squares
from probes.helpers.queue import AsyncQueue, Job
from probes.helpers.subject import Subject
from probes.isa_helpers import HELPER_BY_NAME, HELPER_BY_NR

Fold = Callable[..., tuple[Any, tuple[float, ...]]]
"""(state or None, view, ...) -> (new state, figures in the order of the helper's results)."""
_FOLDS: Final[dict[str, tuple[int, Fold]]] = {
    "cka": (cka.ROWS, cka.fold),
    "svcca": (cca.ROWS_TAKEN, cca.svcca),
    "pwcca": (cca.ROWS_TAKEN, cca.pwcca),
    "mahalanobis": (outliers.ROWS_TAKEN, outliers.mahalanobis),
    "deep_knn": (outliers.ROWS_TAKEN, outliers.deep_knn),
}
"""Helpers of rows: the most rows that a call takes, and what folds them in."""
FOLDS: Final[dict[int, Fold]] = {HELPER_BY_NAME[name].nr: fold for name, (_, fold) in _FOLDS.items()} | {
    HELPER_BY_NAME["fisher"].nr: squares.fisher
}
ROWS: Final[dict[int, int]] = {HELPER_BY_NAME[name].nr: most for name, (most, _) in _FOLDS.items()}
JOBS_MAX: Final = 1_024
States = dict[tuple[int, int], Any]
"""(map, site) -> state, of one program."""


def chosen(helper: int, views: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """What a helper takes of its views, before anything is copied for it."""
    if helper == HELPER_BY_NAME["fisher"].nr:
        return (squares.taken(views[0]),)
    return rows.take(views, ROWS[helper]) if helper in ROWS else views


def new_queue() -> AsyncQueue:
    """A queue that copies only what its helpers take."""
    return AsyncQueue(jobs_max=JOBS_MAX, choose=chosen)


class Worker:
    """`subject`: the models to look at, or None where there are none yet; asked for only by helpers that need them."""

    def __init__(self, queue: AsyncQueue, subject: Callable[[], Subject | None] = lambda: None) -> None:
        self._queue = queue
        self._subject = subject
        self._states: dict[int, States] = {}
        self._spent_ns: dict[int, int] = {}

    def serve(self) -> int:
        """Do what waits; returns the number of jobs."""
        done = 0
        while (job := self._queue.take()) is not None:
            started_ns = perf_counter_ns()
            try:
                self._queue.answer(job, self._figures(job))
            except Exception as e:  # noqa: BLE001 - whatever a helper does wrong must not stop the run; its program is evicted
                name = HELPER_BY_NR[job.helper].name
                self._queue.fail(job.owner, f"helper {name}: {type(e).__name__}: {e}"[:300])
            self._spent_ns[job.owner] = self._spent_ns.get(job.owner, 0) + perf_counter_ns() - started_ns
            done += 1
        return done

    def _figures(self, job: Job) -> tuple[float, ...]:
        states, key = self._states.setdefault(job.owner, {}), (job.map, job.site)
        fold = FOLDS.get(job.helper)
        if fold is None:
            subject = self._subject()
            if subject is None:
                raise LookupError("there is no model to look at")
            states[key], looked = examine.examine(HELPER_BY_NR[job.helper].name, subject, states.get(key))
            return looked
        with torch.no_grad():
            states[key], figures = fold(states.get(key), *job.views)
        return figures

    def spent_ns(self, owner: int) -> int:
        """Nanoseconds that a program's helpers have taken so far."""
        return self._spent_ns.get(owner, 0)

    def saved(self, owner: int) -> States:
        """The states of a program's helpers, to return to."""
        return dict(self._states.get(owner, {}))

    def put_back(self, owner: int, saved: States) -> None:
        """Return to them; what waits in the queue of a window that did not happen is dropped."""
        self._queue.forget(owner)
        self._states[owner] = dict(saved)

    def forget(self, owner: int) -> None:
        """A program is gone."""
        self._queue.forget(owner)
        self._states.pop(owner, None)
        self._spent_ns.pop(owner, None)
