"""The value vectors of a model's last attention module, caught as they are computed.

Responsible for: finding the projection they come from, by the names that `probes.attention` knows, and cutting its output into heads.
Refuses: a model without such a module (E2-MODEL).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from probes import attention
from syscalls.errors import RecurosError


@contextmanager
def last_values(module: nn.Module, wanted: bool) -> Iterator[list[Tensor]]:
    """Within: forward passes leave [B, heads, T, d] of the last layer in the list, with their graph. Nothing when not wanted."""
    caught: list[Tensor] = []
    if not wanted:
        yield caught
        return
    plan, projection = _last_projection(module)

    def catch(_module: nn.Module, _args: Any, output: Tensor) -> None:
        caught[:] = [heads_of(plan, output)]

    handle = projection.register_forward_hook(catch)
    try:
        yield caught
    finally:
        handle.remove()


def _last_projection(module: nn.Module) -> tuple[attention.Plan, nn.Module]:
    for _, part in reversed(list(module.named_modules())):
        if attention.is_attention(part):
            plan = attention.plan(part)
            if isinstance(plan, attention.Plan):
                name = plan.separate[2] if plan.separate is not None else plan.fused
                return plan, getattr(part, name)
    raise RecurosError(
        "E2-MODEL",
        f"{type(module).__name__} has no attention module whose value projection is known",
        hint="minilm_vr = 0, or a model with projections of a known name (value, v_proj, v_lin, qkv, c_attn, query_key_value)",
    )


def heads_of(plan: attention.Plan, output: Tensor) -> Tensor:
    """A projection's output [B, T, width] -> values [B, heads, T, d]; shared value heads are repeated."""
    batch, tokens, width = output.shape
    if plan.separate is not None:
        values = output.reshape(batch, tokens, plan.kv_heads, -1)
    elif plan.fused == "query_key_value":  # interleaved by head
        return output.reshape(batch, tokens, plan.heads, 3, -1)[..., 2, :].transpose(1, 2)
    else:  # queries, keys, values side by side
        size = width // (plan.heads + 2 * plan.kv_heads)
        values = output[..., -plan.kv_heads * size :].reshape(batch, tokens, plan.kv_heads, size)
    return values.repeat_interleave(plan.heads // plan.kv_heads, dim=2).transpose(1, 2)
