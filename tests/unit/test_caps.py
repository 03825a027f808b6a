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

    def __init__(self, holder: str, slot: int, rights: Right, parent: Model | None, obj: str | int, badge: str) -> None:
        self.holder, self.slot, self.rights, self.parent, self.obj, self.badge = (
            holder,
            slot,
            rights,
            parent,
            obj,
            badge,
        )
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
        made = Model(cap.holder, cap.slot, cap.rights, parent, cap.obj, cap.badge)
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
        legal = not wanted & ~parent.rights and not (badge and parent.badge)
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
        assert self.real(cap).rights == cap.rights, "revoking must keep the capability itself"

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
            held = {(c.slot, c.rights, c.kind, c.obj, c.badge, c.parent) for c in self.table.held(holder)}
            expected = {
                (m.slot, m.rights, "page" if isinstance(m.obj, int) else "self", m.obj, m.badge,
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
        assert self.table.pages_in_use() == {m.obj for m in self.living() if isinstance(m.obj, int)}


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
