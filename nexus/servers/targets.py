"""Samples with a teacher's targets as a table of the dataset server.

Responsible for: the file (safetensors) that stage 4 writes once per capability, and reading it as columns of three splits. Refuses: a
file that lacks a column, and so the missing teacher shows before any window.

Columns: "input_ids", "attention_mask", "scored" I64 [B, T]; "top_ids" I64 and "top_logp" F32 [B, T, K]: position t holds the K likeliest
next tokens and their log probabilities, where token t + 1 is scored; log probability 0 at id 0 elsewhere, which nobody reads.
The file keeps them as I16, U8, I16 and F16.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from servers.dataset.table import SPLITS, Columns, Table, data_error

NAME: Final = "nexus"
FILE_DTYPES: Final = {
    "ids": np.int16,
    "scored": np.uint8,
    "lengths": np.int64,
    "top_ids": np.int16,
    "top_logp": np.float16,
}
OWNER: Final = "owner"
"""Optional column I64 [B]: whose adapter acts on the sample, in joint training."""


@dataclass(frozen=True)
class Targets(Table):
    """As `Table`, with columns of its own."""

    def rows(self, split: str, index: NDArray[np.int64]) -> Columns:
        """The model's columns: F32 and I64 only."""
        stored = {name: values[index] for name, values in self.columns(split).items()}
        ids = stored["ids"].astype(np.int64)
        content = np.arange(ids.shape[1])[None, :] < stored["lengths"][:, None]
        more = {OWNER: stored[OWNER].astype(np.int64)} if OWNER in stored else {}
        return {
            **more,
            "input_ids": ids,
            "attention_mask": content.astype(np.int64),
            "scored": stored["scored"].astype(np.int64),
            "top_ids": stored["top_ids"].astype(np.int64),
            "top_logp": stored["top_logp"].astype(np.float32),
        }


def save(path: Path, splits: Mapping[str, Columns]) -> None:
    """Write the file: split -> columns as FILE_DTYPES names them."""
    from safetensors.numpy import save_file

    path.parent.mkdir(parents=True, exist_ok=True)
    flat = {
        f"{split}/{name}": np.ascontiguousarray(values.astype((FILE_DTYPES | {OWNER: np.int64})[name]))
        for split, columns in splits.items()
        for name, values in columns.items()
    }
    save_file(flat, str(path))


def load(data: dict[str, Any], _model: dict[str, Any]) -> Targets:
    """The table of a manifest's [data]; E2-DATA for a file that is not one."""
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    path = Path(str(data.get("path", "")))
    if data.get("name") != NAME:
        raise data_error(f"Nexus knows no data {data.get('name')!r}", f'name = "{NAME}"')
    try:
        flat = load_file(str(path))
        names = [*FILE_DTYPES, *([OWNER] if f"train/{OWNER}" in flat else [])]
        splits = {s: {n: flat[f"{s}/{n}"] for n in names} for s in SPLITS}
    except (OSError, SafetensorError, KeyError) as error:
        raise data_error(f"targets {path} cannot be read: {error}", "run the stage that writes them again") from error
    return Targets(splits, "causal-lm", 0)


def register() -> None:
    """Let the dataset server of this process read it."""
    from servers.dataset.sources import KINDS

    KINDS["app"] = load
