"""States of the verifier: what is known of every register at one place of a program, and how paths come together.

Responsible for: the join of the two ways out of an IF, the state at the head of a loop that covers every round (widening at
few thresholds), and what a condition that came out true says. Register numbers are those of `isa`.
Refuses: nothing; it only ever says less than is true. Three rules keep it sound. A name (of an integer, a float or a size)
stands for one value that does not change; where two paths may bring different values, the result gets a name of its own.
At the head of a loop no fact survives but those that held before it, because sizes and names made inside stand for the last
round's. And a condition that cannot be true leaves the state as it was, so code that never runs is checked all the same.
"""

from __future__ import annotations

from collections.abc import Hashable
from itertools import count
from typing import Final

from probes import isa
from probes.abstract import (
    FACTS_MAX,
    INF,
    NO_FACTS,
    Condition,
    Facts,
    Float,
    FloatParts,
    Int,
    Size,
    merged,
    narrow,
    narrow_finite,
    narrow_floats,
)

LOWS: Final = (0, -1)
HIGHS: Final = (1, isa.DIM_MAX)
"""Where widening stops on the way to the ends of 64 bits: flags, and anything that counts elements of an axis."""
CONDITIONS_MAX: Final = 4
"""Comparisons that one IF looks at; more of them are not followed, which loses facts only."""
WITHIN_MAX: Final = 4
"""How many slices of slices a fact is followed through."""
SIZES_MAX: Final = 64
"""Sizes that a state says more of than their largest value; further ones are left as they are."""


class View:
    """A view register: the size of each axis, and the expression that it came from, for messages."""

    __slots__ = ("dims", "text")

    def __init__(self, dims: tuple[Size, ...], text: str) -> None:
        self.dims = dims
        self.text = text


class State:
    """What is known at one place. Values are never changed, only replaced, so a copy is shallow."""

    __slots__ = ("floats", "ints", "sizes", "views")

    def __init__(
        self,
        ints: list[Int | None],
        floats: list[Float | None],
        views: list[View | None],
        sizes: dict[Size, tuple[int, int]],
    ) -> None:
        self.ints = ints
        self.floats = floats
        self.views = views
        self.sizes = sizes

    @classmethod
    def empty(cls) -> State:
        """Nothing is defined yet."""
        return cls([None] * isa.INT_REGS, [None] * isa.FLOAT_REGS, [None] * isa.VIEW_REGS, {})

    def copy(self) -> State:
        """A state of its own."""
        return State(self.ints[:], self.floats[:], self.views[:], self.sizes.copy())

    def size(self, size: Size) -> tuple[int, int]:
        """The smallest and the largest that a size can be here."""
        return self.sizes.get(size) or (0, size.most)

    def below(self, value: Int, size: Size) -> int | None:
        """The largest k for which value <= size - k is known, or None where nothing is."""
        known = value.facts.get(size)
        if known is None and value.facts:
            for other, k in value.facts.items():
                if _descends(other, size) and (known is None or k > known):
                    known = k
        least = self.sizes.get(size, (0, 0))[0] - value.high
        if known is None:
            return least if least >= -size.most else None
        return max(known, least)

    def narrow_size(self, size: Size, low: int, high: int) -> bool:
        """A size lies in [low, high] too; False when that cannot be."""
        least, most = self.size(size)
        least, most = max(least, low), min(most, high)
        if least > most:
            return False
        if size in self.sizes or len(self.sizes) < SIZES_MAX:
            self.sizes[size] = (least, most)
        return True


def _descends(size: Size, ancestor: Size) -> bool:
    within = size.within
    for _ in range(WITHIN_MAX):
        if within is None or within is ancestor:
            return within is ancestor
        within = within.within
    return False


class Names:
    """Names that were never used before, and the sizes that belong to them."""

    def __init__(self) -> None:
        self._next = count()
        self._slices: dict[tuple[Size, Hashable, Hashable], Size] = {}

    def fresh(self) -> Hashable:
        """A name."""
        return next(self._next)

    def slice(self, of: Size, first: Int, last: Int) -> Size:
        """The size of a slice: the same for equal ends of the same axis."""
        key = (of, first.name, last.name)
        known = self._slices.get(key)
        if known is None:
            known = self._slices[key] = Size(f"{of.name}[:]", of.most, of)
        return known


# --- conditions ----------------------------------------------------------------------------------------------------------
def outcomes(value: Int) -> Condition:
    """The condition under which an integer is not 0."""
    return value.why or ("!=", value, Int(("=", 0), 0, 0))


def leaves(condition: Condition) -> int:
    """Comparisons in a condition."""
    if condition[0] in ("and", "or"):
        return leaves(condition[1]) + leaves(condition[2])
    return leaves(condition[1]) if condition[0] == "not" else 1


_OPPOSITE: Final = {"<": "<=", "<=": "<", "=": "!=", "!=": "="}
_FLOAT_OPPOSITE: Final = {"f<": "f!<", "f<=": "f!<=", "f!<": "f<", "f!<=": "f<=", "f=": "f!=", "f!=": "f="}


def assume(state: State, condition: Condition, holds: bool) -> None:
    """Narrow `state` by a condition that came out as `holds`; left as it is where that cannot be."""
    ints, floats, sizes = state.ints[:], state.floats[:], state.sizes.copy()
    if not _assume(state, condition, holds):
        state.ints, state.floats, state.sizes = ints, floats, sizes


def _assume(state: State, condition: Condition, holds: bool) -> bool:
    kind = condition[0]
    if kind == "not":
        return _assume(state, condition[1], not holds)
    if kind in ("and", "or"):
        if holds is (kind == "and"):
            return _assume(state, condition[1], holds) and _assume(state, condition[2], holds)
        return True
    if kind == "finite":
        return not holds or _put_float(state, condition[1], narrow_finite(_float(state, condition[1])))
    if kind[0] == "f":
        return _assume_floats(state, kind if holds else _FLOAT_OPPOSITE[kind], condition[1], condition[2])
    _, a, b = condition
    if holds:
        return _assume_ints(state, kind, a, b)
    if kind in ("<", "<="):
        a, b = b, a
    return _assume_ints(state, _OPPOSITE[kind], a, b)


def _now(state: State, value: Int) -> Int:
    """What is known of a value now: more than when it was compared, if a register still holds it."""
    for held in state.ints:
        if held is not None and held.name == value.name:
            return held
    return value


def _assume_ints(state: State, relation: str, a: Int, b: Int) -> bool:
    a, b = _now(state, a), _now(state, b)
    al, ah, bl, bh = narrow(relation, a.low, a.high, b.low, b.high)
    if al > ah or bl > bh:
        return False
    a_facts, b_facts = a.facts, b.facts
    if relation in ("<", "<=", "="):
        strict = 1 if relation == "<" else 0
        a_facts = merged(a_facts, {size: k + strict for size, k in b.facts.items()} if strict else b.facts)
        if relation == "=":
            b_facts = merged(b_facts, a.facts)
    return put_int(state, a, al, ah, a_facts) and put_int(state, b, bl, bh, b_facts)


def put_int(state: State, value: Int, low: int, high: int, facts: Facts) -> bool:
    """Say more of a value, wherever it is held; of the size that it is, if it is one."""
    if low == value.low and high == value.high and facts == value.facts:
        return True
    said = Int(value.name, low, high, facts, value.exactly, value.why, value.after)
    for register, held in enumerate(state.ints):
        if held is not None and held.name == value.name:
            state.ints[register] = said
    if value.exactly is not None:
        size, c = value.exactly
        return state.narrow_size(size, low - c, high - c)
    return True


def _float(state: State, value: Float) -> Float:
    for held in state.floats:
        if held is not None and held.name == value.name:
            return held
    return value


def _put_float(state: State, value: Float, parts: FloatParts) -> bool:
    low, high, nan = parts
    if low > high and not nan:
        return False
    for register, held in enumerate(state.floats):
        if held is not None and held.name == value.name:
            state.floats[register] = Float(value.name, low, high, nan)
    return True


def _assume_floats(state: State, relation: str, a: Float, b: Float) -> bool:
    a, b = _float(state, a), _float(state, b)
    if relation == "f!=":
        return True
    a_parts, b_parts = narrow_floats(relation[1:], a, b)
    return _put_float(state, a, a_parts) and _put_float(state, b, b_parts)


# --- paths that come together ------------------------------------------------------------------------------------------
def join(a: State | None, b: State | None, names: Names) -> State | None:
    """What holds on both ways; None is a way that ends before."""
    if a is None or b is None:
        return b if a is None else a
    sizes: dict[tuple[Size, Size], Size] = {}
    out = State.empty()
    for size, (low, high) in a.sizes.items():
        if size in b.sizes:
            out.sizes[size] = min(low, b.sizes[size][0]), max(high, b.sizes[size][1])
    out.ints = [x if x is y else _join_int(a, x, b, y, names) for x, y in zip(a.ints, b.ints, strict=True)]
    out.floats = [x if x is y else _join_float(x, y, names) for x, y in zip(a.floats, b.floats, strict=True)]
    for register, (x, y) in enumerate(zip(a.views, b.views, strict=True)):
        if x is y or x is None or y is None or len(x.dims) != len(y.dims):
            out.views[register] = x if x is y else None
            continue
        dims = [_join_size(a, p, b, q, out, sizes) for p, q in zip(x.dims, y.dims, strict=True)]
        out.views[register] = View(tuple(dims), x.text)
    return out


def _join_size(a: State, x: Size, b: State, y: Size, out: State, made: dict[tuple[Size, Size], Size]) -> Size:
    if x is y:
        return x
    found = made.get((x, y))
    if found is None:
        found = made[x, y] = Size(x.name, max(x.most, y.most))
        (low, high), (low_b, high_b) = a.size(x), b.size(y)
        out.sizes[found] = min(low, low_b), max(high, high_b)
    return found


def _join_int(a: State, x: Int | None, b: State, y: Int | None, names: Names) -> Int | None:
    if x is None or y is None:
        return None
    facts = join_facts(a, x, b, y) if x.facts or y.facts else NO_FACTS
    low, high = min(x.low, y.low), max(x.high, y.high)
    if x.name == y.name:
        return Int(x.name, low, high, facts, x.exactly, x.why, x.after)
    return Int(names.fresh(), low, high, facts, x.exactly if x.exactly == y.exactly else None)


def join_facts(a: State, x: Int, b: State, y: Int) -> Facts:
    """Facts that hold for both values, each by what is known where it comes from."""
    facts: dict[Size, int] = {}
    for size in (*x.facts, *(s for s in y.facts if s not in x.facts))[:FACTS_MAX]:
        k, other = a.below(x, size), b.below(y, size)
        if k is not None and other is not None:
            facts[size] = min(k, other)
    return facts


def _join_float(x: Float | None, y: Float | None, names: Names) -> Float | None:
    if x is None or y is None:
        return None
    name = x.name if x.name == y.name else names.fresh()
    return Float(name, min(x.low, y.low), max(x.high, y.high), x.nan or y.nan)


# --- loops -------------------------------------------------------------------------------------------------------------
class Head:
    """The state at the head of a loop, and the names that stand there for whatever the rounds bring."""

    __slots__ = ("entry", "names", "own", "state")

    def __init__(self, entry: State, names: Names) -> None:
        self.entry = entry
        self.state = entry
        self.names = names
        self.own: set[Hashable] = set()

    def cover(self, end: State | None, steps: bool) -> bool:
        """Take in the state at the end of a round; True when nothing new came. `steps`: widen by thresholds, else to the ends."""
        if end is None:
            return True
        head = self.state
        if end.ints == head.ints and end.floats == head.floats and end.views == head.views:
            return True
        out = State(head.ints[:], head.floats[:], head.views[:], head.sizes)
        for register, (x, y) in enumerate(zip(head.ints, end.ints, strict=True)):
            if x is not y and x is not None:
                out.ints[register] = self._int(x, end, y, steps)
        for register, (f, g) in enumerate(zip(head.floats, end.floats, strict=True)):
            if f is not g and f is not None:
                out.floats[register] = self._float(f, g)
        for register, (v, w) in enumerate(zip(head.views, end.views, strict=True)):
            if v is not w and v is not None:
                out.views[register] = self._view(v, w)
        same = out.ints == head.ints and out.floats == head.floats and out.views == head.views
        self.state = out
        return same

    def narrowed(self, end: State) -> Head:
        """A head that says no more than entry and the end of a round do: to be tried after widening went too far."""
        tried = Head(self.entry, self.names)
        tried.cover(end, steps=True)
        for register, (x, y) in enumerate(zip(self.entry.ints, end.ints, strict=True)):
            held = tried.state.ints[register]
            if x is not None and y is not None and held is not None and held is not x:
                tried.state.ints[register] = Int(held.name, min(x.low, y.low), max(x.high, y.high), held.facts)
        return tried

    def _name(self) -> Hashable:
        name = self.names.fresh()
        self.own.add(name)
        return name

    def _int(self, x: Int, end: State, y: Int | None, steps: bool) -> Int | None:
        if y is None:
            return None
        # Only facts from before the loop: a size named inside it stands for another one in the next round.
        facts = {size: k for size, k in x.facts.items() if _at_least(end.below(y, size), k)}
        if (
            (x.name == y.name or x.name in self.own)
            and x.low <= y.low
            and y.high <= x.high
            and len(facts) == len(x.facts)
        ):
            return x
        low = x.low if x.low <= y.low else _next_low(y.low, steps)
        high = x.high if y.high <= x.high else _next_high(y.high, steps)
        return Int(self._name(), low, high, facts)

    def _float(self, x: Float, y: Float | None) -> Float | None:
        if y is None:
            return None
        nan = x.nan or y.nan
        if (x.name == y.name or x.name in self.own) and x.low <= y.low and y.high <= x.high and nan == x.nan:
            return x
        low = x.low if x.low <= y.low else 0.0 if y.low >= 0 else -INF
        return Float(self._name(), low, x.high if y.high <= x.high else INF, nan)

    def _view(self, x: View, y: View | None) -> View | None:
        if y is None or len(x.dims) != len(y.dims):
            return None
        dims = tuple(p if p is q else self._size(p, q) for p, q in zip(x.dims, y.dims, strict=True))
        return x if dims == x.dims else View(dims, x.text)

    def _size(self, p: Size, q: Size) -> Size:
        if p in self.own and q.most <= p.most:
            return p
        size = Size(p.name, max(p.most, q.most))
        self.own.add(size)
        return size


def _at_least(known: int | None, k: int) -> bool:
    return known is not None and known >= k


def _next_low(value: int, steps: bool) -> int:
    return next((mark for mark in LOWS if mark <= value), isa.I64_MIN) if steps else isa.I64_MIN


def _next_high(value: int, steps: bool) -> int:
    return next((mark for mark in HIGHS if mark >= value), isa.I64_MAX) if steps else isa.I64_MAX
