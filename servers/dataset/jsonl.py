"""JSON Lines: one object a line, a text column and, for classification, a label column.

Responsible for: reading, checking, label mapping and tokenising. Refuses: bad JSON, missing or mistyped columns, empty
texts, labels the model cannot tell apart; each names file, line, column, found and expected. `bad-rows = "skip"` leaves
such rows out and counts them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from servers.dataset import tokens
from servers.dataset.table import Columns, Table, content_digest, data_error, split_by_content
from syscalls.errors import RecurosError


@dataclass(frozen=True)
class Row:
    """A checked line. `label` is None for a language model."""

    line: int
    text: str
    label: int | str | None


def load(data: dict[str, Any], model: dict[str, Any]) -> Table:
    """Read, check, map labels, tokenise and split the file `data["path"]`."""
    path = path_of(data)
    task = tokens.task_of(data, model)
    text_column, label_column = str(data.get("text_column") or "text"), str(data.get("label_column") or "label")
    notes: dict[str, int] = {"skipped": 0, "truncated": 0}
    rows = list(_rows(path, text_column, label_column if task == "classify" else None, data, notes))
    if not rows:
        raise data_error(f"{path} holds no usable row", f'one object a line, such as {{"{text_column}": "..."}}')
    tokenizer = tokens.tokenizer_of(data, model)
    length = tokens.seq_len_of(data, model)
    encoded = tokens.encode_all(tokenizer, [row.text for row in rows], special=True)
    read = len(rows)
    rows, encoded = _with_tokens(path, rows, encoded, least=2 if task == "causal-lm" else 1, skip=_skips(data))
    notes["skipped"] += read - len(rows)
    notes["truncated"] = sum(len(ids) > length for ids in encoded)
    columns: Columns = pad(encoded, length, tokenizer.pad_id)
    names: tuple[str, ...] = ()
    classes = 0
    if task == "classify":
        columns["labels"], names, classes = _labels(path, label_column, rows, model)
    digests = [content_digest(row.text.encode()) for row in rows]
    index = split_by_content(digests, data, str(path))
    splits = {name: {c: values[chosen] for c, values in columns.items()} for name, chosen in index.items()}
    return Table(splits, task, classes, names, notes)


def path_of(data: dict[str, Any]) -> Path:
    """The file the manifest names; E2-DATA when there is none."""
    if not data.get("path"):
        raise data_error(f"[data] kind = {data.get('kind')!r} needs a path", 'path = "train.jsonl"')
    path = Path(str(data["path"])).expanduser()
    if not path.is_file():
        raise data_error(f"no data file at {path}", "relative paths start at the manifest's directory")
    return path


def pad(encoded: list[list[int]], length: int, pad_id: int) -> Columns:
    """ "input_ids" I32 [n, T] cut or padded on the right to the longest row within `length`, and "lengths" I64 [n]."""
    width = min(length, max(len(ids) for ids in encoded))
    table = np.full((len(encoded), width), pad_id, dtype=np.int32)
    lengths = np.zeros(len(encoded), dtype=np.int64)
    for i, ids in enumerate(encoded):
        lengths[i] = min(len(ids), width)
        table[i, : lengths[i]] = ids[:width]
    return {"input_ids": table, "lengths": lengths}


def _rows(
    path: Path, text_column: str, label_column: str | None, data: dict[str, Any], notes: dict[str, int]
) -> Iterator[Row]:
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                yield _row(f"{path}:{number}", number, line, text_column, label_column)
            except RecurosError:
                if not _skips(data):
                    raise
                notes["skipped"] += 1


def _skips(data: dict[str, Any]) -> bool:
    choice = str(data.get("bad_rows") or "refuse")
    if choice not in ("refuse", "skip"):
        raise data_error(f"data.bad-rows = {choice!r} is unknown", '"refuse" or "skip"')
    return choice == "skip"


def _row(where: str, number: int, line: bytes, text_column: str, label_column: str | None) -> Row:
    way_out = 'correct the line, or set data.bad-rows = "skip"'
    try:
        value = json.loads(line.decode("utf-8"))
    except json.JSONDecodeError as error:
        raise data_error(f"{where}: not JSON: {error.msg} at character {error.pos + 1}", way_out) from error
    except UnicodeDecodeError as error:
        raise data_error(f"{where}: byte {error.start + 1} is not UTF-8", way_out) from error
    if not isinstance(value, dict):
        raise data_error(f"{where}: found {_kind(value)}, expected an object", way_out)
    for column in filter(None, (text_column, label_column)):
        if column not in value:
            found = ", ".join(repr(key) for key in sorted(value)[:20]) or "none"
            option = "text-column" if column == text_column else "label-column"
            raise data_error(
                f"{where}: column {column!r} is missing; found columns {found}",
                f"name the right one with data.{option}",
            )
    text = value[text_column]
    if not isinstance(text, str) or not text:
        found = "an empty string" if text == "" else _kind(text)
        raise data_error(f"{where}: column {text_column!r} is {found}, expected a string with content", way_out)
    label = value[label_column] if label_column else None
    if label_column and (isinstance(label, bool) or not isinstance(label, int | str)):
        raise data_error(
            f"{where}: column {label_column!r} is {_kind(label)}, expected an integer or a string", way_out
        )
    return Row(number, text, label)


def _kind(value: Any) -> str:
    names = {
        dict: "an object",
        list: "an array",
        str: "a string",
        bool: "a boolean",
        int: "an integer",
        float: "a number",
    }
    return "null" if value is None else names[type(value)]


def _with_tokens(
    path: Path, rows: list[Row], encoded: list[list[int]], *, least: int, skip: bool
) -> tuple[list[Row], list[list[int]]]:
    """Leave out, or refuse, rows with too few tokens to learn from (a language model needs one to predict another)."""
    short = [i for i, ids in enumerate(encoded) if len(ids) < least]
    if short and not skip:
        i = short[0]
        raise data_error(
            f"{path}:{rows[i].line}: the text has {len(encoded[i])} tokens, expected at least {least}",
            'correct the line, or set data.bad-rows = "skip"',
        )
    kept = sorted(set(range(len(rows))) - set(short))
    if not kept:
        raise data_error(f"{path} holds no row with {least} tokens", "give rows with more text")
    return [rows[i] for i in kept], [encoded[i] for i in kept]


def _labels(
    path: Path, column: str, rows: list[Row], model: dict[str, Any]
) -> tuple[NDArray[np.int64], tuple[str, ...], int]:
    """Labels I64 [n], class names, number of classes.

    Strings take the teacher's own label ids, since its head has that order; sorted order where it was saved without names.
    """
    strings = {row.label for row in rows if isinstance(row.label, str)}
    if strings and len(strings) < len({row.label for row in rows}):
        odd = next(row for row in rows if not isinstance(row.label, str))
        raise data_error(
            f"{path}:{odd.line}: column {column!r} is an integer, but other rows have strings", "use one type of label"
        )
    own = tokens.model_label_ids(model)
    stranger = next((row for row in rows if own and strings and row.label not in own), None)
    if stranger is not None:
        raise data_error(
            f"{path}:{stranger.line}: column {column!r} is {stranger.label!r}, none of the model's labels: "
            f"{', '.join(sorted(own, key=own.__getitem__)):.300}",
            "correct the label, or give integers in the order of the model's classes",
        )
    mapping: dict[Any, int] = dict(own) if own else {name: i for i, name in enumerate(sorted(strings))}
    labels = [mapping[row.label] if strings else int(row.label) for row in rows]  # type: ignore[arg-type]
    limit = tokens.model_classes(model)
    classes = limit if limit is not None else max(labels) + 1
    for row, label in zip(rows, labels, strict=True):
        if not 0 <= label < classes:
            what = f"{row.label!r} (class {label})" if strings else str(label)
            raise data_error(
                f"{path}:{row.line}: column {column!r} is {what}, expected one of {classes} classes, 0..{classes - 1}",
                "correct the label, or use a model with more classes",
            )
    names = sorted(mapping, key=mapping.__getitem__) if strings else [str(i) for i in range(classes)]
    return np.asarray(labels, dtype=np.int64), tuple(names), classes
