"""A small transformer classifier over 2 x 2 patches of 8 x 8 images.

Responsible for: a network whose blocks and attention are real modules (`blocks.<i>`, `blocks.<i>.attn`), so that a hook by
module name finds them, and whose attention probabilities are the ones used, not a recomputation.
Refuses: any other image size (a wrong shape fails in `PatchEmbed`, with both shapes named).
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from servers.models.model import Batch, Model, Output, column
from servers.models.values import last_values
from syscalls.errors import RecurosError

IMAGE_SIDE = 8
PATCH_SIDE = 2
TOKENS = (IMAGE_SIDE // PATCH_SIDE) ** 2
# As loud as the projected patches: at the usual 0.02 position is learned so late that training takes several times longer.
POSITION_STD = 1.0


@dataclass(frozen=True)
class PatchConfig:
    """The architecture; everything needed to rebuild the module apart from its weights.

    A pruned model says what each block has left: `layer_heads`, `layer_neurons`, and the `head_width` that heads keep.
    """

    layers: int = 4
    width: int = 64
    heads: int = 4
    mlp_ratio: int = 2
    classes: int = 10
    head_width: int = 0
    layer_heads: tuple[int, ...] = ()
    layer_neurons: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if min(self.layers, self.width, self.heads, self.mlp_ratio, self.classes) < 1 or self.width % self.heads:
            raise RecurosError(
                "E2-MODEL",
                f"patch model: width {self.width} is not a positive multiple of heads {self.heads}, or a size is below 1",
                hint="choose width = heads x a whole number, and sizes of at least 1",
            )
        for name in ("layer_heads", "layer_neurons"):
            left = getattr(self, name)
            if left and (len(left) != self.layers or min(left) < 1):
                raise RecurosError(
                    "E2-MODEL",
                    f"patch model: {name} {list(left)} does not give each of {self.layers} layers at least 1",
                    hint="leave it out for a model that is not pruned",
                )

    def block(self, layer: int) -> tuple[int, int, int]:
        """Heads, width of a head and neurons of a block, counted from 0."""
        heads = self.layer_heads[layer] if self.layer_heads else self.heads
        neurons = self.layer_neurons[layer] if self.layer_neurons else self.mlp_ratio * self.width
        return heads, self.head_width or self.width // self.heads, neurons

    def architecture(self) -> dict[str, Any]:
        """As a spec that `build` takes; what pruning left only where something was pruned."""
        values = {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}
        return {"kind": "patch", **{k: v for k, v in values.items() if v}}


class PatchEmbed(nn.Module):
    """[B, 8, 8] images in [0, 1] -> [B, 16, width] tokens with learned positions."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.proj = nn.Linear(PATCH_SIDE * PATCH_SIDE, width)
        self.pos = nn.Parameter(torch.randn(TOKENS, width) * POSITION_STD)

    def forward(self, images: Tensor) -> Tensor:
        """Cut the image into 2 x 2 patches and project each."""
        if images.dim() != 3 or images.shape[1:] != (IMAGE_SIDE, IMAGE_SIDE):
            raise RecurosError(
                "E2-DATA",
                f"patch model: images have shape {tuple(images.shape)}, expected [batch, {IMAGE_SIDE}, {IMAGE_SIDE}]",
                hint="use a dataset of 8 x 8 images, or another kind of model",
            )
        side = IMAGE_SIDE // PATCH_SIDE
        patches = (
            images.reshape(-1, side, PATCH_SIDE, side, PATCH_SIDE).transpose(2, 3).reshape(-1, TOKENS, PATCH_SIDE**2)
        )
        tokens: Tensor = self.proj(patches) + self.pos
        return tokens


class Attention(nn.Module):
    """Multi-head self-attention, computed eagerly; returns (output, probabilities) as Hugging Face attention does.

    Sixteen tokens are too few for a fused kernel to pay, and eager keeps the probabilities, so a hook on this module
    reads `output[1]` ([B, heads, 16, 16]) at no extra cost.
    """

    def __init__(self, width: int, heads: int, head_width: int) -> None:
        super().__init__()
        self.heads = heads
        self.head_width = head_width
        self.qkv = nn.Linear(width, 3 * heads * head_width)
        self.out = nn.Linear(heads * head_width, width)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """softmax(q k^T / sqrt(d)) v (Vaswani et al. 2017, equation 1); x: [B, T, width]."""
        batch, tokens, _ = x.shape
        qkv = self.qkv(x).reshape(batch, tokens, 3, self.heads, self.head_width).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        scores = (q * (1.0 / math.sqrt(self.head_width))) @ k.transpose(-2, -1)
        probs = torch.softmax(scores, dim=-1)
        mixed = (probs @ v).transpose(1, 2).reshape(batch, tokens, self.heads * self.head_width)
        return self.out(mixed), probs


class Block(nn.Module):
    """Pre-norm transformer block; returns (hidden state, attention probabilities)."""

    def __init__(self, config: PatchConfig, layer: int) -> None:
        super().__init__()
        heads, head_width, neurons = config.block(layer)
        self.norm1 = nn.LayerNorm(config.width)
        self.attn = Attention(config.width, heads, head_width)
        self.norm2 = nn.LayerNorm(config.width)
        self.fc1 = nn.Linear(config.width, neurons)
        self.fc2 = nn.Linear(neurons, config.width)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x: [B, T, width]."""
        attended, probs = self.attn(self.norm1(x))
        x = x + attended
        x = x + self.fc2(nn.functional.gelu(self.fc1(self.norm2(x)), approximate="tanh"))
        return x, probs


class PatchTransformer(nn.Module):
    """The classifier: embed, blocks, norm, head.

    The head reads the sixteen tokens side by side: digits are centred, and the mean over tokens, which forgets where a
    stroke is, needs about twice the steps for the same accuracy.
    """

    def __init__(self, config: PatchConfig) -> None:
        super().__init__()
        self.config = config
        self.embed = PatchEmbed(config.width)
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.layers))
        self.norm = nn.LayerNorm(config.width)
        self.head = nn.Linear(TOKENS * config.width, config.classes)

    def forward(
        self, images: Tensor, need_hidden: bool = False, need_attention: bool = False
    ) -> tuple[Tensor, tuple[Tensor, ...], tuple[Tensor, ...]]:
        """Images [B, 8, 8] -> (logits [B, classes], hidden states, attention probabilities).

        `hidden` is () unless asked for: then the embedding output and one [B, 16, width] per block, as in Hugging Face
        models. `attention` is () unless asked for: then one [B, heads, 16, 16] per block.
        """
        x = self.embed(images)
        hidden, attention = [x], []
        for block in self.blocks:
            x, probs = block(x)
            hidden.append(x)
            attention.append(probs)
        logits: Tensor = self.head(self.norm(x).flatten(1))
        return logits, tuple(hidden) if need_hidden else (), tuple(attention) if need_attention else ()


class PatchModel(Model):
    """The patch transformer behind the common face; reads the column "x"."""

    task = "classify"

    def __init__(self, config: PatchConfig) -> None:
        self.module: PatchTransformer = PatchTransformer(config)
        self.architecture = config.architecture()
        self.hidden_width = config.width
        self.num_layers = config.layers
        self.num_classes = config.classes

    def forward(
        self, batch: Batch, need_hidden: bool = False, need_attention: bool = False, need_values: bool = False
    ) -> Output:
        """Logits [B, classes]; every row and every token is valid."""
        with last_values(self.module, need_values) as values:
            logits, hidden, attention = self.module(column(batch, "x"), need_hidden, need_attention)
        return Output(logits, hidden, None, attention=attention, values=values[0] if values else None)

    def example(self, rows: int, tokens: int) -> Batch:
        """Black images."""
        return {"x": torch.zeros(rows, IMAGE_SIDE, IMAGE_SIDE)}
