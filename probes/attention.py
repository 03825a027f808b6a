"""Attention probabilities of a live attention module, with the path that gave them.

Responsible for: the two honest paths. `eager`: the module returned its probabilities beside its output. `recompute`: a
fused kernel returned none, so they are recomputed from the module's inputs and projections; every recomputation is
multiplied out to the module's output and compared with what the module really returned.
Refuses: modules whose projections or head count it does not recognise (when a probe is attached), and recomputations that
do not reproduce the output, such as under active attention dropout (when it fires). It never guesses.

Source of the formula: Vaswani et al. 2017, equation 1; rotary positions: Su et al. 2021, in the half-split layout of
Hugging Face models.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

EAGER = "eager"
RECOMPUTE = "recompute"
# Largest difference to the module's own output, relative to that output's largest magnitude.
TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3, torch.float16: 2e-2, torch.bfloat16: 5e-2}

_SEPARATE = (
    ("q_proj", "k_proj", "v_proj"),
    ("query", "key", "value"),
    ("q_lin", "k_lin", "v_lin"),
    ("to_q", "to_k", "to_v"),
    ("wq", "wk", "wv"),
)
_FUSED = ("qkv", "c_attn", "qkv_proj", "query_key_value")
_OUT = ("o_proj", "out_proj", "out_lin", "c_proj", "out", "proj", "dense", "wo", "to_out")
_HEADS = ("num_heads", "n_heads", "heads", "n_head", "num_attention_heads", "nhead")
_KV_HEADS = ("num_key_value_heads", "num_kv_heads", "n_kv_heads")


class AttentionUnavailableError(RuntimeError):
    """This attention module's probabilities cannot be read; the message says why."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How to recompute: the projections found and the head counts."""

    separate: tuple[str, str, str] | None
    fused: str
    out: str
    heads: int
    kv_heads: int


def is_attention(module: nn.Module) -> bool:
    """Whether a module presents itself as attention, by its class name."""
    return "attention" in type(module).__name__.lower()


def plan(module: nn.Module) -> Plan | str:
    """A plan to recompute, or the reason why there is none."""
    heads = _integer(module, _HEADS)
    if heads is None:
        return f"{type(module).__name__} has no head count ({', '.join(_HEADS)})"
    separate = next((n for n in _SEPARATE if all(isinstance(getattr(module, x, None), nn.Module) for x in n)), None)
    fused = next((n for n in _FUSED if isinstance(getattr(module, n, None), nn.Module)), "")
    if separate is None and not fused:
        return f"{type(module).__name__} has no query/key/value projections of a known name"
    out = next((n for n in _OUT if isinstance(getattr(module, n, None), nn.Module)), "")
    return Plan(separate, fused, out, heads, _integer(module, _KV_HEADS) or heads)


def eager(output: Any) -> Tensor | None:
    """The probabilities [B, heads, queries, keys] inside a module's output tuple, or None."""
    if isinstance(output, tuple):
        for part in output[1:]:
            if isinstance(part, Tensor) and part.dim() == 4 and part.is_floating_point():
                return part.detach()
    return None


def require_distribution(probs: Tensor) -> None:
    """Raise AttentionUnavailableError unless every row sums to 1: dropped-out weights are not probabilities."""
    low, high = torch.aminmax(probs.sum(-1, dtype=torch.float32))
    # A NaN comes out on both sides, and fails the comparison.
    excess = max(abs(float(low) - 1), abs(float(high) - 1))
    if not excess < 2e-2:
        raise AttentionUnavailableError(
            f"rows of the returned attention sum to 1 only within {excess:.3g}: attention dropout is active, or the "
            "tensor is not a distribution"
        )


def recompute(module: nn.Module, how: Plan, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Tensor:
    """Probabilities [B, heads, queries, keys] in float32 (float64 for float64 inputs), checked against `output`.

    Raises AttentionUnavailableError when no known layout reproduces the module's output.
    """
    hidden = _hidden(args, kwargs)
    given = output[0] if isinstance(output, tuple) else output
    limit = TOLERANCE.get(given.dtype, 1e-3) * max(float(given.abs().max()), 1e-6)
    best = math.inf
    with torch.autocast(hidden.device.type, enabled=False):
        for q, k, v in _projected(module, how, hidden, kwargs):
            for probs in _probabilities(module, q, k, kwargs):
                error = _error(module, how, probs, v, given)
                if error <= limit:
                    return probs
                best = min(best, error)
    raise AttentionUnavailableError(
        f"recomputed attention misses the module's output by {best:.3g} (limit {limit:.3g}): "
        "attention dropout is active, or the layout is unknown; run the model with eager attention"
    )


def _projected(
    module: nn.Module, how: Plan, hidden: Tensor, kwargs: dict[str, Any]
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Query, key and value heads, one candidate per known layout, each [B, heads, T, head_dim]."""
    if how.separate is not None:
        raw = [_apply(getattr(module, name), hidden) for name in how.separate]
        q, k, v = (_split(x, n) for x, n in zip(raw, (how.heads, how.kv_heads, how.kv_heads), strict=True))
        q, k = _normed(module, "q_norm", q), _normed(module, "k_norm", k)
        q, k = _rotated(q, k, kwargs)
        repeat = how.heads // how.kv_heads
        yield q, k.repeat_interleave(repeat, dim=1), v.repeat_interleave(repeat, dim=1)
        return
    batch, tokens = hidden.shape[:2]
    joint = _apply(getattr(module, how.fused), hidden)
    for shape, order in (((3, how.heads, -1), (2, 0, 3, 1, 4)), ((how.heads, 3, -1), (3, 0, 2, 1, 4))):
        q, k, v = joint.reshape(batch, tokens, *shape).permute(*order).unbind(0)
        yield (*_rotated(q, k, kwargs), v)


def _probabilities(module: nn.Module, q: Tensor, k: Tensor, kwargs: dict[str, Any]) -> Iterator[Tensor]:
    scale = getattr(module, "scaling", None) or getattr(module, "scale", None)
    scores = (q @ k.transpose(-2, -1)) * (float(scale) if isinstance(scale, float) else q.shape[-1] ** -0.5)
    mask = next((kwargs[n] for n in ("attention_mask", "attn_mask", "mask") if kwargs.get(n) is not None), None)
    if isinstance(mask, Tensor):
        if mask.dim() == 4:
            mask = mask[..., : scores.shape[-1]]
            allowed = scores.masked_fill(~mask, -math.inf) if mask.dtype == torch.bool else scores + mask
            yield torch.softmax(allowed, dim=-1)
        return
    causal = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)
    for masked in (scores.masked_fill(causal, -math.inf), scores) if _causal(module) else (scores,):
        yield torch.softmax(masked, dim=-1)


def _error(module: nn.Module, how: Plan, probs: Tensor, v: Tensor, given: Tensor) -> float:
    mixed = (probs @ v).transpose(1, 2).flatten(2)
    if how.out:
        mixed = _apply(getattr(module, how.out), mixed)
    if mixed.shape != given.shape:
        return math.inf
    error = float((mixed - given).abs().max())
    return error if error == error else math.inf  # noqa: PLR0124 - NaN must not pass as small


def _apply(projection: nn.Module, x: Tensor) -> Tensor:
    """A projection in the precision of its weights, its result in at least float32."""
    weight = next(projection.parameters(), None)
    y: Tensor = projection(x if weight is None else x.to(weight.dtype))
    return y if y.dtype == torch.float64 else y.float()


def _split(x: Tensor, heads: int) -> Tensor:
    return x.reshape(*x.shape[:2], heads, -1).transpose(1, 2)


def _normed(module: nn.Module, name: str, heads: Tensor) -> Tensor:
    norm = getattr(module, name, None)
    return _apply(norm, heads) if isinstance(norm, nn.Module) else heads


def _rotated(q: Tensor, k: Tensor, kwargs: dict[str, Any]) -> tuple[Tensor, Tensor]:
    positions = kwargs.get("position_embeddings")
    if not (isinstance(positions, tuple) and len(positions) == 2):
        return q, k
    cos, sin = (p.to(q.dtype).unsqueeze(1) for p in positions)
    turn: Callable[[Tensor], Tensor] = lambda x: x * cos + _half_turned(x) * sin  # noqa: E731
    return turn(q), turn(k)


def _half_turned(x: Tensor) -> Tensor:
    low, high = x.chunk(2, dim=-1)
    return torch.cat((-high, low), dim=-1)


def _hidden(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    named = (kwargs.get(n) for n in ("hidden_states", "x", "query", "input"))
    hidden = next((x for x in (*args[:1], *named) if isinstance(x, Tensor)), None)
    if hidden is None or hidden.dim() != 3:
        raise AttentionUnavailableError("the attention module was not called with [batch, tokens, width] hidden states")
    return hidden.detach()


def _causal(module: nn.Module) -> bool:
    return bool(getattr(module, "is_causal", False) or getattr(module, "causal", False))


def _integer(module: nn.Module, names: tuple[str, ...]) -> int | None:
    for owner in (module, getattr(module, "config", None)):
        for name in names:
            value = getattr(owner, name, None)
            if isinstance(value, int) and value > 0:
                return value
    return None
