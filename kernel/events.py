"""What goes into `core.step` and what comes out of it.

Events are facts that the loop observed; effects are what the loop must do. Both are plain values, so a simulator can
make and check them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

from kernel.config import Config
from syscalls.wire import Frame


@dataclass(frozen=True, slots=True)
class Boot:
    """The loop's sockets listen. `environment` is what the ledger's boot record says of the machine."""

    config: Config
    boot_id: str
    pid: int
    environment: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Spawned:
    """The supervisor started a server."""

    name: str
    incarnation: int
    pid: int


@dataclass(frozen=True, slots=True)
class Exited:
    """A server's process has ended; negative status is a signal."""

    name: str
    incarnation: int
    pid: int
    status: int


class Received(NamedTuple):
    """A frame from an attested principal. `route` is where an answer goes; `cpu_ns` is the sender's CPU time so far (servers)."""

    principal: str
    route: bytes
    frame: Frame
    cpu_ns: int = 0
    size: int = 0


@dataclass(frozen=True, slots=True)
class Refused:
    """Something that was turned away before it became a frame: a malformed message, an unknown peer."""

    who: str
    reason: str


@dataclass(frozen=True, slots=True)
class PageOffered:
    """A principal offered a sealed page; the loop holds its descriptor under `page`."""

    principal: str
    conn: int
    page: int
    size: int
    end: bool = False  # one end of a pair of sockets, for a direct channel


@dataclass(frozen=True, slots=True)
class PageWanted:
    """A principal asks for the descriptor behind one of its handles."""

    principal: str
    conn: int
    handle: int


@dataclass(frozen=True, slots=True)
class PageKept:
    """The answer to `LeaseOver`: the server still maps the page, or has it open."""

    name: str
    incarnation: int
    slot: int


@dataclass(frozen=True, slots=True)
class Sampled:
    """Resident bytes and CPU ns of processes, for people. The key "kernel" is this process."""

    usage: dict[str, tuple[int, int]]


@dataclass(frozen=True, slots=True)
class DrainWanted:
    """The supervisor was told to stop (a signal, or the launcher has gone)."""

    reason: str


@dataclass(frozen=True, slots=True)
class Tick:
    """Time passed; due timers fire."""


@dataclass(frozen=True, slots=True)
class Continue:
    """The answer to `Again`, after whatever else had arrived: the next slice of work that was cut up."""


Event = (
    Boot
    | Spawned
    | Exited
    | Received
    | Refused
    | PageOffered
    | PageWanted
    | PageKept
    | Sampled
    | DrainWanted
    | Tick
    | Continue
)


class Send(NamedTuple):
    """Send a frame to a route on the servers' or the operators' socket."""

    operator: bool
    route: bytes
    frame: Frame


@dataclass(frozen=True, slots=True)
class Spawn:
    """Start a server process."""

    name: str
    incarnation: int


@dataclass(frozen=True, slots=True)
class Kill:
    """Signal a server process; with `dump` it writes what its threads do into its log before."""

    name: str
    incarnation: int
    signal: int
    dump: bool = False


@dataclass(frozen=True, slots=True)
class Renice:
    """Give a server process another nice level."""

    name: str
    incarnation: int
    nice: int


@dataclass(frozen=True, slots=True)
class PageAnswer:
    """Answer on the page socket: a handle, or (with `page`) the size and the descriptor, or a wire error."""

    conn: int
    ok: bool
    value: Any
    page: int = 0


@dataclass(frozen=True, slots=True)
class ChannelSet:
    """Write a word of the page of generations; 0: the channel there is no more."""

    index: int
    generation: int


@dataclass(frozen=True, slots=True)
class ClosePage:
    """Nobody names the page any more."""

    page: int


@dataclass(frozen=True, slots=True)
class Report:
    """Tell the launcher."""

    event: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Exit:
    """End the kernel process."""

    status: int


@dataclass(frozen=True, slots=True)
class Again:
    """There is more of a piece of work that was cut into slices: serve who waits, then send `Continue`. One is under way at a time."""


@dataclass(frozen=True, slots=True)
class PageLeased:
    """A revocation took this page from a server: remember which file it is, since its descriptor may be closed by `LeaseOver`."""

    page: int
    name: str
    incarnation: int
    slot: int


@dataclass(frozen=True, slots=True)
class LeaseOver:
    """Forget what `PageLeased` said; with `look`, say `PageKept` if the server still has the page."""

    page: int
    name: str
    incarnation: int
    slot: int
    look: bool


Effect = (
    Send | Spawn | Kill | Renice | PageAnswer | ChannelSet | ClosePage | PageLeased | LeaseOver | Report | Exit | Again
)
