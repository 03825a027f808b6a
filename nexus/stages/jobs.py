"""A job of stage 4: what is trained, by what settings, and the runs of it, in windows of the runtime or in this process.

Responsible for: the app manifest of a job, booting the runtime on it, the watch over its anchor error, and reading the trained part back
from its store. Refuses: a job whose plan did not commit to its end.

With `training.engine = "in-process"` the same engine runs the same batches in this process, without deadlines and ledger of windows:
for tests and small machines; the stage's record says which path was in force.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from kfs.records import Record, RecordKind
from nexus.context import Context
from nexus.servers import models, targets
from nexus.stages import anchor
from nexus.stages.guard import Guard, Seen
from syscalls.errors import RecurosError

POLL_S: Final = 0.25
SAY_STEPS: Final = 10
BETAS: Final = (0.9, 0.98)
WEIGHT_DECAY: Final = 0.01
PHASE: Final = "distil"
EDGE: Final = "4->4"
Trained = tuple[dict[str, torch.Tensor], dict[str, Any]]
"""The trained tensors by name, and figures that name the path in force."""


@dataclass(frozen=True)
class Job:
    """One thing to train. `adapter` "" is the backbone; with `joint` (capability -> adapter file) the backbone and those adapters."""

    name: str
    adapter: str
    rank: int
    layers: list[int] | None
    data: Path
    steps: int
    batch: int
    lr: float
    joint: dict[str, Path] = field(default_factory=dict)


@dataclass(frozen=True)
class Plan:
    """A job with its models and its loss. `guard`: None where there is no anchor to watch; `why`: then the reason."""

    job: Job
    models: dict[str, Any]
    kd: dict[str, Any]
    window: int
    windows: int
    alpha: float = 0.0
    why: str = ""

    def guard(self) -> Guard | None:
        """A fresh watch over the anchor error."""
        return Guard(self.alpha) if self.alpha > 0 else None


def train(ctx: Context, job: Job, student: Path) -> Trained:
    """Train the job on the student in a directory."""
    plan = plan_of(ctx, job, student)
    training = ctx.app.table.training
    found, figures = _in_process(ctx, plan) if training.engine == "in-process" else _windows(ctx, plan)
    if plan.why:
        figures["anchor"] = {"verdict": "off", "why": plan.why}
    figures["reserved"] = bool(plan.models["student"]["options"].get("reserved"))
    return found, figures


def plan_of(ctx: Context, job: Job, student: Path) -> Plan:
    """Models and loss of a job: output, with the anchors where the app asks for them and the teacher allows."""
    training = ctx.app.table.training
    window = min(training.window, job.steps)
    windows = max(1, -(-job.steps // window))
    kd: dict[str, Any] = {"temperature": 1.0, "alpha": 0.0, "mix": training.mix}
    cached = {"kind": "app", "name": "nexus-cache", "options": {}}
    if job.joint:
        options: dict[str, Any] = {"path": str(student), "names": list(job.joint)}
        options["files"] = [str(path) for path in job.joint.values()]
        pair = {"teacher": cached, "student": {"kind": "app", "name": "nexus-joint", "options": options}}
        return Plan(job, pair, kd, window, windows, why="the rows of a joint job have several teachers")
    options = {"path": str(student)}
    if job.adapter:
        options |= {"adapter": job.adapter, "rank": job.rank, "seed": ctx.app.seed}
        if job.layers is not None:
            options["layers"] = job.layers
    pair = {"teacher": cached, "student": {"kind": "app", "name": "nexus-student", "options": options}}
    found = anchor.teacher_of(ctx, job.adapter) if job.adapter else None
    if found is None:
        return Plan(job, pair, kd, window, windows, why=_no_anchor(ctx, job))
    if training.reserve and (rows := anchor.reserve(ctx, found, job.adapter, job.rank, job.name, student)):
        options["reserved"] = str(rows)
    if training.anchor == "none":
        return Plan(job, pair, kd, window, windows, why=_no_anchor(ctx, job))
    alpha = ctx.cap(job.adapter).alpha or training.anchor_alpha
    kd |= anchor.settings(ctx, found, alpha)
    pair["teacher"] = anchor.spec_of(ctx, found)
    if training.anchor_beta > 0:
        options["attention"] = True
    return Plan(job, pair, kd, window, windows, alpha)


def _no_anchor(ctx: Context, job: Job) -> str:
    if ctx.app.table.training.anchor == "none":
        return 'anchor = "none"'
    if not job.adapter:
        return "the backbone has several teachers"
    return "the teacher has no profile in the student's positions"


# In windows


def manifest_of(ctx: Context, plan: Plan) -> str:
    """The app manifest of a job, as TOML."""
    training, job = ctx.app.table.training, plan.job
    lines = [
        f"# Stage 4 of {ctx.app.table.app.name}: {job.name}. Written by recuros nexus.",
        "[app]",
        f'name = "nexus-{job.name}"',
        f"seed = {ctx.app.seed}",
        f"eval-every = {0 if training.policy.pack == 'static' else training.eval_every}",
        "[window]",
        f"steps = {plan.window}",
        f"budget-ms = {training.deadline_ms // 2}",
        f"period-ms = {training.deadline_ms}",
        f"deadline-ms = {training.deadline_ms}",
        "[[phase]]",
        f'name = "{PHASE}"',
        'train = "student"',
        f"windows = {plan.windows}",
        f"lr = {job.lr}",
        f"warmup-steps = {warmup(job)}",
        "[optimizer]",
        f"betas = {list(BETAS)}",
        f"weight-decay = {WEIGHT_DECAY}",
        "[kd]",
        *(f"{key.replace('_', '-')} = {json.dumps(value)}" for key, value in plan.kd.items()),
        "[policy]",
        *(f"{key} = {json.dumps(value)}" for key, value in training.policy.said().items()),
        "[data]",
        'kind = "app"',
        f'name = "{targets.NAME}"',
        f"path = {json.dumps(str(job.data))}",
        f"batch = {job.batch}",
        *_model("teacher", plan.models["teacher"]),
        *_model("student", plan.models["student"]),
        *(f'[server.{name}]\nentry = "nexus.servers.{name}"' for name in ("learner", "dataset", "observer")),
    ]
    return "\n".join(lines) + "\n"


def warmup(job: Job) -> int:
    """Steps of linear rise."""
    return min(20, job.steps // 4)


def _model(role: str, spec: dict[str, Any]) -> list[str]:
    lines = [f"[model.{role}]", 'kind = "app"', f'name = "{spec["name"]}"']
    return lines + _options(f"model.{role}", spec["options"])


def _options(table: str, options: dict[str, Any], key: str = "options") -> list[str]:
    """A table of TOML, with the tables in it."""
    flat = {k: v for k, v in options.items() if not isinstance(v, dict)}
    lines = [f"[{table}.{key}]", *(f"{k} = {json.dumps(v)}" for k, v in flat.items())]
    for name, value in options.items():
        if isinstance(value, dict):
            lines += _options(f"{table}.{key}", value, name)
    return lines


class JobLedger:
    """The ledger of a job's run directory, read as it grows."""

    def __init__(self, run: Path, guard: Guard | None) -> None:
        self.run, self.guard = run, guard
        self.commits: dict[int, Record] = {}
        self.counts: dict[RecordKind, int] = {}
        self.policies: list[Record] = []
        self._at = 0

    def read(self) -> int:
        """Fold what is new in; how many windows are committed."""
        from kfs.store import Store

        if not (self.run / "store" / "FORMAT").is_file():
            return 0
        with Store.open_reader(self.run / "store") as store:
            for seq in range(self._at, store.size):
                self._fold(store.record(seq))
            self._at = store.size
        return len(self.commits)

    def _fold(self, record: Record) -> None:
        self.counts[record.kind] = self.counts.get(record.kind, 0) + 1
        guard, args = self.guard, record.args
        match record.kind:
            case RecordKind.WINDOW_COMMIT:
                self.commits[int(args["window"])] = record
                if guard is not None and "hint" in args["metrics"]:
                    guard.committed(int(args["window"]), float(args["metrics"]["hint"]), str(record.result_snap))
            case RecordKind.RESTORE if guard is not None:
                guard.restored(str(args["snapshot"]))
            case RecordKind.KD_SET if guard is not None and float(args["alpha"]) >= 0:
                guard.weighed(float(args["alpha"]))
            case RecordKind.POLICY if args["settings"]:
                self.policies.append(record)

    @property
    def last(self) -> Record:
        """The commit of the newest window."""
        return self.commits[max(self.commits)]


def _windows(ctx: Context, plan: Plan) -> Trained:
    """Boot the runtime on the job, or resume it, follow it to its end, and read the student from its store."""
    job = plan.job
    run: Path = ctx.paths.windows / job.name
    run.mkdir(parents=True, exist_ok=True)
    guard = plan.guard()
    ledger = JobLedger(run, guard)
    if not ledger.read():  # a job that has begun goes on by the manifest that it began with
        (run / "app.toml").write_text(manifest_of(ctx, plan), encoding="utf-8")
    if ledger.read() < plan.windows and not (guard and guard.spent):
        _follow(ctx, plan, run, ledger)
    done = ledger.read()
    ends_early = guard is not None and guard.spent
    if done < plan.windows and not ends_early:
        raise RecurosError(
            "E7-MISSED",
            f"job {job.name!r} committed {done} of {plan.windows} windows",
            hint=f"recuros --run {run} report; then run again",
        )
    ctx.progress(f"distil {job.name}", plan.windows, plan.windows)
    root = _end(ctx, plan, guard, str(ledger.last.result_snap))
    return read_snapshot(run, root), _figures(plan, ledger, root)


def _follow(ctx: Context, plan: Plan, run: Path, ledger: JobLedger) -> None:
    import recuros

    what = f"distil {plan.job.name}"
    with recuros.boot(run=run, config=run / "app.toml") as runtime:
        while not runtime.ended:
            status = runtime.status()
            ctx.progress(what, int(status.get("done_windows", -1)) + 1, plan.windows)
            if status.get("error"):
                raise RecurosError.from_wire(status["error"])
            if ledger.guard is not None and ledger.read() and ledger.guard.lost is not None:
                if ledger.guard.spent:
                    break
                if len(ledger.commits) < plan.windows:
                    _go_back(ctx, plan, runtime, ledger)
            if status.get("state") == "done":
                break
            runtime.event(POLL_S)
        runtime.halt()


def _go_back(ctx: Context, plan: Plan, runtime: Any, ledger: JobLedger) -> None:
    """The failure loop of stage 4: pause, name the state, return to the best window, pull harder, go on."""
    guard, client = ledger.guard, runtime.client
    assert guard is not None
    assert guard.lost is not None
    reason = lost_by(guard)
    client.interrupt(kind="pause", reason=reason)
    while not runtime.ended and (status := runtime.status()).get("window") and not status.get("error"):
        runtime.event(POLL_S)
    ledger.read()
    best, lost = guard.best, guard.lost
    if best is None or len(ledger.commits) >= plan.windows:  # the last windows were under way; the job's end sees to it
        client.interrupt(kind="resume", reason="the plan is complete")
        return
    named = client.rl_snapshot(name=f"anchor error at window {lost.window}")["snapshot"]
    alpha = guard.alpha
    if not guard.raised:
        alpha = guard.next_alpha
        client.rl_set_kd(alpha=alpha)
    client.rl_restore(snapshot=best.root)
    note(ctx, plan, reason, best, {"alpha": alpha, "snapshot": named})
    client.interrupt(kind="resume", reason=f"back at window {best.window} with anchor weight {alpha:g}")
    ledger.read()


def lost_by(guard: Guard) -> str:
    """What happened, in words."""
    lost, best = guard.lost, guard.best
    if lost is None or best is None:
        return ""
    return (
        f"anchor error {lost.rolling:.4f} at window {lost.window} is more than 10 % above its best, "
        f"{best.rolling:.4f} at window {best.window}"
    )


def note(ctx: Context, plan: Plan, reason: str, best: Seen, change: dict[str, Any]) -> None:
    """The loop as a record of the run's own ledger."""
    args = {
        "edge": EDGE,
        "capability": plan.job.adapter,
        "attempt": ctx.cap(plan.job.adapter).attempt,
        "reason": reason,
        "change": {**change, "window": best.window, "restored": best.root},
    }
    ctx.ledger.append(RecordKind.NEXUS_LOOP, args)


def _end(ctx: Context, plan: Plan, guard: Guard | None, last: str) -> str:
    """The state that the job ends with: its last, or its best where the anchor error is lost at the end."""
    if guard is None or guard.lost is None or guard.best is None:
        return last
    reason, best = lost_by(guard), guard.best
    guard.restored(best.root)
    note(ctx, plan, f"{reason}; the job ends there", best, {})
    return best.root


def read_snapshot(run: Path, root: str) -> dict[str, torch.Tensor]:
    """The student of a snapshot: parameter name -> tensor."""
    from kfs.checkout import tensors_of
    from kfs.store import Store

    found = {}
    with Store.open_reader(run / "store") as store:
        for name, ref in tensors_of(store.snapshot(root), "student").items():
            stored = store.get(ref)
            array = np.frombuffer(bytes(stored.data), dtype=np.float32).reshape(stored.shape)
            found[name] = torch.from_numpy(array.copy())
    return found


def _figures(plan: Plan, ledger: JobLedger, root: str) -> dict[str, Any]:
    from kfs.store import Store

    with Store.open_reader(ledger.run / "store") as store:
        store_id = store.format.store_id
    figures: dict[str, Any] = {
        "path": "windows",
        "windows": len(ledger.commits),
        "missed": ledger.counts.get(RecordKind.WINDOW_MISS, 0),
        "rollbacks": ledger.counts.get(RecordKind.WINDOW_ROLLBACK, 0),
        "snapshot": root,
        "store": store_id,
        "loss": float(ledger.last.args["metrics"].get("loss", math.nan)),
        "policy": {"pack": ledger.policies[-1].args["pack"] if ledger.policies else "static"},
    }
    figures["policy"]["decisions"] = len(ledger.policies)
    if ledger.guard is not None:
        figures["anchor"] = ledger.guard.summary()
    return figures


# In this process


def _in_process(ctx: Context, plan: Plan) -> Trained:
    from servers.dataset.stream import Stream
    from servers.learner.engine import Engine

    models.register()
    threads = torch.get_num_threads()
    deterministic = torch.are_deterministic_algorithms_enabled()
    optimizer = {"betas": list(BETAS), "weight_decay": WEIGHT_DECAY}
    try:
        with torch.random.fork_rng(devices=[]):
            engine = Engine({**plan.models, "kd": plan.kd, "optimizer": optimizer}, ctx.app.seed)
            table = targets.load({"name": targets.NAME, "path": str(plan.job.data)}, {})
            guard = plan.guard()
            losses = list(_steps(ctx, plan, engine, Stream(table, ctx.app.seed, plan.job.batch), guard))
            module = engine.roles["student"].model.module
            found = {name: p.detach().clone() for name, p in module.named_parameters()}
            figures: dict[str, Any] = {
                "path": "in-process",
                "steps": len(losses) * plan.window,
                "loss": losses[-1],
                "digest": engine.digest(),
                "policy": {"pack": "static", "decisions": 0},
            }
            if guard is not None:
                figures["anchor"] = guard.summary()
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(deterministic)
    return found, figures


def _steps(ctx: Context, plan: Plan, engine: Any, stream: Any, guard: Guard | None) -> Iterator[float]:
    """The windows of a job on an engine, one loss each, with the same watch and the same way back as in the runtime."""
    from servers.learner.entry import enter

    job, total = plan.job, plan.windows * plan.window
    phase = {"name": PHASE, "index": 0, "train": "student", "steps_total": total, "lr": job.lr}
    phase["warmup_steps"] = warmup(job)
    kept: dict[str, Any] = {}
    asked: list[Any] = []
    for window in range(plan.windows):
        first = window * plan.window
        enter(engine, window, phase, first, {}, asked, lambda: None, kept.__getitem__)
        asked, errors, loss = [], [], math.nan
        for step in range(first, first + plan.window):
            batch, _ = stream.make(PHASE, step, None)
            done = engine.micro_step({name: torch.from_numpy(values) for name, values in batch.items()})
            loss = done.loss
            errors += [done.terms["hint"]] if "hint" in done.terms else []
            if step % SAY_STEPS == SAY_STEPS - 1 or step + 1 == total:
                ctx.progress(f"distil {job.name}", step + 1, total)
        yield loss
        if guard is None or not errors:
            continue
        leaves = engine.capture()
        root = engine.root_of(leaves)
        guard.committed(window, sum(errors) / len(errors), root)
        kept[root] = leaves
        kept = {s.root: kept[s.root] for s in (guard.best, guard.kept[-1]) if s is not None and s.root in kept}
        if guard.lost is None:
            continue
        best = guard.best
        assert best is not None
        if guard.spent or window + 1 == plan.windows:
            note(ctx, plan, f"{lost_by(guard)}; the job ends there", best, {})
            engine.restore(kept[best.root])
            guard.restored(best.root)
            return
        alpha, reason = guard.next_alpha, lost_by(guard)
        asked = [["kd", {"alpha": alpha}], ["restore", {"snapshot": best.root}]]
        guard.weighed(alpha)
        note(ctx, plan, reason, best, {"alpha": alpha, "snapshot": root})
        guard.restored(best.root)
