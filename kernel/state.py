"""The kernel's whole state, and the turn that works on it.

Responsible for: being plain data (no sockets, clocks, closures), so that one history of events gives one history of
states. A `Turn` is one call of `core.step`: the state, the time of the event, and the effects that come of it.
"""

from __future__ import annotations

import heapq
from collections import deque
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from kernel.caps import CapTable
from kernel.config import Config
from kernel.events import Effect
from kernel.sched import FairClass, Reservation
from kernel.window import Window
from syscalls import limits
from syscalls.wire import Deliver

KERNEL = "kernel"


@dataclass
class Server:
    """One declared server and the process that is it at present."""

    name: str
    incarnation: int = 0
    pid: int = 0
    state: str = "down"  # down | spawned | connected | ready | draining | dead
    route: bytes = b""
    last_heard_ns: int = 0
    pinged: bool = False
    cpu_ns: int = 0
    rss_bytes: int = 0
    fault: list[Any] | None = None
    restarts: deque[int] = field(default_factory=deque)
    queue: deque[tuple[Deliver, int]] = field(default_factory=deque)  # with the bytes that each counts for
    queued_bytes: int = 0
    in_flight: int = 0
    refused: int = 0
    info: dict[str, Any] = field(default_factory=dict)
    job_cpu_ns: int = 0


@dataclass
class Pending:
    """A delivery that waits for a reply: what to do with it. `server` owes the reply; `lent` are page capabilities that die with it."""

    kind: str
    server: str
    nr: int
    data: dict[str, Any]
    lent: list[tuple[str, int]] = field(default_factory=list)


class Caller(NamedTuple):
    """Whom a syscall's answer goes to: a one-shot reply capability."""

    principal: str
    route: bytes
    call_id: int
    nr: int


class Cursor(NamedTuple):
    """A position in the plan."""

    phase: int = 0
    window: int = 0
    repeats: int = 0


@dataclass
class Probe:
    """A probe that should be attached, across learner restarts."""

    id: int
    hook: str
    prog: str
    every: int
    sites: list[str] = field(default_factory=list)
    seq: int = -1


@dataclass
class Batch:
    """Records of one append, and what waits for its acknowledgement."""

    records: list[bytes] = field(default_factory=list)
    kinds: list[str] = field(default_factory=list)
    then: list[tuple[int, str, dict[str, Any]]] = field(default_factory=list)


@dataclass
class State:
    """See the module docstring. Grouped as: who, time, ledger, plan, steering, figures."""

    config: Config
    boot_id: str
    pid: int
    environment: dict[str, Any]
    phase: str = "booting"  # booting | starting | running | paused | draining | done | failed
    booted_ns: int = 0
    now_last_ns: int = 0

    servers: dict[str, Server] = field(default_factory=dict)
    caps: CapTable = field(default_factory=CapTable)
    operators: dict[str, bytes] = field(default_factory=dict)
    pages: dict[int, tuple[int, str]] = field(default_factory=dict)  # page -> (bytes, writer)
    pending: dict[int, Pending] = field(default_factory=dict)
    parked: list[Pending] = field(default_factory=list)  # policy blobs that wait for the archivist
    next_delivery: int = 1
    refused: dict[str, int] = field(default_factory=dict)

    timers: list[tuple[int, int, str, dict[str, Any]]] = field(default_factory=list)
    next_timer: int = 0
    reservation: Reservation = field(default_factory=lambda: Reservation("replay", 1, 1, 1))
    fair: FairClass = field(default_factory=lambda: FairClass({}, 1, limits.SLICE_NS_DEFAULT))

    store_open: bool = False
    outbox: Batch = field(default_factory=Batch)
    in_flight: Batch | None = None
    ledger_size: int = 0
    ledger_root: str = ""
    last_t_mono: int = 0

    cursor: Cursor = field(default_factory=Cursor)  # of the next window to be granted
    next_window: int = 1
    windows: dict[int, Window] = field(default_factory=dict)  # not yet final: at most one staged and one running
    prefetch: dict[int, tuple[int, str, str]] = field(
        default_factory=dict
    )  # window -> (kernel's page slot, batch, weights id)
    filling: set[int] = field(default_factory=set)
    rng: str = ""  # object id of the generator's state in the staged snapshot
    generation: int = 0  # role swaps that the staged state holds
    base: str = ""  # what the learner's next window starts from
    stored: str = ""  # the snapshot that the archivist last said is durable
    committed: str = ""
    committed_window: int = 0
    learner_ok: bool = False
    failures_in_a_row: int = 0

    directives: list[list[Any]] = field(default_factory=list)
    kd: dict[str, Any] = field(default_factory=dict)
    gate: dict[str, Any] = field(default_factory=dict)
    policies: dict[int, dict[str, Any]] = field(default_factory=dict)  # window it applies from -> settings
    policy: dict[str, Any] = field(default_factory=dict)
    policy_seq: int = -1
    traces: dict[int, int] = field(default_factory=dict)  # window -> the kernel's slot of its trace page
    awaiting_policy: set[int] = field(default_factory=set)  # windows whose evidence is with the observer
    policy_count: int = 0
    probes: dict[int, Probe] = field(default_factory=dict)
    next_probe: int = 1
    paused: bool = False
    drain_mode: str = ""
    drain_reason: str = ""
    halting: str = ""  # "" | "record" | "servers" | "archivist"

    counts: dict[str, int] = field(
        default_factory=lambda: {"granted": 0, "committed": 0, "missed": 0, "rolled_back": 0}
    )
    metrics: dict[str, Any] = field(default_factory=dict)
    cka: float | None = None
    scores: dict[str, Any] = field(default_factory=dict)
    reference: dict[str, Any] = field(default_factory=dict)  # split -> the first teacher's scores
    device: dict[str, Any] = field(default_factory=dict)
    resumed_from: int = -1
    data_digest: str = ""  # of the dataset that the committed windows learned from
    error: list[Any] | None = None
    events: deque[dict[str, Any]] = field(default_factory=lambda: deque(maxlen=limits.EVENTS_KEPT))
    event_count: int = 0
    kernel_usage: tuple[int, int] = (0, 0)
    final_asked: bool = False


@dataclass
class Turn:
    """One step: `now_ns` is CLOCK_MONOTONIC at the event's receipt."""

    state: State
    now_ns: int
    effects: list[Effect] = field(default_factory=list)
    size: int = 0  # bytes of the frame that this step is about

    def emit(self, effect: Effect) -> None:
        """Add an effect."""
        self.effects.append(effect)

    def timer(self, after_ns: int, kind: str, **data: Any) -> None:
        """Ask for `Tick` handling of `kind` after a while. Timers are not cancelled: a handler checks whether it still matters."""
        self.timer_at(self.now_ns + after_ns, kind, **data)

    def timer_at(self, at_ns: int, kind: str, **data: Any) -> None:
        """Like `timer`, at an absolute time."""
        s = self.state
        s.next_timer += 1
        heapq.heappush(s.timers, (at_ns, s.next_timer, kind, data))

    def event(self, kind: str, **data: Any) -> None:
        """Tell operators."""
        s = self.state
        s.event_count += 1
        s.events.append({"n": s.event_count, "t_ns": self.now_ns, "kind": kind, **data})
