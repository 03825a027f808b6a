"""Abstract values of the verifier: what is known of an integer or a float before a program runs.

Responsible for: intervals of saturating integers and of IEEE doubles, and for every arithmetic opcode of `isa.OPS` the function
that maps what is known of its operands to what is known of its result. An integer also carries symbolic facts `value <= size - k`
about sizes of views, so `i < x.shape[0]` stays true when the batch is smaller than the largest that the contract allows.
Refuses: to guess. Each function is sound: the result contains every value that the opcode can give on operands inside the
arguments. Those in `OPTIMAL` give the smallest such interval. Both claims are checked over all intervals of 4-bit integers,
which is why the limits at which integers saturate are a parameter.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping
from typing import Any, Final, NamedTuple

from probes import isa

INF: Final = math.inf
FACTS_MAX: Final = 4
"""Sizes that one value is compared with; of more, some are forgotten, so that no instruction takes long to look at."""
OFFSET_MAX: Final = 1 << 32
"""Facts with a larger |k| are dropped: below it neither `size - k` nor what it bounds can saturate."""


class Limits(NamedTuple):
    """Where integers saturate, and the largest |k| of a fact."""

    low: int = isa.I64_MIN
    high: int = isa.I64_MAX
    offset: int = OFFSET_MAX


I64: Final = Limits()
Interval = tuple[int, int]
Binary = Callable[[int, int, int, int, Limits], Interval]


# --- integers: (lowest a, highest a, lowest b, highest b) -> (lowest, highest) -----------------------------------------
def clamp(low: int, high: int, limits: Limits) -> Interval:
    """Both ends saturated."""
    least, most = limits.low, limits.high
    return (
        least if low < least else most if low > most else low,
        least if high < least else most if high > most else high,
    )


def add(al: int, ah: int, bl: int, bh: int, limits: Limits = I64) -> Interval:
    """IADD."""
    return clamp(al + bl, ah + bh, limits)


def sub(al: int, ah: int, bl: int, bh: int, limits: Limits = I64) -> Interval:
    """ISUB."""
    return clamp(al - bh, ah - bl, limits)


def mul(al: int, ah: int, bl: int, bh: int, limits: Limits = I64) -> Interval:
    """IMUL: a product is largest and smallest at corners."""
    corners = (al * bl, al * bh, ah * bl, ah * bh)
    return clamp(min(corners), max(corners), limits)


def div(al: int, ah: int, bl: int, bh: int, limits: Limits = I64) -> Interval:
    """IDIV: floor(a / b) is monotone in each operand while b keeps its sign, so corners of both signs; 0 for b = 0."""
    ends: list[int] = []
    for least, most in ((max(bl, 1), bh), (bl, min(bh, -1))):
        if least <= most:
            ends += (al // least, al // most, ah // least, ah // most)
    if bl <= 0 <= bh:
        ends.append(0)
    return clamp(min(ends), max(ends), limits)


def mod(al: int, ah: int, bl: int, bh: int, limits: Limits = I64) -> Interval:
    """IMOD: between 0 and b, without b; a itself where 0 <= a < b, b < a <= 0 or b = 0."""
    del limits
    low, high = isa.I64_MAX, isa.I64_MIN
    if bh > 0:
        least = max(bl, 1)
        inside = al >= 0 and ah < least
        low, high = (al, ah) if inside else (0, min(bh - 1, ah) if al >= 0 else bh - 1)
    if bl < 0:
        most = min(bh, -1)
        inside = ah <= 0 and al > most
        least, top = (al, ah) if inside else (max(bl + 1, al) if ah <= 0 else bl + 1, 0)
        low, high = min(low, least), max(high, top)
    if bl <= 0 <= bh:
        low, high = min(low, al), max(high, ah)
    return low, high


def least(al: int, ah: int, bl: int, bh: int, limits: Limits = I64) -> Interval:
    """IMIN."""
    del limits
    return (al if al < bl else bl), (ah if ah < bh else bh)


def most(al: int, ah: int, bl: int, bh: int, limits: Limits = I64) -> Interval:
    """IMAX."""
    del limits
    return (al if al > bl else bl), (ah if ah > bh else bh)


def neg(al: int, ah: int, bl: int, bh: int, limits: Limits = I64) -> Interval:
    """INEG; b is not looked at."""
    del bl, bh
    return clamp(-ah, -al, limits)


def absolute(al: int, ah: int, bl: int, bh: int, limits: Limits = I64) -> Interval:
    """IABS; b is not looked at."""
    del bl, bh
    return clamp(0 if al <= 0 <= ah else min(abs(al), abs(ah)), max(abs(al), abs(ah)), limits)


def _bits(*values: int) -> int:
    """Bits, without the sign, of the widest value."""
    return max((value if value >= 0 else ~value).bit_length() for value in values)


def bit_and(al: int, ah: int, bl: int, bh: int, limits: Limits = I64) -> Interval:
    """IAND: a non-negative operand bounds the result from both sides, a negative one only keeps its width."""
    del limits
    if al >= 0 and bl >= 0:
        return 0, min(ah, bh)
    if al >= 0 or bl >= 0:
        return 0, ah if al >= 0 else bh
    high = bh if ah < 0 else ah if bh < 0 else max(ah, bh)
    return -(1 << _bits(al, bl)), high


def bit_or(al: int, ah: int, bl: int, bh: int, limits: Limits = I64) -> Interval:
    """IOR, by De Morgan; two non-negative operands give at least the larger."""
    low, high = bit_and(~ah, ~al, ~bh, ~bl, limits)
    return ~high, ~low


def bit_xor(al: int, ah: int, bl: int, bh: int, limits: Limits = I64) -> Interval:
    """IXOR: no wider than the wider operand, and 0 or more when the signs are known to agree."""
    del limits
    width = 1 << _bits(al, ah, bl, bh)
    agree = (al >= 0 and bl >= 0) or (ah < 0 and bh < 0)
    differ = (al >= 0 and bh < 0) or (ah < 0 and bl >= 0)
    return (0 if agree else -width), (-1 if differ else width - 1)


def less(al: int, ah: int, bl: int, bh: int, limits: Limits = I64) -> Interval:
    """ILT."""
    del limits
    return int(ah < bl), int(al < bh)


def less_equal(al: int, ah: int, bl: int, bh: int, limits: Limits = I64) -> Interval:
    """ILE."""
    del limits
    return int(ah <= bl), int(al <= bh)


def equal(al: int, ah: int, bl: int, bh: int, limits: Limits = I64) -> Interval:
    """IEQ."""
    del limits
    return int(al == ah == bl == bh), int(al <= bh and bl <= ah)


def unequal(al: int, ah: int, bl: int, bh: int, limits: Limits = I64) -> Interval:
    """INE."""
    low, high = equal(al, ah, bl, bh, limits)
    return 1 - high, 1 - low


INTEGERS: Final[dict[str, Binary]] = {
    "IADD": add, "ISUB": sub, "IMUL": mul, "IDIV": div, "IMOD": mod, "IMIN": least, "IMAX": most, "INEG": neg, "IABS": absolute,
    "IAND": bit_and, "IOR": bit_or, "IXOR": bit_xor, "ILT": less, "ILE": less_equal, "IEQ": equal, "INE": unequal,
}  # fmt: skip
OPTIMAL: Final = frozenset(INTEGERS) - {"IMOD", "IAND", "IOR", "IXOR"}


# --- what a comparison that came out true says of its operands -----------------------------------------------------------
def narrow(relation: str, al: int, ah: int, bl: int, bh: int) -> tuple[int, int, int, int]:
    """Ends of a and b where `a relation b` holds ("<", "<=", "=", "!="); an empty interval, low above high, where it cannot."""
    match relation:
        case "<":
            return al, min(ah, bh - 1), max(bl, al + 1), bh
        case "<=":
            return al, min(ah, bh), max(bl, al), bh
        case "=":
            low, high = max(al, bl), min(ah, bh)
            return low, high, low, high
        case _:
            if al == ah:
                bl, bh = bl + (bl == al), bh - (bh == al)
            if bl <= bh and bl == bh:
                al, ah = al + (al == bl), ah - (ah == bl)
            return al, ah, bl, bh


# --- integers with facts ---------------------------------------------------------------------------------------------------
class Size:
    """The size of a view along an axis: one number, unknown but fixed, for as long as the name means anything.

    `most` is an upper bound that always holds; `within` is a size that is never smaller, such as that of the view a slice is
    cut from. States narrow a size further.
    """

    __slots__ = ("most", "name", "within")

    def __init__(self, name: str, most: int, within: Size | None = None) -> None:
        self.name = name
        self.most = most
        self.within = within

    def __repr__(self) -> str:
        return f"{self.name}<={self.most}"


Facts = Mapping[Size, int]
NO_FACTS: Final[Facts] = {}
Condition = tuple[Any, ...]
"""Why an integer is 1: (relation, a, b) over values, ("finite", a), ("and" | "or", condition, condition), ("not", condition)."""


class Int:
    """An integer register: in [low, high], and `value <= size - k` for each (size, k) of `facts`.

    `name` identifies the value: registers with equal names hold equal values. `exactly` is (size, c) when the value is
    size + c, `after` is (name, c) when it is no more than c above the value of that name, and `why` is the condition that it is
    the outcome of.
    """

    __slots__ = ("after", "exactly", "facts", "high", "low", "name", "why")

    def __init__(
        self,
        name: Hashable,
        low: int,
        high: int,
        facts: Facts = NO_FACTS,
        exactly: tuple[Size, int] | None = None,
        why: Condition | None = None,
        after: tuple[Hashable, int] | None = None,
    ) -> None:
        self.name = name
        self.low = low
        self.high = high
        self.facts = facts
        self.exactly = exactly
        self.why = why
        self.after = after

    def __repr__(self) -> str:
        facts = "".join(f" <={size.name}-{k}" for size, k in self.facts.items())
        return f"[{bound_text(self.low)}, {bound_text(self.high)}]{facts}"


def bound_text(value: int) -> str:
    """A bound for readers: the ends of 64 bits by name."""
    return {isa.I64_MIN: "-2^63", isa.I64_MAX: "2^63-1"}.get(value, str(value))


def constant(value: int) -> Int:
    """An integer that is known."""
    return Int(("=", value), value, value)


def _shifted(facts: Facts, by: int, limits: Limits) -> dict[Size, int]:
    """Facts of a + `by`, or of anything not above it."""
    return {size: k - by for size, k in facts.items() if -limits.offset <= k - by <= limits.offset}


def merged(a: Facts, b: Facts) -> Facts:
    """Facts of a value that is not above either; of too many, those of b and the oldest of a."""
    if not a or not b:
        return a or b
    both = {size: max(a.get(size, k), k) for size, k in b.items()}
    for size, k in a.items():
        if len(both) < FACTS_MAX:
            both.setdefault(size, k)
    return both


def facts_of(op: str, a: Int, b: Int, limits: Limits = I64) -> Facts:
    """Facts of an opcode's result. IMAX is left to the state, which knows how small a size can be."""
    match op:
        case "IADD":
            return merged(_shifted(a.facts, b.high, limits), _shifted(b.facts, a.high, limits))
        case "ISUB":
            return _shifted(a.facts, -b.low, limits)
        case "IMIN":
            return merged(a.facts, b.facts)
        case "IDIV" if a.low >= 0 and b.low >= 1:
            return a.facts
        case "IMOD":
            # b >= 1: at most b - 1; and never above an a that is not negative, b >= 0
            below = _shifted(b.facts, -1, limits) if b.low >= 1 else NO_FACTS
            return merged(below, a.facts if a.low >= 0 and b.low >= 0 else NO_FACTS)
        case "IAND" if a.low >= 0 or b.low >= 0:
            return merged(a.facts if a.low >= 0 else NO_FACTS, b.facts if b.low >= 0 else NO_FACTS)
    return NO_FACTS


def exactly_of(op: str, a: Int, b: Int, limits: Limits = I64) -> tuple[Size, int] | None:
    """The size and the constant of a sum or a difference with a constant."""
    if op == "IADD" and a.exactly is None:
        a, b = b, a
    if op not in ("IADD", "ISUB") or a.exactly is None or b.low != b.high:
        return None
    size, c = a.exactly
    c += b.low if op == "IADD" else -b.low
    return (size, c) if abs(c) <= limits.offset else None


def after_of(op: str, a: Int, b: Int) -> tuple[Hashable, int] | None:
    """A sum with a constant; saturating keeps it from being further away."""
    if op != "IADD":
        return None
    return (a.name, b.low) if b.low == b.high else (b.name, a.low) if a.low == a.high else None


# --- floats ------------------------------------------------------------------------------------------------------------------
class Float:
    """A float register: in [low, high] or, where `nan`, NaN. An empty interval (low above high) means that it is NaN."""

    __slots__ = ("high", "low", "name", "nan")

    def __init__(self, name: Hashable, low: float = -INF, high: float = INF, nan: bool = True) -> None:
        self.name = name
        self.low = low
        self.high = high
        self.nan = nan

    def __repr__(self) -> str:
        return f"[{self.low:g}, {self.high:g}]{' or NaN' if self.nan else ''}"


FloatParts = tuple[float, float, bool]
ANY: Final[FloatParts] = (-INF, INF, True)


def _corners(ends: list[float], nan: bool) -> FloatParts:
    """From results at corners; a NaN among them (inf - inf, 0 * inf) says nothing of the values between."""
    if any(end != end for end in ends):  # noqa: PLR0124 - a NaN
        return ANY
    return min(ends), max(ends), nan


def _fadd(a: Float, b: Float) -> FloatParts:
    # Rounding is monotone, so the rounded ends bound the rounded sums.
    nan = a.nan or b.nan or (a.high == INF and b.low == -INF) or (a.low == -INF and b.high == INF)
    return _corners([a.low + b.low, a.high + b.high], nan)


def _fsub(a: Float, b: Float) -> FloatParts:
    return _fadd(a, Float(None, -b.high, -b.low, b.nan))


def _fmul(a: Float, b: Float) -> FloatParts:
    infinite = INF in (-a.low, a.high, -b.low, b.high)
    if infinite:
        return (0.0, INF, True) if a.low >= 0 and b.low >= 0 else ANY
    return _corners([a.low * b.low, a.low * b.high, a.high * b.low, a.high * b.high], a.nan or b.nan)


def _fdiv(a: Float, b: Float) -> FloatParts:
    if b.low <= 0 <= b.high or INF in (-a.low, a.high, -b.low, b.high):
        return ANY
    return _corners([a.low / b.low, a.low / b.high, a.high / b.low, a.high / b.high], a.nan or b.nan)


def _fmin(a: Float, b: Float) -> FloatParts:
    return min(a.low, b.low), min(a.high, b.high), a.nan or b.nan


def _fmax(a: Float, b: Float) -> FloatParts:
    return max(a.low, b.low), max(a.high, b.high), a.nan or b.nan


def _fneg(a: Float, b: Float) -> FloatParts:
    del b
    return -a.high, -a.low, a.nan


def _fabs(a: Float, b: Float) -> FloatParts:
    del b
    low, high = abs(a.low), abs(a.high)
    return (0.0 if a.low <= 0 <= a.high else min(low, high)), max(low, high), a.nan


def _fsqrt(a: Float, b: Float) -> FloatParts:
    del b
    nan = a.nan or a.low < 0
    return (math.sqrt(max(a.low, 0.0)), math.sqrt(a.high), nan) if a.high >= 0 else (INF, -INF, True)


def _fexp(a: Float, b: Float) -> FloatParts:
    # Nothing is said of a polynomial beyond its sign, and that e^a of a not above 0 is about 1 at the most.
    del b
    return 0.0, (2.0 if a.high <= 0 else INF), a.nan


def _flog(a: Float, b: Float) -> FloatParts:
    del b
    return -INF, INF, a.nan or a.low < 0


def _ffloor(a: Float, b: Float) -> FloatParts:
    del b
    return _floor(a.low), _floor(a.high), a.nan


def _floor(value: float) -> float:
    return float(math.floor(value)) if math.isfinite(value) else value


FLOATS: Final[dict[str, Callable[[Float, Float], FloatParts]]] = {
    "FADD": _fadd, "FSUB": _fsub, "FMUL": _fmul, "FDIV": _fdiv, "FNEG": _fneg, "FABS": _fabs, "FMIN": _fmin, "FMAX": _fmax,
    "FSQRT": _fsqrt, "FEXP": _fexp, "FLOG": _flog, "FFLOOR": _ffloor,
}  # fmt: skip
ONLY_NAN: Final[FloatParts] = (INF, -INF, True)


def float_result(op: str, a: Float, b: Float) -> FloatParts:
    """What is known of a float opcode's result; a value that is surely NaN stays so."""
    if a.low > a.high or b.low > b.high:
        return ONLY_NAN
    return FLOATS[op](a, b)


def float_compare(op: str, a: Float, b: Float) -> Interval:
    """FLT, FLE, FEQ, FNE: whether the outcome is known."""
    if op == "FNE":
        low, high = float_compare("FEQ", a, b)
        return 1 - high, 1 - low
    if a.low > a.high or b.low > b.high:
        return 0, 0
    never_nan = not (a.nan or b.nan)
    match op:
        case "FLT":
            sure, possible = a.high < b.low, a.low < b.high
        case "FLE":
            sure, possible = a.high <= b.low, a.low <= b.high
        case _:
            sure, possible = a.low == a.high == b.low == b.high, a.low <= b.high and b.low <= a.high
    return int(sure and never_nan), int(possible)


def to_int(a: Float, limits: Limits = I64) -> Interval:
    """F2I: towards zero, saturating, 0 for NaN."""
    if a.low > a.high:
        return 0, 0
    low, high = truncate(a.low, limits), truncate(a.high, limits)
    return (min(low, 0), max(high, 0)) if a.nan else (low, high)


def truncate(value: float, limits: Limits = I64) -> int:
    """F2I of a number that is not NaN."""
    if math.isinf(value):
        return limits.high if value > 0 else limits.low
    return clamp(int(value), int(value), limits)[0]


def narrow_floats(relation: str, a: Float, b: Float) -> tuple[FloatParts, FloatParts]:
    """Operands where the comparison came out true: no NaN with "<", "<=" and "="; "!<" and "!<=" are their opposites.

    An opposite holds when either is NaN, so it narrows one operand only where the other cannot be NaN, and a NaN stays one.
    """
    match relation:
        case "<" | "<=":
            low, high = b.low, a.high
            high, low = min(high, b.high), max(low, a.low)
            if relation == "<":
                # A strict bound that cannot be met, such as a < -inf, shows as an empty interval.
                high = high if high < b.high else math.nextafter(b.high, -INF) if b.high > -INF else -INF
                low = low if low > a.low else math.nextafter(a.low, INF) if a.low < INF else INF
            return (a.low, high, False), (low, b.high, False)
        case "=":
            low, high = max(a.low, b.low), min(a.high, b.high)
            return (low, high, False), (low, high, False)
        case "!<" | "!<=":
            # Either is NaN, or b <= a (b < a).
            narrowed_b, narrowed_a = narrow_floats("<=" if relation == "!<" else "<", b, a)
            keep_a, keep_b = (a.low, a.high, a.nan), (b.low, b.high, b.nan)
            return (
                (narrowed_a[0], narrowed_a[1], a.nan) if not b.nan else keep_a,
                (narrowed_b[0], narrowed_b[1], b.nan) if not a.nan else keep_b,
            )
    return (a.low, a.high, a.nan), (b.low, b.high, b.nan)


def narrow_finite(a: Float) -> FloatParts:
    """A float that ISFINITE said yes to."""
    largest = math.nextafter(INF, 0.0)
    return max(a.low, -largest), min(a.high, largest), False
