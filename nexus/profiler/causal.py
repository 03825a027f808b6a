"""Interventions on a teacher: what the capability loses when a part of it is taken away, masked, disturbed or replaced.

Responsible for: finding layers, attention outputs and feed-forward outputs of transformers' families by what they are; ablations that
undo themselves; patching a layer's output by its projection onto k directions. Refuses: to change a weight for good, also when an
evaluation raises.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from nexus.data.samples import Samples
from nexus.model.tokenizer import PAD

NON_NEGOTIABLE, RECOVERABLE, DISCARDABLE = "non-negotiable", "recoverable", "discardable"
LINE_FEED: Final = 10
CHANNEL_GROUPS: Final = 4
"""Parts that the channels of a feed-forward part are ablated in."""
POINTS: Final = (2.0, 0.5)
"""More than 2 points lost: non-negotiable; 0.5 to 2: recoverable; less: discardable."""
ATTENTION_OUT: Final = (
    "o_proj",
    "attn.out",
    "out_proj",
    "attention.output.dense",
    "attn.c_proj",
    "attention.dense",
    "out_lin",
)
MLP_OUT: Final = ("down_proj", "fc2", "mlp.c_proj", "output.dense", "dense_4h_to_h", "lin2", "wo")


def classed(points: float) -> str:
    """The class of a component by the points that its ablation costs."""
    return NON_NEGOTIABLE if points > POINTS[0] else RECOVERABLE if points >= POINTS[1] else DISCARDABLE


def part_of(layer: nn.Module, endings: tuple[str, ...], *, attention: bool) -> nn.Module | None:
    """The projection that ends a layer's attention or feed-forward part; None where no name is known."""
    for name, module in layer.named_modules():
        inside = "att" in name.lower()
        if inside == attention and any(name == e or name.endswith(f".{e}") for e in endings):
            found: nn.Module = module
            return found
    return None


def heads_of(module: nn.Module) -> int:
    """Attention heads of a model's layers."""
    return int(getattr(module.config, "num_attention_heads", 0) or getattr(module.config, "n_head", 0))


@contextmanager
def masked(module: nn.Module, start: int, stop: int) -> Iterator[None]:
    """Zero columns start..stop-1 of what goes into `module`: a head's output, or a group of channels."""

    def hook(_module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        given = args[0].clone()
        given[..., start:stop] = 0
        return (given, *args[1:])

    with _hooked(module.register_forward_pre_hook(hook)):
        yield


@contextmanager
def skipped(layer: nn.Module) -> Iterator[None]:
    """The layer hands its input on."""

    def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        given = args[0] if args else kwargs["hidden_states"]
        return (given, *output[1:]) if isinstance(output, tuple) else given

    with _hooked(layer.register_forward_hook(hook, with_kwargs=True)):
        yield


@contextmanager
def patched(layer: nn.Module, mean: NDArray[np.float64], basis: NDArray[np.float64]) -> Iterator[None]:
    """The layer's output is replaced by mean + P (h - mean), with the rows of `basis` [k, width] as directions."""
    centre = torch.from_numpy(mean).float()
    rows = torch.from_numpy(basis).float()

    def project(hidden: Tensor) -> Tensor:
        moved = hidden - centre.to(hidden.dtype)
        back: Tensor = (moved @ rows.T.to(hidden.dtype)) @ rows.to(hidden.dtype) + centre.to(hidden.dtype)
        return back

    def hook(_module: nn.Module, _args: Any, output: Any) -> Any:
        return (project(output[0]), *output[1:]) if isinstance(output, tuple) else project(output)

    with _hooked(layer.register_forward_hook(hook)):
        yield


@contextmanager
def noisy(module: nn.Module, scale: float, seed: int) -> Iterator[None]:
    """Every matrix plus Gaussian noise of `scale` times its own standard deviation; restored bit for bit."""
    draw = torch.Generator().manual_seed(seed)
    kept = [(p, p.detach().clone()) for p in module.parameters() if p.dim() > 1 and p.is_floating_point()]
    try:
        with torch.no_grad():
            for p, _ in kept:
                p.add_(torch.randn(p.shape, generator=draw) * p.std() * scale)
        yield
    finally:
        with torch.no_grad():
            for p, before in kept:
                p.copy_(before)


@contextmanager
def low_rank(module: nn.Module, share: float) -> Iterator[None]:
    """A matrix replaced by its best approximation of `share` of its rank (Eckart and Young, 1936); restored bit for bit."""
    weight: Any = getattr(module, "weight", None)
    before = weight.detach().clone()
    try:
        with torch.no_grad():
            u, s, v = torch.linalg.svd(before.float(), full_matrices=False)
            k = max(1, round(share * len(s)))
            weight.copy_((u[:, :k] * s[:k]) @ v[:k])
        yield
    finally:
        with torch.no_grad():
            weight.copy_(before)


@contextmanager
def _hooked(handle: Any) -> Iterator[None]:
    try:
        yield
    finally:
        handle.remove()


def _free(samples: Samples) -> NDArray[np.bool_]:
    """What may be disturbed: bytes that are not scored, and no line feeds, which are the form of a question and not its content."""
    free: NDArray[np.bool_] = ~samples.scored & (samples.ids < PAD) & (samples.ids != LINE_FEED)
    return free


def dropped(samples: Samples, share: float, seed: int) -> Samples:
    """Unscored bytes replaced by spaces with probability `share`; what is scored stays."""
    dice = np.random.default_rng(seed)
    hit = (dice.random(samples.ids.shape) < share) & _free(samples)
    return Samples(np.where(hit, 32, samples.ids).astype(np.int16), samples.scored, samples.lengths, samples.images)


def typos(samples: Samples, share: float, seed: int) -> Samples:
    """Pairs of neighbouring unscored bytes swapped with probability `share`."""
    dice = np.random.default_rng(seed)
    ids = samples.ids.copy()
    free = _free(samples)
    for row, at in zip(*np.nonzero(dice.random(ids.shape) < share), strict=True):
        if at + 1 < ids.shape[1] and free[row, at] and free[row, at + 1]:
            ids[row, at], ids[row, at + 1] = ids[row, at + 1], ids[row, at]
    return Samples(ids, samples.scored, samples.lengths, samples.images)
