"""Writes the manifest's reference page from its types: `python -m servers.manifest_doc`.

Responsible for: `docs/reference/manifest.md`, one table of keys a TOML table: type, bounds and default from the pydantic model, the
meaning from the string below the field. Refuses: a table without a place on the page, a key without a meaning. A test holds the
page against this generator.
"""

from __future__ import annotations

import ast
import inspect
from pathlib import Path
from typing import Any, Final

from servers import manifest_servers as processes
from servers import manifest_tables as tables
from servers.manifest_table import Table

PAGE: Final = Path(__file__).resolve().parent.parent / "docs" / "reference" / "manifest.md"
HEADINGS: Final[tuple[tuple[str, type[Table]], ...]] = (
    ("`[app]`", tables.App),
    ("`[window]`", tables.Window),
    ("`[[phase]]`", tables.Phase),
    ('`[model.teacher]`, `[model.student]` with `kind = "hf"`', tables.HfSpec),
    ('`[model.teacher]`, `[model.student]` with `kind = "hf-config"`', tables.HfConfigSpec),
    ('`[model.teacher]`, `[model.student]` with `kind = "patch"`', tables.PatchSpec),
    ('`[model.teacher]`, `[model.student]` with `kind = "mlp"`', tables.MlpSpec),
    ('`[data]` with `kind = "jsonl"`', tables.JsonlData),
    ('`[data]` with `kind = "csv"`', tables.CsvData),
    ('`[data]` with `kind = "parquet"`', tables.ParquetData),
    ('`[data]` with `kind = "numpy"`', tables.NumpyData),
    ('`[data]` with `kind = "text"`', tables.TextData),
    ('`[data]` with `kind = "code"`', tables.CodeData),
    ('`[data]` with `kind = "sklearn"`', tables.SklearnData),
    ('`[data]` with `kind = "digits"`', tables.DigitsData),
    ('`[model.teacher]`, `[model.student]` with `kind = "app"`', tables.AppSpec),
    ('`[data]` with `kind = "app"`', tables.AppData),
    ("`[optimizer]`", tables.Optimizer),
    ("`[kd]`", tables.Kd),
    ("`[ema]`", tables.Ema),
    ("`[policy]`", tables.Policy),
    ("`[device]`", tables.Device),
    ("`[cache]`", tables.Cache),
    ("`[[probe]]`", tables.Probe),
    ("`[operator]`", processes.Operator),
    ("`[remote]`", processes.Remote),
    ("`[server.NAME]`", processes.Server),
    ("`[server.NAME] mailbox`", processes.Mailbox),
)
INTRO: Final = """\
# The manifest

Made from `servers/manifest_tables.py` by `python -m servers.manifest_doc`.

An app is one TOML file: `recuros boot -c my.toml`. It is merged over `servers/apps/base.toml`, which holds the five servers
and the operator's rights, table by table; lists are replaced. Relative paths count from the manifest's own folder. The merged
and resolved manifest is kept in the run directory, and `recuros boot` without an app or `-c` resumes from it.

`[app]`, `[window]`, one `[[phase]]` at least, `[model.teacher]`, `[model.student]` and `[data]` must be there. Unknown keys
are refused with the nearest known one, values are never converted ("5" is not 5), and every refusal names file, key, value and
limit: `E2-MANIFEST`, for models `E2-MODEL`, for data `E2-DATA`, all with exit status 2. Complete manifests:
[own models](../how-to/own-model.md), [own data](../how-to/own-data.md), `servers/apps/digits.toml`.
"""
RULES: Final = """\
## What tables must agree on

- `window.budget-ms` <= `window.deadline-ms` <= `window.period-ms`.
- Phase names differ. `repeat` is for the last phase, `end` for phases that train the student.
- Models of kind `patch` take images of 8 x 8: `digits`, or `numpy`. Models of kind `mlp` take them, too, or features: `sklearn`, `numpy`,
  or `jsonl`, `csv` and `parquet` with `features`. Models of kind `hf` and `hf-config` take `text`, `code`, `jsonl`, `csv` and
  `parquet`. Both models are of one built-in kind, or both from Hugging Face.
- Teacher and student have one task, and as many classes or tokens as each other; where both directories hold a
  tokenizer.json, the vocabularies are the same.
- `data.seq-len` is within the context of both models, the tokenizer's ids within both vocabularies.
- A server calls servers of strictly lower rank; one server is of class `edf`; rights and probes exist.
- A run directory with committed windows keeps its `app.name`, `app.seed`, models and data.
"""
TYPES: Final = {"integer": "integer", "number": "number", "string": "string", "boolean": "true or false"}


def page() -> str:
    """Source of docs/reference/manifest.md."""
    parts = [INTRO]
    for heading, table in HEADINGS:
        parts.append(f"## {heading}\n\n{_summary(table)}\n")
        parts.append("| key | value | default | |\n|---|---|---|---|\n" + "".join(_rows(table)))
    return "\n".join([*parts, RULES])


def meanings(table: type[Table]) -> dict[str, str]:
    """Field name -> the string literal below the field, as in the source of the table or of what it is made from."""
    found: dict[str, str] = {}
    for base in reversed(table.__mro__):
        if issubclass(base, Table):
            found |= _own_meanings(base)
    return found


def _own_meanings(table: type[Table]) -> dict[str, str]:
    body = ast.parse(inspect.getsource(table)).body[0]
    assert isinstance(body, ast.ClassDef)
    found: dict[str, str] = {}
    for node, below in zip(body.body, [*body.body[1:], ast.Pass()], strict=True):
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and isinstance(below, ast.Expr):
            value = below.value
            if isinstance(value, ast.Constant) and isinstance(value.value, str):
                found[node.target.id] = value.value
    return found


def _summary(table: type[Table]) -> str:
    """The class docstring, which names fields as Python does; here they are keys."""
    text = inspect.cleandoc(table.__doc__ or "")
    for name, field in table.model_fields.items():
        text = text.replace(f"`{name}`", f"`{field.alias}`")
    return text


def _rows(table: type[Table]) -> list[str]:
    schema = table.model_json_schema(by_alias=True)
    means = meanings(table)
    rows = []
    for name, field in table.model_fields.items():
        key = str(field.alias)
        shape = schema["properties"][key]
        if "const" not in shape and name not in means:
            raise ValueError(f"{table.__name__}.{name} has no meaning: add a string below the field")
        given = "required" if field.is_required() else "-" if field.default is None else f"`{_toml(field.default)}`"
        text = [f"`{key}`", _shape(shape), given, means.get(name, "What this table is.")]
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in text) + " |\n")
    return rows


def _shape(schema: dict[str, Any]) -> str:
    """A value's type and bounds in words."""
    if "anyOf" in schema:
        kinds = [_shape(option) for option in schema["anyOf"] if option.get("type") != "null"]
        return " or ".join(kinds)
    if "const" in schema or "enum" in schema:
        return ", ".join(f"`{_toml(v)}`" for v in schema.get("enum", [schema.get("const")]))
    if schema.get("type") == "array":
        low, high = schema.get("minItems"), schema.get("maxItems")
        count = f"{low} of " if low is not None and low == high else ""
        return f"list of {count}{_shape(schema['items'])}"
    if schema.get("type") == "object" or "$ref" in schema:
        return "table"
    return f"{TYPES[schema['type']]}{_bounds(schema)}"


def _bounds(schema: dict[str, Any]) -> str:
    low, above = schema.get("minimum"), schema.get("exclusiveMinimum")
    high, below = schema.get("maximum"), schema.get("exclusiveMaximum")
    if low is not None and high is not None:
        return f" {_number(low)} .. {_number(high)}"
    limits = ((">=", low), (">", above), ("<=", high), ("<", below))
    return "".join(f" {sign} {_number(value)}" for sign, value in limits if value is not None)


def _number(value: float) -> str:
    """Large powers of two as such: limits are read, not counted."""
    if isinstance(value, int) and value >= 1 << 20 and value & (value - 1) == 0:
        return f"2^{value.bit_length() - 1}"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, Table):
        return "its defaults"
    return f'"{value}"' if isinstance(value, str) else str(value)


def main() -> None:
    """Write the page."""
    PAGE.write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
