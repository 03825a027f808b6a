"""A schedule out of its ledger: who ran when, and which windows were granted, committed, missed and rolled back.

Responsible for: `replay(records)`, which reproduces the kernel's decisions from records alone, in the order in which it made them. Records
and the fair class's dispatches share one strictly increasing clock within a boot (`t_mono`), so the order is exact although dispatches are
written in batches. A batch is written before each commit and before a halt; a boot that ended otherwise may have lost the dispatches after
its last batch, and its schedule says so (`whole`, `known_until_ns`). Refuses: records that no kernel can have written, E9-INTEGRITY.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Final

from kernel.window import TRANSITIONS, WindowState
from kfs.records import Record, RecordKind
from syscalls import abi
from syscalls.errors import RecurosError

# A window's commit record is drawn when it has staged; that it is durable makes the window committed.
MOVES: Final = {
    RecordKind.WINDOW_GRANT: (WindowState.RUNNING,),
    RecordKind.WINDOW_COMMIT: (WindowState.STAGED, WindowState.COMMITTED),
    RecordKind.WINDOW_MISS: (WindowState.MISSED,),
    RecordKind.WINDOW_ROLLBACK: (WindowState.ROLLED_BACK,),
}
RESUMED: Final = 0


@dataclass(frozen=True, slots=True)
class Decision:
    """One decision of the scheduler.

    t_ns    CLOCK_MONOTONIC of its boot, made strictly increasing
    what    "dispatch", "resume", or the kind of the record: "window.grant", "sched.admit", "spawn", ...
    who     the server, the reservation, or "learner" for windows
    seq     the record that holds it
    window  its window, 0 when it is about none
    args    the record's args; {"method": name} of a dispatch
    """

    t_ns: int
    what: str
    who: str
    seq: int
    window: int = 0
    args: dict[str, Any] = field(default_factory=dict, compare=False)


@dataclass
class Schedule:
    """Everything that one boot decided. After `known_until_ns` dispatches may be missing, unless it is `whole`."""

    boot: str
    decisions: list[Decision] = field(default_factory=list)
    whole: bool = False
    known_until_ns: int = 0
    open_windows: dict[int, WindowState] = field(default_factory=dict)
    """Windows that the end of the boot cut off: a crash rolls them back without a record."""


def replay(records: Iterable[Record]) -> list[Schedule]:
    """The schedules of a ledger's boots, in order. `records` begin at a boot record or inside the first boot that they tell of."""
    schedules: list[Schedule] = []
    for record in records:
        if record.kind is RecordKind.BOOT:
            schedules.append(_begin(schedules, record))
        elif not schedules:
            schedules.append(Schedule(str(record.args.get("boot", ""))))
        _fold(schedules[-1], record)
    for schedule in schedules:
        _order(schedule)
    return schedules


def _begin(schedules: list[Schedule], boot: Record) -> Schedule:
    """The archivist is spawned before there is anything to write a boot record into: that spawn belongs to what follows."""
    schedule = Schedule(str(boot.args["boot"]))
    before = schedules[-1].decisions if schedules else []
    if before and before[-1].what == "spawn" and before[-1].seq == boot.seq - 1:
        schedule.decisions.append(before.pop())
        if not before and not schedules[-1].boot:
            schedules.pop()
    return schedule


def _fold(schedule: Schedule, r: Record) -> None:
    match r.kind:
        case RecordKind.SCHED_DISPATCH:
            schedule.decisions += (_dispatch(r, row) for row in r.args["rows"])
            schedule.known_until_ns = r.t_mono
        case RecordKind.WINDOW_GRANT | RecordKind.WINDOW_COMMIT | RecordKind.WINDOW_MISS | RecordKind.WINDOW_ROLLBACK:
            _move(schedule, r)
            schedule.decisions.append(Decision(r.t_mono, r.kind.value, "learner", r.seq, r.args["window"], r.args))
            if r.kind is RecordKind.WINDOW_COMMIT:
                schedule.known_until_ns = r.t_mono
        case RecordKind.HALT:
            schedule.whole, schedule.known_until_ns = True, r.t_mono
            schedule.decisions.append(Decision(r.t_mono, "halt", "kernel", r.seq, args=r.args))
        case RecordKind.SPAWN | RecordKind.EXIT | RecordKind.RESTART:
            schedule.decisions.append(Decision(r.t_mono, r.kind.value, r.args["name"], r.seq, args=r.args))
        case _ if r.kind.value.startswith("sched."):
            schedule.decisions.append(Decision(r.t_mono, r.kind.value, str(r.args.get("name", "")), r.seq, args=r.args))
        case _:
            pass  # what was learned, and not who ran


def _dispatch(r: Record, row: Any) -> Decision:
    try:
        t_ns, name, number = row
        method = "" if number == RESUMED else abi.METHOD_BY_NR[number].qualified
        return Decision(
            t_ns, "dispatch" if method else "resume", name, r.seq, args={"method": method} if method else {}
        )
    except (TypeError, ValueError, KeyError):
        raise _wrong(r, f"the dispatch {row!r:.100} is not [t_mono, server, method number or 0]") from None


def _move(schedule: Schedule, r: Record) -> None:
    window = r.args["window"]
    state = schedule.open_windows.get(window, WindowState.ADMITTED)
    for following in MOVES[r.kind]:
        if following not in TRANSITIONS[state]:
            raise _wrong(r, f"{r.kind.value} of window {window}, which is {state.value}")
        state = following
    schedule.open_windows[window] = state
    if not TRANSITIONS[state]:
        del schedule.open_windows[window]


def _order(schedule: Schedule) -> None:
    """Batches come after what they tell of: put everything in the order of the kernel's clock."""
    schedule.decisions.sort(key=lambda d: d.t_ns)
    for before, after in zip(schedule.decisions, schedule.decisions[1:], strict=False):
        if before.t_ns == after.t_ns:
            raise RecurosError(
                "E9-INTEGRITY",
                f"records {before.seq} and {after.seq} claim one moment, {after.t_ns} ns, of boot {schedule.boot}",
                hint="recuros kfs verify",
            )


def _wrong(r: Record, what: str) -> RecurosError:
    return RecurosError("E9-INTEGRITY", f"record {r.seq}: {what}", hint="recuros kfs verify")
