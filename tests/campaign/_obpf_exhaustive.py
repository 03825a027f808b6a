"""Every transfer function of the verifier over all intervals of 4-bit integers, against the instruction itself on all values inside.

Sound: no result is outside what the function says. Optimal, where `abstract.OPTIMAL` claims it: nothing smaller would do. The
limits at which integers saturate are scaled down to 4 bits with the intervals. Facts about sizes and the narrowing by comparisons
are gone through in the same way. Floats are drawn, not enumerated: ends from a list of odd ones, values between them.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Iterator
from typing import Any, Final

import numpy as np

from probes import abstract, fixedmath, scalars
from probes.abstract import Float, Int, Limits, Size

LOW, HIGH = -8, 7
LIMITS: Final = Limits(LOW, HIGH, 4)
VALUES: Final = range(LOW, HIGH + 1)
INTERVALS: Final = [(low, high) for low in VALUES for high in range(low, HIGH + 1)]
Violations = Iterator[tuple[int, str]]


def saturate(value: int) -> int:
    return max(LOW, min(HIGH, value))


CONCRETE: Final[dict[str, Callable[[int, int], int]]] = {
    "IADD": lambda a, b: saturate(a + b),
    "ISUB": lambda a, b: saturate(a - b),
    "IMUL": lambda a, b: saturate(a * b),
    "IDIV": lambda a, b: saturate(math.floor(a / b)) if b else 0,
    "IMOD": lambda a, b: a - math.floor(a / b) * b if b else a,
    "IMIN": min,
    "IMAX": max,
    "INEG": lambda a, b: saturate(-a),
    "IABS": lambda a, b: saturate(abs(a)),
    "IAND": lambda a, b: a & b,
    "IOR": lambda a, b: a | b,
    "IXOR": lambda a, b: a ^ b,
    "ILT": lambda a, b: int(a < b),
    "ILE": lambda a, b: int(a <= b),
    "IEQ": lambda a, b: int(a == b),
    "INE": lambda a, b: int(a != b),
}


def _table(op: str) -> Any:
    return np.array([[CONCRETE[op](a, b) for b in VALUES] for a in VALUES])


def integers() -> Violations:
    """(pairs of intervals so far, what is wrong or "")."""
    count = 0
    for op, transfer in abstract.INTEGERS.items():
        table = _table(op)
        for al, ah in INTERVALS:
            rows = table[al - LOW : ah - LOW + 1]
            least, most = rows.min(axis=0), rows.max(axis=0)
            for bl, bh in INTERVALS:
                count += 1
                low, high = transfer(al, ah, bl, bh, LIMITS)
                span = slice(bl - LOW, bh - LOW + 1)
                real = int(least[span].min()), int(most[span].max())
                if low > real[0] or high < real[1] or (op in abstract.OPTIMAL and (low, high) != real):
                    yield count, f"{op} of [{al}, {ah}] and [{bl}, {bh}] gives [{low}, {high}], really {real}"
    yield count, ""


def narrowing() -> Violations:
    """What "<", "<=", "=" and "!=" leave of two intervals: all pairs that fulfil them; and no interval larger than that."""
    count = 0
    grid_a, grid_b = np.meshgrid(np.arange(LOW, HIGH + 1), np.arange(LOW, HIGH + 1), indexing="ij")
    relations = {"<": grid_a < grid_b, "<=": grid_a <= grid_b, "=": grid_a == grid_b, "!=": grid_a != grid_b}
    for relation, holds in relations.items():
        for (al, ah), (bl, bh) in itertools.product(INTERVALS, INTERVALS):
            count += 1
            block = holds[al - LOW : ah - LOW + 1, bl - LOW : bh - LOW + 1]
            ends = abstract.narrow(relation, al, ah, bl, bh)
            possible = ends[0] <= ends[1] and ends[2] <= ends[3]
            if not block.any():
                if possible:
                    yield count, f"[{al}, {ah}] {relation} [{bl}, {bh}] cannot be, and {ends} is left"
                continue
            left_a, left_b = np.flatnonzero(block.any(axis=1)), np.flatnonzero(block.any(axis=0))
            real = (al + left_a[0], al + left_a[-1], bl + left_b[0], bl + left_b[-1])
            if ends != real:
                yield count, f"[{al}, {ah}] {relation} [{bl}, {bh}] leaves {ends}, really {real}"
    yield count, ""


def facts() -> Violations:
    """Facts `value <= size - k`: of a result, whatever the size (0 to 7) and the operands that keep to their own facts."""
    count, size = 0, Size("size", HIGH)
    intervals = [(low, high) for low, high in INTERVALS if low >= -4 and high <= 5]
    for op in ("IADD", "ISUB", "IMIN", "IDIV", "IMOD", "IAND"):
        table = _table(op)
        for (al, ah), (bl, bh) in itertools.product(intervals, intervals):
            block = table[al - LOW : ah - LOW + 1, bl - LOW : bh - LOW + 1]
            for k, first in itertools.product((-2, 0, 1, 3), (True, False)):
                a = Int("a", al, ah, {size: k} if first else {})
                b = Int("b", bl, bh, {} if first else {size: k})
                told = abstract.facts_of(op, a, b, LIMITS).get(size)
                if told is None:
                    continue
                for n in range(HIGH + 1):
                    inside = block[: max(0, n - k - al + 1)] if first else block[:, : max(0, n - k - bl + 1)]
                    count += 1
                    if inside.size and int(inside.max()) > n - told:
                        yield count, f"{op} of {a} and {b}: {inside.max()} is above {n} - {told}"
    yield count, ""


ENDS: Final = (
    -math.inf,
    -1e300,
    -8.0,
    -1.0,
    -0.5,
    -5e-324,
    -0.0,
    0.0,
    5e-324,
    0.5,
    1.0,
    7.999,
    8.0,
    2.0**63,
    1e300,
    math.inf,
)
FLOAT_OPS: Final[dict[str, Callable[[float, float], float]]] = {
    "FADD": lambda a, b: a + b, "FSUB": lambda a, b: a - b, "FMUL": lambda a, b: a * b, "FDIV": scalars.divide,
    "FMIN": scalars.smaller, "FMAX": scalars.larger, "FNEG": lambda a, b: -a, "FABS": lambda a, b: abs(a),
    "FSQRT": lambda a, b: scalars.square_root(a), "FEXP": lambda a, b: fixedmath.exp(a), "FLOG": lambda a, b: fixedmath.log(a),
    "FFLOOR": lambda a, b: scalars.floor(a),
}  # fmt: skip
COMPARE: Final[dict[str, Callable[[float, float], bool]]] = {
    "FLT": lambda a, b: a < b, "FLE": lambda a, b: a <= b, "FEQ": lambda a, b: a == b, "FNE": lambda a, b: a != b,
}  # fmt: skip
RELATIONS: Final[dict[str, Callable[[float, float], bool]]] = {
    "<": lambda a, b: a < b, "<=": lambda a, b: a <= b, "=": lambda a, b: a == b,
    "!<": lambda a, b: not a < b, "!<=": lambda a, b: not a <= b,
}  # fmt: skip


def inside(parts: abstract.FloatParts, value: float) -> bool:
    low, high, nan = parts
    return nan if math.isnan(value) else low <= value <= high


def _draw(rng: random.Random) -> tuple[Float, list[float]]:
    """An abstract float, and values inside it: its ends, some between, NaN where it may be."""
    low, high = sorted((rng.choice(ENDS), rng.choice(ENDS)))
    nan = rng.random() < 0.5
    between = [x for x in ENDS if low <= x <= high]
    if math.isfinite(low) and math.isfinite(high):
        between += [min(max(rng.uniform(low / 2, high / 2) * 2, low), high)]
    return Float(None, low, high, nan), [
        low,
        high,
        *rng.sample(between, min(3, len(between))),
        *([math.nan] if nan else []),
    ]


def floats(count: int, seed: int = 0) -> Violations:
    """`count` draws of two abstract floats, through every float opcode and every narrowing."""
    rng = random.Random(seed)
    for number in range(1, count + 1):
        (a, some_a), (b, some_b) = _draw(rng), _draw(rng)
        results = {op: abstract.float_result(op, a, b) for op in FLOAT_OPS}
        outcomes = {op: abstract.float_compare(op, a, b) for op in COMPARE}
        narrowed = {relation: abstract.narrow_floats(relation, a, b) for relation in RELATIONS}
        low, high = abstract.to_int(a)
        for x, y in itertools.product(some_a, some_b):
            for op, concrete in FLOAT_OPS.items():
                if not inside(results[op], value := concrete(x, y)):
                    yield number, f"{op} of {a} and {b}: {x} and {y} give {value}, not in {results[op]}"
            for op, compare in COMPARE.items():
                if not outcomes[op][0] <= compare(x, y) <= outcomes[op][1]:
                    yield number, f"{op} of {a} and {b}: {x} and {y} give {compare(x, y)}, not in {outcomes[op]}"
            for relation, holds in RELATIONS.items():
                first, second = narrowed[relation]
                if holds(x, y) and not (inside(first, x) and inside(second, y)):
                    yield number, f"{a} {relation} {b} holds for {x}, {y}, which {first}, {second} leave out"
            if not low <= scalars.to_int(x) <= high:
                yield number, f"F2I of {a}: {x} gives {scalars.to_int(x)}, not in [{low}, {high}]"
            if math.isfinite(x) and not inside(abstract.narrow_finite(a), x):
                yield number, f"ISFINITE of {a} leaves out {x}"
        yield number, ""
