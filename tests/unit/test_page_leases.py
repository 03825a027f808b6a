"""Pages that are revoked, in the kernel's core: who is looked at when the lease is over, who is killed, and who is not."""

from __future__ import annotations

from typing import Any

from test_rights import Core

from kernel.events import Effect, Kill, LeaseOver, PageKept, PageLeased, PageOffered, Tick
from syscalls import abi, limits

STAGE = abi.METHOD_BY_NAME["archivist.stage"]


class Leasing(Core):
    """The core, with what it wants to know of pages and whom it kills."""

    def __init__(self, **stanza: Any) -> None:
        self.effects: list[Effect] = []
        super().__init__(**stanza)

    def take(self, effects: list[Effect]) -> None:
        self.effects += [e for e in effects if isinstance(e, PageLeased | LeaseOver | Kill)]
        super().take(effects)

    def page(self, who: str = "learner", page: int = 7) -> int:
        self.step(PageOffered(who, 1, page, 64))
        return max(c["slot"] for c in self.caps_of(who) if c["kind"] == "page")

    def lend(self, slot: int, to: str = "gpu") -> int:
        given: int = self.syscall("learner", "cap_derive", cap=slot, rights=["map"], to=to)["slot"]
        return given

    def later(self) -> None:
        self.now_ns += limits.PAGE_LEASE_NS
        self.step(Tick())


def test_who_lost_a_page_to_a_revocation_is_looked_at_when_the_lease_is_over_and_killed_if_it_kept_it() -> None:
    core = Leasing()
    slot = core.page()
    lent = core.lend(slot)
    core.syscall("learner", "cap_revoke", cap=slot)
    incarnation = core.state.servers["gpu"].incarnation
    assert core.effects == [PageLeased(7, "gpu", incarnation, lent)]
    core.later()
    assert core.effects[1:] == [LeaseOver(7, "gpu", incarnation, lent, look=True)]
    core.step(PageKept("gpu", incarnation + 1, lent))
    assert not any(isinstance(e, Kill) for e in core.effects), "of another incarnation"
    core.step(PageKept("gpu", incarnation, lent))
    assert [(e.name, e.incarnation) for e in core.effects if isinstance(e, Kill)] == [("gpu", incarnation)]
    assert core.state.refused["page lease"] == 1
    assert any(r.args.get("name") == "gpu" and "after it was revoked" in str(r.args.get("message")) for r in core.log)


def test_a_page_that_the_server_holds_by_another_capability_is_not_looked_for() -> None:
    core = Leasing()
    slot = core.page()
    core.lend(slot)
    core.syscall("learner", "cap_revoke", cap=slot)
    core.lend(slot)
    core.later()
    assert [e.look for e in core.effects if isinstance(e, LeaseOver)] == [False]


def test_a_page_that_came_with_a_call_is_its_callees_until_it_answers() -> None:
    """Or a caller could have a callee killed for being slow."""
    core = Leasing(rights=["map", "exec", "grant", "revoke", "kfs-append"])
    slot = core.page()
    args = STAGE.bind({"window": 1, "refs": {}, "index": [], "page": slot})
    core.send("learner", "call", endpoint=core.caps["learner"]["archivist"], method=STAGE.nr, args=args)
    assert any(c["kind"] == "page" for c in core.caps_of("archivist")), "it is with the archivist"
    core.send("learner", "cap_revoke", cap=slot)
    core.later()
    assert core.effects == []
