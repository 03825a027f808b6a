"""Stage 2: what a teacher's capability is made of, and how much room an adapter needs for it."""

from __future__ import annotations

from typing import Any

from nexus.context import Context, read_json

RANK_DEFAULT = 24


def planned_rank(ctx: Context, capability: str) -> dict[str, Any]:
    """{"rank", "layers"} of the capacity plan, or the app's own start rank."""
    table = ctx.app.capability(capability)
    path = ctx.paths.profiles / "adapter_capacity_plan.json"
    plan = read_json(path).get(capability, {}) if path.is_file() else {}
    rank = table.start_rank or int(plan.get("rank", RANK_DEFAULT))
    return {"rank": rank, "layers": list(range(ctx.app.table.student.layers))}


def profile(ctx: Context) -> None:
    """Nothing yet."""
