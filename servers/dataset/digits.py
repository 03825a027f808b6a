"""scikit-learn's bundled handwritten digits: 1,797 images of 8 x 8 pixels in ten classes.

Responsible for: the fixed split (1,000 train, 197 validation, 600 test, stratified, the same for every seed) and the
augmentations of 8 x 8 images. Refuses: augmentations that are not in the list.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from servers.dataset.table import Table, data_error

N_TEST: Final = 600
N_VALIDATION: Final = 197
PIXEL_MAX: Final = 16.0
SHIFT_MAX_PIXELS: Final = 1

Images = NDArray[np.float32]
Augment = Callable[[Images, np.random.PCG64], Images]


def load(data: dict[str, Any]) -> Table:
    """The bundled set; images divided by 16 into [0, 1], F32 [n, 8, 8]."""
    # scikit-learn takes over a second to import, and only this source needs it.
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    bunch = load_digits()
    images = (bunch.images / PIXEL_MAX).astype(np.float32)
    labels = bunch.target.astype(np.int64)
    rest, test = train_test_split(np.arange(len(labels)), test_size=N_TEST, stratify=labels, random_state=0)
    train, validation = train_test_split(rest, test_size=N_VALIDATION, stratify=labels[rest], random_state=0)
    index = {"train": np.sort(train), "validation": np.sort(validation), "test": np.sort(test)}
    splits = {name: {"x": images[rows], "labels": labels[rows]} for name, rows in index.items()}
    return Table(splits, "classify", 10, tuple(str(digit) for digit in range(10)))


def shift(images: Images, bits: np.random.PCG64) -> Images:
    """Move each image by -1, 0 or 1 pixel along both axes; what moves in is zero. images: F32 [B, 8, 8]."""
    span = 2 * SHIFT_MAX_PIXELS + 1
    # Raw generator output rather than Generator.integers: numpy fixes the former across versions, not the latter.
    moves = (bits.random_raw((len(images), 2)) % np.uint64(span)).astype(np.int64)  # 0..2: the corner of the crop
    padded = np.pad(images, ((0, 0), (SHIFT_MAX_PIXELS, SHIFT_MAX_PIXELS), (SHIFT_MAX_PIXELS, SHIFT_MAX_PIXELS)))
    side = np.arange(images.shape[1])
    rows = moves[:, 0, None] + side[None, :]
    columns = moves[:, 1, None] + side[None, :]
    sample = np.arange(len(images))[:, None, None]
    moved: Images = padded[sample, rows[:, :, None], columns[:, None, :]]
    return moved


AUGMENTS: Final[dict[str, Augment | None]] = {"none": None, "shift": shift}


def augment_of(data: dict[str, Any]) -> Augment | None:
    """The augmentation that the manifest names; E2-DATA lists the known ones."""
    name = data.get("augment") or "none"
    if name not in AUGMENTS:
        raise data_error(f"data.augment = {name!r} is unknown", f"one of {', '.join(AUGMENTS)}")
    if name != "none" and data.get("kind") != "digits":
        raise data_error(f"data.augment = {name!r} works on images, not on {data.get('kind')!r}", 'augment = "none"')
    return AUGMENTS[name]
