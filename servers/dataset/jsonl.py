"""JSON Lines: one object a line, with a text or features, and a label for classification.

Responsible for: reading the lines. Refuses: bytes that are not UTF-8 and lines that are not JSON, each with its number; what a
record must hold is `rows`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any

from servers.dataset import rows
from servers.dataset.table import Table, data_error


def load(data: dict[str, Any], model: dict[str, Any]) -> Table:
    """The records of the file `data["path"]`."""
    path = rows.path_of(data)
    with path.open("rb") as file:
        return rows.build(read(file, str(path)), str(path), data, model)


def read(lines: Iterable[bytes], what: str) -> Iterator[tuple[str, Any]]:
    """`file:line` and the record, or the error; empty lines are none."""
    for number, line in enumerate(lines, start=1):
        if line.strip():
            yield f"{what}:{number}", _parsed(f"{what}:{number}", line)


def _parsed(place: str, line: bytes) -> Any:
    try:
        return json.loads(line.decode("utf-8"))
    except json.JSONDecodeError as error:
        return data_error(f"{place}: not JSON: {error.msg} at character {error.pos + 1}", rows.WAY_OUT)
    except UnicodeDecodeError as error:
        return data_error(f"{place}: byte {error.start + 1} is not UTF-8", rows.WAY_OUT)
    except RecursionError:
        return data_error(f"{place}: nested too deeply", rows.WAY_OUT)
