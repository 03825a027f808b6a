"""Bottleneck adapters: h + up(silu(down(h))) behind the layers that have one (Houlsby et al., 2019, arXiv:1902.00751).

Responsible for: the parameters of one capability's adapter and what they do to a layer's output. An adapter that was just made changes
nothing, because `up` is zero. Refuses: ranks and layers outside the backbone's.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping, Sequence
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn import functional

from syscalls.errors import RecurosError

RANK_MAX: Final = 4096


class Bottleneck(nn.Module):
    """One layer's part. `down` [rank, width], `bias` [rank], `up` [width, rank]."""

    def __init__(self, width: int, rank: int, **where: Any) -> None:
        super().__init__()
        self.down = nn.Parameter(torch.empty(rank, width, **where))
        self.bias = nn.Parameter(torch.zeros(rank, **where))
        self.up = nn.Parameter(torch.zeros(width, rank, **where))

    def forward(self, hidden: Tensor) -> Tensor:
        """Any shape that ends in the width, to the same shape."""
        rows = hidden.reshape(-1, hidden.shape[-1])
        inner = functional.silu(functional.linear(rows, self.down, self.bias))
        return torch.addmm(rows, inner, self.up.t()).view_as(hidden)


class Adapter(nn.ModuleDict):
    """Layer number (as text) -> Bottleneck; the layers that are not there stay as they are."""

    def __init__(self, width: int, rank: int, layers: Sequence[int], **where: Any) -> None:
        parts = {layer: Bottleneck(width, rank, **where) for layer in layers}
        super().__init__({str(layer): part for layer, part in parts.items()})
        self.rank = rank
        self.at = parts

    def fill(self, name: str, seed: int, basis: Mapping[int, Tensor]) -> None:
        """Draw `down` from (seed, name) alone; rows of `basis[layer]` [k, width], k <= rank, take the first channels."""
        draw = torch.Generator().manual_seed((seed << 32) ^ zlib.crc32(name.encode()))
        with torch.no_grad():
            for layer, part in self.at.items():
                rank, width = part.down.shape
                part.down.copy_(torch.randn(rank, width, generator=draw) / math.sqrt(width))
                rows = basis.get(layer)
                if rows is None:
                    continue
                if rows.dim() != 2 or rows.shape[0] > rank or rows.shape[1] != width:
                    raise RecurosError(
                        "E2-USAGE",
                        f"basis of layer {layer} for adapter {name!r} has shape {list(rows.shape)}, not [at most {rank}, {width}]",
                        hint="give at most rank rows of the backbone's width",
                    )
                part.down[: rows.shape[0]].copy_(rows)


def checked_shape(rank: object, layers: Sequence[int] | None, count: int) -> tuple[int, list[int]]:
    """Rank and layers of an adapter (default: every layer) against a backbone of `count` layers."""
    if isinstance(rank, bool) or not isinstance(rank, int) or not 1 <= rank <= RANK_MAX:
        raise RecurosError(
            "E2-LIMIT", f"adapter rank is {rank!r}; it is from 1 to {RANK_MAX}", hint="choose a smaller rank"
        )
    chosen = list(range(count)) if layers is None else sorted(set(layers))
    if not chosen or not all(isinstance(layer, int) and 0 <= layer < count for layer in chosen):
        raise RecurosError(
            "E2-LIMIT",
            f"adapter layers are {chosen}; the backbone has 0 to {count - 1}",
            hint="leave layers out for all",
        )
    return rank, chosen
