"""Probe maps as text: tables of cells, histograms as bars, the entries of a ring.

Responsible for: one way to draw each kind of map that `probes.cells.read` describes. Refuses: nothing; a document of another
shape (the maps of a built-in) is printed as dotted names.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

BAR_CHARS: Final = 40
ROWS_SHOWN_MAX: Final = 64


def lines_of(document: Mapping[str, Any]) -> list[str]:
    """Every map of a document of `probes.cells.read`, drawn; other documents as dotted names."""
    maps = document.get("maps")
    if not isinstance(maps, Mapping) or not all(isinstance(m, Mapping) and "torn" in m for m in maps.values()):
        return [f"{name}  {value}" for name, value in leaves(document)]
    lines: list[str] = []
    for name, held in maps.items():
        lines += [f"@{name}  {_about(held)}", *(f"  {line}" for line in draw(held, document.get("sites") or []))]
    return lines


def _about(held: Mapping[str, Any]) -> str:
    parts = [str(held["kind"])]
    parts += [f"{held[key]} {key}" for key in ("drops", "nans") if held.get(key)]
    if held.get("torn"):
        parts.append("torn: the learner wrote all the while")
    return ", ".join(parts)


def draw(held: Mapping[str, Any], sites: Sequence[str]) -> Iterator[str]:
    """The lines of one map."""
    if "rows" in held:
        for number, row in enumerate(held["rows"]):
            yield f"{_site(sites, number)}:"
            yield from (f"  {line}" for line in _plain(held, row))
        if not held["rows"]:
            yield "nothing yet"
    else:
        yield from _plain(held, held)


def _plain(held: Mapping[str, Any], row: Mapping[str, Any]) -> Iterator[str]:
    match held["kind"]:
        case "log2":
            yield from _log2(row)
        case "linear":
            yield from _linear(row)
        case "hash":
            yield from _items([(str(key), value) for key, value in row["items"]])
        case "ring":
            yield from ring_lines(row["entries"][-ROWS_SHOWN_MAX:])
            yield f"{row['written']} written, {row['taken']} taken"
        case _:
            yield from _items(list(zip(_names(held, len(row["values"])), row["values"], strict=True)))


def _names(held: Mapping[str, Any], count: int) -> list[str]:
    fields = held.get("fields")
    if fields:
        return [str(field) for field in fields]
    label = held.get("label") or ""
    return [f"{label}[{i}]" for i in range(count)] if count > 1 else [str(label)]


def _site(sites: Sequence[str], number: int) -> str:
    return sites[number] if number < len(sites) else f"site {number}"


def _items(items: list[tuple[str, Any]]) -> Iterator[str]:
    shown = items[:ROWS_SHOWN_MAX]
    width = max((len(name) for name, _ in shown), default=0)
    for name, value in shown:
        yield f"{name.ljust(width)}  {figure(value)}".strip()
    if len(items) > len(shown):
        yield f"and {len(items) - len(shown)} more (--json shows all)"
    if not items:
        yield "nothing yet"


def figure(value: Any) -> str:
    """A number in a line."""
    return f"{value:.6g}" if isinstance(value, int | float) else str(value)


def _log2(row: Mapping[str, Any]) -> Iterator[str]:
    bins = [(f"[2^{row['low'] + i}, 2^{row['low'] + i + 1})", count) for i, count in enumerate(row["counts"])]
    yield from _bars([("NaN", row["nan"]), ("<= 0", row["nonpositive"])], bins, [])


def _linear(row: Mapping[str, Any]) -> Iterator[str]:
    low, high, counts = row["low"], row["high"], row["counts"]
    step = (high - low) / max(1, len(counts))
    bins = [(f"[{low + i * step:.4g}, {low + (i + 1) * step:.4g})", count) for i, count in enumerate(counts)]
    yield from _bars([("NaN", row["nan"]), (f"< {low:.4g}", row["below"])], bins, [(f">= {high:.4g}", row["above"])])


def _bars(
    before: list[tuple[str, float]], bins: list[tuple[str, float]], after: list[tuple[str, float]]
) -> Iterator[str]:
    """From the first bin with a count to the last; the odd ones only where they count something."""
    used = [i for i, (_, count) in enumerate(bins) if count]
    shown = [b for b in before if b[1]] + (bins[used[0] : used[-1] + 1] if used else []) + [b for b in after if b[1]]
    if not shown:
        yield "nothing yet"
        return
    most = max(count for _, count in shown)
    width = max(len(name) for name, _ in shown)
    digits = max(len(figure(count)) for _, count in shown)
    for name, count in shown:
        bar = "@" * round(BAR_CHARS * count / most) if most else ""
        yield f"{name.ljust(width)}  {figure(count).rjust(digits)} |{bar.ljust(BAR_CHARS)}|"


def ring_lines(entries: Sequence[Sequence[Any]], sites: Sequence[str] = ()) -> Iterator[str]:
    """One line an entry."""
    for step, site, tag, value in entries:
        yield f"step {step}  {_site(sites, site)}  tag {tag}  {figure(value)}"


def leaves(value: Any, name: str = "") -> list[tuple[str, str]]:
    """Nested maps as dotted names; lists of numbers stay on one line."""
    if isinstance(value, Mapping):
        return [leaf for key, below in value.items() for leaf in leaves(below, f"{name}.{key}" if name else str(key))]
    return [(name, f"{value:.6g}" if isinstance(value, float) else json.dumps(value))]


def changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[str]:
    """What the later of two documents has that the earlier had not: one line a figure, `name  +delta  value`."""
    old = dict(_figures(before))
    for name, value in _figures(after):
        if value != old.get(name, 0):
            yield f"{name}  {value - old.get(name, 0):+.6g}  {figure(value)}"


def _figures(value: Any, name: str = "") -> Iterator[tuple[str, float]]:
    if isinstance(value, Mapping):
        for key, below in value.items():
            yield from _figures(below, f"{name}.{key}" if name else str(key))
    elif isinstance(value, list):
        if value and all(isinstance(item, list) and len(item) == 2 for item in value):  # a hash: key, cell
            value = {str(key): cell for key, cell in value}
            yield from _figures(value, name)
        else:
            for number, below in enumerate(value):
                yield from _figures(below, f"{name}[{number}]")
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield name, value
