"""CSV: a header with the names of the columns, then one record a row (RFC 4180).

Responsible for: reading the rows. Refuses: rows with another number of fields than the header, bytes that are not UTF-8, quotes that
do not close; each with the line it begins in. Every field is text: features are read as numbers, labels that all look like
integers as integers.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from typing import Any, Final

from servers.dataset import rows
from servers.dataset.table import Table, data_error

FIELD_CHARS_MAX: Final = 1 << 24


def load(data: dict[str, Any], model: dict[str, Any]) -> Table:
    """The records of the file `data["path"]`."""
    path = rows.path_of(data)
    label = rows.Form.of(data, model).label
    return rows.build(read(path.read_bytes(), str(path), label), str(path), data, model)


def read(raw: bytes, what: str, label: str) -> Iterator[tuple[str, Any]]:
    """`file:line` and the record, or the error. A quoted field may go over several lines; its record is named by the first."""
    text = _decoded(raw, what)
    csv.field_size_limit(FIELD_CHARS_MAX)
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    header: list[str] = []
    found: list[tuple[str, Any]] = []
    begins = 1
    while True:
        begins = reader.line_num + 1
        place = f"{what}:{begins}"
        try:
            fields = next(reader)
        except StopIteration:
            break
        except csv.Error as error:
            # Where the next record begins is anybody's guess, so it cannot be skipped.
            raise data_error(f"{place}: not CSV: {error}", "close the quotes of the row that begins there") from error
        if not header:
            header = _header(fields, what)
        elif fields:
            found.append((place, _record(place, header, fields)))
    yield from _integers(found, label)


def _decoded(raw: bytes, what: str) -> str:
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise data_error(f"{what}:{line}: byte {error.start} is not UTF-8", "convert the file to UTF-8") from error


def _header(fields: list[str], what: str) -> list[str]:
    twice = sorted({name for name in fields if fields.count(name) > 1})
    if twice:
        raise data_error(f"{what}:1: two columns are called {twice[0]!r}", "give each column a name of its own")
    return fields


def _record(place: str, header: list[str], fields: list[str]) -> Any:
    if len(fields) != len(header):
        return data_error(f"{place}: found {len(fields)} fields, expected {len(header)}", rows.WAY_OUT)
    return dict(zip(header, fields, strict=True))


def _integers(found: list[tuple[str, Any]], label: str) -> list[tuple[str, Any]]:
    """Labels as integers, where all of them are written so."""
    records = [record for _, record in found if isinstance(record, dict) and label in record]
    if records and all(record[label].removeprefix("-").isdecimal() for record in records):
        for record in records:
            record[label] = int(record[label])
    return found
