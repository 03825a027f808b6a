"""A whole runtime without processes: the real kernel core, simulated servers, one seed.

Responsible for: the clock, ordered links with random delays, processes that die, pages, the disk that outlives a
boot, and operators. The servers themselves are in `actors`, what must hold of every history in `invariants`. Refuses:
anything that the seed does not decide, so that a failing seed fails again.
"""

from __future__ import annotations

import hashlib
import heapq
import random
import signal
from collections import deque
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from typing import Any

import actors
from links import Asked, Link, check_words

from kernel import config, core
from kernel.events import (
    Again,
    Boot,
    ChannelSet,
    ClosePage,
    Continue,
    DrainWanted,
    Effect,
    Event,
    Exit,
    Exited,
    Kill,
    PageAnswer,
    PageOffered,
    PageWanted,
    Received,
    Renice,
    Report,
    Send,
    Spawn,
    Spawned,
    Tick,
)
from kernel.state import State
from kfs import records
from kfs.records import Record
from syscalls import abi, wire
from syscalls.errors import RecurosError

MS = 1_000_000
S = 1_000_000_000
CHANNELS = {abi.METHOD_BY_NAME["any.channel"].nr, abi.METHOD_BY_NAME["any.channel_cut"].nr}
SLICE_NS = MS
"""What one slice of the kernel's own work takes here; nothing else is served meanwhile."""
Op = tuple[Any, ...]
Behaviour = Generator[Op, Any, None]


class Violation(AssertionError):  # noqa: N818 - a verdict on a history, not an error of the program
    """Something that must never happen, happened."""


def digest(*parts: Any) -> str:
    """An object id that depends on all parts."""
    return "b3:" + hashlib.sha256(repr(parts).encode()).hexdigest()


@dataclass
class Disk:
    """What survives a boot: the ledger and the stored objects."""

    ledger: list[bytes] = field(default_factory=list)
    drafts: dict[tuple[str, int], int] = field(default_factory=dict)  # (boot, t_mono) -> seq
    objects: set[str] = field(default_factory=set)
    blobs: dict[str, bytes] = field(default_factory=dict)
    log: list[Record] = field(default_factory=list)

    def append(self, boot: str, data: bytes, t_wall: int) -> int:
        """Store a draft once, whoever sends it again."""
        draft = records.decode(data)
        key = (boot, draft.t_mono)
        if key in self.drafts:
            return self.drafts[key]
        for needed in records.references(draft):
            if needed not in self.objects:
                raise Violation(f"record {draft.kind} refers to {needed}, which is not durable")
        stamped = draft.stamped(len(self.log), max(1, t_wall))
        self.drafts[key] = stamped.seq
        self.log.append(stamped)
        self.ledger.append(records.encode(stamped))
        return stamped.seq


@dataclass
class Faults:
    """How often things go wrong, per decision; all zero is a quiet world."""

    late: float = 0.0
    hang: float = 0.0
    loss: float = 0.0
    crash: float = 0.0  # a server dies at one of its own steps
    kill: float = 0.0  # a server is killed from outside, at any moment
    lost_ack: float = 0.0
    inexact: float = 0.0
    no_space: float = 0.0
    bad_policy: float = 0.0
    slow_policy: float = 0.0
    stall: float = (
        0.0  # a hop takes up to a second: grants arrive when their deadline is over, links overtake one another
    )
    who: tuple[str, ...] = ("archivist", "dataset", "learner", "observer", "gpu")
    early: bool = False  # also while the runtime starts, where any death is fatal
    until_ns: int = 60 * S  # after this the world is quiet, so that every history can end

    def hit(self, world: World, rate: float, name: str) -> bool:
        """Decide one fault."""
        started = self.early or (world.state is not None and world.state.phase not in ("booting", "starting"))
        return started and name in self.who and world.now_ns < self.until_ns and world.rng.random() < rate


class Process:
    """One incarnation of a server: a generator that yields what it wants from the world."""

    def __init__(self, world: World, name: str, incarnation: int, pid: int) -> None:
        self.world, self.name, self.incarnation, self.pid = world, name, incarnation, pid
        self.route = f"{name}/{incarnation}".encode()
        self.alive = True
        self.hung = self.stopped = False
        self.deferred: list[Callable[[], None]] = []  # what happens to it while it is stopped
        self.caps: dict[str, int] = {}
        self.inbox: deque[wire.Deliver | Asked] = deque()
        self.waits: tuple[str, Any] | None = None
        self.next_id = 1
        self.cpu_ns = 0
        self.up_ns = self.down_ns = self.page_ns = 0  # when the last message of each link arrives
        self.body: Behaviour = actors.BEHAVIOURS[name](self)

    def run(self, value: Any = None, error: RecurosError | None = None) -> None:
        """Go on until the process waits for something."""
        if self.stopped:
            self.deferred.append(lambda: self.run(value, error))
            return
        self.waits = None
        while self.alive:
            try:
                op = self.body.throw(error) if error else self.body.send(value)
            except StopIteration:
                self.world.end(self, 0)
                return
            except RecurosError as fault:
                row = abi.SYSCALL_BY_NAME["fault"]
                self.world.send_up(self, wire.Call(0, row.nr, 1, [fault.code, fault.message, ""]))
                self.world.end(self, 1)
                return
            value, error, blocked = *self._perform(op), self.waits is not None
            if blocked:
                return

    def _perform(self, op: Op) -> tuple[Any, RecurosError | None]:
        match op:
            case ("sleep", ns):
                self.cpu_ns += ns
                self.waits = ("sleep", 0)
                self.world.at(ns, lambda: self.run() if self.alive and not self.hung else None)
            case ("recv",):
                if self.inbox:
                    return self.inbox.popleft(), None
                self.waits = ("recv", 0)
            case ("poll",):
                taken = list(self.inbox)
                self.inbox.clear()
                return taken, None
            case ("syscall", str(name), dict(args)):
                return self._syscall(abi.SYSCALL_BY_NAME[name], args)
            case ("reply", wire.Deliver() as request, dict(values)):
                row = abi.METHOD_BY_NR[request.nr]
                self.world.send_up(self, wire.Reply(request.id, True, row.bind_reply(values)))
            case ("reply", wire.Deliver() as request, RecurosError() as refused):
                self.world.send_up(self, wire.Reply(request.id, False, refused.to_wire()))
            case ("offer", content):
                self.waits = ("page", 0)
                self.world.offer(self, content)
            case ("offer end",):
                self.waits = ("page", 0)
                link = Link(self.world, self)
                self.world.links.append(link)
                self.world.offer(self, link, end=True)
            case ("ask", Link() as link, abi.Row() as row, list(args), content):
                self.waits = ("told", (id(link), link.call(row, args, content)))
            case ("map", int(handle)):
                self.waits = ("page", 0)
                self.world.want(self, handle)
            case ("die", int(status)):
                self.world.end(self, status)
            case ("hang",):
                self.hung = True
                self.waits = ("hang", 0)
            case _:
                raise Violation(f"{self.name}: no such operation {op!r}")
        return None, None

    def _syscall(self, row: abi.Row, args: dict[str, Any]) -> tuple[Any, None]:
        call_id = 0 if row.oneway else self.next_id
        self.next_id += 1
        self.world.send_up(self, wire.Call(call_id, row.nr, 1, row.bind(args)))
        if row.oneway:
            return {}, None
        self.waits = ("reply", call_id)
        return None, None

    def receive(self, frame: wire.Frame) -> None:
        """A frame from the kernel arrives."""
        if self.stopped:
            self.deferred.append(lambda: self.receive(frame))
            return
        if not self.alive or self.hung:
            return
        if isinstance(frame, wire.Reply):
            if self.waits != ("reply", frame.id):
                return  # a second answer, or one to a call that nobody waits for
            if frame.ok:
                self.run(frame.payload)
            else:
                self.run(error=RecurosError.from_wire(frame.payload))
        elif isinstance(frame, wire.Deliver):
            if frame.nr == abi.METHOD_BY_NAME["any.ping"].nr:
                self.world.send_up(self, wire.Reply(frame.id, True, []))
            elif frame.nr in CHANNELS and not self.world.direct:
                if frame.id:  # an end is taken; nothing is sent over it here
                    self.world.send_up(self, wire.Reply(frame.id, True, []))
            elif self.waits == ("recv", 0):
                self.run(frame)
            else:
                self.inbox.append(frame)

    def take(self, asked: Asked) -> None:
        """A call arrives over a direct channel."""
        if self.stopped:
            self.deferred.append(lambda: self.take(asked))
        elif self.alive and not self.hung:
            if self.waits == ("recv", 0):
                self.run(asked)
            else:
                self.inbox.append(asked)

    def told(self, call: tuple[int, int], result: list[Any] | RecurosError) -> None:
        """An answer arrives over a direct channel."""
        if self.stopped:
            self.deferred.append(lambda: self.told(call, result))
        elif self.alive and not self.hung and self.waits == ("told", call):
            if isinstance(result, RecurosError):
                self.run(error=result)
            else:
                self.run(result)


class World:
    """One history. `document` is the boot document; `disk` may come from an earlier boot."""

    def __init__(self, seed: int, document: dict[str, Any], *, faults: Faults | None = None) -> None:
        self.seed = seed
        self.rng = random.Random(seed)
        self.document = document
        self.faults = faults or Faults()
        self.disk = Disk()
        self.now_ns = S
        self.boots = 0
        self.trace = hashlib.sha256()
        self.steps = 0
        self.slices = 0
        self.late_ns_max = 0  # the longest that anything waited because the kernel was busy with a slice
        self.state: State | None = None
        self.exit: int | None = None
        self.gauges: dict[str, Any] = {}  # what the device server answers beside its devices
        self.parts_needed = 1  # with fewer parts a batch does not fit the learner's memory
        self.refuses: set[str] = set()  # kinds of directives that the learner refuses
        self.acts: dict[int, dict[str, Any]] = {}  # window -> the policy that the Observer makes of its evidence
        self.served_directly = 0
        self.direct = False  # whether servers use the channels that the document grants
        self.considers = True  # whether the Observer answers interrupts in time
        self._begin()

    def _begin(self) -> None:
        self.heap: list[tuple[int, int, int, Callable[[], None]]] = []
        self.order = 0
        self.processes: dict[str, Process] = {}
        self.pages: dict[int, Any] = {}
        self.niced: dict[str, int] = {}
        self.dumped: list[str] = []  # who was told to write down what it does before it was killed
        self.words: dict[int, int] = {}  # the page of generations
        self.links: list[Link] = []
        self.took = False  # whether an operator has taken a channel in this boot: no other is denied
        self.next_page = 1
        self.next_pid = 100
        self.reports: list[dict[str, Any]] = []
        self.answers: dict[tuple[str, int], wire.Reply] = {}
        self.asked: dict[tuple[str, int], str] = {}
        self.next_call = 1
        self.verdicts: set[int] = set()  # windows whose evidence has been decided on, or given up, in this boot
        self.evidence: set[int] = set()  # windows whose evidence was sent to the Observer in this boot
        self.next_tick_ns = 1 << 62
        self.exit = None
        self.boots += 1
        self.boot_id = f"{self.seed:08x}{self.boots:08x}"

    # --- time ----------------------------------------------------------------------------------------------------------

    def at(self, after_ns: int, action: Callable[[], None]) -> None:
        """Do something later in this boot."""
        self.order += 1
        heapq.heappush(self.heap, (self.now_ns + max(0, after_ns), self.order, self.boots, action))

    def delay_ns(self) -> int:
        """One hop: 20 us to 3 ms, mostly short. A link keeps its order, as its transport does, and so waits for what stalls."""
        if self.faults.stall and self.now_ns < self.faults.until_ns and self.rng.random() < self.faults.stall:
            return int(S * self.rng.random())
        return int(20_000 + 3 * MS * self.rng.random() ** 4)

    def run(self, until: Callable[[], bool], limit_ns: int) -> bool:
        """Let time pass until something holds; False when `limit_ns` of virtual time went by, or nothing is left to happen."""
        end_ns = self.now_ns + limit_ns
        while not until():
            if self.exit is not None or not self.heap or self.heap[0][0] > end_ns:
                return until()
            at_ns, _, boot, action = heapq.heappop(self.heap)
            self.late_ns_max = max(self.late_ns_max, self.now_ns - at_ns)
            self.now_ns = max(self.now_ns, at_ns)
            if boot == self.boots:
                action()
        return True

    # --- the kernel ----------------------------------------------------------------------------------------------------

    def boot(self) -> None:
        """Start the kernel on the disk as it is."""
        self.state = None
        parsed = config.parse(self.document)
        self.step(Boot(parsed, self.boot_id, 1, {"python": "3", "kernel": {}}))
        self._supervise()

    def power_cut(self) -> None:
        """Kernel and servers are gone at once; the disk stays."""
        self._begin()

    def _supervise(self) -> None:
        """Every so often somebody kills a server."""

        def kill() -> None:
            if self.processes and self.faults.hit(self, self.faults.kill, self.faults.who[0]):
                name = self.rng.choice(sorted(set(self.processes) & set(self.faults.who)) or ["gpu"])
                if name in self.processes and self.processes[name].alive:
                    self.end(self.processes[name], -9)
            if self.now_ns < self.faults.until_ns:
                self.at(int(200 * MS * self.rng.random()), kill)

        if self.faults.kill:
            self.at(self.rng.randrange(2 * S), kill)

    def step(self, event: Event) -> None:
        """One step of the core; its effects are carried out."""
        if self.exit is not None:
            return
        self.steps += 1
        self.state, effects = core.step(self.state, event, self.now_ns)
        for effect in effects:
            self._perform(effect)
        if self.words and (wrong := check_words(self.words, self.state)):
            raise Violation(wrong)
        wake = core.next_wake_ns(self.state)
        if wake < self.next_tick_ns:
            self.next_tick_ns = wake
            self.at(wake - self.now_ns, self._tick)

    def _tick(self) -> None:
        self.next_tick_ns = 1 << 62
        self.step(Tick())

    def _perform(self, effect: Effect) -> None:
        self.trace.update(repr((self.now_ns, effect)).encode())
        match effect:
            case Send(operator=True):
                self._answered(effect)
            case Send():
                self._send_down(effect)
            case Spawn():
                self.at(self.delay_ns(), lambda: self._spawn(effect.name, effect.incarnation))
            case Kill():
                self.at(self.delay_ns(), lambda: self._kill(effect))
            case PageAnswer():
                self._page_answer(effect)
            case ChannelSet():
                self.words[effect.index] = effect.generation
            case ClosePage():
                if self.pages.pop(effect.page, None) is None:
                    raise Violation(f"page {effect.page} was closed twice")
            case Renice():
                self.niced[effect.name] = effect.nice
            case Report():
                self.reports.append(effect.event)
            case Exit():
                self.exit = effect.status
            case Again():
                self.at(0, self._slice)

    def _slice(self) -> None:
        self.slices += 1
        self.step(Continue())
        self.now_ns += SLICE_NS

    # --- servers -------------------------------------------------------------------------------------------------------

    def _spawn(self, name: str, incarnation: int) -> None:
        self.next_pid += 1
        process = Process(self, name, incarnation, self.next_pid)
        self.processes[name] = process
        self.step(Spawned(name, incarnation, process.pid))
        self.at(int(50 * MS * (1 + self.rng.random())), lambda: process.run() if process.alive else None)

    def _kill(self, effect: Kill) -> None:
        process = self.processes.get(effect.name)
        if process is not None and process.incarnation == effect.incarnation and process.alive:
            self.dumped += [effect.name] if effect.dump else []
            self.signalled(process, effect.signal)

    def signalled(self, process: Process, number: int) -> None:
        """Stop a process, let it go on, or end it."""
        if number == signal.SIGSTOP:
            process.stopped = True
        elif number == signal.SIGCONT:
            process.stopped = False
            missed, process.deferred = process.deferred, []
            for action in missed:
                action()
        else:
            self.end(process, -number)

    def end(self, process: Process, status: int) -> None:
        """A process ends; the kernel learns it a moment later, after what the process has sent."""
        process.alive = False
        for link in [x for x in self.links if process in (x.maker, x.taker)]:
            link.close()
            self.links.remove(link)
        event = Exited(process.name, process.incarnation, process.pid, status)
        self.at(max(self.delay_ns(), process.up_ns - self.now_ns), lambda: self._exited(process.name, event))

    def _exited(self, name: str, event: Exited) -> None:
        if name == "observer":
            self.verdicts |= self.evidence
        self.step(event)

    def send_up(self, process: Process, frame: wire.Frame) -> None:
        """A server's frame reaches the kernel after everything that it sent before."""
        data = wire.encode(frame)
        process.up_ns = max(process.up_ns, self.now_ns + self.delay_ns())
        self.at(process.up_ns - self.now_ns, lambda: self._arrives(process, data))

    def _arrives(self, process: Process, data: bytes) -> None:
        if self.processes.get(process.name) is not process:
            return  # a dead incarnation's last words, after its successor was spawned
        frame = wire.decode(data)
        if isinstance(frame, wire.Call) and frame.nr == abi.SYSCALL_BY_NAME["policy_submit"].nr:
            self.verdicts.add(frame.args[0])
        self.step(Received(process.name, process.route, frame, process.cpu_ns, len(data)))

    def _send_down(self, effect: Send) -> None:
        process = self.processes.get(effect.route.decode().partition("/")[0])
        data = wire.encode(effect.frame)
        frame = wire.decode(data)
        if isinstance(frame, wire.Deliver):
            self._watch(frame)
        if process is None or process.route != effect.route:
            return
        process.down_ns = max(process.down_ns, self.now_ns + self.delay_ns())
        self.at(process.down_ns - self.now_ns, lambda: process.receive(frame))

    def _watch(self, frame: wire.Deliver) -> None:
        """What may be judged at the moment of sending: in deterministic mode a grant waits for the policy that its lag names."""
        row = abi.METHOD_BY_NR[frame.nr]
        if row.qualified == "observer.trace":
            self.evidence.add(frame.args[0])
        elif row.qualified == "learner.grant" and self.document["deterministic"]:
            window = frame.args[0]
            given_up = {r.args["window"] for r in self.pending_records() if r.kind == "policy"}
            undecided = {k for k in self.evidence if k + 2 <= window} - self.verdicts - given_up
            if undecided:
                raise Violation(f"window {window} was granted before the policies of {sorted(undecided)} were decided")

    def pending_records(self) -> list[Record]:
        """Records of this boot, durable or on their way."""
        assert self.state is not None
        drafts = [*(self.state.in_flight.records if self.state.in_flight else []), *self.state.outbox.records]
        return [*self.disk.log, *(records.decode(d) for d in drafts)]

    # --- pages ---------------------------------------------------------------------------------------------------------

    def offer(self, process: Process, content: Any, *, end: bool = False) -> None:
        """The page socket is a link of its own: no order with the frames."""
        page = self.next_page
        self.next_page += 1
        self._page_link(process, lambda: self._offered(process, page, content, end))

    def _offered(self, process: Process, page: int, content: Any, end: bool) -> None:
        self.pages[page] = content
        self.step(PageOffered(process.name, process.pid, page, 0 if end else 64, end=end))

    def want(self, process: Process, handle: int) -> None:
        """Ask for the page behind a handle."""
        self._page_link(process, lambda: self.step(PageWanted(process.name, process.pid, handle)))

    def _page_link(self, process: Process, action: Callable[[], None]) -> None:
        process.page_ns = max(process.page_ns, self.now_ns + self.delay_ns())
        self.at(process.page_ns - self.now_ns, lambda: action() if process.alive else None)

    def _page_answer(self, effect: PageAnswer) -> None:
        process = next((p for p in self.processes.values() if p.pid == effect.conn), None)
        if process is None:
            return
        value = self.pages.get(effect.page, "generations") if effect.page else effect.value
        error = None if effect.ok else RecurosError.from_wire(effect.value)
        self.at(
            self.delay_ns(),
            lambda: process.run(value, error) if process.alive and process.waits == ("page", 0) else None,
        )

    # --- operators -----------------------------------------------------------------------------------------------------

    def operator(self, name: str, /, who: str = "operator:7.1", **args: Any) -> int:
        """An operator's syscall, arriving now; returns its call id."""
        row = abi.SYSCALL_BY_NAME[name]
        call_id = self.next_call
        self.next_call += 1
        self.asked[who, call_id] = name
        self.step(Received(who, who.encode(), wire.Call(call_id, row.nr, 1, row.bind(args))))
        return call_id

    def hello(self, who: str = "operator:7.1") -> None:
        """Open an operator's session."""
        self.operator("hello", who, major=abi.ABI_MAJOR, minor=abi.ABI_MINOR)

    def _answered(self, effect: Send) -> None:
        frame = wire.decode(wire.encode(effect.frame))
        assert isinstance(frame, wire.Reply)
        key = (effect.route.decode(), frame.id)
        if key in self.answers or key not in self.asked:
            raise Violation(f"call {key} ({self.asked.get(key)}) was answered twice, or never asked")
        self.answers[key] = frame

    def signal(self, reason: str = "signal SIGTERM") -> None:
        """The supervisor was told to stop."""
        self.step(DrainWanted(reason))


def document(
    *,
    deterministic: bool = True,
    windows: tuple[int, ...] = (3, 5, 2),
    detached: bool = False,
    slots: int = 1,
    direct: bool = False,
) -> dict[str, Any]:
    """A boot document of a small plan: a teacher phase, a student phase that ends in a swap, and what follows."""
    standard = {"archivist": 0, "gpu": 0, "dataset": 1, "learner": 2, "observer": 3}
    rights = {
        "archivist": ["kfs-append"],
        "gpu": ["device"],
        "dataset": ["map", "kfs-read"],
        "learner": ["map", "exec", "write-params", "kfs-append", "kfs-read"],
        "observer": ["read-trace", "attach-probe", "submit-policy", "kfs-read"],
    }
    calls = {"learner": ["archivist"], "observer": ["dataset"]}
    servers = [
        {
            "name": name,
            "entry": f"servers.{name}",
            "class": "edf" if name == "learner" else "fair",
            "rank": rank,
            "rights": rights[name],
            "calls": calls.get(name, []),
            "direct": calls.get(name, []) if direct else [],
            "restart": "always",
            "weight": 1,
            "config": {"run": "/run"},
        }
        for name, rank in standard.items()
    ]
    phases = [
        {
            "name": f"phase{i}",
            "train": "student" if i else "teacher",
            "windows": count,
            "steps": 4,
            "end": "swap:ema" if i == 1 else "",
            "repeat": detached and i == len(windows) - 1,
        }
        for i, count in enumerate(windows)
    ]
    return {
        "abi": [1, 0],
        "run": "/run",
        "sockets": "/run/sockets",
        "app": "sim",
        "seed": 1,
        "deterministic": deterministic,
        "detached": detached,
        "window": {"steps": 4, "budget_ms": 200, "period_ms": 400, "deadline_ms": 400},
        "phases": phases,
        "probes": [{"hook": "on_kd_step", "prog": "builtin:entropy", "every": 2}],
        "policy": {},
        "eval_every": 3,
        "operator_rights": ["steer", "interrupt", "attach-probe", "sched-control", "read-trace", "grant", "revoke"],
        "servers": servers,
        "lane_cpus": [1],
        "background_cpus": list(range(slots)),
    }
