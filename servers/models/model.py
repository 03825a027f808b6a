"""One face for every network the runtime trains or teaches from.

Responsible for: what a batch is, what a forward pass returns, and which logits are valid targets. Refuses: nothing about
content; a batch without a column the model reads is E2-DATA with both lists named.

A batch is a dict of tensors:
    "ids" I64 [B]          sample ids
    "weight" F32 [B]       sample weights, mean 1 (optional: all one)
    "labels" I64 [B]       classes (classification)
    "x" F32 [B, 8, 8]      images (kinds "patch", "mlp")
    "input_ids" I64 [B, T], "attention_mask" I64 [B, T]     tokens (Hugging Face kinds)
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from syscalls.errors import RecurosError

Task = Literal["classify", "causal-lm"]
Batch = dict[str, Tensor]


@dataclass(frozen=True)
class Output:
    """What a forward pass gives.

    `logits`: [B, C] (classify) or [B, T, V] (causal LM, position t predicts token t + 1).
    `hidden`: () or one [B, T, width] per layer after the embedding output, as in Hugging Face models.
    `valid_mask`: None when every position of `logits` has a target; else bool, shaped as `logits` without its last axis.
    `hidden_mask`: None when every position of `hidden` is content; else bool [B, T].
    `attention`: () or one [B, heads, T, T] per layer, the probabilities that were used.
    `values`: None or the value vectors of the last layer's heads [B, heads, T, d].
    """

    logits: Tensor
    hidden: tuple[Tensor, ...]
    valid_mask: Tensor | None
    hidden_mask: Tensor | None = None
    attention: tuple[Tensor, ...] = ()
    values: Tensor | None = None


class Model(ABC):
    """A module with its task and its shape. `architecture` rebuilds it without weights and without any directory.

    A `frozen` one is read with its weights from a directory that its architecture names; it is never trained and no state of a run.
    """

    module: nn.Module
    task: Task
    architecture: dict[str, Any]
    hidden_width: int
    num_layers: int
    num_classes: int
    frozen: bool = False

    def place(self, device: torch.device) -> None:
        """Move it to a device."""
        self.module.to(device)

    @abstractmethod
    def forward(
        self, batch: Batch, need_hidden: bool = False, need_attention: bool = False, need_values: bool = False
    ) -> Output:
        """Run the network on a batch; hidden states, attention and values only when asked for, E2-MODEL where there are none."""

    @abstractmethod
    def example(self, rows: int, tokens: int) -> Batch:
        """The columns that `forward` reads, of that size and no meaning: to see what sizes come out. `tokens` is for sequences."""

    @property
    def lacks(self) -> frozenset[str]:
        """Which of "attention", "values" and "numbers" (inputs that have a gradient) this model cannot give a loss term."""
        return frozenset()

    @property
    def param_count(self) -> int:
        """Number of parameters; shared ones count once."""
        return sum(p.numel() for p in self.module.parameters())

    def targets(self, batch: Batch) -> Tensor:
        """[B] classes, or [B, T] next tokens; the last position of a sequence has none and repeats its own token."""
        if self.task == "classify":
            return column(batch, "labels")
        tokens = column(batch, "input_ids")
        return torch.cat((tokens[:, 1:], tokens[:, -1:]), dim=1)


def column(batch: Batch, name: str) -> Tensor:
    """A column of a batch, or E2-DATA naming what there is."""
    if name not in batch:
        raise RecurosError(
            "E2-DATA",
            f"the batch has no column {name!r}; it has {', '.join(sorted(batch)) or 'none'}",
            hint="match the dataset's adapter to the kind of model in the manifest",
        )
    return batch[name]


def valid_rows(values: Tensor, mask: Tensor | None) -> Tensor:
    """Flatten all but the last axis of `values`, keeping the rows where `mask` holds: [N, width]."""
    flat = values.reshape(-1, values.shape[-1])
    return flat if mask is None else flat[mask.reshape(-1)]
