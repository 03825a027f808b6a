"""The verifier of oBPF: one walk over the bytecode, after which a program can be run without a check inside the step.

Responsible for: `verify`, and `Verification`, the same in slices for a kernel that may not be busy for long. The walk follows
the blocks as they stand in the code. At IF it goes down both ways and joins what they leave; at FOR it repeats the body
until the state at its head covers every round, widening what grows. No paths are enumerated, so nothing is pruned, and an
accepted program, on any views that keep to the contract, reads no register before it is written, no element and no cell out of
bounds, calls what it may call, ends, and costs no more units than its certificate says.
Refuses: what it cannot prove, by one rule of `rules.RULES`, at one instruction. Standard library only; no torch, no numpy.

    cost(block)   = sum of its instructions; an instruction that reads views adds per_element x the largest number of elements
    cost(IF)      = its opcodes + the dearer way
    cost(FOR)     = FOR x (rounds + 1) + rounds x (body + ENDFOR), rounds the most that the bound allows
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any, Final

from probes import isa
from probes.abstract import (
    ANY,
    FLOATS,
    INF,
    INTEGERS,
    NO_FACTS,
    Condition,
    Float,
    Int,
    Size,
    after_of,
    constant,
    exactly_of,
    facts_of,
    float_compare,
    float_result,
    to_int,
)
from probes.certificate import VERIFIER_VERSION, Certificate
from probes.rules import COST_MAX, RULES, TRIPS_MAX, Branch, Loop, Rejected, Rules
from probes.states import CONDITIONS_MAX, Head, Names, State, View, assume, join, join_facts, leaves, outcomes

__all__ = ["COST_MAX", "RULES", "TRIPS_MAX", "Rejected", "Verification", "verify"]

STEPS: Final = 3
"""Rounds of widening by thresholds, before what still grows goes to the end of its range."""
Watch = Callable[[int, State], None]


def verify(
    program: isa.Bytecode, contract: isa.Contract, rights: Collection[str], *, tiers: isa.Tier = isa.Tier.ASYNC
) -> Certificate:
    """The certificate of a program for a contract and the rights of whom it runs for. Raises `Rejected`."""
    verification = Verification(program, contract, rights, tiers=tiers)
    while (certificate := verification.step(isa.VISITS_MAX)) is None:
        pass
    return certificate


class Verification(Rules):
    """A verification under way. `program_digest`: hex SHA-256 of the bytes it was decoded from, where the caller knows it.

    Without a digest the program is encoded, which also checks that its registers and numbers are within their files.
    `watch` is told of every state before its instruction is looked at (tests compare runs against it).
    """

    def __init__(
        self,
        program: isa.Bytecode,
        contract: isa.Contract,
        rights: Collection[str],
        *,
        tiers: isa.Tier = isa.Tier.ASYNC,
        program_digest: str = "",
        watch: Watch | None = None,
    ) -> None:
        super().__init__(program, contract, rights, tiers)
        self._digest = program_digest or isa.digest(isa.encode(program))
        self._watch = watch
        self._names = Names()
        self._symbols: dict[str, Size] = {}
        self._counters: list[int] = []
        self._cost = 0
        self._next = 0
        self._certificate: Certificate | None = None

    def step(self, visits: int) -> Certificate | None:
        """Look at that many more instructions; the certificate once all are. Raises `Rejected`."""
        code = self.program.code
        if self.pc == 0 and self.visits == 0:
            self.check_hook()
        for _ in range(visits):
            if self._certificate is not None:
                break
            if self.pc >= len(code):
                self._finish()
                break
            self.visits += 1
            if self.visits > isa.VISITS_MAX:
                self.check_visits()
            self._look(code[self.pc])
        return self._certificate

    def _look(self, ins: isa.Instruction) -> None:
        op = ins.op
        self._next = self.pc + 1
        if self.state is None:
            self.check_reached(op.name)
            if op.name not in _ENDS:
                self.pc += 1
                return
        elif self._watch is not None:
            self._watch(self.pc, self.state)
        self._cost += op.cost
        _HANDLERS[op.nr](self, ins)
        self.pc = self._next

    def _finish(self) -> None:
        self.check_closed()
        self.check_ends()
        self.check_cost(self._cost, len(self.program.code) - 1, "the program")
        self._certificate = Certificate(
            program=self._digest,
            isa_version=isa.ISA_VERSION,
            verifier_version=VERIFIER_VERSION,
            tiers=int(self.tiers),
            contract=self.contract.digest(),
            rights=self.rights,
            hook=self.contract.hook,
            cost=self._cost,
            visits=self.visits,
            instructions=len(self.program.code),
        )

    # --- registers -----------------------------------------------------------------------------------------------------
    def _int(self, register: int) -> Int:
        value = self.here.ints[register]
        if value is None:
            self.check_defined("i", register)
            return Int(self._names.fresh(), isa.I64_MIN, isa.I64_MAX)
        return value

    def _float(self, register: int) -> Float:
        value = self.here.floats[register]
        if value is None:
            self.check_defined("f", register)
            return Float(self._names.fresh())
        return value

    def _view(self, register: int) -> View:
        value = self.here.views[register]
        if value is None:
            self.check_defined("v", register)
            return View((Size("size", isa.DIM_MAX),), f"v{register}")
        return value

    def _set_int(self, register: int, value: Int) -> None:
        self.check_counter(register, self._counters)
        self.here.ints[register] = value

    def _new_int(self, register: int, low: int, high: int) -> None:
        self._set_int(register, constant(low) if low == high else Int(self._names.fresh(), low, high))

    def _new_float(self, register: int, low: float = -INF, high: float = INF, nan: bool = True) -> None:
        self.here.floats[register] = Float(self._names.fresh(), low, high, nan)

    def _elements(self, view: View) -> int:
        count = 1
        for size in view.dims:
            count *= self.here.size(size)[1]
        return count

    def _symbol(self, symbol: str) -> Size:
        size = self._symbols.get(symbol)
        if size is None:
            size = self._symbols[symbol] = Size(symbol, max(self.contract.largest(symbol), 0))
        return size

    # --- blocks --------------------------------------------------------------------------------------------------------
    def _exit(self, ins: isa.Instruction) -> None:
        del ins
        self.state = None

    def _if(self, ins: isa.Instruction) -> None:
        self.check_nesting(loop=False)
        why = outcomes(self._int(ins.a))
        other = self.here.copy()
        assume(other, why, False)
        assume(self.here, why, True)
        self.stack.append(Branch(self.pc, self._cost, other))
        self._cost = 0

    def _else(self, ins: isa.Instruction) -> None:
        del ins
        frame = self.stack[-1] if self.stack else None
        fits = isinstance(frame, Branch) and not frame.has_else
        self.check_opener("ELSE", fits)
        if isinstance(frame, Branch):
            frame.first_cost, self._cost = self._cost, 0
            frame.other, self.state = self.state, frame.other
            frame.has_else = True

    def _endif(self, ins: isa.Instruction) -> None:
        frame = self.stack[-1] if self.stack else None
        self.check_opener("ENDIF", isinstance(frame, Branch))
        if isinstance(frame, Branch):
            self.stack.pop()
            self._cost = frame.outer_cost + max(self._cost, frame.first_cost + ins.op.cost)
            self.state = join(self.state, frame.other, self._names)

    def _for(self, ins: isa.Instruction) -> None:
        self.check_nesting(loop=True)
        bound = self._int(ins.a)
        trips = self.check_trips(ins.a, bound)
        self.check_counter(ins.d, self._counters)
        entry = self.here
        entry.ints[ins.d] = None
        self.stack.append(Loop(self.pc, self._cost, ins.d, bound, trips, Head(entry, self._names)))
        self._counters.append(ins.d)
        self._loops += 1
        self._round(self.stack[-1])

    def _round(self, frame: Branch | Loop) -> None:
        """Begin the body of a loop from the state at its head."""
        assert isinstance(frame, Loop)
        bound = frame.bound
        self.state = state = frame.head.state.copy()
        if bound.low < 1 or bound.exactly is not None:
            assume(state, ("<=", _ONE, bound), True)
        # The counter is below the bound, so as far below a size as the bound is, and one more.
        facts = {size: k + 1 for size, k in bound.facts.items()} if bound.facts else NO_FACTS
        state.ints[frame.counter] = Int(self._names.fresh(), 0, max(bound.high - 1, 0), facts)
        self._cost = 0
        self._next = frame.pc + 1

    def _endfor(self, ins: isa.Instruction) -> None:
        frame = self.stack[-1] if self.stack else None
        self.check_opener("ENDFOR", isinstance(frame, Loop))
        if not isinstance(frame, Loop):
            return
        end, after = self.state, self.pc + 1
        if end is not None:
            end.ints[frame.counter] = None
        frame.rounds += 1
        if frame.retried:
            self._settle_retry(frame, end, after)
        elif not frame.head.cover(end, steps=frame.rounds <= STEPS):
            frame.guessed = True
            frame.waiting = None
            self._round(frame)
        elif frame.waiting is not None:
            assert end is not None, "a loop whose every round ends the firing is settled at once"
            # The guess that covers every round breaks a rule; a tighter one may cover them as well.
            frame.settled = (frame.head.state, end, self._cost)
            frame.head = frame.head.narrowed(end)
            frame.guessed, frame.retried = False, True
            self._round(frame)
        else:
            self._leave(frame, frame.head.state, end, self._cost, after)

    def _settle_retry(self, frame: Loop, end: State | None, after: int) -> None:
        if frame.head.cover(end, steps=True):
            self._leave(frame, frame.head.state, end, self._cost, after)
            return
        assert frame.waiting is not None
        assert frame.settled is not None
        self.refuse_later(frame.waiting)
        self._leave(frame, *frame.settled, after)

    def _leave(self, frame: Loop, head: State | None, end: State | None, body: int, after: int) -> None:
        self.stack.pop()
        self._counters.pop()
        self._loops -= 1
        trips = frame.trips
        cost = trips * (body + isa.BY_NAME["FOR"].cost)
        self.check_cost(cost, frame.pc, f"this loop, of up to {trips} rounds of {body} units each,")
        self._cost = frame.outer_cost + cost
        self.state = end if frame.bound.low >= 1 else head
        self._next = after

    # --- constants, moves, the firing ----------------------------------------------------------------------------------
    def _iconst(self, ins: isa.Instruction) -> None:
        self._set_int(ins.d, constant(int(ins.imm)))

    def _fconst(self, ins: isa.Instruction) -> None:
        self._new_float(ins.d, float(ins.imm), float(ins.imm), False)

    def _imov(self, ins: isa.Instruction) -> None:
        self._set_int(ins.d, self._int(ins.a))

    def _fmov(self, ins: isa.Instruction) -> None:
        self.here.floats[ins.d] = self._float(ins.a)

    def _vmov(self, ins: isa.Instruction) -> None:
        self.here.views[ins.d] = self._view(ins.a)

    def _ctxi(self, ins: isa.Instruction) -> None:
        name, largest = isa.CONTEXT_INTS[ins.aux]
        self._set_int(ins.d, Int(("firing", name), 0, largest))

    def _ctxf(self, ins: isa.Instruction) -> None:
        self.here.floats[ins.d] = Float(("firing", isa.CONTEXT_FLOATS[ins.aux]))

    def _varg(self, ins: isa.Instruction) -> None:
        self.check_argument(ins.aux)
        views = self.contract.views
        spec = views[ins.aux] if ins.aux < len(views) else isa.ViewSpec("nothing", ("rows",), "")
        self.here.views[ins.d] = View(tuple(map(self._symbol, spec.dims)), spec.name)

    # --- arithmetic ----------------------------------------------------------------------------------------------------
    def _arithmetic(self, ins: isa.Instruction) -> None:
        name = ins.op.name
        a = self._int(ins.a)
        b = self._int(ins.b) if ins.op.b is isa.Operand.INT else a
        low, high = INTEGERS[name](a.low, a.high, b.low, b.high)  # type: ignore[call-arg]
        if low == high:
            self._set_int(ins.d, constant(low))
            return
        facts, exactly = NO_FACTS, None
        if a.facts or b.facts:
            state = self.here
            facts = join_facts(state, a, state, b) if name == "IMAX" else facts_of(name, a, b)
            exactly = exactly_of(name, a, b)
        why, after = self._why(name, a, b), after_of(name, a, b)
        self._set_int(ins.d, Int(self._names.fresh(), low, high, facts, exactly, why, after))

    def _why(self, name: str, a: Int, b: Int) -> Condition | None:
        """The condition that a 0 or 1 stands for."""
        relation = _RELATIONS.get(name)
        if relation is not None:
            for x, y in ((a, b), (b, a)):
                if y.low == y.high == 0 and x.why is not None and relation in ("=", "!="):
                    return _negated(x.why) if relation == "=" else x.why
            return relation, a, b
        if name in ("IAND", "IOR") and a.why is not None and b.why is not None:
            why: Condition = ("and" if name == "IAND" else "or", a.why, b.why)
            return why if leaves(why) <= CONDITIONS_MAX else None
        return None

    def _floats(self, ins: isa.Instruction) -> None:
        a = self._float(ins.a)
        b = self._float(ins.b) if ins.op.b is isa.Operand.FLOAT else a
        self._new_float(ins.d, *float_result(ins.op.name, a, b))

    def _compare(self, ins: isa.Instruction) -> None:
        a, b = self._float(ins.a), self._float(ins.b)
        low, high = float_compare(ins.op.name, a, b)
        if low == high:
            self._set_int(ins.d, constant(low))
            return
        why: Condition = ("not", ("f=", a, b)) if ins.op.name == "FNE" else (_RELATIONS[ins.op.name], a, b)
        self._set_int(ins.d, Int(self._names.fresh(), 0, 1, why=why))

    def _isfinite(self, ins: isa.Instruction) -> None:
        self._set_int(ins.d, Int(self._names.fresh(), 0, 1, why=("finite", self._float(ins.a))))

    def _f2i(self, ins: isa.Instruction) -> None:
        self._new_int(ins.d, *to_int(self._float(ins.a)))

    def _i2f(self, ins: isa.Instruction) -> None:
        a = self._int(ins.a)
        self._new_float(ins.d, float(a.low), float(a.high), False)

    # --- views ---------------------------------------------------------------------------------------------------------
    def _dim(self, ins: isa.Instruction) -> None:
        view = self._view(ins.a)
        self.check_axis(view, ins.aux)
        size = view.dims[min(ins.aux, len(view.dims) - 1)]
        low, high = self.here.size(size)
        self._set_int(ins.d, Int(("size", size), low, high, {size: 0}, (size, 0)))

    def _index(self, ins: isa.Instruction) -> None:
        """ROW, COL, HEAD and LD."""
        name = ins.op.name
        view, index = self._view(ins.a), self._int(ins.b)
        self.check_rank(view, *_RANKS[name])
        axis = {"COL": len(view.dims) - 1, "HEAD": min(1, len(view.dims) - 1)}.get(name, 0)
        self.check_not_negative("index", ins.b, index)
        self.check_below(view, axis, ins.b, index)
        if name == "LD":
            self._new_float(ins.d)
            return
        text = {"COL": f"{view.text}[..., i{ins.b}]", "HEAD": f"{view.text}[:, i{ins.b}]"}.get(
            name, f"{view.text}[i{ins.b}]"
        )
        dims = view.dims[:axis] + view.dims[axis + 1 :]
        self.here.views[ins.d] = View(dims or view.dims, text)

    def _slice(self, ins: isa.Instruction) -> None:
        view, first, last = self._view(ins.a), self._int(ins.b), self._int(ins.aux)
        state, whole = self.here, view.dims[0]
        least, most = state.size(whole)
        size = self._names.slice(whole, first, last)
        low = min(max(last.low, 0), least) - min(max(first.high, 0), most)
        high = min(max(last.high, 0), most) - min(max(first.low, 0), least)
        if last.after is not None and last.after[0] == first.name:
            high = min(high, last.after[1])
        state.narrow_size(size, max(low, 0), max(high, 0))
        state.views[ins.d] = View((size, *view.dims[1:]), f"{view.text}[i{ins.b}:i{ins.aux}]")

    # --- reductions ----------------------------------------------------------------------------------------------------
    def _reduce(self, ins: isa.Instruction) -> None:
        view = self._view(ins.a)
        if ins.op.b is isa.Operand.VIEW:
            self.check_same_shape(view, self._view(ins.b))
        if ins.op.b is isa.Operand.FLOAT:
            self._float(ins.b)
        elements = self._elements(view)
        self._cost += ins.op.per_element * elements
        if ins.op.name == "ARGMAX":
            self._new_int(ins.d, 0, min(max(elements - 1, 0), isa.I64_MAX))
            self._argmax_fact(ins.d, view)
        elif ins.op.d is isa.Operand.INT:
            self._new_int(ins.d, 0, min(elements, isa.I64_MAX))
        else:
            self._new_float(ins.d, *_REDUCED.get(ins.op.name, ANY))

    def _argmax_fact(self, register: int, view: View) -> None:
        """The position in a vector that is not empty is below its size; in an empty one it is 0, which is not."""
        position = self.here.ints[register]
        if position is not None and len(view.dims) == 1 and self.here.size(view.dims[0])[0] >= 1:
            self.here.ints[register] = Int(position.name, position.low, position.high, {view.dims[0]: 1})

    # --- maps and helpers ----------------------------------------------------------------------------------------------
    def _map(self, ins: isa.Instruction) -> None:
        name = ins.op.name
        key = self._int(ins.a) if ins.op.a is isa.Operand.INT else None
        if ins.op.b is isa.Operand.FLOAT:
            self._float(ins.b)
        self.check_map(ins.aux)
        if ins.aux < len(self.program.maps):
            spec = self.program.maps[ins.aux]
            self.check_map_kind(name, spec)
            if spec.kind is isa.MapKind.ARRAY and key is not None and name != "EMIT":
                self.check_not_negative("key", ins.a, key)
                self.check_key(spec, ins.a, key)
        if name == "MGET":
            self._new_float(ins.d)

    def _call(self, ins: isa.Instruction) -> None:
        inline = ins.op.name == "CALL"
        self.check_helper(ins.aux, isa.Tier.INLINE if inline else isa.Tier.ASYNC)
        helper = isa.HELPER_BY_NR.get(ins.aux)
        if helper is None:
            return
        self.check_tier(helper)
        self.check_helper_hook(helper)
        self.check_right(helper)
        views = [self._view(register) for register in (ins.a, ins.b)[: len(helper.views)]]
        self.check_helper_views(helper, views, max((ins.a, ins.b)[len(views) :], default=0))
        per_element = helper.per_element + ins.op.per_element
        self._cost += helper.cost + per_element * sum(map(self._elements, views))
        if inline:
            self._new_float(ins.d)
            return
        self.check_map(int(ins.imm))
        if ins.imm < len(self.program.maps):
            self.check_helper_map(helper, self.program.maps[int(ins.imm)])


def _negated(condition: Condition) -> Condition:
    inner: Condition = condition[1] if condition[0] == "not" else ("not", condition)
    return inner


_ENDS: Final = frozenset({"ELSE", "ENDIF", "ENDFOR"})
_ONE: Final = constant(1)
_RELATIONS: Final = {"ILT": "<", "ILE": "<=", "IEQ": "=", "INE": "!=", "FLT": "f<", "FLE": "f<=", "FEQ": "f="}
_RANKS: Final = {"ROW": (2,), "COL": (2,), "HEAD": (3,), "LD": (1, 1)}
_REDUCED: Final = {"SUMSQ": (0.0, INF, True), "ABSMAX": (0.0, INF, True)}
_BY_NAME: Final[dict[str, Callable[[Verification, isa.Instruction], None]]] = {
    "EXIT": Verification._exit,
    "FOR": Verification._for,
    "ENDFOR": Verification._endfor,
    "IF": Verification._if,
    "ELSE": Verification._else,
    "ENDIF": Verification._endif,
    "ICONST": Verification._iconst,
    "FCONST": Verification._fconst,
    "IMOV": Verification._imov,
    "FMOV": Verification._fmov,
    "VMOV": Verification._vmov,
    "CTXI": Verification._ctxi,
    "CTXF": Verification._ctxf,
    "VARG": Verification._varg,
    **dict.fromkeys(INTEGERS, Verification._arithmetic),
    **dict.fromkeys(FLOATS, Verification._floats),
    **dict.fromkeys(("FLT", "FLE", "FEQ", "FNE"), Verification._compare),
    "ISFINITE": Verification._isfinite,
    "F2I": Verification._f2i,
    "I2F": Verification._i2f,
    "DIM": Verification._dim,
    **dict.fromkeys(_RANKS, Verification._index),
    "SLICE": Verification._slice,
    **dict.fromkeys((op.name for op in isa.OPS if 0x60 <= op.nr < 0x70), Verification._reduce),
    **dict.fromkeys((op.name for op in isa.OPS if 0x70 <= op.nr < 0x80), Verification._map),
    "CALL": Verification._call,
    "CALL_ASYNC": Verification._call,
}
_HANDLERS: Final[dict[int, Callable[[Verification, isa.Instruction], Any]]] = {
    op.nr: _BY_NAME[op.name] for op in isa.OPS
}
