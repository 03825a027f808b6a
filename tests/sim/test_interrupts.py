"""Interrupts that the Observer considers: recorded, in force from the next window on, once, and never without a verdict."""

from __future__ import annotations

from typing import Any

import pytest
from invariants import check_ledger
from test_proposals import booted, call, commit
from world import MS, S, World, digest

from kernel import interrupts
from kernel.core import _page_refused
from kernel.events import PageOffered
from kfs import at
from kfs.records import Record, RecordKind
from syscalls import abi, limits
from syscalls.errors import RecurosError


def asked(world: World, kind: str, **args: Any) -> dict[str, Any]:
    return call(world, "rl_interrupt", kind=kind, **args)


def records(world: World) -> list[Record]:
    return [r for r in world.disk.log if r.kind is RecordKind.INTERRUPT]


def grants_after(world: World, seq: int) -> list[Record]:
    return [r for r in world.disk.log if r.kind is RecordKind.WINDOW_GRANT and r.seq > seq]


@pytest.fixture
def world() -> World:
    made = booted(windows=(2, 400, 2))
    commit(made, 4)
    return made


def test_new_data_is_an_object_a_verdict_and_part_of_every_later_window(world: World) -> None:
    answer = asked(world, "data", body={"name": "new.jsonl"}, data=b"three good rows")
    assert answer["accepted"]
    first, second = records(world)
    assert (first.args["verdict"], second.args["verdict"]) == ("asked", "accepted")
    assert second.args["asked"] == first.seq
    assert second.actor == "observer"
    assert second.input_ids == (digest("batch", b"three good rows"),)
    assert world.state is not None
    (row,) = world.state.gate["extra"]
    assert row == [second.input_ids[0], "phase1", answer["step"], 103, "new.jsonl"]
    commit(world, world.state.committed_window + 3)
    late = [r for r in world.disk.log if r.kind is RecordKind.WINDOW_COMMIT and r.args["step0"] >= answer["step"]]
    assert late
    for r in late:
        assert r.args["inputs"]["gate"]["extra"] == [row]
        assert row[0] in r.input_ids
    asked(world, "data", body={"name": "more.csv"}, data=b"three more")
    assert [r[3] for r in world.state.gate["extra"]] == [103, 106]
    call(world, "rl_gate_samples", criteria={"drop_low": 0.1})
    assert [r[3] for r in world.state.gate["extra"]] == [103, 106], "a gate does not forget what was learned from"
    call(world, "rl_gate_samples", criteria={})
    assert set(world.state.gate) == {"extra"}


def test_data_that_cannot_be_used_is_refused_with_its_line_and_recorded(world: World) -> None:
    with pytest.raises(RecurosError, match=r"new\.jsonl:2: not JSON"):
        asked(world, "data", body={"name": "new.jsonl"}, data=b"bad")
    assert [r.args["verdict"] for r in records(world)] == ["asked", "refused"]
    assert world.state is not None
    assert world.state.gate == {}
    assert world.state.interrupt == ""


def test_a_constraint_goes_into_the_next_window_once(world: World) -> None:
    body = {"forbid": [3], "weight": 0.5}
    answer = asked(world, "constraint", body=body)
    assert answer["accepted"]
    assert world.state is not None
    commit(world, world.state.committed_window + 2)
    carrying = [r for r in grants_after(world, answer["seq"]) if ["constrain", body] in r.args["directives"]]
    assert len(carrying) == 1
    assert carrying[0].args["step0"] == answer["step"]


def test_an_objective_is_the_policys_to_take_or_leave(world: World) -> None:
    answer = asked(world, "objective", body={"mix": 0.75, "cka": 0.5})
    assert answer["accepted"]
    (kd,) = [r for r in world.disk.log if r.kind is RecordKind.KD_SET]
    assert (kd.actor, kd.args["mix"], kd.args["terms"]) == ("kernel:interrupt", 0.75, {"cka": 0.5})
    left = asked(world, "objective", body={"mix": 0.25})
    assert (left["accepted"], left["reason"], left["step"]) == (False, "considered", -1)
    assert [r.args["verdict"] for r in records(world)] == ["asked", "accepted", "asked", "rejected"]
    assert len([r for r in world.disk.log if r.kind is RecordKind.KD_SET]) == 1


def test_silence_rejects_and_a_late_word_changes_nothing(world: World) -> None:
    world.considers = False
    answer = asked(world, "objective", body={"mix": 0.75}, timeout_ms=500)
    assert not answer["accepted"]
    assert "no verdict within 500 ms" in answer["reason"]
    assert records(world)[-1].args["verdict"] == "timeout"
    world.run(lambda: False, 4 * S)
    assert not [r for r in world.disk.log if r.kind is RecordKind.KD_SET]
    world.considers = True
    assert asked(world, "objective", body={"mix": 0.75}, timeout_ms=60_000)["accepted"]


def test_one_request_at_a_time(world: World) -> None:
    world.considers = False
    world.operator("rl_interrupt", kind="objective", body={"mix": 0.75}, data=b"", timeout_ms=5_000)
    with pytest.raises(RecurosError, match="an interrupt \\(objective\\) is being considered") as caught:
        asked(world, "constraint", body={"forbid": [3]})
    assert caught.value.code == "E75-AGAIN"


def test_a_boot_goes_on_with_what_was_taken(world: World) -> None:
    asked(world, "data", body={"name": "new.jsonl"}, data=b"three good rows")
    asked(world, "constraint", body={"forbid": [3]})
    log = list(world.disk.log)
    world.power_cut()
    world.boot()
    assert world.run(lambda: world.state is not None and world.state.phase == "running", 60 * S)
    assert world.state is not None
    assert world.state.gate["extra"][0][3] == 103
    commit(world, world.state.committed_window + 3)
    committed = {r.args["window"]: r for r in world.disk.log if r.kind is RecordKind.WINDOW_COMMIT}
    granted = [r for r in world.disk.log if r.kind is RecordKind.WINDOW_GRANT]
    last = {r.args["window"]: r for r in granted}  # the grant that was committed
    carrying = [w for w in committed if ["constrain", {"forbid": [3]}] in last[w].args["directives"]]
    assert len(carrying) == 1
    check_ledger(world.disk, built=digest("built"), policies=False)
    state = at.State()
    for r in log:
        at.fold(state, r)
    assert state.gate["extra"][0][3] == 103


BAD: list[tuple[str, dict[str, Any], bytes, str]] = [
    ("dance", {}, b"", "kind 'dance'"),
    ("data", {"name": "x"}, b"", "new data of 0 bytes"),
    ("data", {}, b"x", "takes a name"),
    ("data", {"name": "x" * 201}, b"x", "takes a name"),
    ("objective", {}, b"", "takes settings and no data"),
    ("objective", {"learning_rate": 1.0}, b"", "an objective has no 'learning_rate'"),
    ("objective", {"temperature": 9}, b"", r"temperature=9 is outside \[1, 4\]"),
    ("objective", {"mix": float("nan")}, b"", "mix=nan is outside"),
    ("objective", {"mix": True}, b"", "mix=True is outside"),
    ("constraint", {"allow": [1], "forbid": [2]}, b"", "allow or forbid, not both"),
    ("constraint", {"allow": []}, b"", r"allow=\[\] is no list of classes"),
    ("constraint", {"allow": ["cat"]}, b"", "is no list of classes"),
    ("constraint", {"implies": [[1, []]]}, b"", "is no list of"),
    ("constraint", {"implies": {"1": [2]}}, b"", "is no list of"),
    ("constraint", {"forbid": [1], "weight": -1}, b"", r"weight=-1 is outside"),
    ("constraint", {"forbid": [1], "force": 1}, b"", "takes no 'force'"),
    ("constraint", {"forbid": [1]}, b"x", "takes no data"),
]


@pytest.mark.parametrize(("kind", "body", "data", "message"), BAD)
def test_requests_outside_their_bounds_are_refused_before_anything_is_recorded(
    kind: str, body: dict[str, Any], data: bytes, message: str
) -> None:
    def ask() -> None:
        if kind not in interrupts.CHECKS:
            asked(booted(), kind, body=body, data=data)
        interrupts.CHECKS[kind](body, data)

    with pytest.raises(RecurosError, match=message):
        ask()


def test_the_micro_step_is_in_the_record(world: World) -> None:
    assert world.state is not None
    running = lambda: any(0 < w.step < w.steps for w in world.state.windows.values())  # noqa: E731
    assert world.run(running, 60 * S)
    expected = next((w.id, w.step) for w in world.state.windows.values() if 0 < w.step < w.steps)
    world.operator("rl_interrupt", kind="objective", body={"mix": 0.75}, data=b"", timeout_ms=5_000)
    assert world.run(lambda: bool(records(world)), 10 * S)
    assert (records(world)[0].args["window"], records(world)[0].args["step"]) == expected
    world.run(lambda: False, 100 * MS)


def test_an_operators_page_is_small_and_one_of_few_and_its_session_may_interrupt(world: World) -> None:
    asked(world, "objective", body={"mix": 0.75})
    assert world.state is not None

    def refused(principal: str, size: int) -> str:
        error = _page_refused(world.state, PageOffered(principal, 3, 99, size))
        return "" if error is None else error.message

    assert refused("operator:7.1", limits.INTERRUPT_PAGE_BYTES_MAX) == ""
    assert "at most" in refused("operator:7.1", limits.INTERRUPT_PAGE_BYTES_MAX + 1)
    assert "may not offer pages" in refused("operator:8.1", 64)  # no session of that name
    for number in range(limits.OPERATOR_PAGES_MAX):
        world.state.caps.mint("operator:7.1", "page", 900 + number, abi.Right.MAP)
    assert "holds 2 pages, the limit" in refused("operator:7.1", 64)
    assert refused("dataset", limits.PAGE_BYTES_MAX) == ""
