"""Direct channels: the kernel's side of a grant and of its end in the real core, and both ends of a real pair of sockets."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from typing import Any

import pytest
from test_rights import OPERATOR, Core

from kernel.events import ChannelSet, Effect, PageOffered
from kfs.records import RecordKind
from syscalls import abi, direct, limits, wire
from syscalls.errors import RecurosError
from syscalls.pages import ReadPage, WritePage

STAGE = abi.METHOD_BY_NAME["archivist.stage"]
PING = abi.METHOD_BY_NAME["any.ping"]


class Granting(Core):
    """The core with what it writes into the page of generations."""

    def __init__(self) -> None:
        self.words: dict[int, int] = {}
        super().__init__()

    def take(self, effects: list[Effect]) -> None:
        for effect in effects:
            if isinstance(effect, ChannelSet):
                self.words[effect.index] = effect.generation
        super().take(effects)

    def end(self, who: str, page: int) -> int:
        self.step(PageOffered(who, 1, page, 0, end=True))
        return max(c["slot"] for c in self.caps_of(who) if c["kind"] == "end")

    def open(self, who: str = "learner", callee: str = "gpu", page: int = 1) -> dict[str, Any]:
        number = self.send(who, "channel_open", endpoint=self.caps[who][callee], end=self.end(who, page))
        if (who, number) not in self.answers:
            granted = self.told[callee].pop()
            assert granted.nr == abi.METHOD_BY_NAME["any.channel"].nr
            self.grant = dict(zip((a.name for a in abi.METHOD_BY_NR[granted.nr].args), granted.args, strict=True))
            self.reply(callee, granted.id, [])
        return abi.SYSCALL_BY_NAME["channel_open"].check_reply(self.result(who, number))


@pytest.fixture
def core(monkeypatch: pytest.MonkeyPatch) -> Granting:
    import test_rights

    plain = test_rights.document

    def granting(**stanza: Any) -> dict[str, Any]:
        doc = plain(**stanza)
        for server in doc["servers"]:
            server["direct"] = ["gpu"] if server["name"] == "learner" else []
        return doc

    monkeypatch.setattr(test_rights, "document", granting)
    return Granting()


def test_a_grant_is_recorded_names_both_processes_and_stands_in_the_page(core: Granting) -> None:
    told = core.open()
    assert core.words == {told["index"]: told["generation"]}
    assert core.grant["caller"] == "learner"
    assert core.grant["pid"] == core.state.servers["learner"].pid
    assert told["pid"] == core.state.servers["gpu"].pid
    assert core.grant["methods"] == [m.nr for m in abi.METHODS if m.server == "gpu"]
    assert (told["messages"], told["bytes"]) == (limits.MAILBOX_MESSAGES_DEFAULT, limits.MAILBOX_BYTES_DEFAULT)
    record = next(r for r in core.log if r.kind is RecordKind.CAP_DERIVE)
    assert "channel" in str(record.args["object"])
    assert not [c for c in core.caps_of("learner") if c["kind"] == "end"], "the end has moved"
    assert not [c for c in core.caps_of("gpu") if c["kind"] in ("end", "page")], "lent for as long as it maps them"


@pytest.mark.parametrize("how", ["channel", "endpoint", "caller dies", "callee dies", "closed", "reported"])
def test_whatever_ends_a_channel_clears_its_word_in_the_same_step(core: Granting, how: str) -> None:
    from kernel.events import Exited

    told = core.open()
    slot = next(c["slot"] for c in core.caps_of("learner") if c["kind"] == "channel")
    match how:
        case "channel":
            core.send(OPERATOR, "cap_take", principal="learner", cap=slot)
        case "endpoint":
            core.send("learner", "cap_revoke", cap=core.caps["learner"]["gpu"])
        case "caller dies" | "callee dies":
            name = "learner" if how == "caller dies" else "gpu"
            server = core.state.servers[name]
            core.step(Exited(name, server.incarnation, server.pid, -9))
        case "closed":
            core.send("learner", "channel_close", channel=told["channel"])
        case "reported":
            report = {"calls": 3, "refused": 1, "cpu_ns": 5, "reason": "noise", "fatal": True}
            core.send("gpu", "channel_report", channel=told["channel"], **report)
            assert core.state.refused["direct channel"] == 1
    assert core.words == {told["index"]: 0}
    assert not core.state.channels
    assert not [c for c in core.state.caps.held("learner") if c.kind == "channel"]


def test_a_channel_that_an_operator_took_is_not_granted_again_and_another_server_gets_none(core: Granting) -> None:
    core.open()
    slot = next(c["slot"] for c in core.caps_of("learner") if c["kind"] == "channel")
    core.syscall(OPERATOR, "cap_take", principal="learner", cap=slot)
    for who in ("learner", "observer"):
        with pytest.raises(RecurosError, match="no direct channel") as refused:
            core.open(who, page=7)
        assert refused.value.code == "E5-DENIED"
    assert core.call("learner", core.caps["learner"]["gpu"]), "through the kernel as before"


def test_a_channel_cannot_be_handed_on_and_only_its_callee_accounts_for_it(core: Granting) -> None:
    told = core.open()
    for cap in core.caps_of("learner"):
        if cap["kind"] == "channel":
            with pytest.raises(RecurosError, match="not derivable"):
                core.syscall("learner", "cap_derive", cap=cap["slot"], rights=[], to="")
    report = {"calls": 9, "refused": 0, "cpu_ns": 0, "reason": "it lies", "fatal": True}
    core.send("dataset", "channel_report", channel=told["channel"], **report)
    assert core.state.channels[told["channel"]].calls == 0
    core.send(
        "gpu", "channel_report", channel=told["channel"], **{**report, "reason": "", "fatal": False, "cpu_ns": 1 << 62}
    )
    assert core.state.channels[told["channel"]].calls == 9
    assert core.state.channels[told["channel"]].cpu_ns <= limits.HEARTBEAT_TIMEOUT_NS


def test_what_only_the_kernel_asks_is_in_no_grant() -> None:
    from kernel.broker import KERNEL_ONLY
    from kernel.channels import methods_for
    from kernel.rights import ALL

    for callee in ("archivist", "dataset", "learner", "observer", "gpu"):
        granted = {abi.METHOD_BY_NR[nr].qualified for nr in methods_for(callee, ALL)}
        assert not granted & KERNEL_ONLY
        assert all(name.startswith(f"{callee}.") for name in granted)
    assert STAGE.nr in methods_for("archivist", abi.Right.KFS_APPEND)
    assert STAGE.nr not in methods_for("archivist", abi.Right.KFS_READ)


# --- the two ends -------------------------------------------------------------------------------------------------------


class Pair:
    """A caller's and a callee's side over one pair of sockets, and the page that the kernel would write."""

    def __init__(self, messages: int = 4, size: int = 4096) -> None:
        self.page = WritePage(4096)
        self.words = direct.Generations(self.page.view)
        self.words[3] = 7
        mine, theirs = direct.pair()
        self.raw = mine
        ends = [direct.End(s, limits.FRAME_BYTES_MAX, size) for s in (mine, theirs)]
        table = [ReadPage(os.dup(self.page.fd), 4096) for _ in range(2)]
        common = (3, 7, messages, size)
        self.out = direct.Outgoing(5, "gpu", ends[0], table[0], *common)
        self.into = direct.Incoming(5, "learner", ends[1], table[1], *common, methods=frozenset({STAGE.nr}))

    def close(self) -> None:
        self.out.close()
        self.into.close()
        self.words.close()
        self.page.close()


@pytest.fixture
def pair() -> Iterator[Pair]:
    made = Pair()
    yield made
    made.close()


def stage(**changed: Any) -> list[Any]:
    return STAGE.bind({"window": 1, "refs": {}, "index": [], "page": 0, **changed})


def test_a_call_its_page_and_its_answer_go_over_and_credits_come_back(pair: Pair) -> None:
    page = WritePage(64)
    page.view[:] = b"x" * 64
    for _ in range(10):
        number = pair.out.send(STAGE, stage(page=1), [page.fd])
        (call,) = pair.into.read()
        mapped = ReadPage(call.fds.pop(), 64)
        assert bytes(mapped.view) == b"x" * 64
        mapped.close()
        pair.into.answer(
            call, wire.Reply(call.frame.id, True, STAGE.bind_reply({"snapshot": "s", "stored_bytes": 1})), []
        )
        pair.out.read()
        reply, _, fds = pair.out.replies.pop(number)
        assert (reply.ok, fds) == (True, [])
    assert not pair.out.open
    page.close()


def test_the_page_of_generations_cannot_be_written_by_who_reads_it(pair: Pair) -> None:
    with pytest.raises(TypeError, match="read-only"):
        pair.out.words[3] = 9
    pair.words[3] = 0
    assert not pair.out.stands
    assert not pair.into.stands
    with pytest.raises(RecurosError, match="revoked"):
        pair.out.send(STAGE, stage(), [])


def test_credits_in_messages_and_bytes_hold_on_both_sides() -> None:
    pair = Pair(messages=2, size=1000)
    for _ in range(2):
        pair.out.send(STAGE, stage(), [])
    with pytest.raises(RecurosError, match="2 calls"):
        pair.out.send(STAGE, stage(), [])
    data = wire.encode(wire.Call(3, STAGE.nr, 5, stage()))
    pair.out.end.send(data, [])  # a caller that does not count
    with pytest.raises(RecurosError, match="credits") as broken:
        pair.into.read()
    assert broken.value.code == "E2-WIRE"
    pair.close()
    pair = Pair(messages=9, size=1000)
    with pytest.raises(RecurosError, match="bytes under way"):
        pair.out.send(STAGE, stage(refs={"a": "b" * 2000}), [])
    pair.close()


def test_a_frame_may_come_byte_by_byte_and_a_reader_that_stops_blocks_nobody(pair: Pair) -> None:
    data = wire.encode(wire.Call(1, STAGE.nr, 5, stage()))
    framed = len(data).to_bytes(4, "little") + data
    for byte in framed[:-1]:
        pair.raw.send(bytes([byte]))
        assert pair.into.read() == []
    pair.raw.send(framed[-1:])
    assert len(pair.into.read()) == 1
    end = pair.into.end
    reply = wire.encode(wire.Reply(1, False, ["E1-NO", "x" * 2000, "", {}]))

    def answers() -> None:
        while True:
            end.send(reply, [])

    with pytest.raises(RecurosError, match="does not read"):
        answers()
    assert end.backlog <= 4096


@pytest.mark.parametrize("lie", ["another number", "a call", "noise", "a page that did not come", "it ends"])
def test_a_callee_that_lies_breaks_the_channel_and_nothing_else(pair: Pair, lie: str) -> None:
    split = abi.METHOD_BY_NAME["dataset.split"]
    pair.out.send(split, ["train"], [])
    pair.into.read()
    answers = {
        "another number": wire.encode(wire.Reply(9, True, [1])),
        "a call": wire.encode(wire.Call(1, split.nr, 5, ["train"])),
        "noise": b"\xc1\xc1",
        "a page that did not come": wire.encode(wire.Reply(1, True, [1])),
    }
    if lie == "it ends":
        pair.into.end.close()
    else:
        pair.into.end.send(answers[lie], [])
    pair.out.read()
    assert pair.out.broken is not None
    assert pair.out.why().code == "E3-GONE"
    assert not pair.out.replies


def test_each_side_learns_which_process_has_the_other_end() -> None:
    mine, theirs = direct.pair()
    assert direct.maker(theirs.fileno()) == os.getpid()
    caller, callee = direct.End(mine, 100, 100), direct.End(theirs, 100, 100)
    assert caller.took() == 0, "nobody has said anything"
    callee.take()
    assert caller.took() == os.getpid()
    caller.close()
    callee.close()
    datagrams = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with pytest.raises(RecurosError, match="Unix stream"):
        direct.maker(datagrams[0].fileno())
    for sock in datagrams:
        sock.close()
