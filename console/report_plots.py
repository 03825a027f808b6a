"""The plots of `recuros report --html`, drawn with matplotlib as SVG that takes the page's colours.

Responsible for: one function a plot, from plain series to a piece of SVG. Text stays text, and colours are the page's variables, so
that one picture serves a dark and a light page. Needs the extra `report` (matplotlib). Refuses: fonts, rasters and references to
other files.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

INK: Final = {"#010101": "currentColor", "#020202": "var(--muted)", "#030303": "var(--line)"}
SERIES: Final = {f"#0{n}0{n}f{n}": f"var(--c{n})" for n in range(1, 7)}
BAD: Final = "#0909f9"
COLOURS: Final = tuple(SERIES)
_PAINT: Final = {**INK, **SERIES, BAD: "var(--bad)"}
_STYLE: Final[Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "recuros",
    "font.family": "sans-serif",
    "font.size": 10,
    "text.color": "#010101",
    "axes.edgecolor": "#030303",
    "axes.labelcolor": "#020202",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#030303",
    "grid.linewidth": 0.7,
    "xtick.color": "#020202",
    "ytick.color": "#020202",
    "legend.frameon": False,
    "lines.linewidth": 1.5,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
}
Points = Sequence[tuple[float, float]]


def lines(
    name: str, series: Mapping[str, Points], *, log: bool = False, marks: Sequence[float] = (), share: bool = False
) -> str:
    """Series over windows; `marks` are dashed lines across, `share` writes percentages. Empty text when there is nothing to draw."""
    kept = {key: _usable(points, log=log) for key, points in series.items()}
    kept = {key: points for key, points in kept.items() if points}
    if not kept:
        return ""
    with mpl.rc_context(_STYLE):
        figure, axes = _open(8.6, 2.7)
        for mark in marks[:: max(1, len(marks) // 40)]:
            axes.axvline(mark, color="#030303", linestyle=(0, (3, 3)), linewidth=0.9)
        for (key, points), colour in zip(kept.items(), COLOURS * 3, strict=False):
            dots = "o" if len(points) <= 80 else None
            axes.plot(*zip(*points, strict=True), color=colour, label=key, marker=dots, markersize=2.5)
        if log:
            axes.set_yscale("log")
        if share:
            axes.yaxis.set_major_formatter(lambda y, _: f"{y:.0%}")
        if len(kept) > 1:
            axes.legend(loc="upper left", bbox_to_anchor=(0, 1.18), ncols=6, fontsize=9, handlelength=1.2)
        axes.set_xlabel("window")
        return _svg(figure, name)


def schedule(name: str, bars: Sequence[tuple[float, float, bool]]) -> str:
    """How long each attempt at a window took: (window, seconds, went wrong)."""
    if not bars:
        return ""
    with mpl.rc_context(_STYLE):
        figure, axes = _open(8.6, 2.3)
        for wrong, colour, label in ((False, COLOURS[0], "committed"), (True, BAD, "missed or rolled back")):
            kept = [(window, seconds) for window, seconds, bad in bars if bad is wrong]
            if kept:
                axes.vlines([w for w, _ in kept], 0, [s for _, s in kept], color=colour, linewidth=1.4, label=label)
        axes.set_ylim(bottom=0)
        axes.set_ylabel("seconds")
        axes.set_xlabel("window")
        axes.legend(loc="upper left", bbox_to_anchor=(0, 1.22), ncols=2, fontsize=9, handlelength=1.2)
        return _svg(figure, name)


def heat(name: str, layers: Sequence[str], windows: Sequence[int], values: Sequence[Sequence[float]]) -> str:
    """A cell a layer and window; NaN is nothing. Cells are merged where there are more windows than the picture has room for."""
    if not layers or not windows:
        return ""
    with mpl.rc_context({**_STYLE, "axes.grid": False}):
        figure, axes = _open(8.6, min(5.0, 0.9 + 0.26 * len(layers)))
        step = max(1, math.ceil(len(windows) / 160))
        merged = [[_mean(row[at : at + step]) for at in range(0, len(windows), step)] for row in values]
        mesh = axes.pcolormesh(merged, cmap="viridis", rasterized=False, linewidth=0)
        axes.set_yticks([i + 0.5 for i in range(len(layers))], [layer[-34:] for layer in layers], fontsize=8)
        axes.invert_yaxis()
        shown = range(0, len(merged[0]), max(1, len(merged[0]) // 8))
        axes.set_xticks([k + 0.5 for k in shown], [str(windows[k * step]) for k in shown])
        axes.set_xlabel("window")
        scale = figure.colorbar(mesh, ax=axes, pad=0.01, aspect=14)
        scale.outline.set_visible(False)
        if scale.solids is not None:
            scale.solids.set_rasterized(False)
        return _svg(figure, name)


def _mean(cells: Sequence[float]) -> float:
    known = [cell for cell in cells if not math.isnan(cell)]
    return sum(known) / len(known) if known else math.nan


def _usable(points: Points, *, log: bool) -> list[tuple[float, float]]:
    return [(x, y) for x, y in points if math.isfinite(y) and (y > 0 or not log)]


def _open(width: float, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.add_subplot()


def _svg(figure: Figure, name: str) -> str:
    """The picture as a piece of HTML: no prolog, a width of its own taken away, ids made unique by its name, colours of the page."""
    out = io.StringIO()
    metadata: dict[str, Any] = {"Date": None, "Creator": None, "Format": None, "Type": None}
    figure.savefig(out, format="svg", metadata=metadata)
    text = out.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'(<svg[^>]*?) width="[^"]*" height="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(<svg[^>]*?) height="[^"]*"([^>]*?) width="[^"]*"', r"\1\2", text, count=1)
    text = re.sub(r'\b(id=")', rf"\1{name}-", text)
    text = re.sub(r"(url\(#|href=\"#)", rf"\1{name}-", text)
    for placeholder, colour in _PAINT.items():
        text = text.replace(placeholder, colour)
    return text.replace("<svg ", f'<svg role="img" aria-labelledby="{name}-title" ', 1).strip()
