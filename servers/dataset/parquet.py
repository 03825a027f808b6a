"""Parquet: a table of columns, through pyarrow (the extra `recuros[parquet]`).

Responsible for: reading the rows that are needed, by column. Refuses: files that pyarrow cannot read, a missing pyarrow (with the
way to install it). Rows are named by their number, from 1.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from servers.dataset import rows
from servers.dataset.table import Table, data_error

ROWS_AT_A_TIME: Final = 4096


def load(data: dict[str, Any], model: dict[str, Any]) -> Table:
    """The records of the file `data["path"]`."""
    path = rows.path_of(data)
    form = rows.Form.of(data, model)
    wanted = [*(form.features or (form.text,)), *([form.label] if form.task == "classify" else [])]
    return rows.build(read(str(path), wanted), str(path), data, model)


def read(path: str, columns: list[str]) -> Iterator[tuple[str, Any]]:
    """`file: row N` and the record, with these columns of those that are there."""
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile
    except ImportError:
        raise data_error("[data] kind = 'parquet' needs pyarrow", 'pip install "recuros[parquet]"') from None
    try:
        with ParquetFile(path) as file:
            there = [name for name in file.schema_arrow.names if name in columns]
            names = dict.fromkeys(file.schema_arrow.names)
            number = 0
            for batch in file.iter_batches(ROWS_AT_A_TIME, columns=there):
                for record in batch.to_pylist():
                    number += 1
                    # Columns that are missing are told by what the file holds, not by what was asked of it.
                    yield f"{path}: row {number}", record if len(there) == len(columns) else {**names, **record}
    except (ArrowException, OSError) as error:
        raise data_error(f"{path} cannot be read as Parquet: {error}", "write the file again") from error
