"""Records into samples: what JSON Lines, CSV and Parquet have in common once a file has been read.

Responsible for: checking each record (a text, or numbers as features; a label), label mapping, tokenising, scaling, splitting.
Refuses: missing or mistyped columns, empty texts, numbers that are not finite, labels the model cannot tell apart; each
names file, place, column, found and expected. `on-error = "skip"` leaves such records out, counts them and keeps their places.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from servers.dataset import tokens
from servers.dataset.table import Columns, Scale, Table, content_digest, data_error, scaled, split_by_content
from syscalls.errors import RecurosError

WAY_OUT: Final = 'correct the row, or set data.on-error = "skip"'
PROBLEMS_KEPT: Final = 20
"""Skipped rows whose place and reason are kept; the others are counted."""

Found = Iterable[tuple[str, Any]]
"""Place of a record (`file:line`) and the record, or the error that reading it gave."""


@dataclass(frozen=True)
class Row:
    """A checked record. `label` is None for a language model; `text` or `x` is set, by what the data is."""

    place: str
    label: int | str | None
    text: str = ""
    x: tuple[float, ...] = ()


@dataclass
class Errors:
    """What happens to a wrong row: `refuse` raises, `skip` counts."""

    skip: bool
    skipped: int = 0
    problems: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, data: dict[str, Any]) -> Errors:
        """By the manifest's data.on-error."""
        choice = str(data.get("on_error") or "refuse")
        if choice not in ("refuse", "skip"):
            raise data_error(f"data.on-error = {choice!r} is unknown", '"refuse" or "skip"')
        return cls(choice == "skip")

    def wrong(self, error: RecurosError) -> None:
        """Raise it, or note it."""
        if not self.skip:
            raise error
        self.skipped += 1
        if len(self.problems) < PROBLEMS_KEPT:
            self.problems.append(error.message)


@dataclass(frozen=True)
class Form:
    """What a record must hold. `features` are the names of numeric columns; empty means a text."""

    task: str
    text: str
    label: str
    features: tuple[str, ...]

    @classmethod
    def of(cls, data: dict[str, Any], model: dict[str, Any]) -> Form:
        """By the manifest's [data]."""
        features = tuple(str(name) for name in data.get("features") or ())
        task = "classify" if features else tokens.task_of(data, model)
        return cls(task, str(data.get("text_column") or "text"), str(data.get("label_column") or "label"), features)


def path_of(data: dict[str, Any]) -> Path:
    """The file the manifest names; E2-DATA when there is none."""
    if not data.get("path"):
        raise data_error(f"[data] kind = {data.get('kind')!r} needs a path", 'path = "train.jsonl"')
    path = Path(str(data["path"])).expanduser()
    if not path.is_file():
        raise data_error(f"no data file at {path}", "relative paths start at the manifest's directory")
    return path


def build(found: Found, what: str, data: dict[str, Any], model: dict[str, Any]) -> Table:
    """Check, map labels, tokenise or scale, and split the records of a file."""
    form, errors = Form.of(data, model), Errors.of(data)
    rows = checked(found, form, errors)
    if not rows:
        example = f'"{form.features[0]}": 0.5' if form.features else f'"{form.text}": "..."'
        raise data_error(f"{what} holds no usable row", f"records such as {{{example}}}")
    notes: dict[str, int] = {}
    names: tuple[str, ...] = ()
    classes = 0
    if form.task == "classify":
        rows, names, classes = labelled(form.label, rows, model, errors)
    if not rows:
        raise data_error(f"{what} holds no row with a usable label", "see the rows skipped in the server's log")
    if form.features:
        columns = numbers_of(rows, form, errors, None)
        digests = [content_digest(x.tobytes()) for x in columns["x"]]
    else:
        rows, columns, notes = texts_of(rows, form, errors, data, model)
        digests = [content_digest(row.text.encode()) for row in rows]
    if form.task == "classify":
        columns["labels"] = np.asarray([row.label for row in rows], dtype=np.int64)
    index = split_by_content(digests, data, what)
    splits = {name: {c: values[chosen] for c, values in columns.items()} for name, chosen in index.items()}
    scale = scaled(splits, str(data.get("scale") or "standard")) if form.features else None
    notes = {"skipped": errors.skipped, **notes}
    return Table(splits, form.task, classes, names, notes, tuple(errors.problems), scale)


def extend(found: Found, what: str, table: Table, data: dict[str, Any], model: dict[str, Any]) -> Columns:
    """Columns of new records in the form of a table that is there: its classes, its length, its scale. Never skips."""
    x = table.splits["train"].get("x")
    form = Form.of({**data, "features": data.get("features") or (("x",) if x is not None else ())}, model)
    form = Form(table.task, form.text, form.label, form.features)
    errors = Errors(skip=False)
    rows = checked(found, form, errors)
    if not rows:
        raise data_error(f"{what} holds no row", "give at least one labelled sample")
    if x is not None:
        columns = numbers_of(rows, form, errors, table.scale)
        width = int(np.prod(x.shape[1:]))
        if columns["x"].shape[1] != width:
            raise data_error(
                f"{rows[0].place}: the sample has {columns['x'].shape[1]} numbers, expected {width}",
                "give samples of the shape that the run learns from",
            )
        columns["x"] = columns["x"].reshape(-1, *x.shape[1:])
    else:
        rows, columns, _ = texts_of(rows, form, errors, data, model, width=table.splits["train"]["input_ids"].shape[1])
    if table.task == "classify":
        columns["labels"] = _known_labels(form.label, rows, table)
    return columns


def checked(found: Found, form: Form, errors: Errors) -> list[Row]:
    """The records that are as the form says."""
    rows = []
    for place, value in found:
        try:
            if isinstance(value, RecurosError):
                raise value
            rows.append(_row(place, value, form))
        except RecurosError as error:
            errors.wrong(error)
    return rows


def _row(place: str, value: Any, form: Form) -> Row:
    if not isinstance(value, dict):
        raise data_error(f"{place}: found {kind_of(value)}, expected an object", WAY_OUT)
    wanted = [*(form.features or (form.text,)), *([form.label] if form.task == "classify" else [])]
    for column in wanted:
        if column not in value:
            _missing(place, column, value, form)
    label = value[form.label] if form.task == "classify" else None
    if form.task == "classify" and (isinstance(label, bool) or not isinstance(label, int | str) or label == ""):
        found = "empty" if label == "" else kind_of(label)
        raise data_error(f"{place}: column {form.label!r} is {found}, expected an integer or a string", WAY_OUT)
    if form.features:
        x = tuple(number for name in form.features for number in _numbers(place, name, value[name]))
        return Row(place, label, x=x)
    text = value[form.text]
    if not isinstance(text, str) or not text:
        found = "an empty string" if text == "" else kind_of(text)
        raise data_error(f"{place}: column {form.text!r} is {found}, expected a string with content", WAY_OUT)
    return Row(place, label, text=text)


def _missing(place: str, column: str, value: dict[str, Any], form: Form) -> None:
    found = ", ".join(repr(key) for key in sorted(map(str, value))[:20]) or "none"
    option = "text-column" if column == form.text and not form.features else "label-column"
    option = "features" if column in form.features else option
    raise data_error(
        f"{place}: column {column!r} is missing; found columns {found}", f"name the right one with data.{option}"
    )


def _numbers(place: str, column: str, value: Any) -> list[float]:
    """One number, or a (nested) list of them, flat."""
    if isinstance(value, list):
        return [number for item in value for number in _numbers(place, column, item)]
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            raise data_error(f"{place}: column {column!r} is {value!r:.40}, expected a number", WAY_OUT) from None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise data_error(f"{place}: column {column!r} is {kind_of(value)}, expected a number", WAY_OUT)
    if not math.isfinite(value) or abs(value) > float(np.finfo(np.float32).max):
        raise data_error(f"{place}: column {column!r} is {value}, which float32 has no finite number for", WAY_OUT)
    return [float(value)]


def numbers_of(rows: list[Row], form: Form, errors: Errors, scale: Scale | None) -> Columns:
    """ "x" F32 [n, features]; rows of another length than the first are wrong. `scale`: applied when it is given."""
    width = len(rows[0].x)
    for row in [row for row in rows if len(row.x) != width]:
        rows.remove(row)
        errors.wrong(
            data_error(
                f"{row.place}: the features hold {len(row.x)} numbers, expected {width} as in {rows[0].place}", WAY_OUT
            )
        )
    x = np.asarray([row.x for row in rows], dtype=np.float32)
    return {"x": x if scale is None else scale.apply(x)}


def texts_of(
    rows: list[Row], form: Form, errors: Errors, data: dict[str, Any], model: dict[str, Any], width: int = 0
) -> tuple[list[Row], Columns, dict[str, int]]:
    """The rows with enough tokens, their token columns, and how many were cut. `width`: of a table that is there."""
    tokenizer, length = tokens.tokenizer_of(data, model), tokens.seq_len_of(data, model)
    encoded = tokens.encode_all(tokenizer, [row.text for row in rows], special=True)
    least = 2 if form.task == "causal-lm" else 1  # a language model needs one token to predict another
    kept = []
    for i, row in enumerate(rows):
        if len(encoded[i]) >= least:
            kept.append(i)
        else:
            has = f"{row.place}: the text has {len(encoded[i])} tokens, expected at least {least}"
            errors.wrong(data_error(has, WAY_OUT))
    if not kept:
        raise data_error(f"no row has {least} tokens", "give rows with more text")
    rows, encoded = [rows[i] for i in kept], [encoded[i] for i in kept]
    cut = sum(len(ids) > length for ids in encoded)
    return rows, pad(encoded, width or length, tokenizer.pad_id, exact=bool(width)), {"truncated": cut}


def pad(encoded: list[list[int]], length: int, pad_id: int, *, exact: bool = False) -> Columns:
    """ "input_ids" I32 [n, T] cut or padded on the right to the longest row within `length`, and "lengths" I64 [n]."""
    width = length if exact else min(length, max(len(ids) for ids in encoded))
    table = np.full((len(encoded), width), pad_id, dtype=np.int32)
    lengths = np.zeros(len(encoded), dtype=np.int64)
    for i, ids in enumerate(encoded):
        lengths[i] = min(len(ids), width)
        table[i, : lengths[i]] = ids[:width]
    return {"input_ids": table, "lengths": lengths}


def kind_of(value: Any) -> str:
    """A value's type as JSON calls it."""
    if value is None:
        return "null"
    names = {dict: "an object", list: "an array", str: "a string", bool: "a boolean", int: "an integer"}
    return names.get(type(value), "a number" if isinstance(value, float) else f"a {type(value).__name__}")


def labelled(
    column: str, rows: list[Row], model: dict[str, Any], errors: Errors
) -> tuple[list[Row], tuple[str, ...], int]:
    """The rows with their labels as classes, the class names, the number of classes.

    Strings take the teacher's own label ids, since its head has that order; sorted order where it was saved without names.
    """
    strings = {row.label for row in rows if isinstance(row.label, str)}
    if strings and len(strings) < len({row.label for row in rows}):
        odd = next(row for row in rows if not isinstance(row.label, str))
        raise data_error(
            f"{odd.place}: column {column!r} is an integer, but other rows have strings", "use one type of label"
        )
    own = tokens.model_label_ids(model)
    mapping: dict[Any, int] = dict(own) if own else {name: i for i, name in enumerate(sorted(strings))}
    limit = tokens.model_classes(model)
    numbers = [row.label for row in rows if isinstance(row.label, int)]
    classes = limit if limit is not None else max([*mapping.values(), *numbers], default=0) + 1
    kept = []
    for row in rows:
        try:
            kept.append(replace(row, label=_class_of(row, column, mapping, own, classes)))
        except RecurosError as error:
            errors.wrong(error)
    names = sorted(mapping, key=mapping.__getitem__) if strings else [str(i) for i in range(classes)]
    return kept, tuple(names), classes


def _class_of(row: Row, column: str, mapping: dict[Any, int], own: dict[str, int], classes: int) -> int:
    label = row.label
    if isinstance(label, str):
        if own and label not in own:
            raise data_error(
                f"{row.place}: column {column!r} is {label!r}, none of the model's labels: "
                f"{', '.join(sorted(own, key=own.__getitem__)):.300}",
                "correct the label, or give integers in the order of the model's classes",
            )
        number = mapping[label]
        what = f"{label!r} (class {number})"
    else:
        number = int(label or 0)
        what = str(number)
    if not 0 <= number < classes:
        raise _no_class(row.place, column, what, classes)
    return number


def _known_labels(column: str, rows: list[Row], table: Table) -> NDArray[np.int64]:
    known = {name: i for i, name in enumerate(table.class_names)}
    labels = []
    for row in rows:
        label = known.get(row.label, -1) if isinstance(row.label, str) else int(row.label or 0)
        if not 0 <= label < table.classes:
            what = f"{row.label!r}, none of {', '.join(table.class_names):.300}" if label == -1 else str(label)
            raise _no_class(row.place, column, what, table.classes)
        labels.append(label)
    return np.asarray(labels, dtype=np.int64)


def _no_class(place: str, column: str, what: str, classes: int) -> RecurosError:
    return data_error(
        f"{place}: column {column!r} is {what}, expected one of {classes} classes, 0..{classes - 1}",
        "correct the label, or use a model with more classes",
    )
