"""The learner server: runs granted windows as transactions on the engine's state.

Responsible for: the order inside a window (map the batches, phase, policy, directives, micro-steps with one named deadline
check each, capture, stage, report), the bases of windows that may still roll back, and probes on the live roles.
Refuses: a grant whose base is not the state it holds; to leave a failed window anywhere but at its base, proved by a digest
recomputed from memory.

A grant is queued by its handler and run by `idle`, so that an abort arriving at a micro-step is only noted there and acted on
at one place.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from kfs.store import Store
from probes import library
from probes.hooks import Dispatcher
from servers.learner.engine import Engine, StepMetrics
from servers.learner.phase import phase_of
from servers.learner.provenance import code_digest, environment, environment_digest
from servers.learner.state import DTYPES, Leaf, byte_view, tensor_of
from servers.learner.trace import COLUMNS, Trace, joined
from servers.models.hf import HfModel
from servers.models.model import Batch
from syscalls.errors import RecurosError
from syscalls.pages import ALIGN, Array, ReadPage, WritePage, pack_arrays, unpack_arrays
from syscalls.peer import Begun
from syscalls.serve import Handler, Kernel, serve

PROGRESS_STEPS: Final = 5
PROGRESS_NS: Final = 100_000_000


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
    maps: dict[int, dict[str, Any]] = field(default_factory=dict)


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
        self._bases: dict[int, Held] = {}
        self._stored: set[str] = set()
        self._reader: Store | None = None
        self._engine = self._build()
        leaves = self._engine.capture()
        self._state = Held(self._engine.root_of(leaves), leaves)
        self._built_root = self._state.root
        self.handlers: Mapping[str, Handler] = {
            "grant": self.grant,
            "abort": self.abort,
            "committed": self.committed,
            "restore": self.restore,
            "attach": self.attach,
            "detach": self.detach,
            "probes": self.probes,
        }
        env = environment()
        self.info: dict[str, Any] = {
            "env": env,
            "env_id": environment_digest(env),
            "code": code_digest(),
            "teacher_params": self._engine.param_count("teacher"),
            "student_params": self._engine.param_count("student"),
            "threads": int(env["threads"]),
            "device": "cpu",
            "base": self._state.root,
        }

    def _build(self) -> Engine:
        config = self._kernel.config
        engine = Engine(dict(config["model"]), int(config["seed"]), self._dispatcher)
        length = (config.get("data") or {}).get("seq_len")
        for role in engine.roles.values():
            if length is not None and isinstance(role.model, HfModel):
                role.model.check_takes(int(length))
        return engine

    def idle(self) -> bool:
        """Run the next granted window to its end; True while more are queued."""
        if self._grants:
            self._run(self._grants.popleft())
        return bool(self._grants)

    def drain(self) -> None:
        """Nothing is held outside this process; what was staged is durable."""
        if self._reader is not None:
            self._reader.close()

    def _evicted(self, probe: int, reason: str) -> None:
        self._kernel.syscall("probe_evicted", id=probe, step=self._engine.phase_step, reason=reason)

    # --- handlers ------------------------------------------------------------------------------------------------------

    def grant(self, **columns: Any) -> None:
        """Queue a window."""
        self._grants.append(Grant(**columns))

    def abort(self, window: int, reason: str) -> None:
        """Give a window up: noted while one runs, done at once otherwise. One that is not held was rolled back before."""
        self._grants = deque(g for g in self._grants if g.window < window)
        if window not in self._bases:
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

    def attach(self, id: int, hook: str, prog: str, every: int) -> dict[str, Any]:
        """Attach a probe from the next firing on."""
        sites = self._dispatcher.attach(id, hook, library.build(prog, every))
        return {"sites": sites, "step": self._engine.step}

    def detach(self, id: int) -> dict[str, Any]:
        """Detach a probe."""
        self._dispatcher.detach(id)
        return {"step": self._engine.step}

    def probes(self, id: int) -> dict[str, Any]:
        """Counters of all probes and every site, with the maps of one probe when it is named."""
        maps = self._dispatcher.maps(id) if id else {}
        return {"probes": self._dispatcher.stats(), "sites": self._dispatcher.sites(), "maps": maps}

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
        staging = self._begin_stage(grant.window, leaves)
        trace = 0
        try:
            try:  # the archivist writes to disk meanwhile
                root = self._engine.root_of(leaves)
                metrics = {**self._metrics(done, step_ns), "rng": leaves["rng/engine/state"].id}
                maps = self._maps_report()
                trace = self._offer_trace(joined([m.trace for m in done if m.trace is not None]))
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

    def _train(self, grant: Grant, page: ReadPage) -> tuple[list[StepMetrics], int]:
        """Every micro-step of the window; returns what they did and the nanoseconds they took."""
        self._enter(grant)
        batches = _batches(page, grant.steps)
        done: list[StepMetrics] = []
        started_ns = told_ns = time.monotonic_ns()
        for position, columns in enumerate(batches):
            self._pause_point(grant, check_deadline=True)
            batch: Batch = {name: tensor_of(array) for name, array in columns.items()}
            done.append(self._engine.micro_step(batch))
            self._refuse_tainted()
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
        if self._abort is not None:
            raise self._abort
        if check_deadline and (late_ns := time.monotonic_ns() - grant.deadline_ns) > 0:
            raise RecurosError(
                "E7-MISSED", f"{late_ns / 1e6:.1f} ms past the deadline at micro-step {self._engine.step}"
            )

    def _enter(self, grant: Grant) -> None:
        """Phase, policy and directives, in that order: an operator's directive outlives the start of a phase."""
        phase = phase_of(grant.phase)
        local = grant.step0 % phase.steps_total
        if local == 0:
            self._engine.begin(grant.phase)
        elif not self._engine.is_in(grant.phase) or self._engine.phase_step != local:
            raise RecurosError(
                "E9-INTEGRITY",
                f"window {grant.window} starts at step {local} of phase {phase.name!r}; "
                f"the engine is at step {self._engine.phase_step}",
                hint="the base does not belong to this position of the plan",
            )
        self._engine.apply_policy(grant.policy)
        for directive in grant.directives:
            self._direct(str(directive[0]), dict(directive[1]))

    def _direct(self, kind: str, args: dict[str, Any]) -> None:
        if kind == "swap":
            self._engine.swap(str(args["mode"]))
        elif kind == "kd":
            self._engine.set_kd(**args)
        elif kind == "prune":
            self._engine.prune(float(args["sparsity"]))
            self._dispatcher.fire("on_prune")
        else:
            raise RecurosError("E1-NOSYS", f"the learner knows no directive {kind!r}", hint="swap, kd or prune")

    def _refuse_tainted(self) -> None:
        if self._dispatcher.tainted:
            reason, self._dispatcher.tainted = self._dispatcher.tainted, ""
            raise RecurosError("E9-INTEGRITY", f"a probe overwrote the step: {reason}", hint="the probe is evicted")

    # --- staging and rolling back ------------------------------------------------------------------------------------------

    def _begin_stage(self, window: int, leaves: Mapping[str, Leaf]) -> tuple[Begun, int]:
        """Send the snapshot to the archivist; only objects it has not had from us travel."""
        refs = {path: leaf.id for path, leaf in leaves.items()}
        new = {leaf.id: leaf for leaf in leaves.values() if leaf.id not in self._stored}
        index: list[list[Any]] = []
        parts: list[tuple[int, memoryview]] = []
        size = 0
        for name, leaf in new.items():
            index.append([name, leaf.dtype, list(leaf.shape), size, leaf.data.nbytes])
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

    def _offer_trace(self, trace: Trace) -> int:
        if not trace:
            return 0
        page = pack_arrays([(n, DTYPES[trace[n].dtype], tuple(trace[n].shape), byte_view(trace[n])) for n in COLUMNS])
        try:
            return self._kernel.offer(page)
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

    def _refuse(self, grant: Grant) -> None:
        self._kernel.release(grant.page)
        self._kernel.syscall(
            "window_rolled_back",
            window=grant.window,
            code="E9-INTEGRITY",
            reason=f"the grant names base {grant.base}, the learner holds {self._state.root}",
            restored=self._state.root,
        )

    def _read(self, snapshot: str) -> dict[str, Leaf]:
        """A snapshot's leaves from the store, each checked against its id."""
        if self._reader is None:
            self._reader = Store.open_reader(str(self._kernel.config["store"]))
        self._reader.refresh()
        leaves: dict[str, Leaf] = {}
        for path, name in self._reader.snapshot(snapshot).items():
            stored = self._reader.get(name)
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
            "step_ms": step_ns / count / 1e6,
            "teacher_params": self._engine.param_count("teacher"),
            "student_params": self._engine.param_count("student"),
            "generation": self._engine.generation,
            "temperature": self._engine.kd.temperature,
            "mix": self._engine.kd.mix,
            "alpha": self._engine.kd.alpha,
        }
        for name in terms:
            values = [m.terms[name] for m in done if name in m.terms]
            metrics[name] = sum(values) / len(values)
        return metrics

    def _maps_now(self) -> dict[int, dict[str, Any]]:
        return {row["id"]: self._dispatcher.maps(row["id"]) for row in self._dispatcher.stats()}

    def _maps_report(self) -> dict[str, Any]:
        return {
            str(row["id"]): {"program": row["program"], "hook": row["hook"], "map": self._dispatcher.maps(row["id"])}
            for row in self._dispatcher.stats()
        }

    def _restore_maps(self, maps: dict[int, dict[str, Any]]) -> None:
        """What probes counted in a window that did not happen is taken back; probes attached meanwhile keep theirs."""
        attached = {row["id"] for row in self._dispatcher.stats()}
        for probe, document in maps.items():
            if probe in attached:
                self._dispatcher.restore(probe, document)


def _batches(page: ReadPage, steps: int) -> list[dict[str, Array]]:
    """The columns of each micro-step: page arrays "b<i>/<column>"; E2-DATA when a step has none."""
    arrays, _ = unpack_arrays(page.view)
    batches: list[dict[str, Array]] = [{} for _ in range(steps)]
    for name, array in arrays.items():
        step, _, column = name.partition("/")
        number = int(step[1:]) if step[1:].isdigit() else -1
        if 0 <= number < steps:
            batches[number][column] = array
    for number, columns in enumerate(batches):
        if not columns:
            raise RecurosError("E2-DATA", f"the window's page holds no batch {number} of {steps}")
    return batches


def main() -> int:
    """Serve until drained."""
    return serve("learner", LearnerService)
