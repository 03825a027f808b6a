"""A ledger's schedule as a Chrome trace (JSON that Perfetto and chrome://tracing open).

Responsible for: turning what `kernel.replay` finds into events: a process a boot, a track a server, each window a bar from its grant
to its commit, rollback or cut, and dispatches, misses, admissions, overruns and deaths as marks. Times are microseconds of the boot's
monotonic clock. Refuses: to guess; when a fair job ended is not in the ledger, so a dispatch is a mark and not a bar.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from kernel.replay import Schedule
from kfs.records import Record, RecordKind

ENDS: Final = {"window.commit": "committed", "window.rollback": "rolled back"}


def chrome(schedules: Iterable[Schedule], records: Iterable[Record]) -> list[dict[str, Any]]:
    """The `traceEvents`. `records` are searched for overruns, which are faults and no decisions of the schedule."""
    schedules = list(schedules)
    numbers = {schedule.boot: number for number, schedule in enumerate(schedules, 1)}
    events: list[dict[str, Any]] = []
    tracks: dict[tuple[int, str], int] = {}

    def track(boot: int, who: str) -> int:
        if (boot, who) not in tracks:
            tracks[boot, who] = len(tracks) + 1
            events.append(_name("thread_name", boot, who, tracks[boot, who]))
        return tracks[boot, who]

    for number, schedule in enumerate(schedules, 1):
        events.append(_name("process_name", number, f"boot {schedule.boot or '(its beginning is not here)'}", 0))
        events += _boot(schedule, number, track)
    boot = 0
    for record in records:
        if record.kind is RecordKind.BOOT:
            boot = numbers.get(str(record.args["boot"]), boot)
        elif record.kind is RecordKind.FAULT and record.args["code"] == "E7-BUDGET" and boot:
            who = str(record.args["name"])
            args = {"seq": record.seq, "message": record.args["message"]}
            events.append(_mark("overrun", boot, track(boot, who), record.t_mono, args))
    return events


def _boot(schedule: Schedule, boot: int, track: Any) -> list[dict[str, Any]]:
    events: list[dict[str, Any]] = []
    granted: dict[int, tuple[int, dict[str, Any]]] = {}
    last_ns = 0
    for d in schedule.decisions:
        last_ns = d.t_ns
        if d.what == "window.grant":
            granted[d.window] = (d.t_ns, d.args)
        elif d.what in ENDS and d.window in granted:
            events.append(_bar(d.window, ENDS[d.what], granted.pop(d.window), d.t_ns, boot, track(boot, "learner")))
        else:
            name = d.args["method"] if d.what == "dispatch" else d.what
            args = {"seq": d.seq, **({"window": d.window} if d.window else {}), **_witness(d.args)}
            events.append(_mark(name, boot, track(boot, d.who or "kernel"), d.t_ns, args))
    for window, grant in granted.items():
        events.append(_bar(window, "cut off by the end of the boot", grant, last_ns, boot, track(boot, "learner")))
    return events


def _witness(args: dict[str, Any]) -> dict[str, Any]:
    kept = ("reason", "late_ns", "budget_ns", "deadline_ns", "period_ns", "witness", "status")
    return {k: args[k] for k in kept if k in args}


def _name(kind: str, boot: int, name: str, track: int) -> dict[str, Any]:
    return {"name": kind, "ph": "M", "pid": boot, "tid": track, "args": {"name": name}}


def _mark(name: str, boot: int, track: int, t_ns: int, args: dict[str, Any]) -> dict[str, Any]:
    return {"name": name, "ph": "i", "s": "t", "pid": boot, "tid": track, "ts": t_ns / 1e3, "args": args}


def _bar(
    window: int, end: str, grant: tuple[int, dict[str, Any]], end_ns: int, boot: int, track: int
) -> dict[str, Any]:
    began_ns, args = grant
    told = {"end": end, "steps": args["steps"], "budget_ns": args["budget_ns"], "deadline_ns": args["deadline_ns"]}
    times = {"ts": began_ns / 1e3, "dur": (end_ns - began_ns) / 1e3}
    return {"name": f"window {window}", "cat": end, "ph": "X", "pid": boot, "tid": track, **times, "args": told}
