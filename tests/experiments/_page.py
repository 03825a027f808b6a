"""Markdown and plots of a report: tables, figures with their signs, axes that are alike.

Responsible for: the form. Refuses: to know what an experiment asks; to write anything that changes from one rendering to the next
(plots carry no date and no random ids).
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

COLOURS: Final = ("#4c72b0", "#dd8452", "#55a868", "#c44e52", "#8172b3", "#937860", "#da8bc3", "#8c8c8c")


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)]) + "\n"


def points(share: float, digits: int = 1) -> str:
    """A share in percent, without the sign of percent."""
    return f"{100 * share:.{digits}f}"


def signed(value: float, digits: int = 2) -> str:
    """A number with its sign; what rounds to nothing has a plus."""
    text = f"{value:+.{digits}f}"
    return text if float(text) else f"{0.0:+.{digits}f}"


def interval(mean: float, low: float, high: float, digits: int = 2) -> str:
    """`+1.20 [+0.90, +1.50]`."""
    return f"{signed(mean, digits)} [{signed(low, digits)}, {signed(high, digits)}]"


def p_value(p: float) -> str:
    """Three digits; small ones as a bound."""
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def figure(value: float, digits: int = 2) -> str:
    """A number, or what to say where there is none."""
    return "never" if math.isinf(value) else f"{value:.{digits}f}"


def keep(document: Mapping[str, Any], path: Path) -> None:
    """Write results as JSON: a line for each row of a table, floats to six digits, since more is noise."""
    parts = []
    for name, value in sorted(short(document).items()):
        rows = value if isinstance(value, list) and value and isinstance(value[0], dict) else None
        text = json.dumps(value, sort_keys=True, allow_nan=False)
        if rows:
            text = "[\n" + ",\n".join(json.dumps(row, sort_keys=True, allow_nan=False) for row in rows) + "\n]"
        parts.append(f"{json.dumps(name)}: {text}")
    path.write_text("{\n" + ",\n".join(parts) + "\n}\n", encoding="utf-8")


def kept(path: Path) -> dict[str, Any]:
    """Inverse of `keep`."""
    document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return document


def short(value: Any) -> Any:
    """Floats to six digits, through all of a document."""
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, dict):
        return {name: short(inner) for name, inner in value.items()}
    return [short(inner) for inner in value] if isinstance(value, list) else value


def verdict(met: bool | None) -> str:
    """A target's state in a word."""
    return "not run" if met is None else "met" if met else "MISSED"


def plot(path: Path, title: str, draw: Callable[[Any], None], size: tuple[float, float] = (6.4, 4.0)) -> None:
    """One figure as SVG; `draw` gets the axes."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    with matplotlib.rc_context({"svg.hashsalt": path.name, "font.size": 9, "svg.fonttype": "none"}):
        sheet, axes = pyplot.subplots(figsize=size, layout="constrained")
        draw(axes)
        axes.set_title(title, fontsize=10)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
        sheet.savefig(path, format="svg", metadata={"Date": None, "Creator": None})
        pyplot.close(sheet)


def forest(axes: Any, rows: Sequence[tuple[str, Mapping[str, float]]], label: str) -> None:
    """Effects with their intervals, one a line, zero marked. A row: name, {"mean", "low", "high"}."""
    axes.axvline(0.0, color="#888888", linewidth=0.8)
    for at, (_, effect) in enumerate(reversed(rows)):
        colour = COLOURS[0] if effect["low"] > 0 else COLOURS[3] if effect["high"] < 0 else COLOURS[7]
        axes.plot([effect["low"], effect["high"]], [at, at], color=colour, linewidth=1.6)
        axes.plot([effect["mean"]], [at], "o", color=colour, markersize=4)
    axes.set_yticks(range(len(rows)), [name for name, _ in reversed(rows)])
    axes.set_xlabel(label)
