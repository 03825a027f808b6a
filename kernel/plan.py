"""The plan: phases of windows, and where in them the runtime is.

Responsible for: pure arithmetic on `Cursor`. The plan is data from the manifest; nothing here decides whether a
window may run.
"""

from __future__ import annotations

from typing import Any

from kernel.events import Report
from kernel.state import Cursor, State, Turn


def plan_complete(s: State) -> bool:
    """Whether every phase of the plan has been granted."""
    return plan_over(s, s.cursor)


def plan_over(s: State, c: Cursor) -> bool:
    """Whether this position lies behind the last phase."""
    return c.phase >= len(s.config.phases)


def next_cursor(s: State, c: Cursor) -> Cursor:
    """The position after one window; a repeating phase starts over in a detached runtime."""
    phase = s.config.phases[c.phase]
    if c.window + 1 < phase.windows:
        return c._replace(window=c.window + 1)
    return phase_after(s, c)


def phase_after(s: State, c: Cursor) -> Cursor:
    """Where the plan goes on when the phase at this position is over."""
    if plan_over(s, c):
        return c
    phase = s.config.phases[c.phase]
    if phase.repeat and s.config.detached:
        return Cursor(c.phase, 0, c.repeats + 1)
    return Cursor(c.phase + 1, 0, 0)


def plan_directives(s: State, c: Cursor) -> list[list[Any]]:
    """What the plan asks for before the first window of a phase: the `end` of the phase before it.

    A repeating phase ends with it after every `end_every` repetitions.
    """
    if c.window:
        return []
    if c.repeats:
        phase = s.config.phases[c.phase]
        end = phase.end if c.repeats % phase.end_every == 0 else ""
    else:
        end = s.config.phases[c.phase - 1].end if c.phase else ""
    return [["swap", {"mode": end.removeprefix("swap:")}]] if end.startswith("swap:") else []


def stream_step(s: State, c: Cursor) -> int:
    """Position in the phase's data stream, in batches; repeats go on where the last one stopped."""
    phase = s.config.phases[c.phase]
    return (c.repeats * phase.windows + c.window) * phase.steps


def next_step(s: State) -> int:
    """The stream position at which a change asked for now takes effect: the next window that is not granted yet."""
    return -1 if plan_complete(s) else stream_step(s, s.cursor)


def finished(t: Turn) -> None:
    """Nothing is left to grant; the launcher is told."""
    s = t.state
    s.phase = "done"
    t.event("state", state="done")
    t.emit(Report({"event": "state", "state": "done"}))
