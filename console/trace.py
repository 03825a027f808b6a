"""A ledger's schedule as a Chrome trace (JSON that Perfetto and chrome://tracing open).

Responsible for: turning what `kernel.replay` finds into events. A boot is a process of the trace. It has a track for each lane
that a reservation runs on, with a bar a window from its grant to its commit, rollback or cut; a track for each server, with a bar
a process of it from its spawn to its end, and marks for dispatches, overruns and deaths; and one for the kernel's admissions. Bars
of one track never overlap. Times are microseconds of the boot's monotonic clock. Refuses: to guess; when a fair job ended is not
in the ledger, so a dispatch is a mark and not a bar.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from kernel.replay import Schedule
from kfs.records import Record, RecordKind
from syscalls.errors import RecurosError

ENDS: Final = {"window.commit": "committed", "window.rollback": "rolled back"}
LANE: Final = "learner"
CUT: Final = "cut off by the end of the boot"
COLOURS: Final = {"committed": "good", "rolled back": "terrible", CUT: "grey"}


def chrome(schedules: Iterable[Schedule], records: Iterable[Record]) -> list[dict[str, Any]]:
    """The `traceEvents`. `records` are searched for overruns, which are faults and no decisions of the schedule."""
    schedules = list(schedules)
    boots = [_Boot(number, schedule) for number, schedule in enumerate(schedules, 1)]
    numbers = {schedule.boot: boot for boot, schedule in zip(boots, schedules, strict=True)}
    boot: _Boot | None = None
    for record in records:
        if record.kind is RecordKind.BOOT:
            boot = numbers.get(str(record.args["boot"]), boot)
        elif record.kind is RecordKind.FAULT and record.args["code"] == "E7-BUDGET" and boot is not None:
            args = {"seq": record.seq, "message": record.args["message"]}
            boot.mark("overrun", f"server {record.args['name']}", record.t_mono, args)
    return [event for boot in boots for event in boot.events]


def write(path: Path, events: list[dict[str, Any]]) -> None:
    """Write the document; E2-USAGE when the file cannot be written."""
    try:
        path.write_text(json.dumps({"displayTimeUnit": "ms", "traceEvents": events}), encoding="utf-8")
    except OSError as e:
        raise RecurosError("E2-USAGE", f"cannot write {path}: {e.strerror}", hint="name another file") from e


@dataclass
class _Bar:
    """Something that holds a track for a while."""

    name: str
    end: str
    start_ns: int
    end_ns: int
    args: dict[str, Any] = field(default_factory=dict)


class _Boot:
    """The events of one boot. `events` begin with the names of its tracks."""

    def __init__(self, number: int, schedule: Schedule) -> None:
        self._number = number
        self._names: list[dict[str, Any]] = []
        self._body: list[dict[str, Any]] = []
        self._tracks: dict[str, int] = {}
        self._granted: dict[int, _Bar] = {}
        self._alive: dict[str, _Bar] = {}
        self._bars: dict[str, list[_Bar]] = {}
        name = f"boot {schedule.boot or '(its beginning is not here)'}"
        self._names.append(self._event("process_name", "M", 0, args={"name": name}))
        self._track(f"lane {LANE}")
        last_ns = 0
        for decision in schedule.decisions:
            last_ns = decision.t_ns
            self._take(decision)
        self._cut(last_ns)
        for track, bars in self._bars.items():
            self._draw(track, bars)

    @property
    def events(self) -> list[dict[str, Any]]:
        """All of them."""
        return self._names + self._body

    def mark(self, name: str, track: str, t_ns: int, args: dict[str, Any]) -> None:
        """A moment on a track."""
        self._body.append(self._event(name, "i", self._track(track), s="t", ts=t_ns / 1e3, args=args))

    def _take(self, d: Any) -> None:
        lane = f"lane {LANE}"
        server = f"server {d.who}" if d.who else "kernel"
        match d.what:
            case "window.grant":
                kept = {key: d.args[key] for key in ("steps", "budget_ns", "deadline_ns")}
                self._granted[d.window] = _Bar(f"window {d.window}", "", d.t_ns, d.t_ns, {"seq": d.seq, **kept})
            case "window.commit" | "window.rollback" if d.window in self._granted:
                bar = self._granted.pop(d.window)
                figures = d.args.get("metrics", {})
                kept = {key: figures[key] for key in ("loss", "used_ns", "left_ns") if key in figures}
                self._end(lane, bar, ENDS[d.what], d.t_ns, kept)
            case "spawn":
                if d.who in self._alive:  # a boot whose record of the death was lost
                    self._end(server, self._alive.pop(d.who), "replaced", d.t_ns, {})
                name = f"{d.who} {d.args['incarnation']}"
                self._alive[d.who] = _Bar(name, "", d.t_ns, d.t_ns, {"pid": d.args["pid"], "seq": d.seq})
            case "exit" if d.who in self._alive:
                status = {"status": d.args["status"]}
                self._end(server, self._alive.pop(d.who), f"exit {d.args['status']}", d.t_ns, status)
            case _:
                name = d.args["method"] if d.what == "dispatch" else d.what
                track = lane if d.what.startswith("window.") else "kernel" if d.what.startswith("sched.") else server
                about = {"window": d.window} if d.window else {}
                self.mark(name, track, d.t_ns, {"seq": d.seq, **about, **_witness(d.args)})

    def _cut(self, last_ns: int) -> None:
        for bar in self._granted.values():
            self._end(f"lane {LANE}", bar, CUT, last_ns, {})
        for who, bar in self._alive.items():
            self._end(f"server {who}", bar, CUT, last_ns, {})

    def _end(self, track: str, bar: _Bar, end: str, end_ns: int, args: dict[str, Any]) -> None:
        bar.end, bar.end_ns = end, end_ns
        bar.args |= {"end": end, **args}
        self._bars.setdefault(track, []).append(bar)

    def _draw(self, track: str, bars: list[_Bar]) -> None:
        """One bar after the other: a window that is granted while the one before it is on its way to disk ends that one's bar."""
        bars.sort(key=lambda bar: bar.start_ns)
        for bar, following in zip(bars, [*bars[1:], None], strict=True):
            end_ns = bar.end_ns if following is None else min(bar.end_ns, following.start_ns)
            if end_ns < bar.end_ns:
                bar.args["ended_ns"] = bar.end_ns
            times = {"ts": bar.start_ns / 1e3, "dur": (end_ns - bar.start_ns) / 1e3}
            colour = {"cname": COLOURS[bar.end]} if bar.end in COLOURS else {}
            number = self._track(track)
            self._body.append(self._event(bar.name, "X", number, cat=bar.end, args=bar.args, **times, **colour))

    def _track(self, name: str) -> int:
        if name not in self._tracks:
            number = self._tracks[name] = len(self._tracks) + 1
            order = number if name.startswith("lane ") else 100 + number
            self._names.append(self._event("thread_name", "M", number, args={"name": name}))
            self._names.append(self._event("thread_sort_index", "M", number, args={"sort_index": order}))
        return self._tracks[name]

    def _event(self, name: str, phase: str, track: int, **more: Any) -> dict[str, Any]:
        return {"name": name, "ph": phase, "pid": self._number, "tid": track, **more}


def _witness(args: dict[str, Any]) -> dict[str, Any]:
    kept = ("reason", "late_ns", "budget_ns", "deadline_ns", "period_ns", "witness", "status")
    return {k: args[k] for k in kept if k in args}
