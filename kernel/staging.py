"""Snapshots that went to the archivist over a direct channel, so that the kernel relayed no answer about them.

Responsible for: taking the archivist's own word that one is durable, and judging a `window_staged` that had overtaken it on another
socket. Refuses: anybody else's word; a learner's claim that the archivist does not confirm by the deadline.
"""

from __future__ import annotations

from typing import Any

from kernel import flow
from kernel.broker import answer_error
from kernel.state import Caller, Turn
from syscalls.errors import RecurosError


def stored(t: Turn, caller: Caller, args: dict[str, Any]) -> None:
    """Syscall stage_done."""
    if caller.principal != "archivist":
        raise RecurosError("E5-DENIED", f"{caller.principal} stores no snapshots")
    s = t.state
    s.stored = args["snapshot"]
    if s.staged_waits and s.staged_waits[1]["snapshot"] == s.stored:
        judge(t)


def judge(t: Turn) -> None:
    """A `window_staged` that waits is judged by what is stored now: it waits once only."""
    s = t.state
    if s.staged_waits is None:
        return
    caller, args, cpu_ns = s.staged_waits
    try:
        flow.staged(t, caller, args, cpu_ns)
    except RecurosError as error:
        answer_error(t, caller, error)
    finally:
        s.staged_waits = None


def deadline(t: Turn, window: int, granted_ns: int) -> None:
    """The deadline of a window passed: what still waits then has been missed, and its sender is told."""
    flow.deadline(t, window, granted_ns)
    if t.state.staged_waits is not None and t.state.staged_waits[1]["window"] == window:
        judge(t)
