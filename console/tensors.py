"""Arithmetic on stored tensors, with numpy and nothing heavier.

Responsible for: the comparison that `recuros kfs diff` prints. Refuses: to call equal what is not; two items are the same when
their bits are, so a NaN that stays itself has not changed and 0.0 that became -0.0 has.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from kfs.diff import Change
from kfs.store import Stored
from syscalls.errors import RecurosError

CHUNK_ITEMS: Final = 1 << 20
Values = NDArray[Any]


def _bf16(bits: Values) -> Values:
    """bfloat16 is the upper half of a float32; numpy has no such type."""
    return (bits.astype(np.uint32) << 16).view(np.float32).astype(np.float64)


def _plain(kind: str) -> Callable[[Values], Values]:
    return lambda bits: bits.view(kind).astype(np.float64)


# dtype -> (numpy's unsigned integer of that width, bits -> float64); without the second the items are compared, not subtracted.
_FORMS: Final[dict[str, tuple[str, Callable[[Values], Values] | None]]] = {
    "F64": ("<u8", _plain("<f8")),
    "F32": ("<u4", _plain("<f4")),
    "F16": ("<u2", _plain("<f2")),
    "BF16": ("<u2", _bf16),
    "I64": ("<u8", _plain("<i8")),
    "U64": ("<u8", _plain("<u8")),
    "I32": ("<u4", _plain("<i4")),
    "U32": ("<u4", _plain("<u4")),
    "I16": ("<u2", _plain("<i2")),
    "U16": ("<u2", _plain("<u2")),
    "I8": ("u1", _plain("i1")),
    "U8": ("u1", _plain("u1")),
    "BOOL": ("u1", _plain("u1")),
    "F8_E5M2": ("u1", None),
    "F8_E4M3": ("u1", None),
    "F8_E8M0": ("u1", None),
    "C64": ("<u8", None),
}


def compare(a: Stored, b: Stored) -> Change:
    """See `kfs.diff.Change`; both of one dtype and shape. Works in pieces, so memory stays flat."""
    if a.dtype not in _FORMS:
        raise RecurosError("E2-LIMIT", f"tensors of dtype {a.dtype} cannot be compared")
    bits, to_float = _FORMS[a.dtype]
    left, right = (np.frombuffer(x.data, dtype=bits) for x in (a, b))
    changed = not_finite = 0
    squares: list[float] = []
    highest = 0.0
    for start in range(0, len(left), CHUNK_ITEMS):
        one, other = left[start : start + CHUNK_ITEMS], right[start : start + CHUNK_ITEMS]
        where = one != other
        count = int(where.sum())
        changed += count
        if not count or to_float is None:
            continue
        first, second = to_float(one[where]), to_float(other[where])
        finite = np.isfinite(first) & np.isfinite(second)
        not_finite += count - int(finite.sum())
        gap = np.abs(second[finite] - first[finite])
        if len(gap):
            top = float(gap.max())
            highest = max(highest, top)
            # Scaled, so that squares of very large or very small differences neither overflow nor vanish.
            squares.append(top * math.sqrt(float(np.square(gap / top).sum())) if top > 0 else 0.0)
    if to_float is None:
        return Change(len(left), changed, None, None)
    return Change(len(left), changed, math.hypot(*squares), highest, not_finite)
