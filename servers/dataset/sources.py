"""The explicit list of data sources: one file each, one line each.

Responsible for: `load`, from the manifest's [data] to a table. Refuses: unknown kinds. A source is a function of the manifest's
tables [data] and [model] alone, and gives the same table every time.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from servers.dataset import code_tree, csv_rows, digits, jsonl, numpy_file, parquet, sklearn_sets, text
from servers.dataset.stream import generator
from servers.dataset.table import Table, data_error, thinned

KINDS: Final[dict[str, Callable[[dict[str, Any], dict[str, Any]], Table]]] = {
    "digits": lambda data, _model: digits.load(data),
    "sklearn": lambda data, _model: sklearn_sets.load(data),
    "jsonl": jsonl.load,
    "csv": csv_rows.load,
    "parquet": parquet.load,
    "numpy": numpy_file.load,
    "text": text.load,
    "code": code_tree.load,
}


def options(config: dict[str, Any]) -> dict[str, Any]:
    """The manifest's [data] with underscores for hyphens, so that both spellings of a key arrive alike."""
    return {str(key).replace("-", "_"): value for key, value in (config.get("data") or {}).items()}


def load(data: dict[str, Any], model: dict[str, Any], seed: int = 0) -> Table:
    """The table of the manifest's [data]; E2-DATA for an unknown kind. With `reservoir`, as many of the training samples."""
    kind = str(data.get("kind") or "")
    if kind not in KINDS:
        raise data_error(f"data.kind = {kind!r} is unknown", f"one of {', '.join(KINDS)}")
    table = KINDS[kind](data, model)
    keep = int(data.get("reservoir") or 0)
    return thinned(table, keep, generator("reservoir", seed)) if keep else table
