"""A NumPy archive (.npz) with "x" and "labels".

Responsible for: F32 features [n, features] or images [n, height, width], and integer labels [n]. Refuses: object arrays (they are
pickle, and nothing here is unpickled), other shapes and types, rows that are not finite (or skips them, by `on-error`).
Rows are named by their number, from 1.
"""

from __future__ import annotations

import zipfile
from typing import Any

import numpy as np
from numpy.typing import NDArray

from servers.dataset import rows, tokens
from servers.dataset.table import Columns, Table, content_digest, data_error, scaled, split_by_content


def load(data: dict[str, Any], model: dict[str, Any]) -> Table:
    """The samples of the archive `data["path"]`, split by their content."""
    path = rows.path_of(data)
    x, labels = _arrays(str(path))
    errors = rows.Errors.of(data)
    limit = tokens.model_classes(model)
    classes = int(labels.max()) + 1 if limit is None else limit
    kept = []
    for i, place in enumerate(f"{path}: row {n}" for n in range(1, len(x) + 1)):
        if not np.isfinite(x[i]).all():
            errors.wrong(data_error(f"{place}: a number in 'x' is not finite", rows.WAY_OUT))
        elif not 0 <= labels[i] < classes:
            says = f"{place}: 'labels' is {labels[i]}, expected one of {classes} classes, 0..{classes - 1}"
            errors.wrong(data_error(says, "correct the label, or use a model with more classes"))
        else:
            kept.append(i)
    x, labels = x[kept], labels[kept]
    index = split_by_content([content_digest(row.tobytes()) for row in x], data, str(path))
    splits: dict[str, Columns] = {name: {"x": x[i], "labels": labels[i]} for name, i in index.items()}
    scale = scaled(splits, str(data.get("scale") or "standard")) if x.ndim == 2 else None
    names = tuple(str(i) for i in range(classes))
    return Table(splits, "classify", classes, names, {"skipped": errors.skipped}, tuple(errors.problems), scale)


def _arrays(path: str) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    try:
        with np.load(path, allow_pickle=False) as archive:
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise data_error(f"{path} holds one array, expected an archive", "numpy.savez(path, x=..., labels=...)")
            lacking = [name for name in ("x", "labels") if name not in archive.files]
            if lacking:
                has = ", ".join(archive.files) or "nothing"
                raise data_error(
                    f"{path} has no array {lacking[0]!r}; it has {has}", "numpy.savez(path, x=..., labels=...)"
                )
            x, labels = archive["x"], archive["labels"]
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise data_error(f"{path} cannot be read as a NumPy archive: {error}", "write it with numpy.savez") from error
    if x.dtype.kind not in "fiu" or x.ndim not in (2, 3):
        raise data_error(
            f"{path}: 'x' is {x.dtype} {list(x.shape)}, expected numbers [n, f] or [n, h, w]", "reshape it"
        )
    if labels.dtype.kind not in "iu" or labels.shape != (len(x),):
        says = f"{path}: 'labels' is {labels.dtype} {list(labels.shape)}, expected integers [{len(x)}]"
        raise data_error(says, "one class number a sample")
    if not len(x):
        raise data_error(f"{path} holds no sample", "give at least three different ones")
    with np.errstate(over="ignore"):  # a number beyond float32 becomes infinite and is reported as such
        return np.ascontiguousarray(x, dtype=np.float32), labels.astype(np.int64)
