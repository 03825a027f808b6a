"""The window protocol as a small model: kernel, learner, archivist, their channels, and crashes of each at any moment.

Responsible for: the rules of `kernel/flow.py` and `kernel/outbox.py` with everything left out that does not decide who holds which
state: pages, policies, probes and time. A deadline may pass at any moment while a window runs. Channels are FIFO and lose
everything when either end dies. A training state is written as the tuple of the windows that made it, so two runs of one window
from one base are one state, as in the deterministic runtime.

Checked: no commit that was acknowledged is ever missing from the ledger; no window is committed twice; each commit stands on the
one before it; no window is trained on a base that is not the state before it; nothing deadlocks; and from every reachable state
the plan can still be finished. `MUTANTS` are the same protocol with one rule taken away; the checker has to find each of them.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, NamedTuple

Training = tuple[int, ...]
Message = tuple[str, int, Training]
RUNNING, STAGED, MISSED = "running", "staged", "missed"
MUTANTS: Final = {
    "timer-after-staged": "a deadline may make a staged window missed",
    "resend-is-new": "an append that is sent again is stored again",
    "ack-before-durable": "the archivist answers before the record is on disk",
    "boot-forgets-base": "a boot starts the learner as built, and the learner trains a grant whatever state it holds",
    "unbegun-unanswered": "a grant that is aborted before it begins is dropped without a word",
    "restart-skips-rollback": "a missed window is forgotten when its learner comes back",
}


class Window(NamedTuple):
    """A granted window in the kernel."""

    id: int
    state: str
    base: Training
    result: Training


class State(NamedTuple):
    """Everything. `acked` is a ghost: what the kernel has told anybody is committed."""

    ledger: tuple[tuple[int, Training, Training], ...]
    acked: frozenset[int]
    windows: tuple[Window, ...]
    next_window: int
    base: Training
    learner_ok: bool
    unsent: tuple[Message, ...]  # commits that wait for the append in flight
    in_flight: tuple[Message, ...]  # the append that the archivist has not answered
    to_learner: tuple[Message, ...]
    from_learner: tuple[Message, ...]
    to_archivist: tuple[Message, ...]
    from_archivist: tuple[Message, ...]
    training: Training
    bases: tuple[tuple[int, Training], ...]
    queue: tuple[tuple[int, Training], ...]  # grants that the learner has read and not begun
    running: int
    crashes: int
    wrong: str


def state_after(window: int) -> Training:
    """The training state that windows 1 .. `window` make."""
    return tuple(range(1, window + 1))


class WindowProtocol:
    """`windows` to commit, at most `crashes` of processes, `late` windows at most in flight: two, as in the kernel."""

    def __init__(self, windows: int = 3, crashes: int = 2, mutant: str = "") -> None:
        if mutant and mutant not in MUTANTS:
            raise ValueError(f"no mutant {mutant!r}; there are {', '.join(MUTANTS)}")
        self.windows = windows
        self.crashes = crashes
        self.mutant = mutant

    def initial(self) -> State:
        """Booted on an empty store, the learner as built."""
        return State((), frozenset(), (), 1, (), True, (), (), (), (), (), (), (), (), (), 0, self.crashes, "")

    def goal(self, s: State) -> bool:
        """Every window is committed and the kernel knows it."""
        return s.acked == frozenset(range(1, self.windows + 1)) and not s.windows

    def broken(self, s: State) -> str:
        """The first rule that this state breaks."""
        if s.wrong:
            return s.wrong
        stored = [window for window, _, _ in s.ledger]
        if len(stored) != len(set(stored)):
            return f"double commit: the ledger holds {stored}"
        if lost := s.acked - set(stored):
            return f"lost commit: {sorted(lost)} were acknowledged and are not in the ledger"
        before: Training = ()
        for window, base, result in s.ledger:
            if base != before or result != state_after(window):
                return f"commit {window} stands on {base} and gives {result}; the commit before it gave {before}"
            before = result
        return ""

    def successors(self, s: State) -> Iterable[tuple[str, State]]:
        """Everything that can happen next."""
        yield from self._kernel(s)
        yield from self._learner(s)
        yield from self._archivist(s)
        if s.crashes and not self.goal(s):
            yield "the learner dies", self._learner_dies(s._replace(crashes=s.crashes - 1))
            yield "the archivist dies", self._archivist_dies(s._replace(crashes=s.crashes - 1))
            yield "the kernel dies", self._boot(s._replace(crashes=s.crashes - 1))

    # --- kernel ---------------------------------------------------------------------------------------------------------

    def _kernel(self, s: State) -> Iterable[tuple[str, State]]:
        busy = any(w.state in (RUNNING, MISSED) for w in s.windows)
        if s.learner_ok and not busy and len(s.windows) < 2 and s.next_window <= self.windows:
            w = Window(s.next_window, RUNNING, s.base, ())
            yield (
                f"grant {w.id}",
                s._replace(
                    windows=(*s.windows, w),
                    next_window=w.id + 1,
                    to_learner=(*s.to_learner, ("grant", w.id, w.base)),
                ),
            )
        for w in s.windows:
            if w.state == RUNNING or (self.mutant == "timer-after-staged" and w.state == STAGED):
                yield f"the deadline of {w.id} passes", self._tell_abort(self._miss(s, w.id), w.id)
        if s.from_learner:
            message, rest = s.from_learner[0], s._replace(from_learner=s.from_learner[1:])
            yield from self._hear_learner(rest, *message)
        if s.from_archivist:
            (_, window, _), rest = s.from_archivist[0], s._replace(from_archivist=s.from_archivist[1:])
            yield f"the commit of {window} is acknowledged", self._committed(rest, window)

    def _hear_learner(self, s: State, what: str, window: int, root: Training) -> Iterable[tuple[str, State]]:
        found = next((w for w in s.windows if w.id == window), None)
        if what == "staged":
            if found is None or found.state != RUNNING:
                yield f"staged {window} comes too late", s
                return
            yield f"staged {window} is past its deadline", self._tell_abort(self._miss(s, window), window)
            after = self._put(s, found._replace(state=STAGED, result=root))._replace(base=root)
            yield f"staged {window}", self._append(after, ("commit", window, found.base))
        elif what == "rolled back":
            if found is None or found.state not in (RUNNING, MISSED):
                yield f"rolled back {window} is known", s
                return
            missed = s if found.state == MISSED else self._miss(s, window)
            yield f"rolled back {window}", self._rolled_back(missed, found, root)
        else:
            yield "the learner is back", self._learner_back(s, root)

    def _miss(self, s: State, window: int) -> State:
        """The window and everything that stands on it."""
        return s._replace(windows=tuple(w._replace(state=MISSED) if w.id >= window else w for w in s.windows))

    def _tell_abort(self, s: State, window: int) -> State:
        return s._replace(to_learner=(*s.to_learner, ("abort", window, ())))

    def _rolled_back(self, s: State, w: Window, root: Training) -> State:
        after = s._replace(windows=tuple(x for x in s.windows if x.id < w.id), next_window=w.id, base=w.base)
        if root != w.base:
            after = after._replace(learner_ok=False, to_learner=(*after.to_learner, ("restore", 0, w.base)))
        return after

    def _learner_back(self, s: State, root: Training) -> State:
        if root != s.base:  # the kernel names the state it asked for; anything else is a fault
            return s._replace(wrong=f"the learner came back with {root} where {s.base} was asked for")
        missed = [w for w in s.windows if w.state == MISSED]
        after = s._replace(learner_ok=True)
        if not missed:
            return after
        if self.mutant == "restart-skips-rollback":
            return after._replace(windows=tuple(w for w in s.windows if w.state != MISSED))
        return self._rolled_back(after, min(missed), root)

    def _append(self, s: State, draft: Message) -> State:
        if s.in_flight:
            return s._replace(unsent=(*s.unsent, draft))
        return s._replace(in_flight=(draft,), to_archivist=(*s.to_archivist, draft))

    def _committed(self, s: State, window: int) -> State:
        after = s._replace(in_flight=(), windows=tuple(w for w in s.windows if w.id != window))
        known = any(w.id == window and w.state == STAGED for w in s.windows)
        if known:
            after = after._replace(acked=after.acked | {window}, to_learner=(*s.to_learner, ("committed", window, ())))
        elif any(w.id == window for w in s.windows):
            after = after._replace(windows=s.windows)  # a missed window does not become committed
        if after.unsent:
            first, *others = after.unsent
            after = after._replace(unsent=tuple(others), in_flight=(first,), to_archivist=(*after.to_archivist, first))
        return after

    def _put(self, s: State, window: Window) -> State:
        return s._replace(windows=tuple(window if w.id == window.id else w for w in s.windows))

    # --- learner --------------------------------------------------------------------------------------------------------

    def _learner(self, s: State) -> Iterable[tuple[str, State]]:
        if s.to_learner:  # also heard at a micro-step of a running window
            (what, window, root), rest = s.to_learner[0], s._replace(to_learner=s.to_learner[1:])
            if what == "abort":
                yield f"the learner hears abort {window}", self._abort(rest, window)
            elif what == "committed":
                bases = tuple(b for b in s.bases if b[0] != window)
                yield f"the learner hears committed {window}", rest._replace(bases=bases)
            elif what == "restore" and not s.running:
                back = ("restored", 0, root)
                yield (
                    "the learner restores",
                    rest._replace(training=root, bases=(), from_learner=(*s.from_learner, back)),
                )
            elif what == "grant":
                yield f"the learner hears grant {window}", rest._replace(queue=(*s.queue, (window, root)))
        if s.queue and not s.running:
            (window, root), rest = s.queue[0], s._replace(queue=s.queue[1:])
            yield f"the learner begins {window}", self._begin(rest, window, root)
        if s.running:
            result = (*s.training, s.running)
            staged = ("staged", s.running, result)
            yield (
                f"the learner stages {s.running}",
                s._replace(training=result, running=0, from_learner=(*s.from_learner, staged)),
            )
            fails = s._replace(running=0)
            yield f"{s.running} fails in the learner", self._back_to(fails, s.running)

    def _begin(self, s: State, window: int, base: Training) -> State:
        if s.training != base and self.mutant != "boot-forgets-base":
            return s._replace(from_learner=(*s.from_learner, ("rolled back", window, s.training)))
        if s.training != state_after(window - 1):
            return s._replace(wrong=f"window {window} is trained on {s.training}")
        return s._replace(running=window, bases=(*s.bases, (window, s.training)))

    def _abort(self, s: State, window: int) -> State:
        waits = any(w == window for w, _ in s.queue) and self.mutant != "unbegun-unanswered"
        s = s._replace(queue=tuple(g for g in s.queue if g[0] < window))
        if all(w != window for w, _ in s.bases):
            rolled_back = ("rolled back", window, s.training)
            return s._replace(from_learner=(*s.from_learner, rolled_back)) if waits else s
        return self._back_to(s._replace(running=0), window)

    def _back_to(self, s: State, window: int) -> State:
        base = dict(s.bases)[window]
        bases = tuple(b for b in s.bases if b[0] < window)
        return s._replace(training=base, bases=bases, from_learner=(*s.from_learner, ("rolled back", window, base)))

    def _learner_dies(self, s: State) -> State:
        """Killed and started again: its windows are missed, and it is asked for the state that is to hold now."""
        for w in s.windows:
            if w.state == RUNNING:
                s = self._miss(s, w.id)
        missed = [w for w in s.windows if w.state == MISSED]
        base = min(missed).base if missed else s.base
        return s._replace(
            base=base,
            learner_ok=False,
            to_learner=(("restore", 0, base),),
            from_learner=(),
            training=(),
            bases=(),
            queue=(),
            running=0,
        )

    # --- archivist ------------------------------------------------------------------------------------------------------

    def _archivist(self, s: State) -> Iterable[tuple[str, State]]:
        if not s.to_archivist:
            return
        draft, rest = s.to_archivist[0], s._replace(to_archivist=s.to_archivist[1:])
        _, window, base = draft
        ack = ("ack", window, ())
        stored = self._store(rest, window, base)
        yield f"the archivist stores {window}", stored._replace(from_archivist=(*s.from_archivist, ack))
        if self.mutant == "ack-before-durable":
            yield f"the archivist answers {window} early", rest._replace(from_archivist=(*s.from_archivist, ack))

    def _store(self, s: State, window: int, base: Training) -> State:
        entry = (window, base, (*base, window))
        if entry in s.ledger and self.mutant != "resend-is-new":
            return s
        return s._replace(ledger=(*s.ledger, entry))

    def _archivist_dies(self, s: State) -> State:
        """The channels are empty; the kernel sends again what was not answered."""
        return s._replace(to_archivist=s.in_flight, from_archivist=())

    # --- the machine ----------------------------------------------------------------------------------------------------

    def _boot(self, s: State) -> State:
        """Everything dies; the ledger says where to go on, also for a commit whose acknowledgement was lost."""
        window, base = (s.ledger[-1][0], s.ledger[-1][2]) if s.ledger else (0, ())
        return State(
            ledger=s.ledger,
            acked=s.acked | {w for w, _, _ in s.ledger},
            windows=(),
            next_window=window + 1,
            base=base,
            learner_ok=self.mutant == "boot-forgets-base" or not base,
            unsent=(),
            in_flight=(),
            to_learner=(("restore", 0, base),) if base and self.mutant != "boot-forgets-base" else (),
            from_learner=(),
            to_archivist=(),
            from_archivist=(),
            training=(),
            bases=(),
            queue=(),
            running=0,
            crashes=s.crashes,
            wrong="",
        )
