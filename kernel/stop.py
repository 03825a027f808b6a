"""Why a plan stops before its end, in words: the same window failed again and again.

Responsible for: the sentence and the way out for each kind of failure. Refuses: to retry; whoever reads it boots again.
"""

from __future__ import annotations

from kernel.events import Report
from kernel.state import Turn
from kernel.window import Window
from syscalls.errors import CODES, RecurosError


def stop_plan(t: Turn, w: Window) -> None:
    """The same window failed again and again: stop with the reason instead of burning the machine."""
    s = t.state
    n = s.failures_in_a_row
    r = s.reservation
    ms = 1_000_000
    what = {
        "E7-MISSED": (
            f"window {w.id} missed its deadline {n} times in a row: budget {r.budget_ns // ms} ms, deadline {r.deadline_ns // ms} ms,"
            f" {w.step} of {w.steps} steps done at the last attempt",
            "give the window more time (recuros sched set, or [window] in the manifest) or fewer steps",
        ),
        "E7-LOSS": (
            f"window {w.id}: the loss was not finite {n} times in a row",
            "lower the learning rate or temperature, check the data; the last committed state is intact",
        ),
        "E7-MEMORY": (
            f"window {w.id} ran out of memory {n} times in a row: {w.miss_reason}",
            "a smaller [data] batch or model, a larger [device] memory-mb, or more [device] micro-batches-max",
        ),
        "E9-NOSPACE": (
            f"window {w.id} could not be stored: no space left in {s.config.run}",
            "free some space and boot again on the same run directory; it resumes from the last committed window",
        ),
    }.get(
        w.miss_code, (f"window {w.id} failed {n} times in a row: {w.miss_reason}", "recuros kfs log --kind window.miss")
    )
    code = w.miss_code if w.miss_code in CODES else "E7-MISSED"
    s.error = RecurosError(code, what[0], hint=what[1]).to_wire()
    s.phase = "done"
    t.event("stopped", error=s.error)
    t.emit(Report({"event": "state", "state": "done"}))
