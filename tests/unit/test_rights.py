"""Capabilities and the calls that are sent under them, in the real kernel core, against a model that is two lists of calls."""

# ruff: noqa: PT017 - in a property an error is one of two right outcomes
from __future__ import annotations

from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from kernel import config, core
from kernel.events import Boot, Effect, Received, Send, Spawned
from kernel.state import State
from kfs import records
from kfs.records import RecordKind
from syscalls import abi, limits, wire
from syscalls.errors import RecurosError

OPERATOR = "operator:7.1"
APPEND = abi.METHOD_BY_NAME["archivist.append"].nr
TELEMETRY = abi.METHOD_BY_NAME["gpu.telemetry"].nr
INVENTORY = abi.METHOD_BY_NAME["gpu.inventory"].nr
STANZAS = (
    ("archivist", 0, ["kfs-append"], []),
    ("gpu", 0, ["device"], []),
    ("dataset", 1, ["map"], ["gpu"]),
    ("learner", 2, ["map", "exec", "grant", "revoke"], ["archivist", "gpu"]),
    ("observer", 3, ["read-trace", "grant", "revoke"], ["dataset", "gpu", "learner"]),
)


def document(**stanza: Any) -> dict[str, Any]:
    """A boot document; `stanza` is added to every server's."""
    servers = [
        {
            "name": name,
            "entry": f"servers.{name}",
            "class": "edf" if name == "learner" else "fair",
            "rank": rank,
            "rights": rights,
            "calls": calls,
            "restart": "always",
            "config": {},
            **stanza,
        }
        for name, rank, rights, calls in STANZAS
    ]
    return {
        "run": "/run",
        "app": "rights",
        "seed": 1,
        "deterministic": True,
        "detached": False,
        "window": {"steps": 1, "budget_ms": 1, "period_ms": 2, "deadline_ms": 2},
        "phases": [{"name": "only", "train": "student", "windows": 1, "steps": 1}],
        "probes": [],
        "policy": {},
        "eval_every": 0,
        "operator_rights": ["steer", "interrupt", "grant", "revoke"],
        "servers": servers,
    }


class Core:
    """The kernel's core with all servers connected, archivist and gpu ready, and an operator."""

    def __init__(self, **stanza: Any) -> None:
        self.now_ns = 1
        self.ids: dict[str, int] = {}
        self.seq = 0
        self.log: list[records.Record] = []
        self.answers: dict[tuple[str, int], wire.Reply] = {}
        self.told: dict[str, list[wire.Deliver]] = {}
        self.caps: dict[str, dict[str, int]] = {}
        self.state: State
        self.state, effects = core.step(None, Boot(config.parse(document(**stanza)), "b", 1, {}), self.now_ns)
        self.take(effects)
        self.connect("archivist", 1)
        for pid, (name, *_) in enumerate(STANZAS[1:], 2):
            self.connect(name, pid, ready=name == "gpu")
        self.syscall(OPERATOR, "hello", major=abi.ABI_MAJOR, minor=abi.ABI_MINOR)

    def connect(self, name: str, pid: int, *, ready: bool = True) -> None:
        self.step(Spawned(name, self.state.servers[name].incarnation, pid))
        hello = self.syscall(name, "hello", major=abi.ABI_MAJOR, minor=abi.ABI_MINOR)
        self.caps[name] = hello["caps"]
        if ready:
            self.syscall(name, "ready", info={})

    def step(self, event: Any) -> None:
        self.now_ns += 1
        self.state, effects = core.step(self.state, event, self.now_ns)
        self.take(effects)

    def take(self, effects: list[Effect]) -> None:
        """Answers and deliveries to their lists; the archivist answers by itself."""
        for effect in effects:
            if not isinstance(effect, Send):
                continue
            who = effect.route.decode()
            if isinstance(effect.frame, wire.Reply):
                key = (who, effect.frame.id)
                assert key not in self.answers, "a call was answered twice"
                self.answers[key] = effect.frame
            elif isinstance(effect.frame, wire.Deliver) and who == "archivist" and effect.frame.id:
                self.archive(effect.frame)
            elif isinstance(effect.frame, wire.Deliver):
                if effect.frame.nr == INVENTORY:
                    self.reply(who, effect.frame.id, [[], {}, ""])
                else:
                    self.told.setdefault(who, []).append(effect.frame)

    def archive(self, frame: wire.Deliver) -> None:
        row = abi.METHOD_BY_NR[frame.nr]
        if row.name == "open":
            self.reply("archivist", frame.id, [b"", [], 0, "", []])
        elif row.name == "append":
            drafts = [records.decode(data) for data in frame.args[0]]
            self.log += drafts
            seqs = list(range(self.seq, self.seq + len(drafts)))
            self.seq += len(drafts)
            self.reply("archivist", frame.id, [seqs, self.seq, ""])

    def reply(self, who: str, delivery: int, values: list[Any]) -> None:
        self.step(Received(who, who.encode(), wire.Reply(delivery, True, values)))

    def send(self, who: str, name: str, /, *, slot: int = 1, **args: Any) -> int:
        row = abi.SYSCALL_BY_NAME[name]
        self.ids[who] = self.ids.get(who, 0) + 1
        frame = wire.Call(self.ids[who], row.nr, slot, row.bind(args))
        self.step(Received(who, who.encode(), frame, size=len(wire.encode(frame))))
        return self.ids[who]

    def syscall(self, who: str, name: str, /, *, slot: int = 1, **args: Any) -> dict[str, Any]:
        number = self.send(who, name, slot=slot, **args)
        return abi.SYSCALL_BY_NAME[name].check_reply(self.result(who, number))

    def result(self, who: str, number: int) -> list[Any]:
        reply = self.answers[who, number]
        if not reply.ok:
            raise RecurosError.from_wire(reply.payload)
        return reply.payload

    def call(self, who: str, endpoint: int) -> int:
        """A call of gpu.telemetry; its number."""
        return self.send(who, "call", slot=endpoint, endpoint=endpoint, method=TELEMETRY, args=[])

    def caps_of(self, who: str) -> list[dict[str, Any]]:
        caps: list[dict[str, Any]] = self.syscall(OPERATOR, "cap_list", principal=who)["caps"]
        return caps


CALLERS = ("dataset", "learner", "observer")


class RightsAndCalls(RuleBasedStateMachine):
    """Derive, call, answer, answer again, revoke, take: what each caller is told is what the model says."""

    @initialize()
    def start(self) -> None:
        self.core = Core()
        # (holder, slot) -> (parent, has grant); what the manifest gave has no parent here
        self.live: dict[tuple[str, int], tuple[str, int] | None] = {
            (who, self.core.caps[who]["gpu"]): None for who in CALLERS
        }
        self.rooted = set(self.live)
        self.flying: list[tuple[str, int, tuple[str, int]]] = []
        self.queued: list[tuple[str, int, tuple[str, int]]] = []
        self.done: list[int] = []
        self.cancelled = 0

    def below(self, key: tuple[str, int]) -> set[tuple[str, int]]:
        found = {key}
        while more := {k for k, parent in self.live.items() if parent in found} - found:
            found |= more
        return found - {key}

    def outcome(self, who: str, number: int) -> str:
        reply = self.core.answers.get((who, number))
        return "" if reply is None else "ok" if reply.ok else str(reply.payload[0])

    @rule(data=st.data(), to=st.sampled_from(("", *CALLERS)))
    def derive(self, data: st.DataObject, to: str) -> None:
        if not self.live:
            return
        key = data.draw(st.sampled_from(sorted(self.live)))
        giver = key[0]
        channel = to in ("", giver) or (giver == "observer" and to in ("dataset", "learner"))
        allowed = giver != "dataset" and channel
        try:
            made = self.core.syscall(giver, "cap_derive", cap=key[1], rights=[], to=to)
        except RecurosError as error:
            assert error.code == "E5-DENIED"
            assert not allowed
        else:
            assert allowed
            self.live[to or giver, made["slot"]] = key

    @rule(data=st.data(), who=st.sampled_from(CALLERS), slot=st.integers(1, 12))
    def call(self, data: st.DataObject, who: str, slot: int) -> None:
        key = (who, slot)
        number = self.core.call(who, slot)
        if key not in self.live:  # E2-USAGE: an endpoint, but of a server that has no such method
            told = self.outcome(who, number)
            assert told in ("E5-DENIED", "E2-USAGE"), "a handle that is nothing here, or not any more, was good"
        elif len(self.queued) == limits.MAILBOX_MESSAGES_DEFAULT:
            assert self.outcome(who, number) == "E75-FULL"
        elif len(self.flying) < limits.MAILBOX_CREDIT:
            self.flying.append((who, number, key))
            assert self.outcome(who, number) == ""
        else:
            self.queued.append((who, number, key))
            assert self.outcome(who, number) == ""

    @rule(times=st.integers(1, 3))
    def flood(self, times: int) -> None:
        """Enough calls to have some that wait."""
        for key in sorted(self.live)[:3]:
            for _ in range(4 * times):
                if len(self.queued) < limits.MAILBOX_MESSAGES_DEFAULT:
                    number = self.core.call(*key)
                    entry = (key[0], number, key)
                    (self.flying if len(self.flying) < limits.MAILBOX_CREDIT else self.queued).append(entry)

    @rule()
    def answer(self) -> None:
        if self.flying:
            who, number, _ = self.flying.pop(0)
            frame = self.core.told["gpu"].pop(0)
            assert frame.sender == who
            self.core.reply("gpu", frame.id, [[], {}, {}, {}])
            assert self.outcome(who, number) == "ok"
            self.done.append(frame.id)
            if self.queued:
                self.flying.append(self.queued.pop(0))

    @rule(data=st.data(), by=st.sampled_from(("gpu", "dataset", "archivist")))
    def answer_again(self, data: st.DataObject, by: str) -> None:
        if self.done:
            before = self.core.state.refused.get("stray reply", 0)
            self.core.reply(by, data.draw(st.sampled_from(self.done)), [[], {}])
            assert self.core.state.refused["stray reply"] == before + 1

    @rule(data=st.data(), take=st.booleans(), dry=st.booleans())
    def revoke(self, data: st.DataObject, take: bool, dry: bool) -> None:
        if not self.live:
            return
        key = data.draw(st.sampled_from(sorted(self.live)))
        if not take and key[0] == "dataset":
            return  # it lacks `revoke`; see the test of each right
        gone = self.below(key) | ({key} if take else set())
        doomed = [call for call in self.queued if call[2] in gone]
        if take:
            answer = self.core.syscall(OPERATOR, "cap_take", principal=key[0], cap=key[1], dry_run=dry)
        else:
            answer = self.core.syscall(key[0], "cap_revoke", cap=key[1], dry_run=dry)
        assert answer["removed"] == len(gone)
        if dry:
            assert (answer["cancelled"], answer["seq"]) == (0, -1)
            return
        assert answer["cancelled"] == len(doomed)
        assert self.core.log[-1].kind is RecordKind.CAP_REVOKE
        for who, number, _ in doomed:
            assert self.outcome(who, number) == "E5-DENIED"
        self.cancelled += len(doomed)
        self.queued = [call for call in self.queued if call not in doomed]
        for k in gone:
            del self.live[k]

    @invariant()
    def the_kernel_holds_what_the_model_holds(self) -> None:
        s = self.core.state
        endpoints = {c.key for who in CALLERS for c in s.caps.held(who) if (c.kind, c.obj) == ("endpoint", "gpu")}
        assert endpoints == set(self.live)
        gpu = s.servers["gpu"]
        assert (gpu.in_flight, len(gpu.queue), gpu.cancelled) == (len(self.flying), len(self.queued), self.cancelled)
        for who in CALLERS:
            assert s.caps.owed(who) == sum(c[0] == who for c in self.flying + self.queued)
        for who, number, _ in self.flying + self.queued:
            assert self.outcome(who, number) == ""


RightsAndCalls.TestCase.settings = settings(max_examples=25, stateful_step_count=30, deadline=None)
TestRightsAndCalls = RightsAndCalls.TestCase


@pytest.mark.parametrize("row", [r for r in abi.SYSCALLS if r.right], ids=lambda r: r.name)
def test_each_syscall_is_refused_without_its_right(row: abi.Row) -> None:
    core_ = Core()
    made = core_.syscall(OPERATOR, "cap_derive", cap=1, rights=[])
    zero = {"int": 0, "float": 0.0, "str": "", "bytes": b"", "bool": False, "list": [], "map": {}, "page": 0}
    args = {a.name: zero[a.kind] for a in row.args}
    number = core_.send(OPERATOR, row.name, slot=made["slot"], **args)
    with pytest.raises(RecurosError, match="lacks the right") as caught:
        core_.result(OPERATOR, number)
    assert caught.value.code == "E5-DENIED"
    assert abi.right_names(row.right)[0] in caught.value.message


@pytest.mark.parametrize("row", [r for r in abi.METHODS if r.right], ids=lambda r: r.qualified)
def test_each_method_is_refused_without_its_right_on_the_endpoint(row: abi.Row) -> None:
    core_ = Core()
    right = abi.right_names(row.right)[0]
    who = next(name for name, _, rights, calls in STANZAS if row.server in calls and right not in rights)
    endpoint = core_.caps[who][row.server]
    zero = {"int": 0, "str": "", "list": [], "map": {}, "page": 0}
    args = [zero[a.kind] for a in row.args]
    number = core_.send(who, "call", endpoint=endpoint, method=row.nr, args=args)
    with pytest.raises(RecurosError, match=right) as caught:
        core_.result(who, number)
    assert caught.value.code == "E5-DENIED"


def test_a_server_passes_nothing_where_it_has_no_channel_with_grant() -> None:
    core_ = Core()
    slot = core_.caps["learner"]["gpu"]
    for to in ("observer", OPERATOR, "dataset"):
        with pytest.raises(RecurosError, match="that carries grant"):
            core_.syscall("learner", "cap_derive", cap=slot, rights=[], to=to)
    with pytest.raises(RecurosError, match="no principal is called"):
        core_.syscall("observer", "cap_derive", cap=1, rights=[], to="nobody")


def test_an_endpoint_never_goes_to_whom_the_callee_might_wait_for() -> None:
    core_ = Core()
    slot = core_.caps["observer"]["learner"]
    with pytest.raises(RecurosError, match="lower rank"):
        core_.syscall("observer", "cap_derive", cap=slot, rights=[], to="dataset")


def test_what_was_taken_from_a_server_is_not_given_to_its_successor() -> None:
    core_ = Core()
    slot = core_.caps["observer"]["gpu"]
    assert core_.syscall(OPERATOR, "cap_take", principal="observer", cap=slot)["seq"] >= 0
    core_.state.servers["observer"].state = "spawned"
    hello = core_.syscall("observer", "hello", major=abi.ABI_MAJOR, minor=abi.ABI_MINOR)
    assert set(hello["caps"]) == {"self", "dataset", "learner"}


@pytest.mark.parametrize(("principal", "cap"), [("kernel", 1), ("operator", 1)])
def test_the_roots_stay(principal: str, cap: int) -> None:
    with pytest.raises(RecurosError, match="may not take") as caught:
        Core().syscall(OPERATOR, "cap_take", principal=principal, cap=cap)
    assert caught.value.code == "E5-DENIED"


def test_a_dry_run_derives_nothing_and_refuses_the_same() -> None:
    core_ = Core()
    before = core_.caps_of("observer")
    core_.syscall(OPERATOR, "cap_derive", cap=1, rights=["steer"], to="observer", dry_run=True)
    with pytest.raises(RecurosError, match="write-params"):
        core_.syscall(OPERATOR, "cap_derive", cap=1, rights=["write-params"], to="observer", dry_run=True)
    assert core_.caps_of("observer") == before
    assert not any(r.kind is RecordKind.CAP_DERIVE for r in core_.log)
