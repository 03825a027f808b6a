"""A callee's answers over a channel: they go together where nobody is held up by it, and never wait for anything that takes long."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import zmq
from test_direct import STAGE, Pair, stage

from syscalls import abi, direct, switch
from syscalls.errors import RecurosError


class Callee:
    """What a switch knows of its server: it serves, and tells the kernel."""

    def __init__(self, pair: Pair) -> None:
        self.pair = pair
        self.context = zmq.Context()
        self.control: zmq.Socket[bytes] = self.context.socket(zmq.DEALER)
        self.switch = switch.Switch(self, self.control)  # type: ignore[arg-type] - the part of a server that it uses
        self.switch._in[pair.into.id] = pair.into
        self.switch._add(pair.into)
        self.told: list[tuple[str, dict[str, Any]]] = []
        self.during: Callable[[], None] = lambda: None

    def serve(self, row: abi.Row, columns: dict[str, Any], began_ns: int) -> dict[str, Any]:
        self.during()
        if columns["window"] < 0:
            raise RecurosError("E2-USAGE", "no such window")
        return {"snapshot": str(columns["window"]), "stored_bytes": 0}

    def syscall(self, name: str, **columns: Any) -> None:
        self.told.append((name, columns))

    def asked(self, *windows: int) -> None:
        """The caller sends these calls, and they arrive."""
        for window in windows:
            self.pair.out.send(STAGE, stage(window=window), [])
        self.switch.wait(0.0)
        assert len(self.switch.calls) == len(windows)

    def dispatch(self) -> None:
        self.switch.dispatch(self.switch.calls.popleft())

    def answers(self) -> list[int]:
        """Numbers of the calls whose answers have reached the caller."""
        self.pair.out.read()
        assert self.pair.out.broken is None
        return sorted(self.pair.out.replies)


@pytest.fixture
def callee() -> Iterator[Callee]:
    made = Callee(Pair())
    yield made
    made.switch.close()
    made.control.close(0)
    made.context.term()
    made.pair.close()


def test_answers_of_a_quick_method_go_together_after_the_last_call_that_waits(callee: Callee) -> None:
    callee.switch._took_ns[STAGE.nr] = 1
    callee.asked(1, -2, 3)
    callee.dispatch()
    callee.switch._took_ns[STAGE.nr] = 1
    callee.dispatch()
    assert callee.answers() == [], "they wait for the third one"
    callee.switch._took_ns[STAGE.nr] = 1
    callee.dispatch()
    assert callee.answers() == [1, 2, 3]
    replies = callee.pair.out.replies
    assert [replies[n][0].ok for n in (1, 2, 3)] == [True, False, True]
    assert not callee.pair.into.waiting


def test_nobody_who_was_answered_waits_for_a_slow_method(callee: Callee) -> None:
    callee.asked(1, 2)
    seen: list[list[int]] = []
    callee.during = lambda: seen.append(callee.answers())
    for _ in range(2):
        callee.switch._took_ns[STAGE.nr] = switch.QUICK_NS
        callee.dispatch()
    assert seen == [[], [1]], "the first answer had left before the second call was served"


@pytest.mark.parametrize("how", ["wait", "pause", "close", "cut"])
def test_whatever_comes_between_lets_held_answers_go_first(callee: Callee, how: str) -> None:
    callee.switch._took_ns[STAGE.nr] = 1
    callee.asked(1, 2)
    callee.dispatch()
    assert callee.answers() == []
    match how:
        case "wait":
            callee.switch.wait(0.0)
        case "pause":
            callee.switch.pause()
        case "close":
            callee.switch.close()
        case "cut":
            callee.switch.cut(callee.pair.into.id)
    callee.pair.out.read()
    assert 1 in callee.pair.out.replies
    if how == "cut":
        assert callee.pair.out.replies[2][0].payload[0] == "E5-DENIED", "what had not been taken is refused"


def test_a_caller_that_reads_nothing_loses_its_channel_also_where_answers_are_held() -> None:
    pair = Pair(messages=64, size=300)
    callee = Callee(pair)
    for number in range(1, 64):
        try:
            pair.out.end.send(direct.wire.encode(direct.wire.Call(number, STAGE.nr, 5, stage(window=number))), [])
        except RecurosError:
            break
    callee.switch.wait(0.0)
    while callee.switch.calls:
        callee.switch._took_ns[STAGE.nr] = 1
        callee.dispatch()
    callee.switch.pause()
    assert callee.told[-1][0] == "channel_report"
    assert callee.told[-1][1]["fatal"], "over its credit in bytes, or its answers were not read"
    callee.switch.close()
    callee.control.close(0)
    callee.context.term()
    pair.out.close()
    pair.words.close()
    pair.page.close()
