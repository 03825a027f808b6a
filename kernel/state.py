"""The kernel's whole state, and the turn that works on it.

Responsible for: being plain data (no sockets, clocks, closures), so that one history of events gives one history of
states. A `Turn` is one call of `core.step`: the state, the time of the event, and the effects that come of it.
"""

from __future__ import annotations

import heapq
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from kernel.caps import CapTable
from kernel.cbs import Cbs, EdfQueue
from kernel.config import Config
from kernel.events import Effect
from kernel.sched import FairClass, Reservation
from kernel.window import Window
from probes import isa
from syscalls import limits
from syscalls.wire import Deliver

if TYPE_CHECKING:
    from kernel.channels import Channel
    from probes.verifier import Verification

KERNEL = "kernel"
OPERATOR = "operator"
"""Holds the authority that every operator's session is derived from; no message comes in its name."""


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
    urgent: deque[tuple[Deliver, int]] = field(default_factory=deque)  # the kernel's own, ahead of every call
    blocked: deque[tuple[Deliver, int]] = field(default_factory=deque)  # calls whose callers wait for room
    accepted: int = 0
    refused: int = 0
    dropped: int = 0
    cancelled: int = 0  # queued sends that a revocation took back
    info: dict[str, Any] = field(default_factory=dict)
    job_cpu_ns: int = 0
    stopped: bool = False  # by a signal of the kernel, for a while
    niced: bool = False
    spoke_cpu_ns: int = 0  # its CPU time when it last said something, or was given a job
    paid_cpu_ns: int = 0  # its CPU time at its last answer: what came before is accounted


@dataclass
class Pending:
    """A delivery that waits for a reply: what to do with it.

    `server` owes the reply; `lent` are page capabilities that die with it; `cap` is what it was sent under, `reply` the
    one-shot capability of its answer.
    """

    kind: str
    server: str
    nr: int
    data: dict[str, Any]
    lent: list[tuple[str, int]] = field(default_factory=list)
    cap: tuple[str, int] | None = None
    reply: tuple[str, int] | None = None
    donor: str = ""  # the server whose time this call spends
    cpu_from_ns: int = 0  # the called server's CPU time when it was sent
    credit: bool = True  # counts against what the server may have taken and not answered
    handed: bool = False
    """Whether the server has it; until then it waits in a mailbox, where a revocation finds it."""


class Caller(NamedTuple):
    """Whom a syscall's answer goes to: a one-shot reply capability."""

    principal: str
    route: bytes
    call_id: int
    nr: int
    inner: int = 0  # of `propose`: the syscall that it makes
    reason: str = ""  # what `propose` said why; it goes into the record
    trial: bool = False  # `propose` only asks: nothing is kept, recorded or attached


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
    owner: str = ""  # the principal that its time is charged to
    object: str = ""  # of a program: where its bytes are stored
    backend: str = ""  # of a program: what it is admitted for, "jit" or "vm"
    dims: dict[str, int] = field(default_factory=dict)
    extra: int = 0  # units that the hook itself costs a firing
    pairs: int = 1  # mapped pairs of layers
    units: int = 0  # proven cost of a firing
    window_cost_ns: int = 0  # what it may cost a window, all sites and firings
    window: int = 0  # the first window that may see it
    live: bool = False  # attached in the learner that runs now
    spent_ns: int = 0  # what its firings took in staged windows of this boot
    page: int = 0  # the kernel's slot of the page of its maps

    @property
    def kind(self) -> str:
        """The kind of hook, such as `on_forward`."""
        return self.hook.partition(":")[0]

    @property
    def digest(self) -> str:
        """Of a program: its SHA-256; empty for a built-in."""
        return self.prog.partition(",")[0].removeprefix("sha256:") if self.object else ""


@dataclass
class Program:
    """A program that was verified and stored in this boot."""

    digest: str
    object: str
    name: str
    hook: str
    every: int
    size: int
    owner: str
    certificate: bytes
    summary: dict[str, Any]
    seq: int = -1


@dataclass
class Check:
    """A program on its way through the verifier, a slice at a time. `kind` is "load" or "attach"; an attach has `probe` and `dims`."""

    kind: str
    data: bytes
    caller: Caller | None
    actor: str
    cap: int
    rights: tuple[str, ...]
    probe: Probe | None = None
    dims: dict[str, int] = field(default_factory=dict)
    fresh: bool = True
    decoding: isa.Decoding | None = None
    program: isa.Bytecode | None = None
    verification: Verification | None = None


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
    taken: set[tuple[str, str]] = field(default_factory=set)  # (server, "self" or callee): not given out again at hello
    seen: dict[str, deque[int]] = field(default_factory=dict)  # session -> numbers of its last calls
    operators: dict[str, bytes] = field(default_factory=dict)
    pages: dict[int, tuple[int, str]] = field(default_factory=dict)  # page -> (bytes, writer)
    channels: dict[int, Channel] = field(default_factory=dict)  # direct ones that stand
    next_channel: int = 1
    channel_table: int = 0  # the kernel's slot of the page of generations, 0: no direct channel is declared
    staged_waits: tuple[Caller, dict[str, Any], int] | None = None  # a window_staged that overtook the archivist's word
    pending: dict[int, Pending] = field(default_factory=dict)
    parked: list[Pending] = field(default_factory=list)  # policy blobs that wait for the archivist
    next_delivery: int = 1
    refused: dict[str, int] = field(default_factory=dict)

    timers: list[tuple[int, int, str, dict[str, Any]]] = field(default_factory=list)
    next_timer: int = 0
    reservation: Reservation = field(default_factory=lambda: Reservation("replay", 1, 1, 1))
    cbs: dict[str, Cbs] = field(default_factory=dict)  # server -> its reservation at work
    overruns: dict[str, int] = field(default_factory=dict)  # server -> budgets that were used up
    edf: EdfQueue = field(default_factory=EdfQueue)  # reserved fair servers that have jobs and may run
    fair: FairClass = field(default_factory=lambda: FairClass({}, 1, limits.SLICE_NS_DEFAULT))

    store_open: bool = False
    outbox: Batch = field(default_factory=Batch)
    dispatches: list[list[Any]] = field(default_factory=list)  # since the last record of them
    in_flight: Batch | None = None
    ledger_size: int = 0
    ledger_root: str = ""
    last_t_mono: int = 0

    cursor: Cursor = field(default_factory=Cursor)  # of the next window to be granted
    next_window: int = 1
    windows: dict[int, Window] = field(default_factory=dict)  # not yet final: at most one staged and one running
    prefetch: dict[int, tuple[int, str, dict[str, Any]]] = field(
        default_factory=dict
    )  # window -> (kernel's page slot, batch, what its samples were weighted by)
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
    interrupt: str = ""  # the kind of the one that is being considered
    interrupt_seq: int = -1  # and its record
    probes: dict[int, Probe] = field(default_factory=dict)
    next_probe: int = 1
    programs: dict[str, Program] = field(default_factory=dict)  # SHA-256 -> program, oldest first
    checks: deque[Check] = field(default_factory=deque)  # programs being verified, in turns
    window_used: tuple[int, int] = (0, 0)  # the last staged window and its CPU ns
    charged: dict[str, int] = field(default_factory=dict)  # principal -> CPU ns of its probes in this boot
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
    verdict: str = "ok"  # the guard's, on the learner's device
    energy: tuple[int, int, float] | None = None  # its counter: time of the sample, mJ, W; None where nothing counts
    resumed_from: int = -1
    data_digest: str = ""  # of the dataset that the committed windows learned from
    error: list[Any] | None = None
    events: deque[dict[str, Any]] = field(default_factory=lambda: deque(maxlen=limits.EVENTS_KEPT))
    event_count: int = 0
    kernel_usage: tuple[int, int] = (0, 0)
    final_asked: bool = False


@dataclass(slots=True)
class Turn:
    """One step: `now_ns` is CLOCK_MONOTONIC at the event's receipt."""

    state: State
    now_ns: int
    effects: list[Effect] = field(default_factory=list)
    size: int = 0  # bytes of the frame that this step is about
    cap: int = 1  # capability slot that the syscall names

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
