"""Stage 4: distillation, as replay windows of the runtime's learner.

Responsible for: the teacher's cached targets (one teacher loaded at a time), and the jobs in their order: the backbone, on all
capabilities that may reach it; one adapter each, with the backbone frozen outside the model that the learner trains; then, where the
app asks for it, the backbone together with the adapters that may teach it, and only after that the adapters of all others, since these
must fit the backbone as it stays. Refuses: data of a gated capability in the backbone's or the joint job.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

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
from nexus.servers import targets
from nexus.servers.models import attach_file, load_student
from nexus.stages.jobs import Job, train
from nexus.stages.profile import planned_rank
from nexus.stages.scope import restore
from syscalls.errors import RecurosError

BACKBONE: Final = "backbone"
"""The name under which the backbone's job is recorded; no capability may have it."""
JOINT: Final = "joint"
"""That of the joint job; no capability may have it either."""


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


def merged(ctx: Context, names: list[str], path: Path) -> Path:
    """The targets of several capabilities as one set, padded to one width; "owner" is a sample's place in `names`."""
    if path.is_file():
        return path
    tables = [targets.load({"name": targets.NAME, "path": str(cache_path(ctx, name))}, {}) for name in names]
    width = max(t.splits["train"]["ids"].shape[1] for t in tables)
    splits = {}
    for split in SPLITS:
        parts = [{n: _widen(n, v, width) for n, v in t.splits[split].items()} for t in tables]
        splits[split] = {n: np.concatenate([p[n] for p in parts]) for n in parts[0]}
        sizes = [len(p["ids"]) for p in parts]
        splits[split][targets.OWNER] = np.repeat(np.arange(len(names)), sizes)
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
    """Train what is not trained: the backbone once, then open adapters, with the joint job between those that share in it and the rest."""
    if not (ctx.paths.backbone / "config.json").is_file() or 4 not in ctx.cap(BACKBONE).done:
        train_backbone(ctx)
    joint = ctx.app.table.training.joint_steps > 0 and 4 not in ctx.cap(JOINT).done
    first = shared(ctx) if joint else []
    for capability in [*first, *(c for c in ctx.live() if c not in first)]:
        if joint and capability not in first:
            train_joint(ctx, first)
            joint = False
        if 4 not in ctx.cap(capability.name).done and ctx.cap(capability.name).status != "passed":
            train_adapter(ctx, capability)
    if joint:
        train_joint(ctx, first)


def shared(ctx: Context) -> list[CapabilityTable]:
    """The capabilities whose data may reach the backbone."""
    found = [c for c in ctx.live() if c.backbone and not c.gated]
    if gated := [c.name for c in found if c.gated or c.tier == 3]:
        raise RecurosError("E5-DENIED", f"{gated[0]!r} is gated; its data never reach the backbone")
    return found


def train_backbone(ctx: Context) -> None:
    """Distil the backbone from the public capabilities together."""
    public, training = shared(ctx), ctx.app.table.training
    with ctx.stage(4, BACKBONE) as work:
        for capability in public:
            synthesize(ctx, capability)
        names = [c.name for c in public]
        data = merged(ctx, names, ctx.paths.cache / f"{BACKBONE}.safetensors")
        job = Job(BACKBONE, "", 0, None, data, training.steps, training.batch, training.lr)
        state, figures = train(ctx, job, ctx.paths.student)
        _save_backbone(ctx, ctx.paths.student, state)
        work.figures = {**figures, "capabilities": names}
        work.wrote([ctx.paths.backbone, summary(ctx, BACKBONE, work.figures)])


def _save_backbone(ctx: Context, base: Path, state: dict[str, torch.Tensor]) -> None:
    student = load_student(base)
    student.backbone.load_state_dict(state, strict=False)
    student.backbone.tie_weights()
    part = ctx.paths.checkpoints / "backbone.part"
    with quiet():
        student.save_pretrained(part)
    replace_folder(part, ctx.paths.backbone)


def train_joint(ctx: Context, members: list[CapabilityTable]) -> None:
    """The backbone and the adapters of `members` together, each sample through its own adapter.

    Refuses to begin once a capability has passed, or an adapter outside is trained: both were judged on the backbone as it was.
    """
    training, names = ctx.app.table.training, [c.name for c in members]
    others = [c.name for c in ctx.live() if c.name not in names and 4 in ctx.cap(c.name).done]
    if fixed := [*(c.name for c in ctx.live() if ctx.cap(c.name).status == "passed"), *others]:
        raise RecurosError(
            "E1-NO",
            f"joint training would change the backbone under {fixed[0]!r}, which is trained on it",
            hint="training.joint-steps = 0, or a new run directory",
        )
    if denied := [c.name for c in members if c.gated or not c.backbone]:
        raise RecurosError(
            "E5-DENIED", f"{denied[0]!r} may not teach the backbone, so it has no part in joint training"
        )
    with ctx.stage(4, JOINT) as work:
        for capability in members:
            synthesize(ctx, capability)
        data = merged(ctx, names, ctx.paths.cache / f"{JOINT}.safetensors")
        files = {name: adapter_path(ctx, name) for name in names}
        job = Job(JOINT, "", 0, None, data, training.joint_steps, training.batch, training.joint_lr, files)
        state, figures = train(ctx, job, ctx.paths.backbone)
        shapes = {name: adapter_shape(path) for name, path in files.items()}
        for name, path in files.items():
            prefix = f"adapters.{name}_adapter."
            tensors = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
            save_adapter(path, tensors, *shapes[name])
        own = {k.removeprefix("backbone."): v for k, v in state.items() if k.startswith("backbone.")}
        _save_backbone(ctx, ctx.paths.backbone, own)
        work.figures = {**figures, "capabilities": names}
        work.wrote([ctx.paths.backbone, *files.values(), summary(ctx, JOINT, work.figures)])


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
        work.figures = {**figures, "rank": rank, "steps": steps, "attempt": state.attempt}
        work.wrote([path, summary(ctx, capability.name, work.figures)])


def summary(ctx: Context, name: str, figures: dict[str, Any]) -> Path:
    """What the last training of a capability came to, as a file beside its checkpoint: how the anchor's error went, by which path."""
    return write_json(ctx.paths.checkpoints / f"{name}.summary.json", finite(figures))


def finite(value: Any) -> Any:
    """JSON knows no NaN; a figure that is none is null."""
    if isinstance(value, dict):
        return {key: finite(inner) for key, inner in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


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


def adapter_shape(path: Path) -> tuple[int, list[int] | None]:
    """(rank, layers) of a saved adapter."""
    from safetensors import safe_open

    with safe_open(str(path), framework="pt") as file:
        about = file.metadata()
    return int(about["rank"]), json.loads(about["layers"])


def assemble(ctx: Context, names: list[str]) -> NexusStudent:
    """The backbone with the current adapters of `names`, none acting."""
    student = load_student(ctx.paths.backbone)
    for name in names:
        attach_file(student, name, adapter_path(ctx, name))
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
