"""Arithmetic on constants, exactly as the instruction table says it.

Responsible for: `fold`, the value of a scalar instruction of constants, so that a folded program and an unfolded one give the
same bits. Refuses to fold what it may not: a result that is NaN (no constant can be), and `FEXP` and `FLOG`, whose polynomials
belong to the machines.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Final

from probes import scalars
from probes.scalars import saturate

Number = int | float


_FOLDS: Final[dict[str, Callable[..., Any]]] = {
    "IADD": lambda a, b: saturate(a + b),
    "ISUB": lambda a, b: saturate(a - b),
    "IMUL": lambda a, b: saturate(a * b),
    "IDIV": scalars.floor_div,
    "IMOD": scalars.floor_mod,
    "IMIN": min,
    "IMAX": max,
    "INEG": lambda a: saturate(-a),
    "IABS": lambda a: saturate(abs(a)),
    "IAND": lambda a, b: a & b,
    "IOR": lambda a, b: a | b,
    "IXOR": lambda a, b: a ^ b,
    "ILT": lambda a, b: int(a < b),
    "ILE": lambda a, b: int(a <= b),
    "IEQ": lambda a, b: int(a == b),
    "INE": lambda a, b: int(a != b),
    "FADD": lambda a, b: a + b,
    "FSUB": lambda a, b: a - b,
    "FMUL": lambda a, b: a * b,
    "FDIV": scalars.divide,
    "FNEG": lambda a: -a,
    "FABS": abs,
    "FMIN": scalars.smaller,
    "FMAX": scalars.larger,
    "FSQRT": scalars.square_root,
    "FFLOOR": scalars.floor,
    "FLT": lambda a, b: int(a < b),
    "FLE": lambda a, b: int(a <= b),
    "FEQ": lambda a, b: int(a == b),
    "FNE": lambda a, b: int(a != b),
    "ISFINITE": lambda a: int(math.isfinite(a)),
    "F2I": scalars.to_int,
    "I2F": float,
}


def fold(name: str, *operands: Number) -> Number | None:
    """The result of an instruction of constants, or None where it must be left to the machine."""
    rule = _FOLDS.get(name)
    if rule is None:
        return None
    result: Number = rule(*operands)
    return None if result != result else result  # noqa: PLR0124 - a NaN
