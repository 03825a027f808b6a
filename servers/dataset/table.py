"""What every data source becomes: columns of samples in three splits.

Responsible for: the one in-memory form, the split of samples by their content, and the sentence a data error is told in.
Refuses: data too small to give every split a sample, fractions that do not add up.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

import numpy as np
from blake3 import blake3
from numpy.typing import NDArray

from syscalls.errors import RecurosError

SPLITS: Final = ("train", "validation", "test")
FRACTIONS_DEFAULT: Final = (0.8, 0.1, 0.1)
PAD_LABEL: Final = -100
"""The label of a position without a target (transformers' and PyTorch's ignore_index)."""

Columns = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Scale:
    """Features with the training split's mean and deviation taken out: (x - mean) / deviation. Both F32 [features]."""

    mean: NDArray[np.float32]
    deviation: NDArray[np.float32]

    def apply(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """x: F32 [n, features]."""
        return ((x - self.mean) / self.deviation).astype(np.float32)


@dataclass(frozen=True)
class Table:
    """Samples of three splits.

    `splits[name]` holds columns with one leading sample axis: "x" F32 [n, 8, 8] or [n, features] and "labels" I64 [n], or
    "input_ids" and "lengths" (I32 [n, T] and I64 [n]) with "labels" I64 [n] for classifiers. `classes` is 0 for a language model.
    `notes` counts what the source did that a person should know: rows skipped, rows cut to length. `problems`: the first
    of the rows left out, with their places. `scale`: what was done to features.
    """

    splits: dict[str, Columns]
    task: str
    classes: int
    class_names: tuple[str, ...] = ()
    notes: dict[str, int] = field(default_factory=dict)
    problems: tuple[str, ...] = ()
    scale: Scale | None = None

    def size(self, split: str) -> int:
        """Number of samples in a split; E2-DATA for a name that is none of the three."""
        return len(next(iter(self.columns(split).values())))

    def columns(self, split: str) -> Columns:
        """The stored columns of a split."""
        if split not in self.splits:
            raise data_error(f"no split is called {split!r}", f"splits: {', '.join(SPLITS)}")
        return self.splits[split]

    def rows(self, split: str, index: NDArray[np.int64]) -> Columns:
        """The model's columns for some samples: F32 and I64 only, padding and language-model labels made here."""
        stored = self.columns(split)
        rows = {name: values[index] for name, values in stored.items() if name not in ("input_ids", "lengths")}
        if "input_ids" in stored:
            tokens = stored["input_ids"][index].astype(np.int64)
            content = np.arange(tokens.shape[1])[None, :] < stored["lengths"][index][:, None]
            rows["input_ids"] = tokens
            rows["attention_mask"] = content.astype(np.int64)
            if self.task == "causal-lm":  # not shifted: position t carries its own token, and the model shifts
                rows["labels"] = np.where(content, tokens, PAD_LABEL)
        return rows

    def digest(self) -> str:
        """BLAKE3 of every column of every split, so that a record can say which data a run saw."""
        hasher = blake3(f"{self.task} {self.classes}\n".encode())
        for split in SPLITS:
            for name, values in sorted(self.splits[split].items()):
                hasher.update(f"{split} {name} {values.dtype.str} {list(values.shape)}\n".encode())
                hasher.update(np.ascontiguousarray(values).data.cast("B"))
        return hasher.hexdigest()


def data_error(message: str, hint: str) -> RecurosError:
    """E2-DATA: what was found and what was expected, and the way out."""
    return RecurosError("E2-DATA", message, hint=hint)


def scaled(splits: dict[str, Columns], how: str) -> Scale | None:
    """Scale "x" [n, features] of every split by the training split's figures, in place; what is held out says nothing about it."""
    if how not in ("standard", "none"):
        raise data_error(f"data.scale = {how!r} is unknown", '"standard" or "none"')
    if how == "none":
        return None
    x = splits["train"]["x"].astype(np.float64)
    deviation = x.std(axis=0)
    deviation[deviation == 0.0] = 1.0  # a constant column stays at zero
    scale = Scale(x.mean(axis=0).astype(np.float32), deviation.astype(np.float32))
    for columns in splits.values():
        columns["x"] = scale.apply(columns["x"])
    return scale


def reservoir(n: int, k: int, bits: np.random.PCG64) -> NDArray[np.int64]:
    """k of the positions 0..n-1, each subset equally likely, in one pass (Vitter 1985, algorithm R); ascending."""
    kept = list(range(min(k, n)))
    draws = bits.random_raw(max(0, n - k)).tolist() if n > k else []
    for position, draw in enumerate(draws, start=k):
        place = draw % (position + 1)  # of 2^64 values: the bias is below n / 2^64
        if place < k:
            kept[place] = position
    return np.asarray(sorted(kept), dtype=np.int64)


def thinned(table: Table, k: int, bits: np.random.PCG64) -> Table:
    """The table with a reservoir of k training samples; what is held out stays whole."""
    if k >= table.size("train"):
        return table
    chosen = reservoir(table.size("train"), k, bits)
    train = {name: values[chosen] for name, values in table.splits["train"].items()}
    return replace(table, splits={**table.splits, "train": train})


def fractions_of(data: dict[str, Any]) -> tuple[float, float, float]:
    """The manifest's train, validation and test fractions."""
    given = data.get("fractions") or FRACTIONS_DEFAULT
    if len(given) != 3 or min(given) <= 0 or abs(sum(given) - 1) > 1e-6:
        raise data_error(
            f"data.fractions = {list(given)} are not three positive numbers that add up to 1",
            'fractions of "train", "validation" and "test", such as [0.8, 0.1, 0.1]',
        )
    return float(given[0]), float(given[1]), float(given[2])


def split_by_content(digests: Sequence[bytes], data: dict[str, Any], what: str) -> dict[str, NDArray[np.int64]]:
    """Sample indices of each split, in source order, from the samples' content digests alone.

    Equal samples always fall into the same split, so no duplicate of a test sample is trained on; neither the seed nor the
    order of the file matters. Distinct contents are taken in the order of their digests until each held-out split has its
    share of the samples, at least one each.
    """
    train, validation, _ = fractions_of(data)
    groups: dict[bytes, list[int]] = {}
    for index, digest in enumerate(digests):
        groups.setdefault(digest, []).append(index)
    if len(groups) < len(SPLITS):
        raise data_error(
            f"{what} holds {len(groups)} different samples; train, validation and test need at least {len(SPLITS)}",
            "give more data, or a smaller data.seq-len for text",
        )
    wanted = {"test": (1 - train - validation) * len(digests), "validation": validation * len(digests)}
    chosen: dict[str, list[int]] = {name: [] for name in SPLITS}
    queue = sorted(groups)
    for name in ("test", "validation"):
        # Half a sample of slack makes the count the nearest one; what is left over must still fill the later splits.
        reserve = 2 if name == "test" else 1
        while not chosen[name] or (len(chosen[name]) + 0.5 <= wanted[name] and len(queue) > reserve):
            chosen[name] += groups[queue.pop(0)]
    for digest in queue:
        chosen["train"] += groups[digest]
    return {name: np.asarray(sorted(index), dtype=np.int64) for name, index in chosen.items()}


def content_digest(*parts: bytes) -> bytes:
    """BLAKE3 of length-prefixed parts."""
    hasher = blake3()
    for part in parts:
        hasher.update(len(part).to_bytes(8, "little") + part)
    return hasher.digest()
