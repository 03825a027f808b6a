"""Stage 4: distillation, as replay windows of the runtime's learner.

Responsible for: the teacher's cached targets (one teacher loaded at a time), the app manifest of each job, booting the runtime on it,
and reading the trained part back from the store by its last committed snapshot. Jobs: the backbone, on all capabilities that may reach
it; then one adapter each, with the backbone frozen outside the model that the learner trains. Refuses: data of a gated capability in
the backbone's job; a job whose plan did not commit to its end.

With `training.engine = "in-process"` the same engine runs the same batches in this process, without deadlines and ledger of windows:
for tests and small machines; the stage's record says which path was in force.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from nexus.app import CapabilityTable
from nexus.context import Context, read_json, replace_folder, write_json
from nexus.data import teachers
from nexus.data.samples import SPLITS, Samples, score
from nexus.model.student import NexusStudent
from nexus.model.tokenizer import PAD
from nexus.quiet import quiet
from nexus.servers import models, targets
from nexus.servers.models import load_student
from nexus.stages.profile import planned_rank
from nexus.stages.scope import restore
from syscalls.errors import RecurosError

POLL_S = 0.25
SAY_STEPS = 10


@dataclass(frozen=True)
class Job:
    """One thing to train. `adapter` "" is the backbone."""

    name: str
    adapter: str
    rank: int
    layers: list[int] | None
    data: Path
    steps: int
    batch: int
    lr: float


# Targets


def cache_path(ctx: Context, capability: str) -> Path:
    """Where a capability's targets lie until the teacher is removed."""
    found: Path = ctx.paths.cache / f"{capability}.safetensors"
    return found


def synthesize(ctx: Context, capability: CapabilityTable) -> Path:
    """Targets and the teacher's own per-item scores, recorded before anything is deleted."""
    path = cache_path(ctx, capability.name)
    marks = scores_path(ctx, capability.name)
    if path.is_file() and marks.is_file():
        return path
    table = ctx.app.teacher(capability.teacher)
    teacher = teachers.load(table, restore(ctx, table))
    data = ctx.data(capability.name)
    metric = ctx.metric(capability.name)
    what = f"targets {capability.name}"
    if not marks.is_file():
        found = {s: teacher.scores(data[s], metric, ctx.progress, what) for s in ("validation", "test")}
        save_scores(marks, found)
    splits = {}
    half = max(1, len(data["validation"]) // 2)
    parts = {
        "train": data["train"],
        "validation": data["validation"].head(half),
        "test": data["validation"].take(slice(half, None))
        if len(data["validation"]) > half
        else data["validation"].head(half),
    }
    for split, samples in parts.items():
        made = teacher.targets(samples, ctx.app.table.training.top_k, ctx.progress, what)
        splits[split] = columns(samples, made)
    part = path.with_suffix(".part")
    targets.save(part, splits)
    part.rename(path)
    return path


def columns(samples: Samples, made: teachers.Targets) -> dict[str, NDArray[Any]]:
    """As nexus.servers.targets keeps them."""
    return {
        "ids": samples.ids,
        "scored": samples.scored,
        "lengths": samples.lengths,
        "top_ids": made.top_ids,
        "top_logp": made.top_logp,
    }


def scores_path(ctx: Context, capability: str) -> Path:
    """The teacher's per-item scores, which outlive it."""
    found: Path = ctx.paths.gate / "teacher_scores" / f"{capability}.json"
    return found


def save_scores(path: Path, found: dict[str, NDArray[np.float64]]) -> None:
    """Split -> per-item scores."""
    write_json(path, {split: [round(float(v), 6) for v in values] for split, values in found.items()})


def teacher_scores(ctx: Context, capability: str, split: str) -> NDArray[np.float64]:
    """Its inverse."""
    return np.asarray(read_json(scores_path(ctx, capability))[split], dtype=np.float64)


def merged(ctx: Context, names: list[str]) -> Path:
    """The targets of several capabilities as one set, padded to one width."""
    path: Path = ctx.paths.cache / "backbone.safetensors"
    if path.is_file():
        return path
    tables = [targets.load({"name": targets.NAME, "path": str(cache_path(ctx, name))}, {}) for name in names]
    width = max(t.splits["train"]["ids"].shape[1] for t in tables)
    splits = {}
    for split in SPLITS:
        parts = [{n: _widen(n, v, width) for n, v in t.splits[split].items()} for t in tables]
        splits[split] = {n: np.concatenate([p[n] for p in parts]) for n in parts[0]}
    part = path.with_suffix(".part")
    targets.save(part, splits)
    part.rename(path)
    return path


def _widen(name: str, values: NDArray[Any], width: int) -> NDArray[Any]:
    if values.ndim == 1:
        return values
    fill = {"ids": PAD, "top_logp": math.log(1 / 512)}.get(name, 0)
    pads = [(0, 0), (0, width - values.shape[1])] + [(0, 0)] * (values.ndim - 2)
    wide: NDArray[Any] = np.pad(values, pads, constant_values=fill)
    if name == "top_ids":
        wide[:, values.shape[1] :] = np.arange(values.shape[2])
    return wide


# The backbone and the adapters


def distill(ctx: Context) -> None:
    """Train what is not trained: the backbone once, then every open capability's adapter."""
    if not (ctx.paths.backbone / "config.json").is_file() or 4 not in ctx.cap(BACKBONE).done:
        train_backbone(ctx)
    for capability in ctx.live():
        if 4 not in ctx.cap(capability.name).done and ctx.cap(capability.name).status != "passed":
            train_adapter(ctx, capability)


BACKBONE = "backbone"
"""The name under which the backbone's job is recorded; no capability may have it."""


def train_backbone(ctx: Context) -> None:
    """Distil the backbone from the public capabilities together."""
    public = [c for c in ctx.live() if c.backbone and not c.gated]
    if gated := [c.name for c in public if c.gated or c.tier == 3]:
        raise RecurosError("E5-DENIED", f"{gated[0]!r} is gated; its data never reach the backbone")
    training = ctx.app.table.training
    with ctx.stage(4, BACKBONE) as work:
        for capability in public:
            synthesize(ctx, capability)
        data = merged(ctx, [c.name for c in public])
        job = Job(BACKBONE, "", 0, None, data, training.steps, training.batch, training.lr)
        state, figures = train(ctx, job, ctx.paths.student)
        student = load_student(ctx.paths.student)
        student.backbone.load_state_dict(state, strict=False)
        student.backbone.tie_weights()
        part = ctx.paths.checkpoints / "backbone.part"
        with quiet():
            student.save_pretrained(part)
        replace_folder(part, ctx.paths.backbone)
        work.wrote([ctx.paths.backbone])
        work.figures = {**figures, "capabilities": [c.name for c in public]}


def train_adapter(ctx: Context, capability: CapabilityTable) -> None:
    """Distil one adapter; nothing else changes."""
    training, state = ctx.app.table.training, ctx.cap(capability.name)
    plan = planned_rank(ctx, capability.name)
    with ctx.stage(4, capability.name) as work:
        steps = state.steps or capability.steps or training.adapter_steps
        rank = state.rank or plan["rank"]
        name = f"{capability.name}-{state.attempt}"
        data = synthesize(ctx, capability)
        lr = capability.lr or training.adapter_lr
        job = Job(name, capability.name, rank, plan.get("layers"), data, steps, training.adapter_batch, lr)
        tensors, figures = train(ctx, job, ctx.paths.backbone)
        path = adapter_path(ctx, capability.name)
        save_adapter(path, tensors, rank, job.layers)
        work.wrote([path])
        work.figures = {**figures, "rank": rank, "steps": steps}


def adapter_path(ctx: Context, capability: str) -> Path:
    """The current adapter of a capability."""
    found: Path = ctx.paths.checkpoints / f"{capability}.safetensors"
    return found


def save_adapter(path: Path, tensors: dict[str, torch.Tensor], rank: int, layers: list[int] | None) -> None:
    """An adapter with its shape."""
    from safetensors.torch import save_file

    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    save_file(
        {k: v.contiguous() for k, v in tensors.items()},
        str(part),
        metadata={"rank": str(rank), "layers": json.dumps(layers)},
    )
    part.rename(path)


def assemble(ctx: Context, names: list[str]) -> NexusStudent:
    """The backbone with the current adapters of `names`, none acting."""
    from safetensors import safe_open

    student = load_student(ctx.paths.backbone)
    for name in names:
        with safe_open(str(adapter_path(ctx, name)), framework="pt") as file:
            about = file.metadata()
            adapter = student.add_adapter(name, int(about["rank"]), layers=json.loads(about["layers"]))
            adapter.load_state_dict({key: file.get_tensor(key) for key in file.keys()})  # noqa: SIM118
    student.requires_grad_(False)
    return student


def logits_of(student: NexusStudent, adapter: str | None) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """The student's logits with one adapter acting."""

    def logits(ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        student.set_adapter(adapter)
        out: torch.Tensor = student(input_ids=ids, attention_mask=mask, use_cache=False).logits
        return out

    return logits


def student_scores(student: NexusStudent, adapter: str | None, samples: Samples, metric: str) -> NDArray[np.float64]:
    """Per-item scores of the student with one adapter."""
    return score(logits_of(student, adapter), samples, metric)


# Training a job


def train(ctx: Context, job: Job, student: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """The trained tensors by name, and figures that name the path in force."""
    if ctx.app.table.training.engine == "in-process":
        return _in_process(ctx, job, student)
    return _windows(ctx, job, student)


def spec_of(ctx: Context, job: Job, student: Path) -> dict[str, Any]:
    """The model tables of a job."""
    options: dict[str, Any] = {"path": str(student)}
    if job.adapter:
        options |= {"adapter": job.adapter, "rank": job.rank, "seed": ctx.app.seed}
        if job.layers is not None:
            options["layers"] = job.layers
    return {
        "teacher": anchored(ctx, job) or {"kind": "app", "name": "nexus-cache", "options": {}},
        "student": {"kind": "app", "name": "nexus-student", "options": options},
    }


def anchored(ctx: Context, job: Job) -> dict[str, Any] | None:
    """The live teacher of an adapter's job with its profile's directions, where the app asks for the anchor."""
    kind = ctx.app.table.training.anchor
    if kind == "none" or not job.adapter or job.adapter not in {c.name for c in ctx.live()}:
        return None
    capability = ctx.app.capability(job.adapter)
    table = ctx.app.teacher(capability.teacher)
    if table.mode != "causal" or table.tokenizer != "bytes":
        return None
    folder = ctx.paths.profiles / table.id / job.adapter
    bases = {
        str(read_json(f)["layer"]): str(f).replace("_meta.json", "_basis.npz")
        for f in sorted(folder.glob("*_meta.json"))
    }
    spec = table.model_dump(by_alias=True, exclude_none=True, exclude={"make", "command", "url", "package"})
    options = {
        "teacher": spec,
        "path": str(restore(ctx, table)),
        "bases": bases,
        "random": kind == "random",
        "seed": ctx.app.seed,
    }
    return {"kind": "app", "name": "nexus-anchored", "options": options}


def kd_of(ctx: Context, job: Job) -> dict[str, Any]:
    """The loss of a job: outputs alone, or with the anchor on the profile's layers."""
    training = ctx.app.table.training
    kd: dict[str, Any] = {"temperature": 1.0, "alpha": 0.0, "mix": training.mix}
    teacher = anchored(ctx, job)
    if teacher is not None:
        module_layers = int(read_json(Path(teacher["options"]["path"]) / "config.json")["num_hidden_layers"])
        depth = ctx.app.table.student.layers
        pairs = [[max(1, round((int(n) + 1) * depth / module_layers)), int(n) + 1] for n in teacher["options"]["bases"]]
        kd |= {"alpha": training.anchor_alpha, "layer_map": pairs}
    return kd


def manifest_of(ctx: Context, job: Job, student: Path) -> str:
    """The app manifest of a job, as TOML."""
    training = ctx.app.table.training
    window = min(training.window, job.steps)
    spec = spec_of(ctx, job, student)
    lines = [
        f"# Stage 4 of {ctx.app.table.app.name}: {job.name}. Written by recuros nexus.",
        "[app]",
        f'name = "nexus-{job.name}"',
        f"seed = {ctx.app.seed}",
        "eval-every = 0",
        "[window]",
        f"steps = {window}",
        f"budget-ms = {training.deadline_ms // 2}",
        f"period-ms = {training.deadline_ms}",
        f"deadline-ms = {training.deadline_ms}",
        "[[phase]]",
        'name = "distil"',
        'train = "student"',
        f"windows = {windows_of(ctx, job)}",
        f"lr = {job.lr}",
        f"warmup-steps = {min(20, job.steps // 4)}",
        "[optimizer]",
        "betas = [0.9, 0.98]",
        "weight-decay = 0.01",
        "[kd]",
        *(f"{key.replace('_', '-')} = {json.dumps(value)}" for key, value in kd_of(ctx, job).items()),
        "[policy]",
        'pack = "static"',
        "[data]",
        'kind = "app"',
        f'name = "{targets.NAME}"',
        f"path = {json.dumps(str(job.data))}",
        f"batch = {job.batch}",
        "[model.teacher]",
        'kind = "app"',
        f'name = "{spec["teacher"]["name"]}"',
        *_options("model.teacher", spec["teacher"]["options"]),
        "[model.student]",
        'kind = "app"',
        'name = "nexus-student"',
        *_options("model.student", spec["student"]["options"]),
        *(f'[server.{name}]\nentry = "nexus.servers.{name}"' for name in ("learner", "dataset", "observer")),
    ]
    return "\n".join(lines) + "\n"


def _options(table: str, options: dict[str, Any], key: str = "options") -> list[str]:
    """A table of TOML, with the tables in it."""
    flat = {k: v for k, v in options.items() if not isinstance(v, dict)}
    lines = [f"[{table}.{key}]", *(f"{k} = {json.dumps(v)}" for k, v in flat.items())]
    for name, value in options.items():
        if isinstance(value, dict):
            lines += _options(f"{table}.{key}", value, name)
    return lines


def windows_of(ctx: Context, job: Job) -> int:
    """How many windows make the job's steps."""
    return max(1, -(-job.steps // min(ctx.app.table.training.window, job.steps)))


def _windows(ctx: Context, job: Job, student: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Boot the runtime on the job, or resume it, follow it to its end, and read the student from its store."""
    import recuros

    run: Path = ctx.paths.windows / job.name
    run.mkdir(parents=True, exist_ok=True)
    manifest = run / "app.toml"
    manifest.write_text(manifest_of(ctx, job, student), encoding="utf-8")
    planned = windows_of(ctx, job)
    if _committed(run) < planned:
        with recuros.boot(run=run, config=manifest) as runtime:
            while not runtime.ended:
                status = runtime.status()
                ctx.progress(f"distil {job.name}", int(status.get("done_windows", -1)) + 1, planned)
                if status.get("error"):
                    raise RecurosError.from_wire(status["error"])
                if status.get("state") == "done":
                    break
                runtime.event(POLL_S)
            runtime.halt()
    done = _committed(run)
    if done < planned:
        raise RecurosError(
            "E7-MISSED",
            f"job {job.name!r} committed {done} of {planned} windows",
            hint=f"recuros --run {run} report; then run again",
        )
    ctx.progress(f"distil {job.name}", planned, planned)
    return read_snapshot(run)


def _committed(run: Path) -> int:
    from kfs.records import RecordKind
    from kfs.store import Store

    if not (run / "store" / "FORMAT").is_file():
        return 0
    with Store.open_reader(run / "store") as store:
        return len({r.args["window"] for r in store.records() if r.kind is RecordKind.WINDOW_COMMIT})


def read_snapshot(run: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """The student of the last committed window: parameter name -> tensor."""
    from kfs.checkout import tensors_of
    from kfs.records import RecordKind
    from kfs.store import Store

    with Store.open_reader(run / "store") as store:
        kinds = [RecordKind.WINDOW_COMMIT, RecordKind.WINDOW_MISS, RecordKind.WINDOW_ROLLBACK]
        rows = [r for r in store.records() if r.kind in kinds]
        commits = [r for r in rows if r.kind is RecordKind.WINDOW_COMMIT]
        root = str(commits[-1].result_snap)
        found = {}
        for name, ref in tensors_of(store.snapshot(root), "student").items():
            stored = store.get(ref)
            array = np.frombuffer(bytes(stored.data), dtype=np.float32).reshape(stored.shape)
            found[name] = torch.from_numpy(array.copy())
        figures = {
            "path": "windows",
            "windows": len(commits),
            "missed": sum(r.kind is RecordKind.WINDOW_MISS for r in rows),
            "rollbacks": sum(r.kind is RecordKind.WINDOW_ROLLBACK for r in rows),
            "snapshot": root,
            "store": store.format.store_id,
            "loss": float(commits[-1].args["metrics"].get("loss", math.nan)),
        }
        if "hint" in commits[0].args["metrics"]:
            ends = (commits[0], commits[-1])
            figures |= dict(
                zip(("anchor_first", "anchor_last"), (float(c.args["metrics"]["hint"]) for c in ends), strict=True)
            )
    return found, figures


def _in_process(ctx: Context, job: Job, student: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    from servers.dataset.stream import Stream
    from servers.learner.engine import Engine

    models.register()
    threads = torch.get_num_threads()
    deterministic = torch.are_deterministic_algorithms_enabled()
    kd = kd_of(ctx, job)
    optimizer = {"betas": [0.9, 0.98], "weight_decay": 0.01}
    try:
        with torch.random.fork_rng(devices=[]):
            engine = Engine({**spec_of(ctx, job, student), "kd": kd, "optimizer": optimizer}, ctx.app.seed)
            table = targets.load({"name": targets.NAME, "path": str(job.data)}, {})
            stream = Stream(table, ctx.app.seed, job.batch)
            window = min(ctx.app.table.training.window, job.steps)
            total = windows_of(ctx, job) * window
            phase = {"name": "distil", "index": 0, "train": "student", "steps_total": total, "lr": job.lr}
            engine.begin({**phase, "warmup_steps": min(20, job.steps // 4)})
            loss, anchor = math.nan, []
            for step in range(total):
                batch, _ = stream.make("distil", step, None)
                done = engine.micro_step({name: torch.from_numpy(values) for name, values in batch.items()})
                loss = done.loss
                anchor += [done.terms["hint"]] if "hint" in done.terms else []
                if step % SAY_STEPS == SAY_STEPS - 1 or step + 1 == total:
                    ctx.progress(f"distil {job.name}", step + 1, total)
            module = engine.roles["student"].model.module
            found = {name: p.detach().clone() for name, p in module.named_parameters()}
            figures: dict[str, Any] = {"path": "in-process", "steps": total, "loss": loss, "digest": engine.digest()}
            if anchor:
                tenth = max(1, len(anchor) // 10)
                figures |= {
                    "anchor_first": float(np.mean(anchor[:tenth])),
                    "anchor_last": float(np.mean(anchor[-tenth:])),
                }
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(deterministic)
    return found, figures
