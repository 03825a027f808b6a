"""Stage 3: the student.

Responsible for: its architecture, a real `PreTrainedModel` that instantiates and saves, and the check that adapters act one at a time
and change nothing when absent. Refuses: a student that fails that check (E9-INTEGRITY).
"""

from __future__ import annotations

from typing import Any

import torch

from nexus.context import Context, read_json, replace_folder, write_json
from nexus.model.student import NexusConfig, NexusStudent
from nexus.quiet import quiet
from nexus.servers.models import load_student
from nexus.stages.profile import planned_rank
from syscalls.errors import RecurosError


def architect(ctx: Context) -> None:
    """Write configs/student_arch.json and the untrained student."""
    if 3 in ctx.state.stages:
        return
    with ctx.stage(3) as work:
        config = student_config(ctx)
        student = NexusStudent.create(NexusConfig(text_config=config), seed=ctx.app.seed)
        if not (ctx.paths.student / "config.json").is_file():
            part = ctx.paths.student.with_name("student.part")
            with quiet():
                student.save_pretrained(part)
            replace_folder(part, ctx.paths.student)
        ranks = {c.name: planned_rank(ctx, c.name) for c in ctx.live()}
        write_json(ctx.paths.student_arch, {"backbone": config, "adapters": ranks, "seed": ctx.app.seed})
        check_independence(ctx, {name: rank["rank"] for name, rank in ranks.items()})
        work.wrote([ctx.paths.student_arch, ctx.paths.student])
        work.figures = {"parameters": sum(p.numel() for p in student.backbone_parameters())}


def student_config(ctx: Context) -> dict[str, Any]:
    """The backbone's text_config; what is not said is nexus.model.student.BYTE_LEVEL."""
    table = ctx.app.table.student
    if ctx.paths.student_arch.is_file():
        found: dict[str, Any] = read_json(ctx.paths.student_arch)["backbone"]
        return found
    return {
        "hidden_size": table.width,
        "intermediate_size": max(8, table.width * 8 // 3 // 8 * 8),
        "num_hidden_layers": table.layers,
        "num_attention_heads": table.heads,
        "num_key_value_heads": table.heads,
        "max_position_embeddings": table.context,
    }


@torch.no_grad()
def check_independence(ctx: Context, ranks: dict[str, int]) -> None:
    """Each adapter, disturbed, changes the output only while it acts."""
    student = load_student(ctx.paths.student)
    ids = torch.arange(32)[None, :]
    plain = student(input_ids=ids).logits
    for name, rank in ranks.items():
        student.add_adapter(name, rank, seed=ctx.app.seed)
        for key, value in student.adapter(name).named_parameters():
            if key.endswith("up"):
                value.fill_(0.1)
    changed: dict[str, torch.Tensor] = {}
    for name in ranks:
        student.set_adapter(name)
        changed[name] = student(input_ids=ids).logits
    student.set_adapter(None)
    if not torch.equal(student(input_ids=ids).logits, plain) or any(torch.equal(c, plain) for c in changed.values()):
        raise RecurosError(
            "E9-INTEGRITY", "adapters do not act independently in this architecture", hint="another backbone"
        )
