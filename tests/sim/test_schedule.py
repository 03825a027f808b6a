"""A ledger replays to the schedule that was: what the kernel decided, seen while it decided, against its records alone."""

from __future__ import annotations

import dataclasses
from typing import Any

import histories
import pytest
from world import S, World, document

from kernel import window
from kernel.replay import Schedule, replay
from kernel.sched import FairClass
from kernel.window import WindowState
from kfs.records import Record, RecordKind
from syscalls.errors import RecurosError

SEEDS = 200
Seen = list[tuple[str, str, int]]
STATES = {
    WindowState.RUNNING: "window.grant",
    WindowState.STAGED: "window.commit",
    WindowState.MISSED: "window.miss",
    WindowState.ROLLED_BACK: "window.rollback",
}


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[Seen]:
    """What was decided, a list a boot: watched where the kernel decides, and not where it writes records."""
    boots: list[Seen] = []
    pick, to, boot = FairClass.pick, window.Window.to, World.boot

    def picking(self: FairClass) -> Any:
        picked = pick(self)
        if picked is not None:
            name, (how, _) = picked
            boots[-1].append(("dispatch" if how == "deliver" else "resume", name, 0))
        return picked

    def moving(self: window.Window, state: WindowState) -> None:
        to(self, state)
        if state in STATES:
            boots[-1].append((STATES[state], "learner", self.id))

    def booting(self: World) -> None:
        boots.append([])
        boot(self)

    monkeypatch.setattr(FairClass, "pick", picking)
    monkeypatch.setattr(window.Window, "to", moving)
    monkeypatch.setattr(World, "boot", booting)
    return boots


def told(schedule: Schedule, until_ns: int | None = None) -> Seen:
    """The same decisions, out of a ledger; up to a moment of the kernel's clock."""
    kinds = {"dispatch", "resume", *STATES.values()}
    return [
        (d.what, d.who, d.window)
        for d in schedule.decisions
        if d.what in kinds and (until_ns is None or d.t_ns <= until_ns)
    ]


def compare(schedules: list[Schedule], boots: list[Seen], ledger: list[Record]) -> tuple[int, int]:
    """Decisions that were compared, and boots that lost their tail."""
    recorded = [boot for boot in boots if boot]
    compared = cut = 0
    by_boot = {r.args["boot"] for r in ledger if r.kind is RecordKind.BOOT}
    assert len(schedules) == len(by_boot)
    # Boots that never reached their first decision recorded none; the others stand in the same order.
    telling = [s for s in schedules if told(s)]
    assert len(telling) <= len(recorded)
    left = iter(recorded)
    for schedule in telling:
        known = told(schedule, schedule.known_until_ns)
        whole = told(schedule)
        actual = next(boot for boot in left if _prefix(known, boot))
        if schedule.whole:
            until = len(known)
            assert known == whole, "a decision after the halt record"
            assert [d for d in actual[until:] if d[0].startswith("window")] == []
        else:
            cut += 1
            windows = [d for d in whole if d[0].startswith("window")]
            assert _prefix(windows, [d for d in actual if d[0].startswith("window")])
        compared += len(known)
    return compared, cut


def _prefix(some: Seen, of: Seen) -> bool:
    return of[: len(some)] == some


def test_a_ledger_replays_to_the_schedule_that_was(seen: list[Seen], monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[World] = []

    def kept(*args: Any, **options: Any) -> World:
        made.append(World(*args, **options))
        return made[-1]

    monkeypatch.setattr(histories, "World", kept)
    compared = cut = whole = 0
    for seed in range(SEEDS):
        seen.clear()
        histories.run(seed)
        ledger = made.pop().disk.log
        try:
            schedules = replay(ledger)
            more, lost = compare(schedules, seen, ledger)
        except BaseException as error:
            error.add_note(f"seed {seed}: python -m tests.sim --first {seed} --seeds 1 --stop")
            raise
        compared, cut, whole = compared + more, cut + lost, whole + sum(s.whole for s in schedules)
    assert compared > 20 * SEEDS, "hardly anything was compared"
    assert cut, "no history lost its tail"
    assert whole > SEEDS // 2


def quiet() -> list[Record]:
    """The ledger of a small plan in a quiet world, ended by a drain."""
    world = World(1, document())
    world.boot()
    assert world.run(lambda: world.state is not None and world.state.phase == "done", 60 * S)
    world.signal()
    assert world.run(lambda: world.exit is not None, 60 * S)
    return world.disk.log


def test_dispatches_are_in_the_ledger_before_the_commit_that_follows_them() -> None:
    batches, since = 0, 0
    for r in quiet():
        if r.kind is RecordKind.SCHED_DISPATCH:
            batches += 1
            since = r.args["rows"][-1][0]
        elif r.kind is RecordKind.WINDOW_COMMIT:
            assert since, "a commit without its dispatches"
    (schedule,) = replay(quiet())
    assert batches > 1
    for d in schedule.decisions:
        if d.what in ("dispatch", "resume"):
            commit = next((c for c in schedule.decisions if c.t_ns > d.t_ns and c.what == "window.commit"), None)
            assert commit is None or d.seq < commit.seq, f"{d} was written after {commit}"


def test_dispatches_do_not_pile_up_between_commits(monkeypatch: pytest.MonkeyPatch) -> None:
    from syscalls import limits

    monkeypatch.setattr(limits, "DISPATCHES_PER_RECORD_MAX", 3)
    sizes = [len(r.args["rows"]) for r in quiet() if r.kind is RecordKind.SCHED_DISPATCH]
    assert sizes
    assert max(sizes) <= 3 + 5, "more than a step can hand out was waiting"


def test_a_boot_without_a_halt_says_until_when_its_dispatches_are_known() -> None:
    ledger = quiet()
    halt = next(i for i, r in enumerate(ledger) if r.kind is RecordKind.HALT)
    (cut,) = replay(ledger[:halt])
    last = max(r.t_mono for r in ledger[:halt] if r.kind in (RecordKind.SCHED_DISPATCH, RecordKind.WINDOW_COMMIT))
    assert not cut.whole
    assert cut.known_until_ns == last
    (whole,) = replay(ledger)
    assert whole.whole
    assert whole.decisions[: len(cut.decisions)] == cut.decisions


def without(ledger: list[Record], kind: RecordKind) -> list[Record]:
    lost = next(i for i, r in enumerate(ledger) if r.kind is kind)
    return ledger[:lost] + ledger[lost + 1 :]


def test_records_that_no_kernel_writes_are_refused() -> None:
    ledger = quiet()
    with pytest.raises(RecurosError, match=r"window\.commit of window 1, which is admitted"):
        replay(without(ledger, RecordKind.WINDOW_GRANT))
    batch = next(r for r in ledger if r.kind is RecordKind.SCHED_DISPATCH)
    twice = dataclasses.replace(batch, args={"boot": batch.args["boot"], "rows": [batch.args["rows"][0]] * 2})
    with pytest.raises(RecurosError, match="claim one moment"):
        replay([ledger[0], twice])
    for row in ([1, "gpu"], "gpu", [1, "gpu", 99_999], None):
        with pytest.raises(RecurosError, match="is not"):
            replay([ledger[0], dataclasses.replace(batch, args={"boot": "x", "rows": [row]})])


def test_the_comparison_sees_a_decision_that_is_missing(seen: list[Seen]) -> None:
    ledger = quiet()
    compare(replay(ledger), seen, ledger)
    del seen[0][3]
    with pytest.raises((AssertionError, StopIteration)):
        compare(replay(ledger), seen, ledger)
