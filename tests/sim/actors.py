"""The simulated servers: what the real ones promise the kernel, without tensors.

Responsible for: the order of messages of each real server (see `servers/*/server.py`), a learner state that is one
digest of all its inputs, and the faults that the world decides. Refuses: knowledge of the kernel's state; an actor
knows only what it was sent.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator
from typing import TYPE_CHECKING, Any

from links import Asked, Grant

from kfs import records
from kfs.records import RecordKind
from probes import isa, library
from syscalls import abi, wire
from syscalls.errors import RecurosError

if TYPE_CHECKING:
    from world import Process

MS = 1_000_000
Run = Generator[tuple[Any, ...], Any, Any]


class Actor:
    """Hello, ready, dispatch: `syscalls.serve` as a generator."""

    def __init__(self, process: Process) -> None:
        self.p = process
        self.w = process.world
        self.stopping = False
        self.out: dict[str, Grant] = {}  # callee -> the channel to it
        self.into: dict[int, Grant] = {}  # channel -> the caller's end of it
        self.granted = self.w.direct
        self.serving = False  # a call that came over a channel

    def body(self) -> Run:
        hello = yield from self.syscall("hello", major=abi.ABI_MAJOR, minor=abi.ABI_MINOR)
        self.p.caps = hello["caps"]
        yield from self.maybe_crash()
        yield from self.syscall("ready", info=self.info())
        while not self.stopping:
            yield from self.dispatch((yield ("recv",)))
            yield from self.idle()

    def info(self) -> dict[str, Any]:
        return {}

    def idle(self) -> Run:
        yield from ()

    def maybe_crash(self) -> Run:
        if self.w.faults.hit(self.w, self.w.faults.crash, self.p.name):
            yield ("die", -9)

    def dispatch(self, frame: wire.Deliver | Asked) -> Run:
        if isinstance(frame, Asked):
            yield from self.asked(frame)
            return
        row = abi.METHOD_BY_NR[frame.nr]
        if row.name == "drain":
            self.stopping = True
            return
        try:
            values = yield from getattr(self, "on_" + row.name)(**row.check_args(frame.args))
        except RecurosError as error:
            if not frame.id:
                raise
            yield ("reply", frame, error)
        else:
            yield from self.maybe_crash()
            if frame.id:
                yield ("reply", frame, values or {})

    # --- direct channels, as syscalls.switch has them ---------------------------------------------------------------------

    def channel(self, server: str) -> Run:
        """The channel to a server, opened where there is none; None where calls go through the kernel."""
        grant = self.out.get(server)
        if grant is not None and grant.link.open and grant.stands(self.w.words):
            return grant
        if not self.granted or server not in self.p.caps:
            return None
        end = yield ("offer end",)
        try:
            told = yield from self.syscall("channel_open", endpoint=self.p.caps[server], end=end)
        except RecurosError as error:
            if error.code == "E5-DENIED" and not self.w.took:
                raise AssertionError(f"a channel that nobody took was denied: {error.message}") from error
            self.granted = error.code != "E5-DENIED"
            if error.code in ("E5-DENIED", "E75-AGAIN", "E3-GONE"):
                return None
            raise
        yield ("map", told["table"])
        yield from self.syscall("page_release", page=told["table"])
        link = next(x for x in reversed(self.w.links) if x.maker is self.p)
        self.out[server] = Grant(link, told["index"], told["generation"])
        return self.out[server]

    def ask(self, method: str, content: Any, **args: Any) -> Run:
        """A call that goes over a channel where one stands; `content`: what its page holds, whose descriptor goes with it."""
        server, _, name = method.partition(".")
        row = abi.method_of(server, name)
        grant = yield from self.channel(server)
        if grant is None:
            return (yield from self.call(method, **args))
        if not grant.stands(self.w.words):
            raise RecurosError("E5-DENIED", f"the direct channel to {server} was revoked")
        return row.check_reply((yield ("ask", grant.link, row, row.bind(args), content)))

    def on_channel(self, channel: int, caller: str, pid: int, end: int, table: int, **columns: Any) -> Run:
        link = yield ("map", end)
        yield ("map", table)
        if link.maker.pid != pid or link.maker.name != caller:
            raise RecurosError("E5-DENIED", f"{link.maker.name} made the channel of {caller}")
        link.taker = self.p
        self.into[channel] = Grant(link, columns["index"], columns["generation"], frozenset(columns["methods"]))
        return {}

    def on_channel_cut(self, channel: int, reason: str) -> Run:
        if (grant := self.into.pop(channel, None)) is not None:
            waiting = [x for x in self.p.inbox if isinstance(x, Asked) and x.link is grant.link]
            for asked in waiting:
                self.p.inbox.remove(asked)
                asked.link.answer(asked.number, RecurosError("E5-DENIED", "revoked before this call was taken"))
            grant.link.close()
        yield from ()

    def asked(self, asked: Asked) -> Run:
        """Serve a call that came over a channel: the word is read now, after everything that had to be waited for."""
        grant = next((g for g in self.into.values() if g.link is asked.link), None)
        if grant is None or not grant.stands(self.w.words):
            asked.link.answer(asked.number, RecurosError("E5-DENIED", "revoked before this call was taken"))
            return
        if asked.row.nr not in grant.methods:
            asked.link.answer(asked.number, RecurosError("E5-DENIED", f"{asked.row.name} is not granted"))
            return
        self.w.served_directly += 1
        self.serving = True
        try:
            columns = {**asked.row.check_args(asked.args), "page": asked.content}
            values = yield from getattr(self, "on_" + asked.row.name)(**columns)
            yield from self.maybe_crash()
            asked.link.answer(asked.number, asked.row.bind_reply(values or {}))
        except RecurosError as error:
            asked.link.answer(asked.number, error)
        finally:
            self.serving = False

    def pump(self) -> Run:
        for frame in (yield ("poll",)):
            yield from self.dispatch(frame)

    def syscall(self, name: str, **args: Any) -> Run:
        payload = yield ("syscall", name, args)
        row = abi.SYSCALL_BY_NAME[name]
        return {} if row.oneway else row.check_reply(payload)

    def call(self, method: str, **args: Any) -> Run:
        server, _, name = method.partition(".")
        row = abi.method_of(server, name)
        if server not in self.p.caps:  # as syscalls.peer says it
            raise RecurosError("E5-DENIED", f"no endpoint to {server} was granted at hello")
        reply = yield from self.syscall("call", endpoint=self.p.caps[server], method=row.nr, args=row.bind(args))
        return row.check_reply(reply["reply"])


class Archivist(Actor):
    """Durable before it answers; the disk is the world's."""

    boot = ""

    def on_open(self, boot: str) -> Run:
        yield ("sleep", 2 * MS)
        self.boot = boot
        log = self.w.disk.log
        last = max((r.seq for r in log if r.kind is RecordKind.WINDOW_COMMIT), default=-1)
        commit = records.encode(log[last]) if last >= 0 else b""
        tail = [records.encode(r) for r in log[last + 1 :]]
        return {"commit": commit, "tail": tail, "size": len(log), "root": f"{len(log):x}", "notes": []}

    def on_append(self, records: list[bytes]) -> Run:
        yield ("sleep", int(MS * self.w.rng.random()))
        yield from self.maybe_crash()
        seqs = [self.w.disk.append(self.boot, data, self.w.now_ns) for data in records]
        if self.w.faults.hit(self.w, self.w.faults.lost_ack, "archivist"):
            yield ("die", -9)  # durable, and nobody will hear of it
        return {"seqs": seqs, "size": len(self.w.disk.log), "root": f"{len(self.w.disk.log):x}"}

    def on_stage(self, window: int, refs: dict[str, str], index: list[Any], page: int) -> Run:
        root = refs["root"]
        if page:
            content = page if self.serving else (yield ("map", page))
            if content != root:
                raise RecurosError("E9-INTEGRITY", "the page holds something else")
        yield ("sleep", 2 * MS)
        if self.w.faults.hit(self.w, self.w.faults.no_space, "archivist"):
            raise RecurosError("E9-NOSPACE", "the disk is full")
        self.w.disk.objects.add(root)
        if self.serving:
            yield from self.syscall("stage_done", snapshot=root)
        return {"snapshot": root, "stored_bytes": 64}

    def on_put(self, objects: list[Any], page: int) -> Run:
        content = yield ("map", page)
        yield ("sleep", MS)
        if not isinstance(content, list):
            raise RecurosError("E2-WIRE", f"the page holds no objects: {content!r:.40}")
        self.w.disk.objects |= set(content)
        return {"ids": list(content)}

    def on_keep(self, kind: str, data: bytes) -> Run:
        from world import digest

        yield ("sleep", MS)
        name = digest(kind, data)
        self.w.disk.objects.add(name)
        self.w.disk.blobs[name] = data
        return {"id": name}

    def on_gc(self, ids: list[Any], scores: list[Any], reason: str, actor: str, cap: int, dry_run: bool) -> Run:
        yield ("sleep", MS)
        yield from self.maybe_crash()
        if ids:
            raise RecurosError("E2-USAGE", "everything in this store is pinned")
        return {"seq": -1, "pending": []}

    def on_fetch(self, id: str) -> Run:
        yield ("sleep", MS)
        if id not in self.w.disk.blobs:
            raise RecurosError("E9-INTEGRITY", f"{id} is not in the store")
        return {"data": self.w.disk.blobs[id]}


class Dataset(Actor):
    """A batch is a pure function of what was asked for."""

    def on_fill(self, window: int, phase: dict[str, Any], step0: int, steps: int, weights: str, gate: Any) -> Run:
        from world import digest

        yield ("sleep", int(10 * MS * self.w.rng.random()))
        yield from self.maybe_crash()
        batch = digest("batch", phase["name"], step0, steps, weights, sorted(gate.items()))
        handle = yield ("offer", batch)
        return {"page": handle, "batch": batch}

    def on_check(self, objects: list[Any]) -> Run:
        yield ("sleep", 5 * MS)
        if b"bad" in self.w.disk.blobs[objects[-1][0]]:
            raise RecurosError("E2-DATA", "new.jsonl:2: not JSON")
        return {"rows": 3, "total": 100 + 3 * len(objects)}

    def on_split(self, name: str) -> Run:
        handle = yield ("offer", name)
        return {"page": handle}


class Gpu(Actor):
    def on_inventory(self) -> Run:
        yield ("sleep", MS)
        return {"devices": [], "host": {"cpu": 1}, "note": "no NVIDIA GPU"}

    def on_telemetry(self) -> Run:
        yield ("sleep", MS)
        return {"devices": [], "host": {"load": 0.5}, **self.w.gauges}


class Observer(Actor):
    def on_trace(
        self, window: int, snapshot: str, metrics: dict[str, Any], maps: Any, policy: dict[str, Any], page: int
    ) -> Run:
        from world import digest

        if page:
            yield ("map", page)
            yield from self.syscall("page_release", page=page)
        if self.w.faults.hit(self.w, self.w.faults.slow_policy, "observer"):
            yield ("sleep", 25_000 * MS)
        yield ("sleep", int(30 * MS * self.w.rng.random()))
        yield from self.syscall("sched_yield")
        yield from self.maybe_crash()
        settings: dict[str, Any] = {"temperature": 1.0 + int(digest(window, snapshot)[3:5], 16) % 30 / 10, "weights": 0}
        if self.w.faults.hit(self.w, self.w.faults.bad_policy, "observer"):
            settings = {"temperature": 99.0}
        blobs = 0
        if window in self.w.acts:
            settings = self.w.acts[window]
        elif window % 3 == 0:
            settings = {}
        elif window % 3 == 1 and settings.get("weights") == 0:
            blobs = yield ("offer", [digest("weights", snapshot), digest("evidence", snapshot)])
        try:
            yield from self.syscall("policy_submit", window=window, settings=settings, pack="sim", blobs=blobs)
        except RecurosError as error:
            if blobs:
                yield from self.syscall("page_release", page=blobs)
            if error.code not in ("E2-USAGE", "E2-LIMIT", "E75-AGAIN"):
                raise

    def on_evaluate(self, snapshot: str, split: str) -> Run:
        page = (yield from self.call("dataset.split", name=split))["page"]
        yield from self.syscall("page_release", page=page)
        yield ("sleep", int(200 * MS * self.w.rng.random()))
        yield from self.syscall("sched_yield")
        scores = {"accuracy": 0.5, "nll": 1.0, "ece": 0.1, "brier": 0.2, "params": 10, "n": 5}
        return {"scores": {"student": scores, "teacher": scores}}

    def on_consider(self, kind: str, body: dict[str, Any]) -> Run:
        yield ("sleep", 20 * MS if self.w.considers else 2_000 * MS)
        return {"accept": body.get("mix") != 0.25, "reason": "considered"}

    def on_calibrate(self, snapshot: str, mode: str) -> Run:
        yield ("sleep", 5 * MS)
        return {"result": {"temperature": 1.5}}


class Aborted(Exception):  # noqa: N818 - control flow inside one window, as in the real learner
    def __init__(self, window: int) -> None:
        super().__init__(window)
        self.window = window


class Learner(Actor):
    """The state is the digest of everything that ever went into it."""

    def __init__(self, process: Process) -> None:
        from world import digest

        super().__init__(process)
        self.built = self.root = digest("built")
        self.grants: deque[dict[str, Any]] = deque()
        self.bases: dict[int, str] = {}
        self.running = -1
        self.parts = self.staged_parts = 1
        self.aborted: Aborted | None = None
        self.shortened, self.moved = -1, dict[int, int]()

    def info(self) -> dict[str, Any]:
        return {"base": self.built, "code": "sha256:" + "0" * 64}

    def on_grant(self, **grant: Any) -> Run:
        self.moved.pop(grant["window"], None)
        self.shortened = -1 if self.shortened == grant["window"] else self.shortened
        self.grants.append(grant)
        yield from ()

    def on_abort(self, window: int, reason: str) -> Run:
        dropped = [g for g in self.grants if g["window"] >= window]
        self.grants = deque(g for g in self.grants if g["window"] < window)
        for g in dropped:
            yield from self.syscall("page_release", page=g["page"])
        if window not in self.bases:
            if any(g["window"] == window for g in dropped):
                yield from self.rolled_back(window, "E7-MISSED", reason, self.root)
            return
        if self.running >= 0:
            if self.aborted is None or window < self.aborted.window:
                self.aborted = Aborted(window)
        else:
            yield from self.roll_back(window, "E7-MISSED", reason)

    def on_shorten(self, window: int) -> Run:
        self.shortened = window
        yield from ()

    def on_deadline(self, window: int, deadline_ns: int) -> Run:
        self.moved = {window: deadline_ns}
        yield from ()

    def on_committed(self, window: int) -> Run:
        self.bases.pop(window, None)
        yield from ()

    def on_restore(self, snapshot: str) -> Run:
        yield ("sleep", 5 * MS)
        self.bases.clear()
        if snapshot not in ("", self.built) and snapshot not in self.w.disk.objects:
            raise RecurosError("E9-INTEGRITY", f"{snapshot} is not in the store")
        self.root = snapshot or self.built
        return {"restored": self.root}

    def on_match(self, hook: str, prog: str) -> Run:
        yield ("sleep", MS)
        program = isa.encode(library.compile(prog)) if prog else b""
        symbols = {symbol for view in isa.HOOK_VIEWS[hook.partition(":")[0]] for symbol in view.dims}
        dims = dict.fromkeys(symbols, 16) if prog else {}
        return {"sites": ["site"], "dims": dims, "extra": 0, "pairs": 1, "backend": "jit", "program": program}

    def on_attach(self, id: int, hook: str, prog: str, every: int, admitted: dict[str, Any]) -> Run:
        yield ("sleep", MS)
        page = (yield ("offer", ["maps", id])) if admitted else 0
        return {"sites": ["site"], "step": 0, "page": page}

    def on_detach(self, id: int) -> Run:
        yield ("sleep", MS)
        return {"step": 0}

    def on_probes(self, id: int) -> Run:
        yield ("sleep", MS)
        return {"probes": [], "sites": [], "maps": {}}

    def idle(self) -> Run:
        while self.grants:
            yield from self.window(self.grants.popleft())

    def window(self, g: dict[str, Any]) -> Run:
        window = g["window"]
        if g["base"] not in ("", self.root):
            yield from self.syscall("page_release", page=g["page"])
            yield from self.rolled_back(window, "E9-INTEGRITY", "another base", self.root)
            return
        self.bases[window] = self.root
        self.running, self.aborted = window, None
        try:
            yield from self.train(g)
        except Aborted as aborted:
            self.running = -1
            yield from self.roll_back(aborted.window, "E7-MISSED", "aborted")
        except RecurosError as error:
            self.running = -1
            yield from self.roll_back(window, error.code, error.message)
        self.running, self.aborted = -1, None
        yield from self.syscall("page_release", page=g["page"])

    def train(self, g: dict[str, Any]) -> Run:
        from world import digest

        f, w = self.w.faults, self.w
        batch = yield ("map", g["page"])
        for kind, args in g["directives"]:
            if kind in w.refuses:
                raise RecurosError("E2-USAGE", f"cannot {kind} {args}")
        self.parts = max([self.parts, *(args["parts"] for kind, args in g["directives"] if kind == "micro-batches")])
        if self.parts < w.parts_needed:
            raise RecurosError("E7-MEMORY", f"no room for a batch in {self.parts} parts")
        step_ns = int(20 * MS * w.rng.random()) + (200 * MS if f.hit(w, f.late, "learner") else 0)
        done = 0
        for step in range(g["steps"]):
            yield from self.pause_point(g)
            if done and self.shortened == g["window"]:
                break
            done = step + 1
            yield ("sleep", step_ns)
            yield from self.maybe_crash()
            if f.hit(w, f.hang, "learner"):
                yield ("hang",)
            if f.hit(w, f.loss, "learner"):
                raise RecurosError("E7-LOSS", "the loss is not finite")
            yield from self.syscall("progress", window=g["window"], step=step + 1, metrics={"loss": 1.0})
        settings = {k: g["policy"].get(k) for k in ("temperature", "weights")}
        new = digest(self.root, g["phase"]["name"], g["step0"], batch, settings, g["directives"])
        handle = yield ("offer", new)
        stage = {"window": g["window"], "refs": {"root": new}, "index": [], "page": handle}
        try:
            stored = yield from self.ask("archivist.stage", new, **stage)
        except RecurosError:
            yield from self.syscall("page_release", page=handle)
            raise
        yield from self.syscall("page_release", page=handle)
        assert stored["snapshot"] == new
        yield from self.pause_point(g, late_matters=False)
        trace = (yield ("offer", ["trace", g["window"]])) if g["window"] % 2 else 0
        yield from self.syscall(
            "window_staged",
            window=g["window"],
            snapshot=new,
            metrics={
                "loss": 0.5,
                "kd": 0.1,
                "steps": done,
                **({"micro_batches": self.parts} if self.parts > 1 else {}),
            },
            maps={},
            trace=trace,
        )
        self.root, self.staged_parts = new, self.parts

    def pause_point(self, g: dict[str, Any], *, late_matters: bool = True) -> Run:
        yield from self.pump()
        if self.aborted is not None:
            raise self.aborted
        if late_matters and self.w.now_ns > self.moved.get(g["window"], g["deadline_ns"]):
            raise RecurosError("E7-MISSED", "past the deadline")

    def roll_back(self, window: int, code: str, reason: str) -> Run:
        from world import digest

        self.root = self.bases[window]
        self.parts = self.staged_parts
        if self.w.faults.hit(self.w, self.w.faults.inexact, "learner"):
            self.root = digest("garbage", self.w.now_ns)
        self.bases = {k: v for k, v in self.bases.items() if k < window}
        yield ("sleep", 2 * MS)
        yield from self.rolled_back(window, code, reason, self.root)

    def rolled_back(self, window: int, code: str, reason: str, restored: str) -> Run:
        yield from self.syscall("window_rolled_back", window=window, code=code, reason=reason, restored=restored)


BEHAVIOURS = {
    name: (lambda process, kind=kind: kind(process).body())
    for name, kind in {
        "archivist": Archivist,
        "dataset": Dataset,
        "gpu": Gpu,
        "observer": Observer,
        "learner": Learner,
    }.items()
}
