"""The anchors of an adapter's job: what of the living teacher the student's layers are held to, and the channels kept for it.

Responsible for: L = output + alpha * activation anchor + beta * attention anchor as settings of the learner's own loss, the teacher that
gives both, and the rows of the student that stand for what is protected. Refuses: nothing; a teacher whose positions are not the
student's gives no anchor, and the stage's figures say so.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from nexus.app import TeacherTable
from nexus.context import Context, read_json
from nexus.data import teachers
from nexus.model.student import find_layers
from nexus.profiler import protected
from nexus.servers.models import load_student
from nexus.stages.scope import restore

RIDGE: Final = 1e-3


@dataclass(frozen=True)
class Anchored:
    """A teacher whose positions are the student's. `bases`: its layer -> basis file; `pairs`: (student layer, teacher layer) from 1."""

    table: TeacherTable
    path: Path
    bases: dict[int, Path]
    pairs: list[list[int]]
    rows: list[dict[str, Any]]
    """Of protected_subspaces.json, this capability's."""


def teacher_of(ctx: Context, capability: str) -> Anchored | None:
    """The teacher of a capability with its profile, if it can be an anchor; restored to the run where a gate had removed it."""
    if capability not in {c.name for c in ctx.live()}:
        return None
    table = ctx.app.teacher(ctx.app.capability(capability).teacher)
    folder = ctx.paths.profiles / table.id / capability
    metas = [read_json(file) for file in sorted(folder.glob("layer_*_meta.json"))]
    if table.mode != "causal" or table.tokenizer != "bytes" or not metas:
        return None
    path = restore(ctx, table)
    depth, theirs = ctx.app.table.student.layers, int(read_json(path / "config.json")["num_hidden_layers"])
    numbers = sorted(int(meta["layer"]) for meta in metas)
    pairs = [[max(1, round((n + 1) * depth / theirs)), n + 1] for n in numbers]
    plan = ctx.paths.profiles / "protected_subspaces.json"
    rows = [r for r in read_json(plan) if r["capability"] == capability] if plan.is_file() else []
    return Anchored(table, path, {n: folder / f"layer_{n}_basis.npz" for n in numbers}, pairs, rows)


def spec_of(ctx: Context, found: Anchored) -> dict[str, Any]:
    """The living teacher as a model of the learner."""
    training = ctx.app.table.training
    kept = found.table.model_dump(by_alias=True, exclude_none=True, exclude={"make", "command", "url", "package"})
    options = {
        "teacher": kept,
        "path": str(found.path),
        "bases": {str(n): str(path) for n, path in found.bases.items()},
        "random": training.anchor == "random",
        "seed": ctx.app.seed,
        "protected": [[int(r["layer"]), str(r["kind"]), int(r["index"]), float(r["loss_weight"])] for r in found.rows],
    }
    return {"kind": "app", "name": "nexus-anchored", "options": options}


def settings(ctx: Context, found: Anchored, alpha: float) -> dict[str, Any]:
    """Of the loss: the weights of both anchors and the layers they compare."""
    training = ctx.app.table.training
    kd = {"alpha": alpha, "alpha_floor": training.anchor_floor, "layer_map": found.pairs}
    return kd | ({"at": training.anchor_beta} if training.anchor_beta > 0 else {})


# Reserved channels


def reserve(ctx: Context, found: Anchored, capability: str, rank: int, name: str, student: Path) -> Path | None:
    """Rows of the student's width for the first channels of an adapter, one file; None where nothing is reserved.

    At each anchored layer: what the student's layer output best tells of the teacher's most protected directions, by ridge regression
    on the items that were profiled.
    """
    plan = read_json(ctx.paths.profiles / "adapter_capacity_plan.json").get(capability, {})
    count = min(int(plan.get("reserved_channels", 0)), rank // 2)
    if count < 1:
        return None
    from safetensors.torch import save_file

    teacher = teachers.load(found.table, found.path)
    mine = load_student(student)
    rows: dict[str, Tensor] = {}
    samples = ctx.data(capability)["train"].head(ctx.app.table.profiling.items)
    theirs = {n: taught for n, taught in _taught(found, teacher.module, count).items()}
    outputs = _outputs(mine, teacher.module, [p[0] - 1 for p in found.pairs], list(theirs), samples)
    for at, number in zip((p[0] - 1 for p in found.pairs), theirs, strict=True):
        rows[str(at)] = ridge(outputs["mine", at], (outputs["theirs", number]) @ theirs[number].T)
    path: Path = ctx.paths.checkpoints / f"{name}.reserved.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(rows, str(path))
    return path


def ridge(given: Tensor, wanted: Tensor) -> Tensor:
    """Unit rows [k, width]: the coefficients that tell `wanted` [n, k] from `given` [n, width], both centred."""
    x, y = (v.double() - v.double().mean(0) for v in (given, wanted))
    gram = x.T @ x
    gram += RIDGE * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype)
    rows = torch.linalg.solve(gram, x.T @ y).T
    unit: Tensor = (rows / rows.norm(dim=1, keepdim=True).clamp_min(1e-12)).float().contiguous()
    return unit


def _taught(found: Anchored, module: Any, count: int) -> dict[int, Tensor]:
    """The `count` most protected directions of each anchored layer; of equals those of more variance, which come first."""
    from nexus.profiler.causal import heads_of

    layers, heads, best = find_layers(module), heads_of(module), {}
    for number, file in found.bases.items():
        with np.load(file) as stored:
            basis = torch.from_numpy(stored["basis"].astype(np.float32))
        weights = protected.direction_weights(found.rows, number, layers[number], heads, basis)
        best[number] = basis[weights.argsort(descending=True, stable=True)[:count].sort().values]
    return best


@torch.no_grad()
def _outputs(student: Any, teacher: Any, mine: list[int], theirs: list[int], samples: Any) -> dict[Any, Tensor]:
    """Outputs of layers at content positions, in memory only: ("mine" or "theirs", layer) -> [rows, width]."""
    kept: dict[Any, list[Tensor]] = {}
    now: dict[str, Tensor] = {}

    def keep(key: Any) -> Any:
        def hook(_module: Any, _args: Any, output: Any) -> None:
            hidden = output[0] if isinstance(output, tuple) else output
            kept.setdefault(key, []).append(hidden[now["mask"]].float())

        return hook

    student.set_adapter(None)
    wanted = [(("mine", n), student.layers[n]) for n in sorted(set(mine))]
    wanted += [(("theirs", n), find_layers(teacher)[n]) for n in theirs]
    handles = [layer.register_forward_hook(keep(key)) for key, layer in wanted]
    try:
        for _, ids, mask in samples.batches():
            now["mask"] = mask.bool()
            student(input_ids=ids, attention_mask=mask, use_cache=False)
            teacher(input_ids=ids, attention_mask=mask, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return {key: torch.cat(parts) for key, parts in kept.items()}
