"""Augmentations: changes of a batch that depend on its place in the stream alone.

Responsible for: the explicit list of them, each a pure function of (columns, generator of the batch's position). Refuses:
names that are not in the list, data without images or features (E2-DATA).

`mixup` adds two columns that the task loss reads: "labels_other" I64 [B], the label of the sample that was mixed in, and
"share_other" F32 [B] in [0, 1/2], its share.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from servers.dataset.table import Columns, data_error

SHIFT_MAX_PIXELS: Final = 1
MIXUP_ALPHA_DEFAULT: Final = 1.0
UNIT: Final = 2.0**-53

Augment = Callable[[Columns, np.random.PCG64], Columns]


def uniform(bits: np.random.PCG64, count: int) -> NDArray[np.float64]:
    """`count` doubles inside (0, 1). Raw output rather than a Generator's methods: numpy fixes the former across versions."""
    return ((bits.random_raw(count) >> np.uint64(11)).astype(np.float64) + 0.5) * UNIT


def shift(columns: Columns, bits: np.random.PCG64) -> Columns:
    """Move each image by -1, 0 or 1 pixel along both axes; what moves in is zero. x: F32 [B, height, width]."""
    images = columns["x"]
    span = 2 * SHIFT_MAX_PIXELS + 1
    moves = (bits.random_raw((len(images), 2)) % np.uint64(span)).astype(np.int64)  # 0..2: the corner of the crop
    margin = (SHIFT_MAX_PIXELS, SHIFT_MAX_PIXELS)
    padded = np.pad(images, ((0, 0), margin, margin))
    rows = moves[:, 0, None] + np.arange(images.shape[1])[None, :]
    across = moves[:, 1, None] + np.arange(images.shape[2])[None, :]
    sample = np.arange(len(images))[:, None, None]
    return {**columns, "x": padded[sample, rows[:, :, None], across[:, None, :]]}


def mixup(alpha: float) -> Augment:
    """Mix each sample with another of its batch: x = (1 - s) x_i + s x_j, s = min(l, 1 - l), l ~ Beta(alpha, alpha).

    Zhang et al. 2018, equation 1, with a share for each sample; the sample that a row is named by keeps the larger share, so
    its id and label still say what the row mostly is.
    """

    def mixed(columns: Columns, bits: np.random.PCG64) -> Columns:
        x, labels = columns["x"], columns["labels"]
        partner = np.argsort(bits.random_raw(len(x)), kind="stable")
        first = beta(bits, alpha, len(x))
        share = np.minimum(first, 1.0 - first).astype(np.float32)
        wide = share.reshape(-1, *[1] * (x.ndim - 1))
        return {
            **columns,
            "x": (x * (1 - wide) + x[partner] * wide).astype(np.float32),
            "labels_other": labels[partner],
            "share_other": share,
        }

    return mixed


def beta(bits: np.random.PCG64, alpha: float, count: int) -> NDArray[np.float64]:
    """Draws of Beta(alpha, alpha), 0 < alpha <= 1 (Joehnk 1964): x = u^(1/a), y = v^(1/a), kept where x + y <= 1; x / (x + y)."""
    kept = np.empty(0)
    while len(kept) < count:
        x, y = (uniform(bits, 2 * count) ** (1.0 / alpha) for _ in range(2))
        total = x + y
        inside = (total <= 1.0) & (total > 0.0)
        kept = np.concatenate((kept, x[inside] / total[inside]))
    return kept[:count]


def augment_of(data: dict[str, Any]) -> Augment | None:
    """The augmentation that the manifest names; E2-DATA lists the known ones."""
    name = str(data.get("augment") or "none")
    alpha = float(data.get("mixup_alpha") or MIXUP_ALPHA_DEFAULT)
    if not 0.0 < alpha <= 1.0:
        raise data_error(f"data.mixup-alpha = {alpha:g} is outside (0, 1]", "1 mixes evenly, small values hardly")
    made: dict[str, Augment | None] = {"none": None, "shift": shift, "mixup": mixup(alpha)}
    if name not in made:
        raise data_error(f"data.augment = {name!r} is unknown", f"one of {', '.join(made)}")
    return made[name]


def check_augment(data: dict[str, Any], columns: Columns, task: str) -> None:
    """Refuse an augmentation that the data has nothing for: `shift` needs images, `mixup` features and classes."""
    name = str(data.get("augment") or "none")
    x = columns.get("x")
    if name == "shift" and (x is None or x.ndim != 3):
        raise data_error(f"data.augment = 'shift' works on images, not on {data.get('kind')!r}", 'augment = "none"')
    if name == "mixup" and (x is None or task != "classify"):
        raise data_error(
            f"data.augment = 'mixup' mixes features of classified samples, not {data.get('kind')!r}", 'augment = "none"'
        )
