"""Capabilities against a model that is a list of facts: who holds what, derived from which, with which rights."""

# ruff: noqa: PT017 - in a property an error is one of two right outcomes
from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, multiple, rule

from kernel.caps import Cap, CapTable
from syscalls import limits
from syscalls.abi import Right
from syscalls.errors import RecurosError

HOLDERS = ("learner", "observer", "operator:1.1", "kernel")
holders = st.sampled_from(HOLDERS)
rights_of = st.integers(0, (1 << len(Right)) - 1).map(Right)
ALL = Right((1 << len(Right)) - 1)


class Model:
    """One capability as the model sees it."""

    def __init__(self, cap: Cap, parent: Model | None) -> None:
        self.holder, self.slot, self.rights, self.kind = cap.holder, cap.slot, cap.rights, cap.kind
        self.parent, self.obj, self.badge = parent, cap.obj, cap.badge
        self.generation = 0
        self.there = True

    def under(self, other: Model) -> bool:
        """Whether `other` is an ancestor."""
        node = self.parent
        while node is not None:
            if node is other:
                return True
            node = node.parent
        return False


class Capabilities(RuleBasedStateMachine):
    """Random grants, derivations, revocations, releases and deaths."""

    caps = Bundle("caps")

    @initialize()
    def start(self) -> None:
        self.table = CapTable()
        self.model: list[Model] = []
        self.page = 0

    def living(self) -> list[Model]:
        return [m for m in self.model if m.there]

    def real(self, m: Model) -> Cap:
        return self.table.get(m.holder, m.slot)

    def add(self, cap: Cap, parent: Model | None) -> Model:
        for m in self.model:
            assert (m.holder, m.slot) != (cap.holder, cap.slot) or not m.there, "a slot in use was given out again"
        made = Model(cap, parent)
        self.model.append(made)
        return made

    @rule(target=caps, holder=holders, rights=rights_of)
    def mint_self(self, holder: str, rights: Right) -> Model:
        return self.add(self.table.mint(holder, "self", holder, rights), None)

    @rule(target=caps, holder=holders)
    def mint_page(self, holder: str) -> Model:
        self.page += 1
        return self.add(self.table.mint(holder, "page", self.page, Right.MAP), None)

    @rule(
        target=caps,
        parent=caps,
        to=holders,
        rights=rights_of,
        badge=st.sampled_from(["", "", "red", "blue"]),
        subset=st.booleans(),
    )
    def derive(self, parent: Model, to: str, rights: Right, badge: str, subset: bool) -> object:
        if not parent.there:
            return multiple()
        wanted = rights & parent.rights if subset else rights
        legal = not wanted & ~parent.rights and not (badge and parent.badge) and parent.kind not in ("reply", "channel")
        before = len(self.table.held(to))
        try:
            made = self.table.derive(self.real(parent), to, wanted, badge=badge)
        except RecurosError as error:
            assert error.code == "E5-DENIED"
            assert not legal
            assert len(self.table.held(to)) == before, "a refused derivation left something behind"
            return multiple()
        assert legal, "rights grew, or a badge changed"
        assert made.rights == wanted
        assert made.badge == (badge or parent.badge)
        return self.add(made, parent)

    @rule(cap=caps)
    def revoke(self, cap: Model) -> None:
        if not cap.there:
            return
        doomed = [m for m in self.living() if m.under(cap)]
        gone = self.table.revoke(self.real(cap))
        assert {(c.holder, c.slot) for c in gone} == {(m.holder, m.slot) for m in doomed}
        for m in doomed:
            m.there = False
        cap.generation += 1
        assert self.real(cap).rights == cap.rights, "revoking must keep the capability itself"

    @rule(cap=consumes(caps))
    def take(self, cap: Model) -> None:
        if not cap.there:
            return
        doomed = [cap, *(m for m in self.living() if m.under(cap))]
        gone = self.table.take(self.real(cap))
        assert {(c.holder, c.slot) for c in gone} == {(m.holder, m.slot) for m in doomed}
        for m in doomed:
            m.there = False

    @rule(target=caps, server=holders, caller=holders)
    def call(self, server: str, caller: str) -> Model:
        return self.add(self.table.reserve_reply(server, caller), None)

    @rule(cap=caps, by=holders)
    def reply(self, cap: Model, by: str) -> None:
        """Right once, by whom it was given to; then and elsewhere never."""
        right = cap.there and cap.kind == "reply" and by == cap.holder
        clash = any(m.there and m.kind == "reply" and (m.holder, m.slot) == (by, cap.slot) for m in self.model)
        if right or not clash:
            assert self.table.use_reply((by, cap.slot)) == right
            assert not self.table.use_reply((by, cap.slot)), "a second answer"
        if right:
            self.forget(cap)

    @rule(target=caps, parent=caps)
    def open_channel(self, parent: Model) -> object:
        if not parent.there:
            return multiple()
        self.page += 1
        under = self.real(parent)
        return self.add(self.table.mint(parent.holder, "channel", self.page, parent.rights, parent=under), parent)

    @rule(cap=consumes(caps))
    def release(self, cap: Model) -> None:
        if cap.there:
            self.table.release(self.real(cap))
            self.forget(cap)

    @rule(holder=holders)
    def drop(self, holder: str) -> None:
        gone = self.table.drop_holder(holder)
        mine = [m for m in self.living() if m.holder == holder]
        assert {c.slot for c in gone} == {m.slot for m in mine}
        for m in mine:
            self.forget(m)
        for m in self.living():
            if m.kind == "reply" and m.obj == holder:
                self.forget(m)  # the answers that it waited for die with it

    def forget(self, cap: Model) -> None:
        """Giving up is not revoking: children go on under the parent."""
        cap.there = False
        for m in self.model:
            if m.parent is cap:
                m.parent = cap.parent

    @rule(holder=holders, slot=st.integers(-2, 30), right=st.sampled_from(list(Right)))
    def use(self, holder: str, slot: int, right: Right) -> None:
        mine = [m for m in self.living() if (m.holder, m.slot) == (holder, slot)]
        try:
            found = self.table.require(holder, slot, right, "test")
        except RecurosError as error:
            assert error.code == "E5-DENIED"
            assert not mine or right not in mine[0].rights
        else:
            assert mine
            assert right in mine[0].rights
            assert found.holder == holder

    @invariant()
    def the_table_is_the_model(self) -> None:
        for holder in HOLDERS:
            held = {(c.slot, c.rights, c.kind, c.obj, c.badge, c.generation, c.parent) for c in self.table.held(holder)}
            expected = {
                (m.slot, m.rights, m.kind, m.obj, m.badge, m.generation,
                 (m.parent.holder, m.parent.slot) if m.parent else None)
                for m in self.living() if m.holder == holder
            }  # fmt: skip
            assert held == expected

    @invariant()
    def rights_only_shrink_downward(self) -> None:
        for m in self.living():
            if m.parent is not None:
                assert not m.rights & ~m.parent.rights

    @invariant()
    def pages_are_in_use_while_somebody_names_them(self) -> None:
        assert self.table.pages_in_use() == {m.obj for m in self.living() if m.kind == "page"}

    @invariant()
    def a_channel_that_went_was_reported_once(self) -> None:
        gone = [m.obj for m in self.model if m.kind == "channel" and not m.there]
        assert sorted(self.table.channels_cut) == sorted(gone)

    @invariant()
    def reply_slots_are_counted(self) -> None:
        for holder in HOLDERS:
            assert self.table.owed(holder) == sum(m.kind == "reply" and m.obj == holder for m in self.living())


Capabilities.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestCapabilities = Capabilities.TestCase


def test_a_handle_of_one_principal_means_nothing_to_another() -> None:
    table = CapTable()
    mine = table.mint("learner", "page", 1, Right.MAP)
    with pytest.raises(RecurosError, match="observer holds no capability") as caught:
        table.require("observer", mine.slot, Right.MAP, "map")
    assert caught.value.code == "E5-DENIED"


@pytest.mark.parametrize("right", list(Right), ids=str)
def test_the_absence_of_each_right_is_refused_by_name(right: Right) -> None:
    table = CapTable()
    without = table.mint("observer", "self", "observer", ALL & ~right)
    with pytest.raises(RecurosError) as caught:
        table.require("observer", without.slot, right, "something")
    assert caught.value.code == "E5-DENIED"
    assert str(right.name).lower().replace("_", "-") in caught.value.message
    assert table.require("observer", without.slot, ALL & ~right, "everything else") is without


def test_excess_rights_are_rejected_and_not_trimmed() -> None:
    table = CapTable()
    parent = table.mint("operator", "self", "operator", Right.STEER | Right.GRANT)
    with pytest.raises(RecurosError, match="interrupt"):
        table.derive(parent, "observer", Right.STEER | Right.INTERRUPT)
    assert not table.held("observer")


def test_revoking_reaches_through_every_holder_and_keeps_the_root() -> None:
    table = CapTable()
    root = table.mint("operator", "self", "operator", ALL)
    child = table.derive(root, "learner", Right.STEER)
    grandchild = table.derive(child, "observer", Right.STEER)
    assert {c.key for c in table.revoke(root)} == {child.key, grandchild.key}
    assert table.find(*root.key) is root
    assert table.find(*grandchild.key) is None
    assert not table.revoke(root)


def test_a_second_incarnation_starts_with_the_first_slot_again() -> None:
    table = CapTable()
    assert table.mint("learner", "self", "learner", Right.MAP).slot == 1
    table.mint("learner", "page", 1, Right.MAP)
    table.drop_holder("learner")
    assert table.mint("learner", "self", "learner", Right.MAP).slot == 1


def test_a_holder_has_a_limit() -> None:
    table = CapTable()
    for _ in range(limits.CAPS_PER_PRINCIPAL_MAX):
        table.mint("learner", "self", "learner", Right.MAP)
    with pytest.raises(RecurosError) as caught:
        table.mint("learner", "self", "learner", Right.MAP)
    assert caught.value.code == "E2-LIMIT"
    table.mint("observer", "self", "observer", Right.MAP)


def test_a_reply_slot_is_reserved_or_the_call_is_refused() -> None:
    table = CapTable()
    caps = [table.reserve_reply("archivist", "learner") for _ in range(limits.CALLS_PENDING_MAX)]
    with pytest.raises(RecurosError, match="no reply slot is free") as caught:
        table.reserve_reply("archivist", "learner")
    assert caught.value.code == "E2-LIMIT"
    assert table.reserve_reply("archivist", "observer"), "each caller has slots of its own"
    assert table.use_reply(caps[0].key)
    assert table.reserve_reply("archivist", "learner")


def test_a_reply_cannot_be_derived_and_dies_with_its_caller() -> None:
    table = CapTable()
    reply = table.reserve_reply("archivist", "learner")
    with pytest.raises(RecurosError, match="not derivable"):
        table.derive(reply, "observer", Right(0))
    table.drop_holder("learner")
    assert not table.use_reply(reply.key)
    assert not table.held("archivist")
