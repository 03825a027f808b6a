"""An explicit-state model checker: every state that can be reached, breadth first, and the shortest way to a bad one.

Responsible for: safety (an invariant holds in every reachable state), deadlock (a state without successors is a goal) and
progress (from every reachable state some goal can still be reached: AG EF goal). Refuses: to say "checked" when it stopped at its
limit. States must be hashable; a model is a class with `initial`, `successors`, `broken` and `goal`.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

S = TypeVar("S", bound=Hashable)


class Model(Protocol[S]):
    """A transition system."""

    def initial(self) -> S:
        """Where it starts."""

    def successors(self, state: S) -> Iterable[tuple[str, S]]:
        """Every (name of the action, next state)."""

    def broken(self, state: S) -> str:
        """What is wrong with this state, empty when nothing is."""

    def goal(self, state: S) -> bool:
        """Whether the work is done here."""


@dataclass
class Verdict(Generic[S]):
    """What the search found. `problem` is empty when everything holds; `path` is the shortest way there, by action."""

    states: int = 0
    transitions: int = 0
    depth: int = 0
    problem: str = ""
    path: list[str] = field(default_factory=list)
    bad: S | None = None


def check(model: Model[S], states_max: int = 3_000_000) -> Verdict[S]:
    """Search everything; raises MemoryError-like RuntimeError at `states_max` instead of claiming a result."""
    start = model.initial()
    came_from: dict[S, tuple[S, str] | None] = {start: None}
    back: dict[S, list[S]] = {}
    goals: list[S] = []
    verdict: Verdict[S] = Verdict()
    layer = [start]
    while layer:
        following: list[S] = []
        for state in layer:
            if problem := model.broken(state):
                return _found(verdict, came_from, state, problem)
            moves = list(model.successors(state))
            verdict.transitions += len(moves)
            done = model.goal(state)
            if done:
                goals.append(state)
            elif not moves:
                return _found(verdict, came_from, state, "deadlock: nothing can happen and the work is not done")
            for action, after in moves:
                back.setdefault(after, []).append(state)
                if after not in came_from:
                    came_from[after] = (state, action)
                    following.append(after)
        if len(came_from) > states_max:
            raise RuntimeError(f"more than {states_max} states: not checked")
        verdict.depth += bool(following)
        layer = following
    verdict.states = len(came_from)
    hopeless = came_from.keys() - _reaching(goals, back)
    if hopeless:
        nearest = min(hopeless, key=lambda s: len(_path(came_from, s)))
        return _found(verdict, came_from, nearest, "no progress: the work cannot be finished from here")
    return verdict


def _reaching(goals: list[S], back: dict[S, list[S]]) -> set[S]:
    seen, todo = set(goals), list(goals)
    while todo:
        for before in back.get(todo.pop(), ()):
            if before not in seen:
                seen.add(before)
                todo.append(before)
    return seen


def _path(came_from: dict[S, tuple[S, str] | None], state: S) -> list[str]:
    path = []
    while (step := came_from[state]) is not None:
        state, action = step
        path.append(action)
    return path[::-1]


def _found(verdict: Verdict[S], came_from: dict[S, tuple[S, str] | None], state: S, problem: str) -> Verdict[S]:
    verdict.states, verdict.problem, verdict.bad = len(came_from), problem, state
    verdict.path = _path(came_from, state)
    return verdict
