"""Samples of a capability: byte sequences, and which of their bytes are scored.

Responsible for: the one in-memory form, batching, and per-item scores of any model that gives logits. Refuses: samples longer than
the context, splits that share an item, items without a scored byte.

Token n below 256 is byte n; 256 pads, 258 ends (nexus.model.tokenizer). Position t of a model's logits predicts token t + 1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nexus.model.tokenizer import EOS, PAD
from syscalls.errors import RecurosError

SPLITS: Final = ("train", "validation", "test")
BATCH: Final = 64
Logits = Callable[[Tensor, Tensor], Tensor]
"""(input_ids I64 [B, T], attention_mask I64 [B, T]) -> logits [B, T, V]."""
Progress = Callable[[str, int, int], None]
"""(what, done, total), for whoever draws a bar."""


def silent(_what: str, _done: int, _total: int) -> None:
    """No bar."""


@dataclass(frozen=True)
class Samples:
    """`ids` I16 [n, T] padded on the right; `scored` bool [n, T]: the tokens that count; `lengths` I64 [n].

    `images` F32 [n, 8, 8] where a tower reads them; None for text.
    """

    ids: NDArray[np.int16]
    scored: NDArray[np.bool_]
    lengths: NDArray[np.int64]
    images: NDArray[np.float32] | None = None

    def __len__(self) -> int:
        return len(self.ids)

    def __post_init__(self) -> None:
        if len(self.ids) and not self.scored.any(axis=1).all():
            row = int(np.flatnonzero(~self.scored.any(axis=1))[0])
            raise RecurosError("E2-DATA", f"item {row} has no scored byte", hint="every item needs an answer")

    def take(self, index: NDArray[Any] | slice) -> Samples:
        """Some of them, in that order."""
        images = None if self.images is None else self.images[index]
        return Samples(self.ids[index], self.scored[index], self.lengths[index], images)

    def head(self, count: int) -> Samples:
        """The first `count`."""
        return self.take(slice(0, count))

    def batches(self, size: int = BATCH) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """(rows, input_ids, attention_mask) of consecutive batches."""
        for at in range(0, len(self), size):
            rows = slice(at, min(at + size, len(self)))
            ids = torch.from_numpy(self.ids[rows].astype(np.int64))
            content = torch.arange(ids.shape[1])[None, :] < torch.from_numpy(self.lengths[rows])[:, None]
            yield rows, ids, content.to(torch.int64)

    def texts(self) -> list[tuple[str, str]]:
        """(prompt, answer): what stands before the first scored byte, and the scored bytes without the end token."""
        pairs = []
        for ids, scored, length in zip(self.ids, self.scored, self.lengths, strict=True):
            first = int(np.flatnonzero(scored)[0])
            body = [int(i) for i in ids[first:length] if i < PAD]
            prompt = bytes(int(i) for i in ids[:first] if i < PAD)
            pairs.append((prompt.decode("utf-8", "replace"), bytes(body).decode("utf-8", "replace")))
        return pairs


def pack(rows: Sequence[tuple[bytes, bytes]], context: int, *, end: bool = True) -> Samples:
    """Prompts and answers as samples; the answer, and the end token after it, are scored. E2-DATA for one over `context`."""
    tokens = [list(prompt) + list(answer) + ([EOS] if end else []) for prompt, answer in rows]
    width = max((len(row) for row in tokens), default=1)
    if width > context:
        raise RecurosError(
            "E2-DATA",
            f"an item takes {width} tokens, the student's context is {context}",
            hint="shorten the item, or raise student.context",
        )
    ids = np.full((len(rows), width), PAD, dtype=np.int16)
    scored = np.zeros((len(rows), width), dtype=bool)
    for i, ((prompt, _), row) in enumerate(zip(rows, tokens, strict=True)):
        ids[i, : len(row)] = row
        scored[i, max(1, len(prompt)) : len(row)] = True
    return Samples(ids, scored, np.asarray([len(row) for row in tokens], dtype=np.int64))


def disjoint(splits: dict[str, Samples], what: str) -> dict[str, Samples]:
    """The splits, if no item of one is in another (E2-DATA)."""
    seen: dict[bytes, str] = {}
    for name in SPLITS:
        for row, length in zip(splits[name].ids, splits[name].lengths, strict=True):
            key = row[:length].tobytes()
            if splits[name].images is not None:
                break
            if seen.setdefault(key, name) != name:
                raise RecurosError(
                    "E2-DATA", f"{what}: an item of {name} is in {seen[key]} too", hint="split by content"
                )
    return splits


@torch.no_grad()
def score(
    logits: Logits, samples: Samples, metric: str, progress: Progress = silent, what: str = ""
) -> NDArray[np.float64]:
    """Per-item scores in [0, 1]: the share of scored bytes that are the likeliest ones, or whether all of them are."""
    scores = np.zeros(len(samples))
    for rows, ids, mask in samples.batches():
        guess = logits(ids, mask).argmax(dim=-1)[:, :-1]
        hit = (guess == ids[:, 1:]).numpy()
        scores[rows] = item_scores(hit, samples.scored[rows][:, 1:], metric)
        progress(what, rows.stop, len(samples))
    return scores


def item_scores(hit: NDArray[np.bool_], scored: NDArray[np.bool_], metric: str) -> NDArray[np.float64]:
    """[n] from hits [n, T] at scored positions."""
    if metric != "byte-accuracy":
        return np.asarray((hit | ~scored).all(axis=1), dtype=np.float64)
    hits = np.asarray((hit & scored).sum(axis=1), dtype=np.float64)
    counts = np.asarray(scored.sum(axis=1), dtype=np.float64)
    return hits / counts
