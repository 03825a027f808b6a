"""The live view of a foreground boot.

Responsible for: showing a status map as it changes, in place on a terminal and as a plain line every few seconds elsewhere; always on
stderr. Refuses: to show a score on the test split while the run goes on.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, Final, Protocol

from console.context import Context

PLAIN_PERIOD_S: Final = 5.0


class View(Protocol):
    """Something that shows a status map."""

    def show(self, status: Mapping[str, Any]) -> None:
        """Show the newest status."""

    def close(self) -> None:
        """Leave the terminal as it should stay."""


def open_view(ctx: Context) -> View:
    """Moving on a terminal, lines elsewhere, nothing with --quiet."""
    if ctx.quiet:
        return _Silent()
    return _Terminal() if ctx.color_err else _Lines(ctx)


def retention(status: Mapping[str, Any]) -> float | None:
    """Student's accuracy over that of the teacher before any swap, on the validation split; None before the first evaluation."""
    scores = status.get("scores", {}).get("validation", {})
    first = status.get("reference", {}).get("validation") or scores.get("teacher", {})
    teacher = first.get("accuracy")
    student = scores.get("student", {}).get("accuracy")
    return student / teacher if teacher and student is not None else None


def facts(status: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What both views show, as (name, value)."""
    windows, phase, window = status.get("windows", {}), status.get("phase", {}), status.get("window", {})
    metrics = status.get("metrics", {})
    loss, kept, cka = metrics.get("loss"), retention(status), status.get("cka")
    return [
        ("phase", str(phase.get("name") or "-")),
        ("windows", f"{status.get('done_windows', 0)}/{status.get('planned', 0)}"),
        ("missed", str(windows.get("missed", 0))),
        ("step", f"{window.get('step', 0)}/{window.get('steps', 0)}"),
        ("loss", _number(loss)),
        ("retention", _number(kept)),
        ("cka", _number(cka)),
        ("gen", str(status.get("generation", 0))),
        ("policies", str(status.get("policies", 0))),
    ]


def _number(value: Any) -> str:
    return f"{value:.3f}" if isinstance(value, int | float) else "-"


class _Silent:
    def show(self, status: Mapping[str, Any]) -> None:
        pass

    def close(self) -> None:
        pass


class _Lines:
    def __init__(self, ctx: Context) -> None:
        self._ctx = ctx
        self._next_s = 0.0
        self._state = ""
        self._last = ""

    def show(self, status: Mapping[str, Any]) -> None:
        state = str(status.get("state", ""))
        if state == self._state and time.monotonic() < self._next_s:
            return
        self._next_s = time.monotonic() + PLAIN_PERIOD_S
        self._state = state
        line = f"{state:<9}" + "".join(f" {name} {value}" for name, value in facts(status))
        if line != self._last:
            self._last = line
            self._ctx.message(line)

    def close(self) -> None:
        pass


class _Terminal:
    """A bar for the plan and one line of figures, redrawn in place."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.live import Live

        self._console = Console(stderr=True)
        self._live = Live(console=self._console, refresh_per_second=4, transient=False)
        self._live.start()

    def show(self, status: Mapping[str, Any]) -> None:
        from rich.console import Group
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        planned, done = int(status.get("planned", 0)), int(status.get("done_windows", 0))
        head = Table.grid(padding=(0, 1))
        head.add_row(
            Text(f"{status.get('app', '')} {status.get('state', '')}", style="bold"),
            ProgressBar(total=max(planned, 1), completed=min(done, planned), width=40),
            Text(f"{done} of {planned} windows"),
        )
        found = facts(status)
        figures = Table.grid(padding=(0, 2))
        figures.add_row(*(Text(name, style="dim", no_wrap=True) for name, _ in found))
        figures.add_row(*(Text(value, no_wrap=True) for _, value in found))
        self._live.update(Group(head, figures))

    def close(self) -> None:
        self._live.stop()
