"""scikit-learn's bundled tables: iris, wine, breast cancer (features) and the digits as an 8 x 8 image.

Responsible for: a stratified split by the manifest's fractions, the same for every seed; features scaled by the training split.
Refuses: other names. No file is read but the ones that scikit-learn brings, and nothing is downloaded.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from servers.dataset import digits
from servers.dataset.table import Columns, Table, data_error, fractions_of, scaled

NAMES: Final = ("iris", "wine", "breast-cancer", "digits")


def load(data: dict[str, Any]) -> Table:
    """Features "x" F32 [n, features] and "labels" I64 [n] of the set `data["name"]`."""
    name = str(data.get("name") or "")
    if name not in NAMES:
        raise data_error(f"data.name = {name!r} is unknown", f"one of {', '.join(NAMES)}")
    if name == "digits":
        return digits.load(data)
    # scikit-learn takes over a second to import, and only this source needs it.
    from sklearn import datasets
    from sklearn.model_selection import train_test_split

    bunch = getattr(datasets, f"load_{name.replace('-', '_')}")()
    x, labels = bunch.data.astype(np.float32), bunch.target.astype(np.int64)
    train_share, validation_share, test_share = fractions_of(data)
    rest, test = train_test_split(np.arange(len(labels)), test_size=test_share, stratify=labels, random_state=0)
    share = validation_share / (train_share + validation_share)
    train, validation = train_test_split(rest, test_size=share, stratify=labels[rest], random_state=0)
    index = {"train": np.sort(train), "validation": np.sort(validation), "test": np.sort(test)}
    splits: dict[str, Columns] = {part: {"x": x[rows], "labels": labels[rows]} for part, rows in index.items()}
    scale = scaled(splits, str(data.get("scale") or "standard"))
    names = tuple(str(label) for label in bunch.target_names)
    return Table(splits, "classify", len(names), names, {}, (), scale)
