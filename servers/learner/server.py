"""The learner server: runs granted windows as transactions on the engine's state.

Responsible for: the order inside a window (map the batches, phase, policy, directives, micro-steps with one named deadline
check each, capture, stage, report), the bases of windows that may still roll back, and probes on the live roles.
Refuses: a grant whose base is not the state it holds; to leave a failed window anywhere but at its base, proved by a digest
recomputed from memory.

A grant is queued by its handler and run by `idle`, so that an abort arriving at a micro-step is only noted there and acted on
at one place.
"""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from kfs.store import Store
from probes.helpers.subject import Subject
from probes.hooks import Dispatcher
from servers.learner.device import describe, memory_errors, prepare, resolve
from servers.learner.driver import Driver
from servers.learner.engine import Engine, StepMetrics
from servers.learner.entry import batches_of, enter
from servers.learner.papers import Extras, papers_of
from servers.learner.programs import Programs, Saved
from servers.learner.provenance import code_digest, environment, environment_digest
from servers.learner.shelf import Shelf
from servers.learner.state import DTYPES, Leaf, byte_view, tensor_of
from servers.learner.subject import subject_of
from servers.learner.teacher_cache import TeacherCache
from servers.learner.trace import COLUMNS, joined
from servers.models.hf import HfModel
from servers.models.model import Batch
from syscalls.errors import RecurosError
from syscalls.pages import ALIGN, ReadPage, WritePage, pack_arrays
from syscalls.peer import Begun
from syscalls.serve import Handler, Kernel, serve

PROGRESS_STEPS: Final = 5
PROGRESS_NS: Final = 100_000_000
MAPS_REPORT_BYTES_MAX: Final = 256 << 10
"""Of the maps of all programs in what a window reports; the rest is in their pages."""
CACHE_MEGABYTES: Final = 256
PLAIN_TERMS: Final = ("task", "kd", "hint")


@dataclass(frozen=True)
class Grant:
    """A granted window; see the row `learner.grant`."""

    window: int
    deadline_ns: int
    budget_ns: int
    base: str
    phase: dict[str, Any]
    step0: int
    steps: int
    policy: dict[str, Any]
    directives: list[Any]
    page: int


@dataclass(frozen=True)
class Held:
    """A state that can be returned to: its root, its leaves, and the maps of the probes attached then."""

    root: str
    leaves: Mapping[str, Leaf]
    maps: dict[int, Saved] = field(default_factory=dict)


class _Aborted(Exception):  # noqa: N818 - control flow inside one window, not an error of anybody
    """The kernel gave up a window that this process still holds."""

    def __init__(self, window: int, reason: str) -> None:
        super().__init__(reason)
        self.window = window


class LearnerService:
    """Engine, probes and the windows in flight."""

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        self._dispatcher = Dispatcher(self._evicted)
        self._grants: deque[Grant] = deque()
        self._running = -1
        self._abort: _Aborted | None = None
        self._moved: dict[int, int] = {}  # window -> the deadline that it was given since its grant
        self._shortened = -1
        self._bases: dict[int, Held] = {}
        self._stored: set[str] = set()
        self._reader: Store | None = None
        self._last_batch: Batch = {}
        self._driver = Driver(kernel)
        self._programs = Programs(kernel, self._dispatcher, self._refreshed, self._subject)
        self._shelf = Shelf(kernel, self._refreshed)
        self._outputs = self._teacher_cache()
        self._engine = self._build()
        leaves = self._engine.capture()
        self._state = Held(self._engine.root_of(leaves), leaves)
        self._built_root = self._state.root
        self.handlers: Mapping[str, Handler] = {
            "grant": self.grant,
            "abort": self.abort,
            "shorten": self.shorten,
            "deadline": self.deadline,
            "committed": self.committed,
            "restore": self.restore,
            "attach": self.attach,
            "detach": self.detach,
            "probes": self.probes,
            "match": self.match,
        }
        env = environment()
        self.info: dict[str, Any] = {
            "env": env,
            "env_id": environment_digest(env),
            "code": code_digest(),
            "teacher_params": self._engine.param_count("teacher"),
            "student_params": self._engine.param_count("student"),
            "threads": int(env["threads"]),
            "device": describe(self._engine.device),
            "base": self._state.root,
        }
        self.info["config"], self._papers = papers_of(kernel.config, env, self.info["code"])
        self._logs_evidence = (kernel.config.get("policy") or {}).get("pack") != "static"  # a control looks at none

    def _build(self) -> Engine:
        config = self._kernel.config
        device = resolve(config.get("device") or {})
        prepare(device, (config.get("device") or {}).get("memory_mb"))
        if device.type != "cpu":
            config["model"]["device"] = str(device)  # and so in the papers that a replay reads
        if (config.get("device") or {}).get("offload_teacher"):
            config["model"]["offload_teacher"] = True
            if device.type == "cpu":
                note = "[device] offload-teacher: the learner computes on the CPU, so there is nothing to move"
                print(note, file=sys.stderr, flush=True)  # noqa: T201 - the server's log
        engine = Engine(dict(config["model"]), int(config["seed"]), self._dispatcher)
        engine.keep_teacher_outputs(self._outputs)
        length = (config.get("data") or {}).get("seq_len")
        for role in engine.roles.values():
            if length is not None and isinstance(role.model, HfModel):
                role.model.check_takes(int(length))
        return engine

    def _teacher_cache(self) -> TeacherCache | None:
        """As `[cache]` says; refused where inputs are not fixed."""
        table = self._kernel.config.get("cache") or {}
        if not table.get("teacher"):
            return None
        augment = (self._kernel.config.get("data") or {}).get("augment", "none")
        if augment != "none":
            raise RecurosError(
                "E2-MANIFEST",
                f"[cache] teacher = true with [data] augment = {augment!r}: inputs are not fixed",
                hint='augment = "none", or leave [cache] teacher out',
            )
        bytes_max = int(table.get("megabytes", CACHE_MEGABYTES)) << 20
        return TeacherCache(environment_digest(environment()), bytes_max, self._shelf.load)

    def _store_outputs(self) -> None:
        """Between windows, once no new sample came for a window: what other processes may use."""
        if self._outputs is None:
            return
        while self._outputs.says:
            print(self._outputs.says.pop(0), file=sys.stderr, flush=True)  # noqa: T201 - the server's log
        if self._outputs.settled():
            for key, parts in self._outputs.fresh():
                self._shelf.keep(key, parts)

    def idle(self) -> bool:
        """Run the next granted window to its end; True while more are queued."""
        if self._grants:
            self._run(self._grants.popleft())
        return bool(self._grants)

    def drain(self) -> None:
        """Nothing is held outside this process but the compiler; what was staged is durable."""
        self._programs.close()
        if self._reader is not None:
            self._reader.close()

    def _subject(self) -> Subject | None:
        """The models on the batch trained on last, for helpers that look at a window's end."""
        return subject_of(self._engine, self._dispatcher, self._last_batch) if self._last_batch else None

    def _evicted(self, probe: int, reason: str) -> None:
        self._kernel.syscall("probe_evicted", id=probe, step=self._engine.phase_step, reason=reason)

    # --- handlers ------------------------------------------------------------------------------------------------------

    def grant(self, **columns: Any) -> None:
        """Queue a window."""
        grant = Grant(**columns)
        self._moved.pop(grant.window, None)
        self._shortened = -1 if self._shortened == grant.window else self._shortened
        self._grants.append(grant)

    def shorten(self, window: int) -> None:
        """The window is over its budget: it ends after the step in hand."""
        self._shortened = window

    def deadline(self, window: int, deadline_ns: int) -> None:
        """The window has another budget, and its deadline was moved."""
        self._moved = {window: deadline_ns}

    def abort(self, window: int, reason: str) -> None:
        """Give a window up: noted while one runs, done at once otherwise. One that is not held was rolled back before."""
        dropped = [g for g in self._grants if g.window >= window]
        self._grants = deque(g for g in self._grants if g.window < window)
        for grant in dropped:
            self._kernel.release(grant.page)
        if window not in self._bases:
            if any(g.window == window for g in dropped):
                self._not_begun(window, reason)
            return
        aborted = _Aborted(window, reason)
        if self._running >= 0:
            if self._abort is None or window < self._abort.window:
                self._abort = aborted
        else:
            self._roll_back(window, "E7-MISSED", reason, 0)

    def committed(self, window: int) -> None:
        """Forget the base of a window that is durable."""
        self._bases.pop(window, None)
        self._papers = {}  # stored with it

    def restore(self, snapshot: str) -> dict[str, Any]:
        """Load a snapshot from the store, or the state as built."""
        if self._running >= 0:
            raise RecurosError("E75-AGAIN", f"window {self._running} is running", hint="abort it first")
        self._bases.clear()
        if snapshot in ("", self._built_root):
            self._engine = self._build()
        else:
            self._engine.restore(self._read(snapshot))
        leaves = self._engine.capture()
        self._state = Held(self._engine.root_of(leaves), leaves)
        return {"restored": self._state.root}

    def match(self, hook: str, prog: str) -> dict[str, Any]:
        """What a program at `hook` would see: the sites, and the largest sizes there; the bytes of a built-in."""
        return self._programs.match(hook, prog, self._engine)

    def attach(self, id: int, hook: str, prog: str, every: int, admitted: dict[str, Any]) -> dict[str, Any]:
        """Attach a probe that the kernel has admitted, from the next firing on."""
        return {**self._programs.attach(id, hook, prog, every, admitted, self._engine), "step": self._engine.step}

    def detach(self, id: int) -> dict[str, Any]:
        """Detach a probe."""
        self._dispatcher.detach(id)
        self._programs.detached(id)
        return {"step": self._engine.step}

    def probes(self, id: int) -> dict[str, Any]:
        """Counters of all probes and every site, with the maps of one probe when it is named."""
        maps = {**self._dispatcher.maps(id), **self._programs.taken(id)} if id else {}
        rows = self._programs.rows(self._dispatcher.stats())
        return {"probes": rows, "sites": self._dispatcher.sites(), "maps": maps}

    # --- a window ------------------------------------------------------------------------------------------------------

    def _run(self, grant: Grant) -> None:
        """One window: staged and reported, or rolled back and reported."""
        if grant.base not in ("", self._state.root):
            self._refuse(grant)
            return
        self._bases[grant.window] = Held(self._state.root, self._state.leaves, self._maps_now())
        self._running, self._abort = grant.window, None
        step0 = self._engine.step
        try:
            with memory_errors(self._engine.device, self._engine.micro_batches):
                self._train_and_stage(grant)
        except _Aborted as aborted:
            self._running = -1
            self._roll_back(aborted.window, "E7-MISSED", str(aborted), self._engine.step - step0)
        except RecurosError as error:
            self._running = -1
            self._roll_back(grant.window, error.code, error.message, self._engine.step - step0)
        finally:
            self._running, self._abort = -1, None
            self._kernel.release(grant.page)

    def _train_and_stage(self, grant: Grant) -> None:
        page = self._kernel.map(grant.page)
        try:
            done, step_ns = self._train(grant, page)
        finally:
            page.close()
        leaves = self._engine.capture()
        if grant.window % cadence_of(grant.policy) == 0:
            self._dispatcher.fire("on_snapshot")
        self._programs.between_steps()
        maps = self._maps_report()
        trace, evidence = self._offer_trace(grant.window, done, maps) if self._logs_evidence else (0, {})
        try:
            staging = self._begin_stage(grant.window, leaves, {**self._papers, **evidence})
            try:  # the archivist writes to disk meanwhile
                root = self._engine.root_of(leaves)
                metrics = {**self._metrics(done, step_ns), "rng": leaves["rng/engine/state"].id}
                metrics["evidence"] = next(iter(evidence), "")
                metrics["probe_ns"] = self._programs.spent_ns()
                metrics |= self._driver.after(self._engine)
                if not self._logs_evidence:  # nothing of it is stored, so it need not wait for this
                    trace, _ = self._offer_trace(grant.window, done, maps)
            finally:
                stored = self._finish_stage(staging)
            if stored != root:
                raise RecurosError(
                    "E9-INTEGRITY", f"window {grant.window}: the archivist stored {stored}, the learner holds {root}"
                )
            # Of older snapshots nothing is remembered, so that this stays small; what is sent again is not stored again.
            self._stored = {leaf.id for held in (self._state.leaves, leaves) for leaf in held.values()}
            self._pause_point(grant, check_deadline=False)
        except (RecurosError, _Aborted):
            if trace:
                self._kernel.release(trace)
            raise
        self._kernel.syscall(
            "window_staged", window=grant.window, snapshot=root, metrics=metrics, maps=maps, trace=trace
        )
        self._state = Held(root, leaves)
        self._engine.rest()
        self._programs.between_windows()
        self._store_outputs()

    def _train(self, grant: Grant, page: ReadPage) -> tuple[list[StepMetrics], int]:
        """Every micro-step of the window; returns what they did and the nanoseconds they took."""
        self._enter(grant)
        batches = batches_of(page.view, grant.steps)
        done: list[StepMetrics] = []
        started_ns = told_ns = time.monotonic_ns()
        for position, columns in enumerate(batches):
            self._pause_point(grant, check_deadline=True)
            if done and self._shortened == grant.window:
                self._engine.skip(grant.steps - len(done))
                break
            batch: Batch = {name: tensor_of(array) for name, array in columns.items()}
            if position == 0:
                self._driver.before(self._engine, batch)
            done.append(self._engine.micro_step(batch))
            self._last_batch = batch
            self._refuse_tainted()
            if self._engine.pruned:
                self._show_pruned()
            now_ns = time.monotonic_ns()
            if (position + 1) % PROGRESS_STEPS == 0 or now_ns - told_ns >= PROGRESS_NS:
                told_ns = now_ns
                self._kernel.syscall(
                    "progress", window=grant.window, step=position + 1, metrics={"loss": done[-1].loss}
                )
        return done, time.monotonic_ns() - started_ns

    def _pause_point(self, grant: Grant, *, check_deadline: bool) -> None:
        """The one point per micro-step where the kernel is heard and the deadline is checked."""
        self._kernel.pump()
        self._programs.between_steps()
        if self._abort is not None:
            raise self._abort
        if check_deadline and (late_ns := time.monotonic_ns() - self._moved.get(grant.window, grant.deadline_ns)) > 0:
            raise RecurosError(
                "E7-MISSED", f"{late_ns / 1e6:.1f} ms past the deadline at micro-step {self._engine.step}"
            )

    def _enter(self, grant: Grant) -> None:
        self._dispatcher.stretch(cadence_of(grant.policy))
        enter(
            self._engine,
            grant.window,
            grant.phase,
            grant.step0,
            grant.policy,
            grant.directives,
            self._show_pruned,
            self._read,
        )

    def _show_pruned(self) -> None:
        if self._dispatcher.wants("on_prune"):
            self._dispatcher.fire("on_prune", pruned=self._engine.pruned_matrices())

    def _refuse_tainted(self) -> None:
        if self._dispatcher.tainted:
            reason, self._dispatcher.tainted = self._dispatcher.tainted, ""
            raise RecurosError("E9-INTEGRITY", f"a probe overwrote the step: {reason}", hint="the probe is evicted")

    # --- staging and rolling back ------------------------------------------------------------------------------------------

    def _begin_stage(self, window: int, leaves: Mapping[str, Leaf], extras: Extras) -> tuple[Begun, int]:
        """Send the snapshot and what goes with it to the archivist; only objects it has not had from us travel."""
        refs = {path: leaf.id for path, leaf in leaves.items()}
        new = {leaf.id: ("snapshot", leaf) for leaf in leaves.values() if leaf.id not in self._stored} | extras
        index: list[list[Any]] = []
        parts: list[tuple[int, memoryview]] = []
        size = 0
        for name, (kind, leaf) in new.items():
            index.append([name, leaf.dtype, list(leaf.shape), size, leaf.data.nbytes, kind])
            parts.append((size, leaf.data))
            size += -(-leaf.data.nbytes // ALIGN) * ALIGN
        handle = self._offer_raw(parts, size)
        try:
            return self._kernel.begin("archivist.stage", window=window, refs=refs, index=index, page=handle), handle
        except RecurosError:
            if handle:
                self._kernel.release(handle)
            raise

    def _finish_stage(self, staging: tuple[Begun, int]) -> str:
        """Wait until the snapshot is durable; the root id that the archivist found."""
        begun, handle = staging
        try:
            return str(self._kernel.finish(begun)["snapshot"])
        finally:
            if handle:  # the archivist's was lent for the call; this one is ours
                self._kernel.release(handle)

    def _offer_raw(self, parts: list[tuple[int, memoryview]], size: int) -> int:
        if not parts:
            return 0
        page = WritePage(max(size, 1), "stage")
        try:
            for offset, data in parts:
                page.view[offset : offset + data.nbytes] = data
            return self._kernel.offer(page)
        finally:
            page.close()

    def _offer_trace(self, window: int, done: list[StepMetrics], maps: dict[str, Any]) -> tuple[int, Extras]:
        """The trace as a page for the Observer, and the very same bytes as an object for the ledger."""
        trace = joined([m.trace for m in done if m.trace is not None])
        if not trace:
            return 0, {}
        rows = [(n, DTYPES[trace[n].dtype], tuple(trace[n].shape), byte_view(trace[n])) for n in COLUMNS]
        page = pack_arrays(rows, {"window": window, "maps": maps})
        try:
            handle = self._kernel.offer(page)
            if not self._logs_evidence:
                return handle, {}
            leaf = Leaf("U8", (page.size,), memoryview(bytes(page.view)))
            return handle, {leaf.id: ("cal", leaf)}
        finally:
            page.close()

    def _roll_back(self, window: int, code: str, reason: str, steps: int) -> None:
        """Return to the base of `window`, prove it from memory, and say so."""
        base = self._bases[window]
        self._engine.restore(base.leaves)
        root = self._engine.digest()
        self._state = Held(root, base.leaves if root == base.root else self._engine.capture())
        self._restore_maps(base.maps)
        self._bases = {w: held for w, held in self._bases.items() if w < window}
        self._kernel.syscall(
            "window_rolled_back", window=window, code=code, reason=reason[:1000], restored=root, step=max(0, steps)
        )

    def _not_begun(self, window: int, reason: str) -> None:
        """An abort overtook the window in the queue: without an answer the kernel would take this process for hung."""
        self._kernel.syscall(
            "window_rolled_back", window=window, code="E7-MISSED", reason=reason[:1000], restored=self._state.root
        )

    def _refuse(self, grant: Grant) -> None:
        self._kernel.release(grant.page)
        self._kernel.syscall(
            "window_rolled_back",
            window=grant.window,
            code="E9-INTEGRITY",
            reason=f"the grant names base {grant.base}, the learner holds {self._state.root}",
            restored=self._state.root,
        )

    def _refreshed(self) -> Store:
        """The reader of the store, with what was written since."""
        if self._reader is None:
            self._reader = Store.open_reader(str(self._kernel.config["store"]))
        self._reader.refresh()
        return self._reader

    def _read(self, snapshot: str) -> dict[str, Leaf]:
        """A snapshot's leaves from the store, each checked against its id."""
        reader = self._refreshed()
        leaves: dict[str, Leaf] = {}
        for path, name in reader.snapshot(snapshot).items():
            stored = reader.get(name)
            leaves[path] = Leaf(stored.dtype, stored.shape, stored.data)
            self._stored.add(name)
        return leaves

    # --- reports ---------------------------------------------------------------------------------------------------------

    def _metrics(self, done: list[StepMetrics], step_ns: int) -> dict[str, Any]:
        """Means over the window's micro-steps; terms that were off are absent."""
        count = len(done)
        terms = sorted({name for m in done for name in m.terms})
        metrics: dict[str, Any] = {
            "loss": sum(m.loss for m in done) / count,
            "grad_norm": sum(m.grad_norm for m in done) / count,
            "lr": done[-1].lr,
            "step": self._engine.step,
            "steps": count,
            **self._engine.place,
            "step_ms": step_ns / count / 1e6,
            "teacher_params": self._engine.param_count("teacher"),
            "student_params": self._engine.param_count("student"),
            "generation": self._engine.generation,
            "sparsity": self._engine.sparsity,
            "temperature": self._engine.kd.temperature,
            "mix": self._engine.kd.mix,
            "alpha": self._engine.kd_now.alpha,
            **({"micro_batches": self._engine.micro_batches} if self._engine.micro_batches > 1 else {}),
        }
        if self._outputs is not None:
            metrics["teacher_cached"] = self._outputs.served() / count
        for name in terms:
            values = [m.terms[name] for m in done if name in m.terms]
            # A probe's figures have plain names, too: of the terms, only those that are always there do.
            metrics[name if name in PLAIN_TERMS else f"term.{name}"] = sum(values) / len(values)
        return metrics

    def _maps_now(self) -> dict[int, Saved]:
        ids = [row["id"] for row in self._dispatcher.stats()]
        return {number: saved for number in ids if (saved := self._programs.saved(number)) is not None}

    def _maps_report(self) -> dict[str, Any]:
        """What the Observer and the ledger get; a program goes by its digest, so that none passes for a built-in by its name."""
        report: dict[str, Any] = {}
        room = MAPS_REPORT_BYTES_MAX
        for row in self._dispatcher.stats():
            size = self._programs.report_bytes(row["id"])
            name = self._programs.digest(row["id"]) or row["program"]
            fits = size <= room
            room -= size if fits else 0
            maps = self._dispatcher.maps(row["id"]) if fits else {"too_large": size}
            report[str(row["id"])] = {"program": name, "hook": row["hook"], "map": maps}
        return report

    def _restore_maps(self, maps: Mapping[int, Saved]) -> None:
        """What probes counted in a window that did not happen is taken back; probes attached meanwhile keep theirs."""
        for probe, saved in maps.items():
            self._programs.put_back(probe, saved)


def cadence_of(policy: Mapping[str, Any]) -> int:
    """How many times as seldom probes fire, by the policy in force; those of a window's end, at every so many windows."""
    return int(policy.get("cadence") or 1)


def main() -> int:
    """Serve until drained."""
    return serve("learner", LearnerService)
