"""The way out of the step for asynchronous helpers: a bounded queue of copies, and the figures that come back.

Responsible for: `put`, called inside a firing, which copies its views and returns False instead of waiting when there is no room (a
drop, which the caller counts in the program's map); `take` and `answer`, called by whoever computes; `landed`, by which the thread
that owns the maps collects the figures between steps, so that maps keep a single writer.
Refuses: to grow: at most `jobs_max` jobs and `bytes_max` bytes wait, and at most ANSWERS_MAX figures.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from torch import Tensor

JOBS_MAX: Final = 64
BYTES_MAX: Final = 64 << 20
ANSWERS_MAX: Final = 4_096


@dataclass(frozen=True, slots=True)
class Job:
    """One call. `owner`: the program's key; `helper`: its number; `map`, `site`: where the figures go; `views`: copies on the CPU."""

    owner: int
    helper: int
    map: int
    site: int
    step: int
    views: tuple[Tensor, ...]

    @property
    def bytes(self) -> int:
        """What it holds."""
        return sum(view.numel() * view.element_size() for view in self.views)


@dataclass(frozen=True, slots=True)
class Answer:
    """The figures of a job, in the order of its helper's `results`."""

    owner: int
    map: int
    site: int
    values: tuple[float, ...]


Choice = Callable[[int, tuple[Tensor, ...]], tuple[Tensor, ...]]
"""(helper, views) -> what the helper takes of them: few rows of a long view. Each is one of the views itself, or a copy."""


class AsyncQueue:
    """Jobs out, answers back; safe between threads. `choose`: what to copy of the views of a call; all of them without one."""

    def __init__(self, jobs_max: int = JOBS_MAX, bytes_max: int = BYTES_MAX, choose: Choice | None = None) -> None:
        self.jobs_max, self.bytes_max = jobs_max, bytes_max
        self._choose = choose
        self._failed: dict[int, str] = {}
        self.dropped = 0
        self._jobs: deque[Job] = deque()
        self._held = 0
        self._answers: dict[int, list[Answer]] = {}
        self._closed = False
        self._changed = threading.Condition()

    def put(self, owner: int, helper: int, number: int, firing: Any, *views: Tensor) -> bool:
        """Copy the views and queue a call; False, and nothing copied, when there is no room. Raises what `fail` was told."""
        if owner in self._failed:
            raise RuntimeError(self._failed[owner])
        chosen = views if self._choose is None else self._choose(helper, views)
        size = sum(view.numel() * view.element_size() for view in chosen)
        with self._changed:
            if self._closed or len(self._jobs) >= self.jobs_max or self._held + size > self.bytes_max:
                self.dropped += 1
                return False
            self._held += size
        # What was chosen out of a view is a copy already.
        copies = tuple(c.detach().to("cpu", copy=any(c is view for view in views)).contiguous() for c in chosen)
        with self._changed:
            self._jobs.append(Job(owner, helper, number, firing.site, firing.step, copies))
            self._changed.notify()
        return True

    def take(self, timeout_s: float = 0.0) -> Job | None:
        """The oldest job, waiting for one at most `timeout_s`; None when there is none or the queue is closed."""
        if not self._jobs and timeout_s <= 0.0:
            return None  # between two steps: most often there is none, and waiting for none has its price
        with self._changed:
            self._changed.wait_for(lambda: self._jobs or self._closed, timeout_s)
            if not self._jobs:
                return None
            job = self._jobs.popleft()
            self._held -= job.bytes
            return job

    def answer(self, job: Job, values: Sequence[float]) -> None:
        """Hand back a job's figures; the newest of a map's row replaces an older one that was not collected."""
        made = Answer(job.owner, job.map, job.site, tuple(float(v) for v in values))
        with self._changed:
            kept = [a for a in self._answers.get(job.owner, []) if (a.map, a.site) != (made.map, made.site)]
            if len(kept) < ANSWERS_MAX:
                kept.append(made)
            self._answers[job.owner] = kept

    def landed(self, owner: int) -> list[Answer]:
        """The figures for a program that have come back since the last call."""
        if owner not in self._answers:
            return []
        with self._changed:
            return self._answers.pop(owner, [])

    def fail(self, owner: int, reason: str) -> None:
        """A helper raised: the program's next call raises this, so that the program is evicted with it."""
        self._failed[owner] = reason

    def forget(self, owner: int) -> None:
        """A program is gone: drop its jobs and figures."""
        with self._changed:
            self._failed.pop(owner, None)
            kept = [job for job in self._jobs if job.owner != owner]
            self._held -= sum(job.bytes for job in self._jobs if job.owner == owner)
            self._jobs = deque(kept)
            self._answers.pop(owner, None)

    def close(self) -> None:
        """Take no more and wake whoever waits."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
