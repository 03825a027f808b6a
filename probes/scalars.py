"""The scalar instructions of oBPF that Python does otherwise: saturation, floor division, IEEE division, ordered minima.

Responsible for: one exact rule per function, shared by the interpreter and the compilers' constant folding. Standard library only.
Refuses: to raise; every function is total, as the instructions are. exp and log are in `probes.fixedmath`.
"""

from __future__ import annotations

import math

from probes.isa import I64_MAX, I64_MIN


def saturate(n: int) -> int:
    """The nearest 64-bit integer."""
    return I64_MIN if n < I64_MIN else min(n, I64_MAX)


def floor_div(a: int, b: int) -> int:
    """IDIV."""
    return saturate(a // b) if b else 0


def floor_mod(a: int, b: int) -> int:
    """IMOD."""
    return a % b if b else a


def divide(a: float, b: float) -> float:
    """FDIV: IEEE division, which Python refuses at 0."""
    if b != 0.0:
        return a / b
    if a == 0.0 or a != a:  # noqa: PLR0124 - a NaN
        return math.nan
    return math.copysign(math.inf, a) * math.copysign(1.0, b)


def smaller(a: float, b: float) -> float:
    """FMIN."""
    if a != a or b != b:  # noqa: PLR0124 - a NaN
        return math.nan
    if a == b:
        return a if math.copysign(1.0, a) < 0 else b
    return a if a < b else b


def larger(a: float, b: float) -> float:
    """FMAX."""
    if a != a or b != b:  # noqa: PLR0124 - a NaN
        return math.nan
    if a == b:
        return b if math.copysign(1.0, a) < 0 else a
    return a if a > b else b


def square_root(a: float) -> float:
    """FSQRT."""
    return math.sqrt(a) if a >= 0.0 else math.nan


def floor(a: float) -> float:
    """FFLOOR; the sign of a zero stays."""
    return math.copysign(float(math.floor(a)), a) if abs(a) < 2.0**52 else a


def to_int(a: float) -> int:
    """F2I."""
    if a != a:  # noqa: PLR0124 - a NaN
        return 0
    if a in (math.inf, -math.inf):
        return I64_MAX if a > 0 else I64_MIN
    return saturate(int(a))
