"""scikit-learn's bundled handwritten digits: 1,797 images of 8 x 8 pixels in ten classes.

Responsible for: the fixed split (1,000 train, 197 validation, 600 test, stratified, the same for every seed). Refuses: nothing;
there is nothing to choose.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from servers.dataset.table import Table

N_TEST: Final = 600
N_VALIDATION: Final = 197
PIXEL_MAX: Final = 16.0


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
