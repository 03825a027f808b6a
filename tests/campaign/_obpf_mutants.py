"""The verifier with one thing taken out at a time: the corpus or the fuzz must notice each.

Every method `check_*` of `probes.rules.Rules` is a mutant by itself, so a new check cannot be forgotten. The others take out what
makes the walk sound: joins, fixpoints, names, saturation, NaN, the facts that hold only under a condition, the cost of blocks.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any, Final
from unittest import mock

from probes import abstract, certificate, isa, rules, states, verifier
from probes.abstract import Float, Int
from probes.states import Head, Names, State
from probes.verifier import Verification
from syscalls.errors import RecurosError
from tests.campaign import _obpf_cases as cases
from tests.campaign import _obpf_gen as gen
from tests.campaign import _obpf_sound as sound

FUZZ: Final = 4_000
"""Generated programs for a mutant that the corpus has not caught."""


@dataclass(frozen=True)
class Mutant:
    """What is taken out, and how."""

    name: str
    patches: tuple[tuple[Any, str, Any], ...]

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The verifier without it."""
        undo = []
        for holder, name, new in self.patches:
            patch = (
                mock.patch.dict(holder, {name: new})
                if isinstance(holder, dict)
                else mock.patch.object(holder, name, new)
            )
            patch.start()
            undo.append(patch)
        try:
            yield
        finally:
            for patch in reversed(undo):
                patch.stop()


def _nothing(*_: Any, **__: Any) -> None:
    """A check that never objects."""


def _trips(self: Verification, register: int, bound: Int) -> int:
    return max(0, min(bound.high, rules.TRIPS_MAX))


def _checks() -> list[Mutant]:
    names = sorted(name for name in dir(rules.Rules) if name.startswith("check_"))
    special: dict[str, Any] = {"check_trips": _trips}
    return [Mutant(name, ((Verification, name, special.get(name, _nothing)),)) for name in names]


# --- what the walk does ------------------------------------------------------------------------------------------------
def _first_way_only(a: State | None, b: State | None, names: Names) -> State | None:
    return a if a is not None else b


def _settled_at_once(self: Head, end: State | None, steps: bool) -> bool:
    return True


def _same_name(self: Head) -> Any:
    return ("head",)


def _any_slice(self: Names, of: abstract.Size, first: Int, last: Int) -> abstract.Size:
    return self._slices.setdefault((of, 0, 0), abstract.Size("cut", of.most, of))


def _first_size(a: State, x: Any, b: State, y: Any, out: State, made: Any) -> Any:
    return x


def _assume_both(state: State, condition: Any, holds: bool) -> None:
    states.assume(state, condition, True)


def _no_nan(value: Float) -> Float:
    return Float(value.name, value.low, value.high, False)


def _nan_blind(relation: str, a: Float, b: Float) -> Any:
    first, second = abstract.narrow_floats(relation, _no_nan(a), _no_nan(b))
    return (*first[:2], a.nan), (*second[:2], b.nan)


def _else_without_nan(relation: str, a: Float, b: Float) -> Any:
    first, second = abstract.narrow_floats(relation, a, b)
    return (*first[:2], False), (*second[:2], False)


def _to_int_without_nan(a: Float, limits: Any = abstract.I64) -> Any:
    return abstract.to_int(_no_nan(a) if a.low <= a.high else a, limits)


def _wrapping(al: int, ah: int, bl: int, bh: int, limits: Any = abstract.I64) -> Any:
    low, high = al + bl, ah + bh
    return (low, high) if low >= isa.I64_MIN and high <= isa.I64_MAX else (low % 2**64, max(low % 2**64, high % 2**64))


def _mod_without_zero(al: int, ah: int, bl: int, bh: int, limits: Any = abstract.I64) -> Any:
    return abstract.mod(al, ah, max(bl, 1), bh, limits) if bl <= 0 < bh else abstract.mod(al, ah, bl, bh, limits)


def _truncating_div(al: int, ah: int, bl: int, bh: int, limits: Any = abstract.I64) -> Any:
    low, high = abstract.div(al, ah, bl, bh, limits)
    return max(low, 0) if al >= -bh else low, high


def _mod_facts(op: str, a: Int, b: Int, limits: Any = abstract.I64) -> Any:
    if op == "IMOD":
        return {size: k + 1 for size, k in b.facts.items()}
    return abstract.facts_of(op, a, b, limits)


def _sum_facts(op: str, a: Int, b: Int, limits: Any = abstract.I64) -> Any:
    return abstract.merged(a.facts, b.facts) if op == "IADD" else abstract.facts_of(op, a, b, limits)


def _below_the_maximum(self: State, value: Int, size: abstract.Size) -> int | None:
    """Against the largest size of the contract, as if no view were ever smaller."""
    return max(value.facts.get(size, -(1 << 40)), self.size(size)[1] - value.high)


def _either_facts(a: State, x: Int, b: State, y: Int) -> Any:
    return abstract.merged(x.facts, y.facts)


def _counter_at_bound(self: Verification, frame: Any) -> None:
    _ROUND(self, frame)
    counter = self.here.ints[frame.counter]
    assert counter is not None
    self.here.ints[frame.counter] = Int(counter.name, 0, counter.high, {s: k + 1 for s, k in counter.facts.items()})


def _after_loop(self: Verification, frame: Any, head: Any, end: Any, body: int, after: int) -> None:
    """As if every loop ran at least once."""
    frame.bound = Int(frame.bound.name, max(frame.bound.low, 1), max(frame.bound.high, 1), frame.bound.facts)
    _LEAVE(self, frame, head, end, body, after)


def _body_once(self: Verification, frame: Any, head: Any, end: Any, body: int, after: int) -> None:
    frame.trips = min(frame.trips, 1)
    _LEAVE(self, frame, head, end, body, after)


def _cheaper_way(self: Verification, ins: isa.Instruction) -> None:
    frame = self.stack[-1] if self.stack else None
    if isinstance(frame, rules.Branch):
        self._cost = frame.first_cost = min(self._cost, frame.first_cost)
    _ENDIF(self, ins)


def _no_elements(self: Verification, view: Any) -> int:
    return 1


def _kept_counter(self: Verification, ins: isa.Instruction) -> None:
    """The counter's register keeps its value after the loop."""
    frame = self.stack[-1] if self.stack else None
    counter = self.here.ints[frame.counter] if isinstance(frame, rules.Loop) and self.state is not None else None
    _ENDFOR(self, ins)
    if isinstance(frame, rules.Loop) and frame not in self.stack and self.state is not None and counter is not None:
        self.state.ints[frame.counter] = counter


def _exit_goes_on(self: Verification, ins: isa.Instruction) -> None:
    """EXIT does not end its way."""


def _errors_of_a_guess_dropped(self: Verification, error: rules.Rejected) -> None:
    if not any(isinstance(frame, rules.Loop) and frame.guessed for frame in self.stack):
        raise error


def _argmax_in_empty(self: Verification, register: int, view: Any) -> None:
    position = self.here.ints[register]
    assert position is not None
    self.here.ints[register] = Int(position.name, position.low, position.high, {view.dims[0]: 1})


def _stale_unseen(field: str) -> Mutant:
    """A certificate whose check takes one field for granted."""

    def check(self: certificate.Certificate, data: bytes, contract: isa.Contract, rights: Any) -> None:
        now: dict[str, Any] = {
            "isa_version": isa.ISA_VERSION, "verifier_version": certificate.VERIFIER_VERSION,
            "contract": contract.digest(), "rights": (), "program": isa.digest(data),
        }  # fmt: skip
        from dataclasses import replace

        _CHECK(replace(self, **{field: now[field]}), data, contract, rights)

    return Mutant(f"certificate: {field} not compared", ((certificate.Certificate, "check", check),))


_ROUND, _LEAVE = Verification._round, Verification._leave
_ENDIF, _ENDFOR, _CHECK = Verification._endif, Verification._endfor, certificate.Certificate.check
_HANDLERS = verifier._HANDLERS


def _handler(name: str, new: Callable[..., None]) -> tuple[Any, str, Any]:
    return _HANDLERS, isa.BY_NAME[name].nr, new  # type: ignore[return-value]


def mutants() -> list[Mutant]:
    """All of them."""
    walk = [
        ("join keeps one way only", (verifier, "join", _first_way_only)),
        ("loop settled after one round", (Head, "cover", _settled_at_once)),
        ("equal names for unequal values", (Head, "_name", _same_name)),
        ("slices of one view are equally long", (Names, "slice", _any_slice)),
        ("joined views keep the first size", (states, "_join_size", _first_size)),
        ("ELSE assumes the condition too", (verifier, "assume", _assume_both)),
        ("ELSE forgets that the other may be NaN", (states, "narrow_floats", _nan_blind)),
        ("ELSE forgets that it may be NaN", (states, "narrow_floats", _else_without_nan)),
        ("F2I forgets NaN", (verifier, "to_int", _to_int_without_nan)),
        ("IADD wraps", (abstract.INTEGERS, "IADD", _wrapping)),
        ("IMOD forgets b = 0", (abstract.INTEGERS, "IMOD", _mod_without_zero)),
        ("IDIV rounds towards zero", (abstract.INTEGERS, "IDIV", _truncating_div)),
        ("IMOD below an empty size", (verifier, "facts_of", _mod_facts)),
        ("sums keep facts", (verifier, "facts_of", _sum_facts)),
        ("sizes are the contract's maximum", (State, "below", _below_the_maximum)),
        ("IMAX is below both", (verifier, "join_facts", _either_facts)),
        ("joined facts of either way", (states, "join_facts", _either_facts)),
        ("counter two below its bound", (Verification, "_round", _counter_at_bound)),
        ("every loop runs", (Verification, "_leave", _after_loop)),
        ("a loop costs one round", (Verification, "_leave", _body_once)),
        ("IF costs its cheaper way", _handler("ENDIF", _cheaper_way)),
        ("elements cost nothing", (Verification, "_elements", _no_elements)),
        ("counters live on", _handler("ENDFOR", _kept_counter)),
        ("EXIT goes on", _handler("EXIT", _exit_goes_on)),
        ("errors of a guess are forgotten", (Verification, "refuse_later", _errors_of_a_guess_dropped)),
        ("ARGMAX of nothing is an element", (Verification, "_argmax_fact", _argmax_in_empty)),
    ]
    stale = ("program", "isa_version", "verifier_version", "contract", "rights")
    return [*_checks(), *(Mutant(name, (patch,)) for name, patch in walk), *map(_stale_unseen, stale)]


# --- who notices -------------------------------------------------------------------------------------------------------
@cache
def corpus() -> tuple[tuple[cases.Case, isa.Bytecode | None], ...]:
    """Every case that the verifier or the certificate decides, with its program; those refused before are none of theirs."""
    decided = [c for c in cases.load("reject") if c.head.get("expect", "").startswith(("E8-VERIFY", "E8-STALE"))]
    return tuple((case, cases.compiled(case)) for case in (*decided, *cases.load("accept")))


def _verdict(case: cases.Case, program: isa.Bytecode) -> RecurosError | None:
    try:
        contract = case.contract(program.hook_kind)
        proved = verifier.verify(program, contract, case.rights(), tiers=case.tier())
        if "changed" in case.head:
            cases.stale(proved, isa.encode(program), contract, case)
    except RecurosError as e:
        return e
    return None


def noticed(mutant: Mutant, fuzz: int = FUZZ) -> str:
    """What notices the mutant: a case of the corpus, a seed of the fuzz, or "" when nothing does."""
    known = corpus()
    with mutant.applied():
        for case, program in known:
            assert program is not None
            try:
                error = _verdict(case, program)
            except Exception as e:  # noqa: BLE001 - a verifier that breaks down has been noticed as well
                return f"{case.name}: {type(e).__name__}"
            if case.verdict == "accept":
                if error is not None:
                    return f"{case.name}: {cases.found(error)[0]}"
            elif not cases.agrees(case, error):
                return f"{case.name}: {cases.found(error)[0]}"
        for seed in range(fuzz):
            rng, tally = random.Random(seed), sound.Tally()
            try:
                sound.check(gen.program(rng), rng, tally)
            except Exception as e:  # noqa: BLE001
                return f"fuzz seed {seed}: {type(e).__name__}: {e}"
            if tally.violations:
                return f"fuzz seed {seed}: {tally.violations[0]}"
    return ""
