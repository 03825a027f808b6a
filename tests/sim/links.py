"""Direct channels in the simulated world: what two servers say to each other past the kernel.

Responsible for: a pair of ends with a delay each way, what its processes' deaths and a revocation do to it, and the judge of the page of
generations: a word that stands names a channel that stands, under a capability that its caller holds. Refuses: knowledge of what is said.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from kernel.state import State
from syscalls import abi
from syscalls.errors import RecurosError

if TYPE_CHECKING:
    from world import Process, World


@dataclass(eq=False)
class Link:
    """Two connected ends: `maker` calls, `taker` answers. The descriptors die with their processes."""

    world: World
    maker: Process
    taker: Process | None = None
    open: bool = True
    up_ns: int = 0
    down_ns: int = 0
    next_call: int = 1
    calls: set[int] = field(default_factory=set)  # under way, as the maker knows

    def call(self, row: abi.Row, args: list[Any], content: Any) -> int:
        """The maker's call, with what its page holds; E3-GONE where the other end has gone."""
        if not self.open:
            raise RecurosError("E3-GONE", "the channel was closed")
        number, self.next_call = self.next_call, self.next_call + 1
        self.calls.add(number)
        self.up_ns = max(self.up_ns, self.world.now_ns + self.world.delay_ns())
        self.world.at(self.up_ns - self.world.now_ns, lambda: self._arrives(Asked(self, number, row, args, content)))
        return number

    def _arrives(self, asked: Asked) -> None:
        if self.open and self.taker is not None and self.taker.alive:
            self.taker.take(asked)

    def answer(self, number: int, result: list[Any] | RecurosError) -> None:
        """The taker's answer."""
        if self.open:
            self._down(lambda: self._told(number, result))

    def close(self) -> None:
        """One end has gone: the other learns it after everything that was sent before."""
        if self.open:
            self.open = False
            self._down(self._broken)

    def _down(self, action: Any) -> None:
        self.down_ns = max(self.down_ns, self.world.now_ns + self.world.delay_ns())
        self.world.at(self.down_ns - self.world.now_ns, action)

    def _broken(self) -> None:
        for number in sorted(self.calls):
            self._told(number, RecurosError("E3-GONE", "died before it answered"))

    def _told(self, number: int, result: list[Any] | RecurosError) -> None:
        if number in self.calls and self.maker.alive:
            self.calls.discard(number)
            self.maker.told((id(self), number), result)


@dataclass
class Asked:
    """A call as its taker finds it."""

    link: Link
    number: int
    row: abi.Row
    args: list[Any]
    content: Any


@dataclass
class Grant:
    """What an end knows of its channel."""

    link: Link
    index: int
    generation: int
    methods: frozenset[int] = frozenset()

    def stands(self, words: dict[int, int]) -> bool:
        """As both ends read it before every message."""
        return words.get(self.index) == self.generation


def check_words(words: dict[int, int], s: State) -> str:
    """What is wrong with the page of generations after a step of the kernel; empty when nothing is."""
    for index, generation in words.items():
        if not generation:
            continue
        stand = [c for c in s.channels.values() if (c.index, c.generation) == (index, generation)]
        if len(stand) != 1:
            return f"word {index} says {generation}: {len(stand)} channels have it"
        channel = stand[0]
        cap = s.caps.find(channel.caller, channel.slot)
        if cap is None or (cap.kind, cap.obj) != ("channel", channel.id):
            return f"word {index} stands for channel {channel.id}, and its capability has gone"
        above = s.caps.find(*cap.parent) if cap.parent else None
        if above is None or (above.kind, above.obj) != ("endpoint", channel.callee):
            return f"channel {channel.id} stands without an endpoint for {channel.callee}"
        if any(s.servers[name].state == "dead" for name in (channel.caller, channel.callee)):
            return f"channel {channel.id} of {channel.caller} and {channel.callee} stands after a death"
    return ""
