"""Which heads and neurons a model is made of, and the same model without some of them.

Responsible for: the units of attention and feed-forward layers (`structure_of`): whose weights write them and who reads them; and
`smaller`, the architecture without the units that went and where each tensor of it lies in the old one. Built-in patch models lose heads
and neurons; Hugging Face models of known families lose neurons, as many in each layer, since their configs can say no more.
Refuses: models whose parts are not known by name (E2-MODEL). A layer keeps one unit at least.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Any, Final

import torch
from torch import Tensor

from servers.models.model import Model
from servers.models.patch import PatchModel
from syscalls.errors import RecurosError

Pick = tuple[str, int, Tensor]
"""A parameter, an axis of it, and the places along it that stay."""


@dataclass(frozen=True)
class Units:
    """The units of one layer. `count` units of `size` numbers each. `reads`: (parameter, axis) that reads them, unit by unit.

    `writes`: (parameter, axis, blocks): rows that make them; with blocks = 3 they lie in three parts one after another (q, k, v).
    """

    kind: str
    layer: int
    count: int
    size: int
    reads: tuple[str, int]
    writes: tuple[tuple[str, int, int], ...]

    def places(self, keep: Tensor, blocks: int = 1) -> Tensor:
        """Positions along an axis of the units in `keep` (indices)."""
        within = (keep[:, None] * self.size + torch.arange(self.size)).reshape(-1)
        return torch.cat([within + block * self.count * self.size for block in range(blocks)])

    def picks(self, keep: Tensor) -> list[Pick]:
        """What is left of every parameter that these units touch."""
        return [
            (self.reads[0], self.reads[1], self.places(keep)),
            *((name, axis, self.places(keep, blocks)) for name, axis, blocks in self.writes),
        ]


@dataclass(frozen=True)
class _Family:
    """Names inside a layer of a Hugging Face architecture; `axis`: of a weight's inputs (1, or 0 for GPT-2's transposed ones)."""

    layer: str
    out: str
    neurons_read: str
    neurons_written: tuple[str, ...]
    size_key: str
    axis: int = 1


_BERT: Final = _Family(
    r"(?:encoder\.)?layer\.(\d+)",
    "attention.output.dense",
    "output.dense",
    ("intermediate.dense",),
    "intermediate_size",
)
_LLAMA: Final = _Family(
    r"layers\.(\d+)", "self_attn.o_proj", "mlp.down_proj", ("mlp.gate_proj", "mlp.up_proj"), "intermediate_size"
)
FAMILIES: Final[dict[str, _Family]] = {
    "bert": _BERT,
    "roberta": _BERT,
    "distilbert": _Family(r"layer\.(\d+)", "attention.out_lin", "ffn.lin2", ("ffn.lin1",), "hidden_dim"),
    "gpt2": _Family(r"h\.(\d+)", "attn.c_proj", "mlp.c_proj", ("mlp.c_fc",), "n_inner", axis=0),
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen2": _LLAMA,
}


def structure_of(model: Model) -> list[Units]:
    """Heads of every layer, then neurons of every layer, layers counted from 1."""
    if isinstance(model, PatchModel):
        return _patch(model)
    config = model.architecture.get("config")
    kind = str((config or {}).get("model_type", model.architecture.get("kind")))
    if not isinstance(config, dict) or kind not in FAMILIES:
        raise RecurosError(
            "E2-MODEL",
            f"heads and neurons of a {kind} model are not known by name",
            hint=f"prune it by magnitude or movement; known: patch, {', '.join(FAMILIES)}",
        )
    return _family(model, FAMILIES[kind])


def _patch(model: PatchModel) -> list[Units]:
    heads, neurons = [], []
    for i, block in enumerate(model.module.blocks):
        at = f"blocks.{i}"
        writes = ((f"{at}.attn.qkv.weight", 0, 3), (f"{at}.attn.qkv.bias", 0, 3))
        attn: Any = block.attn
        heads.append(Units("heads", i + 1, attn.heads, attn.head_width, (f"{at}.attn.out.weight", 1), writes))
        fc1: Any = block.fc1
        mlp = ((f"{at}.fc1.weight", 0, 1), (f"{at}.fc1.bias", 0, 1))
        neurons.append(Units("neurons", i + 1, fc1.out_features, 1, (f"{at}.fc2.weight", 1), mlp))
    return heads + neurons


def _family(model: Model, family: _Family) -> list[Units]:
    parameters = dict(model.module.named_parameters())
    config: Any = model.module.config
    count = int(config.num_attention_heads)
    heads, neurons = [], []
    for name in parameters:
        if found := re.search(rf"^(.*\b{family.layer})\.{re.escape(family.neurons_read)}\.weight$", name):
            prefix, layer = found[1], int(found[2]) + 1
            out = f"{prefix}.{family.out}.weight"
            width = parameters[out].shape[family.axis]
            heads.append(Units("heads", layer, count, width // count, (out, family.axis), ()))
            size = parameters[name].shape[family.axis]
            writes = [
                (f"{prefix}.{part}.{tensor}", axis, 1)
                for part in family.neurons_written
                for tensor, axis in (("weight", 1 - family.axis), ("bias", 0))
                if f"{prefix}.{part}.{tensor}" in parameters
            ]
            neurons.append(Units("neurons", layer, size, 1, (name, family.axis), tuple(writes)))
    return heads + neurons


def removable(model: Model, units: list[Units], keep: list[Tensor]) -> list[Tensor] | None:
    """For each of `units` the indices that stay where the model can really become smaller, all of them where it cannot.

    None: nothing can be removed. A family's layers keep as many neurons as the layer that keeps the most.
    """
    if isinstance(model, PatchModel):
        return keep
    neurons = [k for u, k in zip(units, keep, strict=True) if u.kind == "neurons"]
    most = max((len(k) for k in neurons), default=0)
    if all(len(k) == u.count for u, k in zip(units, keep, strict=True) if u.kind == "neurons"):
        return None
    whole = [torch.arange(u.count) if u.kind == "heads" else k for u, k in zip(units, keep, strict=True)]
    return [k if u.kind == "heads" else _filled(k, u.count, most) for u, k in zip(units, whole, strict=True)]


def _filled(keep: Tensor, count: int, wanted: int) -> Tensor:
    """`keep` and as many others, in order, as make `wanted`."""
    kept = set(keep.tolist())
    more = [i for i in range(count) if i not in kept][: wanted - len(kept)]
    return torch.tensor(sorted([*kept, *more]))


def smaller(model: Model, units: list[Units], keep: list[Tensor]) -> tuple[dict[str, Any], dict[str, list[Pick]]]:
    """The architecture with only the units in `keep`, and for each parameter that shrinks what is picked of it."""
    picks: dict[str, list[Pick]] = {}
    for unit, kept in zip(units, keep, strict=True):
        if len(kept) < unit.count:
            for pick in unit.picks(kept):
                picks.setdefault(pick[0], []).append(pick)
    if isinstance(model, PatchModel):
        sizes = {
            kind: tuple(len(k) for u, k in zip(units, keep, strict=True) if u.kind == kind)
            for kind in ("heads", "neurons")
        }
        config = replace(
            model.module.config,
            head_width=units[0].size,
            layer_heads=sizes["heads"],
            layer_neurons=sizes["neurons"],
        )
        return config.architecture(), picks
    family = FAMILIES[str(model.architecture["config"]["model_type"])]
    count = next(len(k) for u, k in zip(units, keep, strict=True) if u.kind == "neurons")
    config_map = {**model.architecture["config"], family.size_key: count}
    return {**model.architecture, "config": config_map}, picks
