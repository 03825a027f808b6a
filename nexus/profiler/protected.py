"""Protected subspaces: how much each direction of a layer's output belongs to the components that a capability must not lose.

Responsible for: turning the classes that causal ablation gave to heads, channel groups and layers into weights of directions (rows of a
profile's basis) and of heads. Refuses: nothing; where a component's own weights cannot be read (8 and 4 bits) its directions weigh alike.

A component c writes W_c into its layer's output (its columns of the projection that ends attention or feed-forward part). Direction b
gets the mean of the components' loss weights, weighed by how much each writes along it, |b W_c|^2; 1 for discardable components, 5
to 10 for non-negotiable ones.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import torch
from torch import Tensor, nn

from nexus.profiler import causal

HIGHEST: Final = 10.0
Row = Mapping[str, Any]
"""A row of protected_subspaces.json."""


def groups(layer: nn.Module, heads: int) -> list[tuple[str, nn.Module | None, int]]:
    """(kind, projection, how many components share its inputs) of a layer."""
    return [
        ("head", causal.part_of(layer, causal.ATTENTION_OUT, attention=True), heads),
        ("channels", causal.part_of(layer, causal.MLP_OUT, attention=False), causal.CHANNEL_GROUPS),
    ]


def columns(module: Any, count: int, n: int) -> tuple[int, int]:
    """First and last but one input of component `n` of `count`."""
    width = inputs(module)
    return n * width // count, (n + 1) * width // count


def inputs(module: Any) -> int:
    """Width of what goes into a projection."""
    if module is None:
        return 0
    if hasattr(module, "in_features"):
        return int(module.in_features)
    return int(module.weight.shape[0]) if hasattr(module, "weight") else 0


def weight_of(rows: Sequence[Row], layer: int, kind: str, index: int = 0) -> float:
    """The loss weight of a component; 1 where the profile does not protect it."""
    found = (r["loss_weight"] for r in rows if (r["layer"], r["kind"], r["index"]) == (layer, kind, index))
    return float(next(found, 1.0))


def head_weights(rows: Sequence[Row], layer: int, heads: int) -> Tensor:
    """[heads], as shares that sum to 1."""
    found = torch.tensor([weight_of(rows, layer, "head", n) for n in range(heads)])
    return found / found.sum()


@torch.no_grad()
def direction_weights(rows: Sequence[Row], number: int, layer: nn.Module, heads: int, basis: Tensor) -> Tensor:
    """Weights [k] of the rows of `basis` [k, width] in layer `number`, from 1 to HIGHEST."""
    total, written = torch.zeros(len(basis)), torch.zeros(len(basis))
    for kind, module, count in groups(layer, heads):
        weight: Any = getattr(module, "weight", None)
        if weight is None or not count or not weight.is_floating_point():
            continue
        matrix = weight.float() if hasattr(module, "in_features") else weight.float().T
        if matrix.shape[0] != basis.shape[1]:
            continue
        for n in range(count):
            start, stop = columns(module, count, n)
            energy = (basis @ matrix[:, start:stop]).square().sum(1)
            total += energy * weight_of(rows, number, kind, n)
            written += energy
    ones = torch.ones(len(basis))
    return torch.where(written > 0, total / written.clamp_min(1e-12), ones).clamp(1.0, HIGHEST)


def coordinate_weights(rows: Sequence[Row], by_layer: Mapping[int, Tensor]) -> dict[int, Tensor]:
    """Loss weights of the coordinates of all anchored layers: a layer's own weight relative to the least, times its directions',
    at most HIGHEST; then scaled to mean 1, so that protection moves emphasis and not the anchor's weight."""
    layers = {n: weight_of(rows, n, "layer") for n in by_layer}
    least = min(layers.values(), default=1.0)
    raw = {n: (w * layers[n] / least).clamp_max(HIGHEST) for n, w in by_layer.items()}
    mean = torch.cat(list(raw.values())).mean() if raw else torch.ones(())
    return {n: w / mean for n, w in raw.items()}
