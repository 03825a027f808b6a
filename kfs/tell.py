"""How far work is, for whoever shows it.

Responsible for: one signature: what is worked on, how much of it is done, and of how much (0: nobody knows yet). Refuses: knowing who
listens, and when that is worth a line.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TypeAlias, TypeVar

Tell: TypeAlias = Callable[[str, int, int], None]
_T = TypeVar("_T")


def silent(what: str, done: int, total: int) -> None:
    """For work that nobody watches."""


def counted(items: Iterable[_T], what: str, total: int, tell: Tell, every: int = 1) -> Iterator[_T]:
    """The items, told after each `every` of them, and at their end."""
    done = 0
    for item in items:
        yield item
        done += 1
        if done % every == 0:
            tell(what, done, total)
    if done % every:
        tell(what, done, total)
