"""How large the tensors are that a hook hands to a program, as far as the live model can say.

Responsible for: the sizes of the symbolic dimensions of `isa.HOOK_VIEWS` at a site: seen in its first firing, read off the
module's or parameter's shape, or left out where nothing is known, so that `isa.REFERENCE_DIMS` is assumed. Also what a
recomputation of attention costs, in the units of `isa.OPS`. Refuses: to guess; a larger tensor than was said here is a
fault of the firing, found by the guard of `probes.runtime`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from torch import Tensor, nn

from probes import attention

Sizes = dict[str, int]
OPERATIONS_PER_UNIT: Final = 4
"""Multiply-adds of a matrix product that one core does in a unit (about 1 ns)."""


def largest(found: Iterable[Sizes]) -> Sizes:
    """The largest of each symbol; a symbol that one of them does not know is left out."""
    rows = list(found)
    symbols = set.intersection(*(set(row) for row in rows)) if rows else set()
    return {symbol: max(row[symbol] for row in rows) for symbol in sorted(symbols)}


def of_output(output: Tensor) -> Sizes:
    """A layer's output with its leading axes flattened to rows."""
    width = int(output.shape[-1]) if output.dim() > 1 else int(output.numel())
    return {"rows": max(1, output.numel() // max(1, width)), "width": max(1, width)}


def of_matrix(parameter: Tensor) -> Sizes:
    """A parameter, its gradient or its mask: axes after the first flattened, a vector is one row."""
    rows = int(parameter.shape[0]) if parameter.dim() > 1 else 1
    return {"rows": max(1, rows), "cols": max(1, parameter.numel() // max(1, rows))}


def of_module(module: nn.Module) -> Sizes:
    """What a module's own declaration says of its output before it has run."""
    for name in ("out_features", "embedding_dim"):
        size = getattr(module, name, None)
        if isinstance(size, int) and size > 0:
            return {"width": size}
    shape = getattr(module, "normalized_shape", None)
    return {"width": int(shape[-1])} if isinstance(shape, tuple) and shape else {}


def of_attention(call: tuple[nn.Module, tuple[Any, ...], dict[str, Any], Any], how: attention.Plan | None) -> Sizes:
    """Attention probabilities: as they were returned, or as they would be recomputed."""
    output = call[-1]
    probs = attention.eager(output)
    if probs is not None:
        batch, heads, queries, keys = (int(size) for size in probs.shape)
        return {"batch": batch, "heads": heads, "queries": queries, "keys": keys}
    given = output[0] if isinstance(output, tuple) else output
    if how is None or not isinstance(given, Tensor) or given.dim() != 3:
        return {}
    batch, tokens, _ = (int(size) for size in given.shape)
    return {"batch": batch, "heads": how.heads, "queries": tokens, "keys": tokens}


def attention_units(module: nn.Module, sizes: Sizes, path: str) -> int:
    """Units of one reading: the check that rows sum to 1, and on the recompute path projections, scores and the comparison."""
    elements = sizes["batch"] * sizes["heads"] * sizes["queries"] * sizes["keys"]
    if path == attention.EAGER:
        return elements
    weights = sum(p.numel() for p in module.parameters())
    projected = weights * sizes["batch"] * max(sizes["queries"], sizes["keys"])
    width = max((p.shape[-1] for p in module.parameters() if p.dim() > 1), default=64)
    per_head = max(1, int(width) // max(1, sizes["heads"]))
    # Up to two layouts are tried, and each is multiplied out to the module's output.
    return 2 * (projected + 2 * elements * per_head) // OPERATIONS_PER_UNIT + 16 * elements
