"""Scores of a model on held-out data.

Responsible for: accuracy, NLL, calibration (ECE, Brier) for classifiers; accuracy, NLL, bits per token for language
models. Refuses: an empty split (E2-DATA). Nothing here touches gradients or the mode of randomness.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from servers.models.model import Batch, Model, valid_rows
from syscalls.errors import RecurosError

ECE_BINS = 15
BATCH_DEFAULT = 200


@torch.no_grad()
def evaluate(
    model: Model, arrays: Batch, *, batch: int = BATCH_DEFAULT, checkpoint: Callable[[], None] | None = None
) -> dict[str, float]:
    """Score `model` on a whole split, {column: tensor [N, ...]}.

    Classify: {"accuracy", "nll" (nats), "ece", "brier", "n", "params"}. Causal LM: {"accuracy", "nll" (nats a token),
    "bits_per_token", "n" (tokens), "params"}. `checkpoint` is called after each batch, for a fair server's slice.
    """
    count = next(iter(arrays.values())).shape[0] if arrays else 0
    if count == 0:
        raise RecurosError(
            "E2-DATA", "the split to evaluate on is empty", hint="check the sizes in the manifest's [data]"
        )
    was_training = model.module.training
    model.module.eval()
    sums = _Sums(model.task == "classify")
    held = next(model.module.parameters(), None)  # a teacher that is only its cached outputs holds none
    device = torch.device("cpu") if held is None else held.device
    for start in range(0, count, batch):
        part = {name: values[start : start + batch].to(device) for name, values in arrays.items()}
        out = model.forward(part)
        targets = model.targets(part).reshape(-1, 1)
        sums.add(valid_rows(out.logits, out.valid_mask), valid_rows(targets, out.valid_mask)[:, 0])
        if checkpoint is not None:
            checkpoint()
    model.module.train(was_training)
    return {**sums.scores(), "params": float(model.param_count)}


class _Sums:
    """Streaming sums, in float64, over batches."""

    def __init__(self, calibration: bool) -> None:
        self.calibration = calibration
        self.n = 0
        self.hits = self.nll = self.brier = 0.0
        self.bins = torch.zeros(3, ECE_BINS, dtype=torch.float64)  # count, confidence, hits

    def add(self, logits: Tensor, targets: Tensor) -> None:
        """logits [N, C], targets [N]."""
        log_p = torch.log_softmax(logits.double(), dim=-1)
        confidence, guess = log_p.max(dim=-1)
        hit = (guess == targets).double()
        self.n += int(targets.numel())
        self.hits += float(hit.sum())
        self.nll -= float(log_p.gather(1, targets[:, None]).sum())
        if self.calibration:
            p = log_p.exp()
            onehot = torch.nn.functional.one_hot(targets, p.shape[1]).double()
            self.brier += float(((p - onehot) ** 2).sum())
            self.bins += binned(confidence.exp(), hit).cpu()

    def scores(self) -> dict[str, float]:
        """Means over everything added."""
        if self.n == 0:
            raise RecurosError("E2-DATA", "the split to evaluate on has no valid target")
        nll = self.nll / self.n
        common = {"accuracy": self.hits / self.n, "nll": nll, "n": float(self.n)}
        if not self.calibration:
            return {**common, "bits_per_token": nll / math.log(2)}
        return {**common, "ece": ece_of(self.bins), "brier": self.brier / self.n}


def binned(confidence: Tensor, hit: Tensor) -> Tensor:
    """[3, 15] sums of count, confidence and hits in equal bins (k/15, (k + 1)/15]."""
    index = (torch.ceil(confidence * ECE_BINS) - 1).clamp(0, ECE_BINS - 1).long()
    columns = torch.stack((torch.ones_like(confidence), confidence, hit))
    onehot = torch.nn.functional.one_hot(index, ECE_BINS).to(columns.dtype)
    return columns @ onehot


def ece_of(bins: Tensor) -> float:
    """Expected calibration error: sum over bins of |hits - confidence| / n (Guo et al. 2017, equation 3)."""
    return float((bins[2] - bins[1]).abs().sum() / bins[0].sum())
