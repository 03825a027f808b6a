"""A million jobs of admitted sets under EDF, in whole nanoseconds, and the control that shows what the blocking term is for.

Each drawn set of sporadic tasks has its micro-steps made as long as admission lets them be (reserve 0, utilisation up to exactly 1);
its jobs then run on one simulated lane where nothing interrupts a micro-step, released as admission must expect the worst: together, a
nanosecond after a job that blocks them, or with random gaps. No deadline may be missed. The control: the same set with longer
micro-steps, which admission refuses and the same test without B(t) lets in; those do miss.

    python -m tests.campaign._edf --count 1000000
"""

from __future__ import annotations

import argparse
import heapq
import json
import random
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any, Final

from kernel.sched import Reservation, admit, blocking_ns, demand_ns

JOBS_PER_RUN: Final = 1_500
SCALE: Final = 64
"""Micro-steps are tried in 64ths of a task's budget."""
Trials = Iterator[tuple[int, str]]


@dataclass
class Result:
    """What a campaign found; `misses` must be 0, `control_misses` must not."""

    jobs: int = 0
    misses: int = 0
    sets: int = 0
    full_sets: int = 0
    control_sets: int = 0
    control_sets_that_missed: int = 0
    control_jobs: int = 0
    control_misses: int = 0
    utilisation_max: float = 0.0
    seconds: float = 0.0
    found: str = ""


def simulate(tasks: list[Reservation], offsets: list[int], jobs_max: int, rng: random.Random | None) -> tuple[int, int]:
    """Jobs finished and deadlines missed under EDF. Releases start at `offsets`; `rng` adds gaps between them, None does not."""
    releases = [(offset, i) for i, offset in enumerate(offsets)]
    heapq.heapify(releases)
    ready: list[list[int]] = []  # [absolute deadline, number, task, ns left]
    now = released = finished = missed = 0
    while releases or ready:
        while releases and releases[0][0] <= now:
            at, i = heapq.heappop(releases)
            task = tasks[i]
            released += 1
            heapq.heappush(ready, [at + task.deadline_ns, released, i, task.budget_ns])
            if released + len(releases) < jobs_max:
                gap = int(rng.expovariate(4 / task.period_ns)) if rng and rng.random() < 0.5 else 0
                heapq.heappush(releases, (at + task.period_ns + gap, i))
        if not ready:
            now = releases[0][0]
            continue
        job = ready[0]
        piece = min(job[3], tasks[job[2]].step_ns or job[3])
        if not tasks[job[2]].step_ns and releases:
            piece = min(piece, releases[0][0] - now)
        now += piece
        job[3] -= piece
        if job[3] == 0:
            # Releases during the last piece are not in `ready` yet, so the job is still at its top.
            heapq.heappop(ready)
            finished += 1
            missed += now > job[0]
    return finished, missed


def draw(rng: random.Random) -> list[Reservation]:
    """2 to 10 tasks; one set in three fills the lane exactly, the others up to a random share of it. Micro-steps are not set yet."""
    n = rng.randint(2, 10)
    if rng.random() < 1 / 3:
        return _full(rng, n)
    shares = [rng.expovariate(1) for _ in range(n)]
    usage = rng.uniform(0.5, 0.999)
    tasks = []
    for i, share in enumerate(shares):
        period = int(10 ** rng.uniform(6, 9))
        budget = max(1, int(period * usage * share / sum(shares)))
        shortest = max(budget, int(period * rng.choice((0.4, 0.7, 1.0))))
        tasks.append(Reservation(f"t{i}", budget, rng.randint(shortest, period), period))
    return tasks


def _full(rng: random.Random, n: int) -> list[Reservation]:
    """Budgets over periods that add up to 1 in whole numbers: periods divide one hyperperiod, the last task takes what is left."""
    whole = 720_720 * rng.randint(100, 5_000)
    divisors = [d for d in range(1, 14) if 720_720 % d == 0]
    left, tasks = whole, []
    for i in range(n - 1):
        period = whole // rng.choice(divisors)
        budget = max(1, int(rng.uniform(0.05, 0.9) * left / (whole // period) / 2))
        left -= budget * (whole // period)
        tasks.append(Reservation(f"t{i}", budget, period, period))
    tasks.append(Reservation(f"t{n - 1}", left, whole, whole))
    return tasks


def with_steps(tasks: list[Reservation], parts: list[int], scale: int) -> list[Reservation]:
    """Micro-steps of `scale` / SCALE of what `parts` (in percent of the budget) asks for."""
    return [
        replace(r, step_ns=max(1, r.budget_ns * part * scale // (100 * SCALE)))
        for r, part in zip(tasks, parts, strict=True)
    ]


def boundary(tasks: list[Reservation], parts: list[int]) -> int:
    """The largest scale of micro-steps that admission takes, 0 if none."""
    low, high = 0, SCALE
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if admit(with_steps(tasks, parts, middle), reserve=0.0)[0] else (low, middle - 1)
    return low


def releases(tasks: list[Reservation], rng: random.Random) -> Iterator[tuple[list[int], random.Random | None]]:
    """All at once; all a nanosecond after the longest micro-step of a later deadline has begun; scattered, with gaps."""
    yield [0] * len(tasks), None
    blockers = [i for i, r in enumerate(tasks) if any(o.deadline_ns < r.deadline_ns for o in tasks)]
    for blocker in sorted(blockers, key=lambda i: -tasks[i].step_ns)[:3]:
        yield [int(i != blocker) for i in range(len(tasks))], None
    yield [rng.randrange(r.period_ns) for r in tasks], rng


def worst(tasks: list[Reservation], t: int) -> list[int]:
    """Releases that make the witness t of a refusal happen: what is due by then at once, its longest blocker just before."""
    late = [i for i, r in enumerate(tasks) if r.deadline_ns > t]
    blocker = max(late, key=lambda i: tasks[i].step_ns, default=-1)
    others = 1 + max(r.deadline_ns for r in tasks)  # the rest keeps out of the way
    return [0 if i == blocker else others if i in late else 1 for i in range(len(tasks))]


def trials(count: int, seed: int, result: Result) -> Trials:
    """Sets until `count` jobs of admitted ones have run; a violation is a miss among them, or a witness that does not add up."""
    number = seed
    while result.jobs < count:
        rng = random.Random(number)
        tasks = draw(rng)
        parts = [rng.randint(5, 100) for _ in tasks]
        scale = boundary(tasks, parts)
        if scale:
            fair = with_steps(tasks, parts, scale)
            result.sets += 1
            usage = sum(r.utilisation for r in fair)
            result.full_sets += usage > 1 - 1e-9
            result.utilisation_max = max(result.utilisation_max, round(usage, 9))
            for offsets, gaps in releases(fair, rng):
                jobs, missed = simulate(fair, offsets, JOBS_PER_RUN, gaps)
                result.jobs += jobs
                result.misses += missed
                yield result.jobs, f"set {number}: {missed} of {jobs} jobs late, offsets {offsets}" if missed else ""
        yield result.jobs, _control(tasks, parts, scale, number, rng, result)
        number += 1


def _control(
    tasks: list[Reservation], parts: list[int], scale: int, number: int, rng: random.Random, result: Result
) -> str:
    long = with_steps(tasks, parts, min(SCALE, scale + max(4, scale // 4)))
    ok, witness = admit(long, reserve=0.0)
    if ok or not admit([replace(r, step_ns=0) for r in long], reserve=0.0)[0]:
        return ""
    t = witness["t_ns"]
    if not witness["demand_ns"] == demand_ns(long, t) + blocking_ns(long, t, 0) > t:
        return f"set {number}: the witness {witness} does not add up"
    result.control_sets += 1
    missed = 0
    for offsets, gaps in ((worst(long, t), None), *releases(long, rng)):
        jobs, late = simulate(long, offsets, JOBS_PER_RUN // 4, gaps)
        result.control_jobs += jobs
        missed += late
    result.control_misses += missed
    result.control_sets_that_missed += missed > 0
    return ""


def run(*, count: int = 1_000_000, seconds: float | None = None, seed: int = 1) -> Result:
    """The campaign until its count of jobs, or its time, is reached."""
    result = Result()
    began = time.monotonic()
    for _, violation in trials(count, seed, result):
        result.found = result.found or violation
        if seconds is not None and time.monotonic() - began >= seconds:
            break
    result.seconds = time.monotonic() - began
    return result


def campaign(count: int, seed: int, details: dict[str, Any]) -> Trials:
    """As the other campaigns are driven: (jobs so far, violation). A control that never misses is a violation of its own."""
    result = Result()
    yield from trials(count, seed, result)
    details |= {k: v for k, v in asdict(result).items() if k not in ("found", "seconds")}
    yield (
        result.jobs,
        "" if result.control_misses else "no set admitted without the blocking term missed: the control shows nothing",
    )


def main() -> int:
    """Run it; 1 when an admitted job was late or no control was."""
    parser = argparse.ArgumentParser(prog="python -m tests.campaign._edf")
    parser.add_argument("--count", type=int, default=1_000_000, help="jobs of admitted sets")
    parser.add_argument("--seconds", type=float)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    result = run(count=options.count, seconds=options.seconds, seed=options.seed)
    print(json.dumps(asdict(result)))
    return 0 if not result.misses and not result.found and result.control_misses else 1


if __name__ == "__main__":
    sys.exit(main())
