"""The stream of batches of a phase.

Responsible for: batch p of a phase as a pure function of (seed, phase name, p, weights), so that any window can be filled
again, in any order, in any process. Refuses: weights that are not finite or not one per training sample.

Epoch e of a phase is a permutation of the training samples seeded by (seed, phase, e); batch p takes the positions
[p * B, (p + 1) * B) of the epochs laid end to end, so a last, partial batch is filled from the next epoch. Under a curriculum the
permutation is sorted by the samples' difficulty in ten steps, easy ones first; within a step it stays as it was. Where samples came
later, epochs are counted from the batch that they came at, over all samples there are then.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from blake3 import blake3
from numpy.typing import NDArray

from servers.dataset.augment import Augment
from servers.dataset.table import Columns, Table, data_error

Weights = NDArray[np.float32]
CURRICULUM_STEPS = 10
DTYPES = {np.dtype(np.float32): "F32", np.dtype(np.int64): "I64"}
"""Page dtype names of the only two types a batch has."""


def generator(*key: int | str) -> np.random.PCG64:
    """A bit generator seeded by a key; its raw output is the same in every numpy release (NEP 19)."""
    digest = blake3("\x1f".join(str(part) for part in key).encode()).digest(16)
    return np.random.PCG64(int.from_bytes(digest, "little"))


@lru_cache(maxsize=8)
def permutation(seed: int, phase: str, epoch: int, n: int) -> NDArray[np.int64]:
    """A permutation of 0..n-1 for one epoch: the order of n raw draws (shuffle() is not fixed across numpy releases)."""
    draws = generator("permutation", seed, phase, epoch).random_raw(n)
    order: NDArray[np.int64] = np.argsort(draws, kind="stable").astype(np.int64)
    order.setflags(write=False)
    return order


@dataclass(frozen=True)
class Window:
    """The batches of one window. `unweighted`: stream positions whose weights were all zero and fell back to one."""

    batches: list[Columns]
    digest: str
    unweighted: list[int]


class Stream:
    """Batches of B training samples. `since`: phase -> batch that its epochs are counted from; `sizes`: numbers of samples so far."""

    def __init__(
        self,
        table: Table,
        seed: int,
        batch: int,
        augment: Augment | None = None,
        *,
        since: Mapping[str, int] | None = None,
        sizes: tuple[int, ...] = (),
    ) -> None:
        if batch < 1:
            raise data_error(f"data.batch = {batch} is below 1", "choose a batch of at least one sample")
        self.table, self.seed, self.batch, self.augment = table, seed, batch, augment
        self.n_train = table.size("train")
        self.since, self.sizes = dict(since or {}), sizes

    def ids(self, phase: str, position: int, order: Weights | None = None) -> NDArray[np.int64]:
        """The sample ids of batch `position`: I64 [B]. `order`: difficulties F32 [n_train], see `by_difficulty`."""
        first = position - self.since.get(phase, 0)
        if first < 0:
            raise data_error(f"batch {position} of {phase!r} lies before the new samples", "fill it as it was recorded")
        place = np.arange(first * self.batch, (first + 1) * self.batch, dtype=np.int64)
        epochs, offsets = np.divmod(place, self.n_train)
        ids = np.empty(self.batch, dtype=np.int64)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            drawn = permutation(self.seed, self._named(phase), int(epoch), self.n_train)
            ids[here] = (drawn if order is None else by_difficulty(drawn, order))[offsets[here]]
        return ids

    def _named(self, phase: str) -> str:
        """The name that seeds a phase's permutations: another one after each time that samples came."""
        return phase if len(self.sizes) < 2 else f"{phase}+{len(self.sizes) - 1}"

    def make(
        self, phase: str, position: int, weights: Weights | None, order: Weights | None = None
    ) -> tuple[Columns, bool]:
        """Batch `position` with "ids" and "weight", and whether its weights fell back to one."""
        ids = self.ids(phase, position, order)
        columns = self.table.rows("train", ids)
        if self.augment is not None:
            columns = self.augment(columns, generator("augment", self.seed, phase, position))
        weight, fell_back = batch_weights(weights, ids)
        return {**columns, "ids": ids, "weight": weight}, fell_back

    def window(
        self, phase: str, step0: int, steps: int, weights: Weights | None, order: Weights | None = None
    ) -> Window:
        """Batches step0 .. step0 + steps - 1, and the BLAKE3 of their ids and weights in order."""
        hasher, batches, unweighted = blake3(), [], []
        for position in range(step0, step0 + steps):
            columns, fell_back = self.make(phase, position, weights, order)
            hasher.update(columns["ids"].tobytes() + columns["weight"].tobytes())
            batches.append(columns)
            if fell_back:
                unweighted.append(position)
        return Window(batches, hasher.hexdigest(), unweighted)


def by_difficulty(drawn: NDArray[np.int64], difficulty: Weights) -> NDArray[np.int64]:
    """The permutation, sorted by tenths of the difficulties' ranks; ties go by sample, and a tenth keeps its order."""
    ranks = np.empty(len(difficulty), dtype=np.int64)
    ranks[np.argsort(difficulty, kind="stable")] = np.arange(len(difficulty))
    tenth = ranks * CURRICULUM_STEPS // len(difficulty)
    return drawn[np.argsort(tenth[drawn], kind="stable")]


def batch_weights(weights: Weights | None, ids: NDArray[np.int64]) -> tuple[Weights, bool]:
    """Weights of a batch, F32 [B], mean 1; samples at or below zero get exactly 0.

    Mean 1 keeps the learning rate what the manifest says. When nothing is left the batch is used unweighted, and the second
    value is True.
    """
    ones = np.ones(len(ids), dtype=np.float32)
    if weights is None:
        return ones, False
    chosen = np.maximum(weights[ids].astype(np.float64), 0.0)
    total = float(chosen.sum())
    if total <= 0.0:
        return ones, True
    return (chosen * (len(ids) / total)).astype(np.float32), False


def sample_weights(
    n_train: int,
    weights: str,
    gate: Mapping[str, Any],
    read: Callable[[str, str], NDArray[Any]],
    sizes: tuple[int, ...] = (),
) -> Weights | None:
    """The weights object in force, with the gate's closed samples at zero; None when there is neither.

    `read(object id, dtype)` gives an object of the store.
    """
    unknown = sorted(set(gate) - {"mask", "order", "extra"})
    if unknown:
        raise data_error(
            f"gate criterion {unknown[0]!r} is not a list of samples", 'a gate is {} or {"mask": id, "order": id}'
        )
    values: Weights | None = None
    if weights:
        values = check_weights(_grown(read(weights, "F32"), n_train, sizes, 1), n_train, f"weights {weights}")
    if gate.get("mask"):
        mask = check_weights(_grown(read(str(gate["mask"]), "U8"), n_train, sizes, 1), n_train, f"gate {gate['mask']}")
        open_samples = (mask > 0).astype(np.float32)
        values = open_samples if values is None else values * open_samples
    return values


def sample_order(
    n_train: int, gate: Mapping[str, Any], read: Callable[[str, str], NDArray[Any]], sizes: tuple[int, ...] = ()
) -> Weights | None:
    """The difficulties of the curriculum in force; None when there is none."""
    name = str(gate.get("order") or "")
    return check_weights(_grown(read(name, "F32"), n_train, sizes, 0.5), n_train, f"order {name}") if name else None


def _grown(values: NDArray[Any], n_train: int, sizes: tuple[int, ...], fill: float) -> NDArray[Any]:
    """Values that were made before samples came: the newer ones get `fill`."""
    if values.ndim != 1 or len(values) >= n_train or len(values) not in sizes:
        return values
    return np.concatenate((values, np.full(n_train - len(values), fill, dtype=values.dtype)))


def check_weights(values: NDArray[Any], n_train: int, where: str) -> Weights:
    """F32 [n_train], all finite, or E2-DATA."""
    if values.shape != (n_train,):
        raise data_error(
            f"{where} has shape {list(values.shape)}, expected [{n_train}]", "one weight a training sample"
        )
    if not np.isfinite(values).all():
        bad = int(np.flatnonzero(~np.isfinite(values))[0])
        raise data_error(f"{where} is {values[bad]} at sample {bad}", "weights must be finite")
    return values.astype(np.float32)


def page_rows(prefix: str, columns: Columns) -> list[tuple[str, str, tuple[int, ...], memoryview]]:
    """Columns as rows for `syscalls.pages.pack_arrays`."""
    rows = []
    for name, values in columns.items():
        data = np.ascontiguousarray(values)
        rows.append((prefix + name, DTYPES[data.dtype], tuple(data.shape), data.data))
    return rows
