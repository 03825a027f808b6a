"""Capabilities: a derivation tree that the kernel holds and nobody else sees.

A handle is a small integer that means something only together with the principal that uses it. Rights of a derived
capability are a subset of its parent's; asking for more is refused, never trimmed. Revoking removes all descendants
and keeps the capability itself; taking removes it too. A reply capability is made when a call is taken, answers once,
cannot be derived and dies with the caller. Refuses: slots of other principals, by having no way to name them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from syscalls import limits
from syscalls.abi import Right, right_names
from syscalls.errors import RecurosError

ROOT_SLOT = 1
Key = tuple[str, int]


@dataclass
class Cap:
    """One capability. `kind` says what `obj` is.

    "self", "endpoint", "root": a principal's name; "page", "end", "channel": a number; "reply": whom the answer goes to.
    """

    holder: str
    slot: int
    kind: str
    obj: str | int
    rights: Right
    parent: Key | None = None
    badge: str = ""
    children: set[Key] = field(default_factory=set)
    generation: int = 0
    """How often what was derived from it was revoked."""

    @property
    def key(self) -> Key:
        """Where it is."""
        return (self.holder, self.slot)


class CapTable:
    """All capabilities of all principals."""

    def __init__(self) -> None:
        self._slots: dict[str, dict[int, Cap]] = {}
        self._next: dict[str, int] = {}
        self._replies: dict[str, set[Key]] = {}  # caller -> the reply capabilities that would answer it
        self.pages_released = False
        self.channels_cut: list[int] = []  # channels whose capability has gone, since somebody last looked

    def mint(
        self, holder: str, kind: str, obj: str | int, rights: Right, *, parent: Cap | None = None, badge: str = ""
    ) -> Cap:
        """Put a new capability into the holder's next free slot; E2-LIMIT when the holder has too many."""
        table = self._slots.setdefault(holder, {})
        if len(table) >= limits.CAPS_PER_PRINCIPAL_MAX:
            raise RecurosError(
                "E2-LIMIT",
                f"{holder} holds {len(table)} capabilities, the limit",
                hint="release pages that are no longer read",
            )
        slot = self._next.get(holder, ROOT_SLOT)
        self._next[holder] = slot + 1
        cap = Cap(holder, slot, kind, obj, rights, parent.key if parent else None, badge)
        table[slot] = cap
        if parent:
            parent.children.add(cap.key)
        return cap

    def get(self, holder: str, slot: int) -> Cap:
        """The capability in a slot of this holder; E5-DENIED when there is none."""
        cap = self._slots.get(holder, {}).get(slot)
        if cap is None:
            raise RecurosError("E5-DENIED", f"{holder} holds no capability in slot {slot}", hint="recuros cap ls")
        return cap

    def find(self, holder: str, slot: int) -> Cap | None:
        """Like `get`, None instead of an error."""
        return self._slots.get(holder, {}).get(slot)

    def held(self, holder: str) -> list[Cap]:
        """The holder's capabilities in slot order."""
        return [cap for _, cap in sorted(self._slots.get(holder, {}).items())]

    def require(self, holder: str, slot: int, right: Right, what: str) -> Cap:
        """The capability if it carries `right`; E5-DENIED names caller, right and what the caller does hold."""
        cap = self.get(holder, slot)
        # As integers: an enum's operators cost microseconds, and this is on the way of every message.
        if int(right) & ~int(cap.rights):
            raise RecurosError(
                "E5-DENIED",
                f"{what}: {holder} lacks the right {', '.join(right_names(right & ~cap.rights))}"
                f" (slot {slot} holds: {', '.join(right_names(cap.rights)) or 'none'})",
                hint="grant it in the manifest, or ask a principal that holds it",
            )
        return cap

    def derive(self, parent: Cap, to: str, rights: Right, *, badge: str = "") -> Cap:
        """A child of `parent` for `to`; rights must shrink and a badge is set only once."""
        if parent.kind in ("reply", "channel", "end"):
            raise RecurosError("E5-DENIED", f"slot {parent.slot} of {parent.holder} is a {parent.kind}: not derivable")
        excess = rights & ~parent.rights
        if excess:
            raise RecurosError(
                "E5-DENIED",
                f"derive asks for {', '.join(right_names(excess))}, which the parent lacks"
                f" (it holds: {', '.join(right_names(parent.rights)) or 'none'})",
                hint="ask for a subset",
            )
        if badge and parent.badge:
            raise RecurosError("E5-DENIED", f"the badge is {parent.badge!r} already and never changes")
        return self.mint(to, parent.kind, parent.obj, rights, parent=parent, badge=badge or parent.badge)

    def reserve_reply(self, server: str, caller: str) -> Cap:
        """A slot for the one answer that `server` will owe `caller`; E2-LIMIT before anything is sent when there is none."""
        owed = self._replies.setdefault(caller, set())
        if len(owed) >= limits.CALLS_PENDING_MAX:
            raise RecurosError(
                "E2-LIMIT",
                f"{caller} waits for {len(owed)} answers, the limit: no reply slot is free",
                hint="wait for replies before asking for more",
            )
        cap = self.mint(server, "reply", caller, Right(0))
        owed.add(cap.key)
        return cap

    def use_reply(self, key: Key) -> bool:
        """Answer once: True the first time; False when it was used, or died with its caller."""
        cap = self.find(*key)
        if cap is None or cap.kind != "reply":
            return False
        self.release(cap)
        return True

    def owed(self, caller: str) -> int:
        """Answers that a caller waits for."""
        return len(self._replies.get(caller, ()))

    def revoke(self, cap: Cap) -> list[Cap]:
        """Remove every descendant; returns them. The capability itself stays, one generation older."""
        gone = self.under(cap)
        cap.children.clear()
        cap.generation += 1
        for child in gone:
            self._remove(child)
        return gone

    def take(self, cap: Cap) -> list[Cap]:
        """Remove a capability and every descendant; returns them, itself first."""
        gone = [cap, *self.revoke(cap)]
        parent = self.find(*cap.parent) if cap.parent else None
        if parent:
            parent.children.discard(cap.key)
        self._remove(cap)
        return gone

    def under(self, cap: Cap) -> list[Cap]:
        """Every descendant."""
        found: list[Cap] = []
        stack = sorted(cap.children)
        while stack:
            child = self.find(*stack.pop())
            if child:
                found.append(child)
                stack.extend(sorted(child.children))
        return found

    def is_under(self, cap: Cap, above: Cap) -> bool:
        """Whether `above` is an ancestor of `cap`, or `cap` itself."""
        at: Cap | None = cap
        while at is not None and at is not above:
            at = self.find(*at.parent) if at.parent else None
        return at is above

    def _remove(self, cap: Cap) -> None:
        """Out of its slot, with what that means for pages, channels and replies."""
        self._slots.get(cap.holder, {}).pop(cap.slot, None)
        if cap.kind in ("page", "end"):
            self.pages_released = True
        elif cap.kind == "channel" and isinstance(cap.obj, int):
            self.channels_cut.append(cap.obj)
        elif cap.kind == "reply":
            owed = self._replies.get(str(cap.obj), set())
            owed.discard(cap.key)
            if not owed:
                self._replies.pop(str(cap.obj), None)

    def release(self, cap: Cap) -> None:
        """The holder gives this one up; its children move to its parent, since giving up is not revoking."""
        self._remove(cap)
        parent = self.find(*cap.parent) if cap.parent else None
        if parent:
            parent.children.discard(cap.key)
        for key in cap.children:
            child = self.find(*key)
            if child:
                child.parent = parent.key if parent else None
                if parent:
                    parent.children.add(key)

    def drop_holder(self, holder: str) -> list[Cap]:
        """A principal is gone; what it held goes with it, and so do the answers it waited for. Children move up."""
        gone = self.held(holder)
        for cap in gone:
            self.release(cap)
        for key in sorted(self._replies.get(holder, ())):
            self.use_reply(key)
        self._slots.pop(holder, None)
        self._next.pop(holder, None)  # its next incarnation starts over: the first slot is what it may do by itself
        return gone

    def pages_in_use(self) -> set[int]:
        """Numbers of pages that some capability still names."""
        return {
            c.obj
            for table in self._slots.values()
            for c in table.values()
            if c.kind in ("page", "end") and isinstance(c.obj, int)
        }

    def to_list(self, holder: str) -> list[dict[str, Any]]:
        """For people."""
        return [
            {
                "slot": c.slot,
                "kind": c.kind,
                "object": c.obj,
                "rights": right_names(c.rights),
                "badge": c.badge,
                "parent": list(c.parent) if c.parent else None,
                "children": len(c.children),
                "generation": c.generation,
            }
            for c in self.held(holder)
        ]
