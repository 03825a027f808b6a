"""The capability protocol as a small model: derive, transfer, revoke, queued calls, one-shot replies, deaths at any moment.

Responsible for: the rules of `kernel/caps.py` and `kernel/broker.py` about who may do what, with everything left out that does not
decide it: pages, byte counts, the fair class. Two clients derive from one endpoint capability and call one server through its
mailbox; the server has credit for one call at a time, and it may lie: answer twice, or answer what it was not given. Slots are numbered
from 1 again in each incarnation of a client, as in the kernel, so a stale (principal, slot) may come to mean something else.

Judged by ghosts that no rule can touch: the line of descent of each capability, and what was ever revoked. Checked: no right is gained
along a line of descent, nothing crosses to another principal but over `grant`; nothing is handed out under a capability that a
revocation covers; no call is answered twice, and no answer reaches a later incarnation of its caller; nothing deadlocks, and from
every state every call of a living caller can still be answered. `MUTANTS` are the same protocol with one rule taken away.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import Final, NamedTuple

USE, GRANT = 1, 2
OWNER, OTHER = 0, 1
ROOT_RIGHTS: Final = USE | GRANT
MUTANTS: Final = {
    "derive-unchecked": "a derived capability may carry any right",
    "grant-not-needed": "a capability may be given away without the right to grant",
    "revoke-children-only": "a revocation removes children and not their children",
    "revoke-leaves-queue": "a revocation does not cancel the calls that wait in a mailbox",
    "death-leaves-queue": "the calls of a dead client stay in the mailbox",
    "death-orphans": "what was derived from a dead client's capabilities belongs to no tree any more",
    "transfer-keeps": "a capability that was given away stays with its giver, outside the tree",
    "reply-reusable": "an answer does not use up its reply capability",
    "reply-outlives-caller": "reply capabilities do not die with their caller",
    "answer-not-given": "a server may answer a call that still waits in its mailbox",
    "cancel-unanswered": "a call that a revocation cancels is dropped without a word",
    "server-death-silent": "the callers of a server that dies are not told",
}


class Cap(NamedTuple):
    """A capability in the kernel's table. `uid` is a ghost: its place in `State.lines`."""

    uid: int
    holder: int
    slot: int
    rights: int
    parent: int  # uid; -1: none


class Line(NamedTuple):
    """A ghost: how a capability came to be. Never changed."""

    holder: int
    rights: int
    parent: int


class Call(NamedTuple):
    """A call on its way. The kernel knows the key (client, slot) that it was sent under; `uid` is a ghost."""

    id: int
    client: int
    incarnation: int
    slot: int
    uid: int


class State(NamedTuple):
    """Everything."""

    caps: tuple[Cap, ...]
    lines: tuple[Line, ...]
    revoked: frozenset[int]  # ghost: uids that a revocation covered, also when they were given up before
    slots: tuple[int, int]  # the next slot of each client
    incarnations: tuple[int, int]
    queue: tuple[Call, ...]
    given: tuple[Call, ...]  # handed out to the server and not answered
    replies: tuple[Call, ...]  # reply capabilities
    answers: tuple[int, ...]  # ghost: how often each call was answered
    callers: tuple[tuple[int, int], ...]  # ghost: (client, incarnation) of each call
    deaths: int
    lies: int
    wrong: str


class CapabilityProtocol:
    """At most `caps` capabilities ever, `calls` calls, `deaths` deaths and `lies` lies of the server."""

    def __init__(self, caps: int = 4, calls: int = 2, deaths: int = 1, lies: int = 1, mutant: str = "") -> None:
        if mutant and mutant not in MUTANTS:
            raise ValueError(f"no mutant {mutant!r}; there are {', '.join(MUTANTS)}")
        self.caps, self.calls, self.deaths, self.lies, self.mutant = caps, calls, deaths, lies, mutant

    def initial(self) -> State:
        """The owner holds the endpoint with every right; nobody else holds anything."""
        root, line = Cap(0, OWNER, 1, ROOT_RIGHTS, -1), Line(OWNER, ROOT_RIGHTS, -1)
        return State((root,), (line,), frozenset(), (2, 1), (0, 0), (), (), (), (), (), self.deaths, self.lies, "")

    def goal(self, s: State) -> bool:
        """Nothing waits, and every call of a living caller was answered."""
        answered = all(
            n or s.incarnations[client] != incarnation
            for n, (client, incarnation) in zip(s.answers, s.callers, strict=True)
        )
        return answered and not s.queue and not s.given

    def broken(self, s: State) -> str:
        """The first rule that this state breaks."""
        if s.wrong:
            return s.wrong
        for cap in s.caps:
            line = s.lines[cap.uid]
            if cap.uid in s.revoked:
                return f"capability {cap.uid} outlived the revocation of what it came from"
            if line.parent < 0:
                continue
            above = s.lines[line.parent]
            if cap.rights & ~above.rights:
                return f"right gained: capability {cap.uid} holds {cap.rights}, it came from one with {above.rights}"
            if cap.holder != above.holder and not above.rights & GRANT:
                return f"capability {cap.uid} crossed to another principal without grant"
        twice = [number for number, n in enumerate(s.answers) if n > 1]
        return f"call {twice[0]} was answered twice" if twice else ""

    def successors(self, s: State) -> Iterable[tuple[str, State]]:
        """Everything that can happen next."""
        for cap in s.caps:
            yield from self._derive(s, cap)
            yield f"revoke {cap.uid}", self._revoke(s, cap)
            if cap.rights & USE and len(s.answers) < self.calls:
                yield f"call under {cap.uid}", self._call(s, cap)
        if s.queue and not s.given:
            yield f"hand out {s.queue[0].id}", self._hand_out(s)
        yield from self._server(s)
        if s.deaths:
            for client in (OWNER, OTHER):
                yield f"client {client} dies", self._client_dies(s._replace(deaths=s.deaths - 1), client)
            yield "the server dies", self._server_dies(s._replace(deaths=s.deaths - 1))

    # --- capabilities -------------------------------------------------------------------------------------------------------

    def _derive(self, s: State, cap: Cap) -> Iterable[tuple[str, State]]:
        if len(s.lines) >= self.caps:
            return
        for to, rights in itertools.product((OWNER, OTHER), (USE, GRANT, USE | GRANT)):
            if rights & ~cap.rights and self.mutant != "derive-unchecked":
                continue
            if to != cap.holder and not cap.rights & GRANT and self.mutant != "grant-not-needed":
                continue
            yield f"derive {rights} from {cap.uid} for {to}", self._mint(s, cap, to, rights)
            if to != cap.holder and rights == cap.rights and cap.parent >= 0:
                moved = self._mint(s, cap, to, rights)
                yield f"transfer {cap.uid} to {to}", self._release(moved, cap, keep=self.mutant == "transfer-keeps")

    def _mint(self, s: State, cap: Cap, to: int, rights: int) -> State:
        uid, slot = len(s.lines), s.slots[to]
        slots = (slot + 1, s.slots[1]) if to == OWNER else (s.slots[0], slot + 1)
        return s._replace(
            caps=(*s.caps, Cap(uid, to, slot, rights, cap.uid)),
            lines=(*s.lines, Line(to, rights, cap.uid)),
            slots=slots,
        )

    def _release(self, s: State, cap: Cap, *, keep: bool = False) -> State:
        """Given up, not revoked: children move to the parent. Calls that wait under it go, or no revocation could find them."""
        parent = -1 if self.mutant == "death-orphans" else cap.parent
        caps = tuple(c._replace(parent=parent) if c.parent == cap.uid else c for c in s.caps if c.uid != cap.uid)
        if keep:
            caps = (*caps, cap._replace(parent=-1))
        else:
            s = self._cancel(s, {(cap.holder, cap.slot)})
        return s._replace(caps=caps)

    def _revoke(self, s: State, cap: Cap) -> State:
        gone: set[int] = set()
        layer = {cap.uid}
        while layer := {c.uid for c in s.caps if c.parent in layer} - gone:
            gone |= layer
            if self.mutant == "revoke-children-only":
                break
        descent = [uid for uid in range(len(s.lines)) if cap.uid in self._above(s, uid)]
        keys = {(c.holder, c.slot) for c in s.caps if c.uid in gone}
        after = s._replace(caps=tuple(c for c in s.caps if c.uid not in gone), revoked=s.revoked | frozenset(descent))
        return after if self.mutant == "revoke-leaves-queue" else self._cancel(after, keys)

    def _above(self, s: State, uid: int) -> set[int]:
        above = set()
        while (uid := s.lines[uid].parent) >= 0:
            above.add(uid)
        return above

    def _cancel(self, s: State, keys: set[tuple[int, int]]) -> State:
        """A call that was answered already is not known any more, and no revocation finds it."""
        doomed = [call for call in s.queue if (call.client, call.slot) in keys and call in s.replies]
        s = s._replace(queue=tuple(call for call in s.queue if call not in doomed))
        return self._end(s, doomed, silent=self.mutant == "cancel-unanswered")

    def _end(self, s: State, calls: Iterable[Call], *, silent: bool) -> State:
        """Nobody will answer these: their callers get an error, and their reply capabilities are used up."""
        for call in calls:
            s = s._replace(replies=tuple(r for r in s.replies if r != call)) if silent else self._answer(s, call)
        return s

    # --- calls --------------------------------------------------------------------------------------------------------------

    def _call(self, s: State, cap: Cap) -> State:
        client, incarnation = cap.holder, s.incarnations[cap.holder]
        call = Call(len(s.answers), client, incarnation, cap.slot, cap.uid)
        return s._replace(
            queue=(*s.queue, call),
            replies=(*s.replies, call),
            answers=(*s.answers, 0),
            callers=(*s.callers, (client, incarnation)),
        )

    def _hand_out(self, s: State) -> State:
        call = s.queue[0]
        wrong = (
            f"call {call.id} was handed out under capability {call.uid}, which was revoked"
            if call.uid in s.revoked
            else ""
        )
        return s._replace(queue=s.queue[1:], given=(*s.given, call), wrong=wrong)

    def _server(self, s: State) -> Iterable[tuple[str, State]]:
        for call in s.given:
            yield f"answer {call.id}", self._answered(s._replace(given=()), call)
        if not s.lies:
            return
        lying = s._replace(lies=s.lies - 1)
        for number, (client, incarnation) in enumerate(s.callers):
            waits = next((call for call in s.queue if call.id == number), None)
            if waits is not None and self.mutant != "answer-not-given":
                continue  # refused: nothing changes
            if waits is None and any(call.id == number for call in s.given):
                continue  # that one is an answer, not a lie
            yield f"answer {number} unasked", self._answered(lying, Call(number, client, incarnation, 0, 0))

    def _answered(self, s: State, call: Call) -> State:
        """The server's answer reaches the kernel: it goes where the reply capability says, once."""
        reply = next((r for r in s.replies if r.id == call.id), None)
        return s if reply is None else self._answer(s, reply)

    def _answer(self, s: State, call: Call) -> State:
        if not any(r.id == call.id for r in s.replies):
            return s
        if self.mutant != "reply-reusable":
            s = s._replace(replies=tuple(r for r in s.replies if r.id != call.id))
        answers = tuple(n + (number == call.id) for number, n in enumerate(s.answers))
        wrong = s.wrong
        if s.incarnations[call.client] != call.incarnation:
            wrong = f"the answer to call {call.id} reached a later incarnation of its caller"
        return s._replace(answers=answers, wrong=wrong)

    # --- deaths -------------------------------------------------------------------------------------------------------------

    def _client_dies(self, s: State, client: int) -> State:
        """Its next incarnation begins at slot 1 again; the owner's begins with the endpoint, as the manifest says."""
        if self.mutant != "reply-outlives-caller":
            s = s._replace(replies=tuple(r for r in s.replies if r.client != client))
        if self.mutant != "death-leaves-queue":
            s = s._replace(queue=tuple(call for call in s.queue if call.client != client))
        incarnations = (
            (s.incarnations[0] + 1, s.incarnations[1])
            if client == OWNER
            else (s.incarnations[0], s.incarnations[1] + 1)
        )
        s = s._replace(incarnations=incarnations)
        while (cap := next((c for c in s.caps if c.holder == client), None)) is not None:
            s = self._release(s._replace(queue=()), cap)._replace(queue=s.queue)
        slots = (1, s.slots[1]) if client == OWNER else (s.slots[0], 1)
        s = s._replace(slots=slots)
        if client == OWNER:
            uid = len(s.lines)
            s = s._replace(
                caps=(*s.caps, Cap(uid, OWNER, 1, ROOT_RIGHTS, -1)),
                lines=(*s.lines, Line(OWNER, ROOT_RIGHTS, -1)),
                slots=(2, s.slots[1]),
            )
        return s

    def _server_dies(self, s: State) -> State:
        """Its mailbox goes with it; who waits is told. The next incarnation takes calls at once."""
        lost = (*s.given, *s.queue)
        return self._end(s._replace(given=(), queue=()), lost, silent=self.mutant == "server-death-silent")
