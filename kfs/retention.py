"""Which snapshots are worth their bytes: pure scoring, no store.

Responsible for: the utility of a snapshot or artifact, and the greedy choice to a budget. Refuses: giving up what is pinned, even when
the budget cannot then be met.

    utility = gain * G + distance * D + replay * R + cover * A (+ importance * I for artifacts), each term in [0, 1]

G  held-out gain: how much better it scores than the evaluation before it, over the largest such gain
D  CKA distance to its neighbours in time: the mean of the two differences, over the largest
R  replay cost: the time of all windows since the last pinned state before it, from which replay would have to start, over the largest
A  cover of log-spaced ages: within each of the age ranges 1, 2-3, 4-7, 8-15, ... commits the oldest has 1, the others share 1
I  movement scores (Sanh et al. 2020) or L0 gates (Louizos et al. 2018) that a record gives for a mask or probe artifact, in [0, 1]

A term whose figure no record has is 0. The greedy step gives up the candidate with the least utility per exclusive byte: bytes that nothing
else that is kept refers to. They change as others go, and are kept up to date.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from syscalls.errors import RecurosError


@dataclass(frozen=True, slots=True)
class Weights:
    """What each term counts."""

    gain: float = 1.0
    distance: float = 0.5
    replay: float = 0.25
    cover: float = 1.0
    importance: float = 1.0

    def __post_init__(self) -> None:
        for name in ("gain", "distance", "replay", "cover", "importance"):
            value = getattr(self, name)
            if not 0.0 <= value < float("inf"):
                raise RecurosError(
                    "E2-LIMIT", f"retention weight {name}={value!r} must be a finite number of at least 0"
                )


DEFAULT_WEIGHTS: Final = Weights()


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known of one candidate.

    `age`: commits since, 1 for the newest; `score`: held-out, None when it was not scored; `cka`: the similarity that its record
    gives; `used_ns`: time of its window; `importance`: for artifacts; `pinned`: why it stays, "" if it may go.
    """

    name: str
    age: int
    score: float | None = None
    cka: float | None = None
    used_ns: int = 0
    importance: float = 0.0
    pinned: str = ""


def utilities(facts: Sequence[Facts], weights: Weights = DEFAULT_WEIGHTS) -> list[float]:
    """The utility of each; `facts` in the order of time, oldest first."""
    terms = zip(_gains(facts), _distances(facts), _replay_costs(facts), _cover(facts), strict=True)
    return [
        weights.gain * gain
        + weights.distance * distance
        + weights.replay * replay
        + weights.cover * cover
        + weights.importance * min(1.0, max(0.0, fact.importance))
        for fact, (gain, distance, replay, cover) in zip(facts, terms, strict=True)
    ]


def _gains(facts: Sequence[Facts]) -> list[float]:
    gains, before = [], None
    for fact in facts:
        gains.append(0.0 if fact.score is None or before is None else max(0.0, fact.score - before))
        before = before if fact.score is None else fact.score
    return _normalised(gains)


def _distances(facts: Sequence[Facts]) -> list[float]:
    found = []
    for i, fact in enumerate(facts):
        beside = [facts[j].cka for j in (i - 1, i + 1) if 0 <= j < len(facts)]
        steps = [abs(fact.cka - other) for other in beside if fact.cka is not None and other is not None]
        found.append(sum(steps) / len(steps) if steps else 0.0)
    return _normalised(found)


def _replay_costs(facts: Sequence[Facts]) -> list[float]:
    costs, since = [], 0
    for fact in facts:
        since += fact.used_ns
        costs.append(float(since))
        if fact.pinned:
            since = 0
    return _normalised(costs)


def _cover(facts: Sequence[Facts]) -> list[float]:
    ranges = [fact.age.bit_length() for fact in facts]
    members = Counter(ranges)
    oldest: dict[int, int] = {}
    for i, (fact, found) in enumerate(zip(facts, ranges, strict=True)):
        if found not in oldest or fact.age > facts[oldest[found]].age:
            oldest[found] = i
    return [1.0 if oldest[found] == i else 1.0 / members[found] for i, found in enumerate(ranges)]


def _normalised(values: list[float]) -> list[float]:
    largest = max(values, default=0.0)
    return [value / largest if largest > 0 else 0.0 for value in values]


def give_up(
    closures: Mapping[str, Sequence[int]],
    worth: Mapping[str, float],
    sizes: Sequence[int],
    kept: Sequence[int],
    budget_bytes: int,
) -> list[tuple[str, int]]:
    """Who goes, in order, with the bytes that its going frees: least utility per exclusive byte first, until the rest fits.

    `closures`: candidate -> indexes of everything it refers to, without repeats; `sizes`: stored bytes of each index; `kept`: indexes
    that stay whatever happens. Ties go by name, so that the same store gives the same plan.
    """
    fixed = set(kept)
    owners = [0] * len(sizes)
    xor = [0] * len(sizes)  # of the numbers of the owners: with one owner left, it is that owner
    names = sorted(closures)
    total = sum(sizes[i] for i in fixed)
    exclusive = [0] * len(names)
    for number, name in enumerate(names):
        for i in closures[name]:
            if i not in fixed:
                total += 0 if owners[i] else sizes[i]
                owners[i] += 1
                xor[i] ^= number
    for i, count in enumerate(owners):
        if count == 1:
            exclusive[xor[i]] += sizes[i]
    heap = [(worth[name] / max(1, exclusive[number]), name, number) for number, name in enumerate(names)]
    heapq.heapify(heap)
    gone: set[int] = set()
    chosen: list[tuple[str, int]] = []
    while heap and total > budget_bytes:
        density, name, number = heapq.heappop(heap)
        if number in gone or density != worth[name] / max(1, exclusive[number]):
            continue  # it went, or its exclusive bytes have grown since; that entry is in the heap too
        gone.add(number)
        total -= exclusive[number]
        chosen.append((name, exclusive[number]))
        for i in closures[name]:
            if i in fixed:
                continue
            owners[i] -= 1
            xor[i] ^= number
            if owners[i] == 1:
                last = xor[i]
                exclusive[last] += sizes[i]
                heapq.heappush(heap, (worth[names[last]] / max(1, exclusive[last]), names[last], last))
    return chosen
