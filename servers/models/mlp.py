"""A multilayer perceptron over features or the pixels of 8 x 8 images: the smallest network that distils.

Responsible for: a classifier whose hidden layers are real modules (`layers.<i>`) of one width, so that hooks and hints find them.
Refuses: samples of another shape, with both named; sizes below 1.
"""

from __future__ import annotations

import itertools
from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn

from servers.models.model import Batch, Model, Output, column
from syscalls.errors import RecurosError

IMAGE_SIDE = 8
PIXELS = IMAGE_SIDE**2


@dataclass(frozen=True)
class MlpConfig:
    """The architecture: `layers` hidden layers of `width` units. 2 x 256 has 85,002 parameters, 1 x 32 has 2,410.

    `features`: numbers a sample; 0 means images of 8 x 8.
    """

    layers: int = 2
    width: int = 256
    classes: int = 10
    features: int = 0

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one sample."""
        return (self.features,) if self.features else (IMAGE_SIDE, IMAGE_SIDE)

    def __post_init__(self) -> None:
        if min(self.layers, self.width, self.classes) < 1 or self.features < 0:
            raise RecurosError(
                "E2-MODEL",
                f"mlp model: layers {self.layers}, width {self.width} or classes {self.classes} is below 1",
                hint="choose sizes of at least 1",
            )


class Mlp(nn.Module):
    """relu(W x + b), `layers` times, and a linear head."""

    def __init__(self, config: MlpConfig) -> None:
        super().__init__()
        self.config = config
        sizes = [config.features or PIXELS, *[config.width] * config.layers]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(sizes))
        self.head = nn.Linear(config.width, config.classes)

    def forward(self, images: Tensor, need_hidden: bool = False) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Images [B, 8, 8] or features [B, features] -> (logits [B, classes], hidden states).

        `hidden` is () unless asked for: then the first layer before its nonlinearity, in the place of an embedding, and one
        [B, 1, width] per layer: a sequence of one token.
        """
        if tuple(images.shape[1:]) != self.config.shape:
            raise RecurosError(
                "E2-DATA",
                f"mlp model: samples have shape {tuple(images.shape)}, expected [{', '.join(['batch', *map(str, self.config.shape)])}]",
                hint="set features to the numbers of a sample (absent for 8 x 8 images), or use another kind of model",
            )
        x = images.flatten(1)
        hidden: list[Tensor] = []
        for layer in self.layers:
            before = layer(x)
            x = nn.functional.relu(before)
            hidden += [x] if hidden else [before, x]
        logits: Tensor = self.head(x)
        return logits, tuple(h[:, None, :] for h in hidden) if need_hidden else ()


class MlpModel(Model):
    """The perceptron behind the common face; reads the column "x"."""

    task = "classify"

    def __init__(self, config: MlpConfig) -> None:
        self.module: Mlp = Mlp(config)
        self.architecture = {"kind": "mlp", **asdict(config)}
        self.hidden_width = config.width
        self.num_layers = config.layers
        self.num_classes = config.classes

    def forward(
        self, batch: Batch, need_hidden: bool = False, need_attention: bool = False, need_values: bool = False
    ) -> Output:
        """Logits [B, classes]; every row is valid."""
        if need_attention or need_values:
            raise RecurosError(
                "E2-MODEL",
                "mlp model: it has no attention",
                hint="give the attention terms weight 0, or take another kind of model",
            )
        logits, hidden = self.module(column(batch, "x"), need_hidden=need_hidden)
        return Output(logits, hidden, None)

    @property
    def lacks(self) -> frozenset[str]:
        """It has no attention."""
        return frozenset({"attention", "values"})

    def example(self, rows: int, tokens: int) -> Batch:
        """Zeros."""
        return {"x": torch.zeros(rows, *self.module.config.shape)}
