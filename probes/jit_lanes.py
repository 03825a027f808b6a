"""The run-time library of compiled programs, part two, as LLVM IR: the reductions.

Responsible for: the same order and the same roundings as `probes.lanes`: 64 accumulators at a time, element k into lane k mod 64,
folded 32, 16, 8, 4, 2, 1 apart. A lane function takes whole blocks of NARROW elements, of 64 when its accumulators stay in registers
(it rounds up); `drive` of `probes.jit_lib` feeds it.
Refuses: to reorder or fuse anything; what padding a reduction may see is stated where it is chosen.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final

from probes.isa import LANES
from probes.jit_ir import Function, constant, double, emit_exp, emit_log, floats, ints
from probes.jit_lib import CHUNK, DTYPES, F32, F64, ITEM_BYTES, NARROW, VIEW_WORDS, widen

_V64: Final = floats(LANES)


# --- lanes -------------------------------------------------------------------------------------------------------------

_LANE_ARGS: Final = "(ptr %acc, ptr %a, ptr %b, i64 %n, double %p, double %q)"
_Wide = Callable[[Function, str, str, str], str]
"""(function, accumulators, a, b) -> accumulators, each LANES doubles."""


def _blocks(f: Function) -> str:
    """Blocks of LANES that hold %n blocks of NARROW."""
    return f.op(f"lshr i64 {f.op(f'add i64 %n, {LANES // NARROW - 1}')}, {(LANES // NARROW).bit_length() - 1}")


def _wide_lanes(name: str, dtype: int, work: _Wide, pair: bool) -> Callable[[], str]:
    """A lane function whose accumulators stay in registers."""

    def text() -> str:
        f = Function(f"define hidden void @{name}_{DTYPES[dtype]}{_LANE_ARGS}")
        held = f.slot(_V64, 64)
        f.store(_V64, f.load(_V64, "%acc", 64), held, 64)
        with f.repeat(_blocks(f)) as i:
            offset = f.op(f"mul i64 {i}, {LANES * ITEM_BYTES[dtype]}")
            a = widen(f, dtype, f.at("%a", offset), LANES)
            b = widen(f, dtype, f.at("%b", offset), LANES) if pair else a
            f.store(_V64, work(f, f.load(_V64, held, 64), a, b), held, 64)
        f.store(_V64, f.load(_V64, held, 64), "%acc", 64)
        f.do("ret void")
        return f.text()

    return text


def _narrow_lanes(name: str, term: Callable[[Function, str, str], str], pair: bool) -> Callable[[], str]:
    """A lane function over doubles that adds a term costing an exp or a log, NARROW lanes at a time."""
    kind = floats(NARROW)

    def text() -> str:
        f = Function(f"define hidden void @{name}_float64{_LANE_ARGS}")
        with f.repeat("%n") as i:
            at = f.op(f"mul i64 {i}, {NARROW}")
            j = f.op(f"and i64 {at}, {LANES - 1}")
            a = f.load(kind, f.at("%a", at, "double"))
            b = f.load(kind, f.at("%b", at, "double")) if pair else a
            lane = f.at("%acc", j, "double")
            f.store(kind, f.op(f"fadd {kind} {f.load(kind, lane)}, {term(f, a, b)}"), lane)
        f.do("ret void")
        return f.text()

    return text


def _bit_count(name: str, dtype: int, test: Callable[[Function, str], str]) -> Callable[[], str]:
    """A lane function that counts elements; its count is the first word of the accumulators."""

    def text() -> str:
        f = Function(f"define hidden void @{name}_{DTYPES[dtype]}{_LANE_ARGS}")
        with f.repeat(_blocks(f)) as i:
            x = widen(f, dtype, f.at("%a", f.op(f"mul i64 {i}, {LANES * ITEM_BYTES[dtype]}")), LANES)
            mask = f.op(f"bitcast <{LANES} x i1> {test(f, x)} to i{LANES}")
            ones = f.op(f"call i64 @llvm.ctpop.i64(i64 {mask})")
            f.put("%acc", 0, f.op(f"add i64 {f.word('%acc', 0)}, {ones}"))
        f.do("ret void")
        return f.text()

    return text


def _absolute(f: Function, x: str) -> str:
    return f.op(f"call {_V64} @llvm.fabs.v{LANES}f64({_V64} {x})")


def _extreme(which: str) -> _Wide:
    name = f"@llvm.{which}.v{LANES}f64"
    return lambda f, acc, a, b: f.op(f"call {_V64} {name}({_V64} {acc}, {_V64} {a})")


def _absmax(f: Function, acc: str, a: str, b: str) -> str:
    # Without their sign doubles order as their bits do, a NaN above the infinities.
    n = ints(LANES)
    held, new = f.op(f"bitcast {_V64} {acc} to {n}"), f.op(f"bitcast {_V64} {_absolute(f, a)} to {n}")
    return f.op(f"bitcast {n} {f.op(f'call {n} @llvm.smax.v{LANES}i64({n} {held}, {n} {new})')} to {_V64}")


def _top(f: Function, acc: str, a: str, b: str) -> str:
    return f.select(f.op(f"fcmp ogt {_V64} {a}, {acc}"), _V64, a, acc, LANES)


_WIDE: Final[dict[str, tuple[_Wide, bool]]] = {
    "sum": (lambda f, acc, a, b: f.op(f"fadd {_V64} {acc}, {a}"), False),
    "sumsq": (lambda f, acc, a, b: f.op(f"fadd {_V64} {acc}, {f.op(f'fmul {_V64} {a}, {a}')}"), False),
    "dot": (lambda f, acc, a, b: f.op(f"fadd {_V64} {acc}, {f.op(f'fmul {_V64} {a}, {b}')}"), True),
    "absmax": (_absmax, False),
    "min": (_extreme("minimum"), False),
    "max": (_extreme("maximum"), False),
    "top": (_top, False),
}
_COUNTS: Final[dict[str, Callable[[Function, str], str]]] = {
    "countgt": lambda f, x: f.op(f"fcmp ogt {_V64} {x}, {f.spread('%p', LANES)}"),
    "countnf": lambda f, x: f.op(f"fcmp uge {_V64} {_absolute(f, x)}, {constant(math.inf, LANES)}"),
}
_K: Final = floats(NARROW)


def _zero_where(f: Function, condition: str, term: str) -> str:
    return f.select(condition, _K, constant(0.0, NARROW), term, NARROW)


def _entropy_term(f: Function, a: str, b: str) -> str:
    term = f.op(f"fmul {_K} {a}, {emit_log(f, a, NARROW)}")
    return _zero_where(f, f.op(f"fcmp ole {_K} {a}, {constant(0.0, NARROW)}"), term)


def _kl_term(f: Function, a: str, b: str) -> str:
    ratio = f.op(f"fsub {_K} {emit_log(f, a, NARROW)}, {emit_log(f, b, NARROW)}")
    term = f.op(f"fmul {_K} {a}, {ratio}")
    none = f.op(f"fcmp ole {_K} {b}, {constant(0.0, NARROW)}")
    term = f.select(none, _K, constant(math.inf, NARROW), term, NARROW)
    return _zero_where(f, f.op(f"fcmp ole {_K} {a}, {constant(0.0, NARROW)}"), term)


def _weight(f: Function, a: str) -> tuple[str, str]:
    """a - p and e to its power."""
    apart = f.op(f"fsub {_K} {a}, {f.spread('%p', NARROW)}")
    return apart, emit_exp(f, apart, NARROW)


def _entropyl_term(f: Function, a: str, b: str) -> str:
    _, weight = _weight(f, a)
    term = f.op(f"fmul {_K} {weight}, {a}")
    return _zero_where(f, f.op(f"fcmp oeq {_K} {weight}, {constant(0.0, NARROW)}"), term)


def _kll_term(f: Function, a: str, b: str) -> str:
    da, weight = _weight(f, a)
    db = f.op(f"fsub {_K} {b}, {f.spread('%q', NARROW)}")
    term = f.op(f"fmul {_K} {weight}, {f.op(f'fsub {_K} {da}, {db}')}")
    return _zero_where(f, f.op(f"fcmp oeq {_K} {weight}, {constant(0.0, NARROW)}"), term)


_NARROW: Final[dict[str, tuple[Callable[[Function, str, str], str], bool]]] = {
    "entropy": (_entropy_term, False),
    "kl": (_kl_term, True),
    "expsum": (lambda f, a, b: _weight(f, a)[1], False),
    "entropyl": (_entropyl_term, False),
    "kll": (_kll_term, True),
}


# --- reductions --------------------------------------------------------------------------------------------------------


def _accumulated(
    f: Function, lane: str, start: float, pads: tuple[float, float] = (0.0, 0.0), p: str = "", q: str = "", b: str = ""
) -> str:
    """Drive view %a (and `b`) through a lane function; returns the accumulators' slot."""
    acc = f.slot(_V64, 64)
    f.store(_V64, constant(start, LANES), acc, 64)
    f32 = "null" if lane in _NARROW else f"@{lane}_float32"
    zero = double(0.0)
    f.do(
        f"call void @drive(ptr %a, ptr {b or 'null'}, ptr {acc}, ptr @{lane}_float64, ptr {f32}, double {double(pads[0])}, "
        f"double {double(pads[1])}, double {p or zero}, double {q or zero})"
    )
    return acc


def _folded(f: Function, acc: str, how: Callable[[Function, str, str, int], str]) -> str:
    """Fold the lanes 32, 16, ... 1 apart."""
    value, width = f.load(_V64, acc, 64), LANES
    while width > 1:
        half = width // 2
        parts = []
        for start in (0, half):
            if half == 1:
                parts.append(f.op(f"extractelement {floats(width)} {value}, i64 {start}"))
                continue
            mask = ", ".join(f"i32 {start + i}" for i in range(half))
            kind = floats(width)
            parts.append(f.op(f"shufflevector {kind} {value}, {kind} poison, <{half} x i32> <{mask}>"))
        value, width = how(f, parts[0], parts[1], half), half
    return value


def _plus(f: Function, a: str, b: str, width: int) -> str:
    return f.op(f"fadd {floats(width)} {a}, {b}")


def _pick(which: str) -> Callable[[Function, str, str, int], str]:
    def fold(f: Function, a: str, b: str, width: int) -> str:
        suffix = f"v{width}f64" if width > 1 else "f64"
        kind = floats(width)
        return f.op(f"call {kind} @llvm.{which}.{suffix}({kind} {a}, {kind} {b})")

    return fold


def _above(f: Function, a: str, b: str, width: int) -> str:
    kind = floats(width)
    return f.select(f.op(f"fcmp ogt {kind} {b}, {a}"), kind, b, a, width)


def _simple(name: str, start: float, pad: float, how: Callable[[Function, str, str, int], str]) -> Callable[[], str]:
    def text() -> str:
        f = Function(f"define hidden double @r_{name}(ptr %a)")
        f.do(f"ret double {_folded(f, _accumulated(f, name, start, (pad, 0.0)), how)}")
        return f.text()

    return text


def _mean() -> str:
    f = Function("define hidden double @r_mean(ptr %a)")
    total = f.op("call double @r_sum(ptr %a)")
    n = f.op(f"sitofp i64 {f.op('call i64 @count(ptr %a)')} to double")
    f.do(f"ret double {f.op(f'fdiv double {total}, {n}')}")
    return f.text()


def _pair(name: str) -> Callable[[], str]:
    def text() -> str:
        f = Function(f"define hidden double @r_{name}(ptr %a, ptr %b)")
        if name == "kll":
            p, q = f.op("call double @r_lse(ptr %a)"), f.op("call double @r_lse(ptr %b)")
            acc = _accumulated(f, name, 0.0, (-math.inf, 0.0), p, q, "%b")
        else:
            acc = _accumulated(f, name, 0.0, b="%b")
        f.do(f"ret double {_folded(f, acc, _plus)}")
        return f.text()

    return text


def _entropy() -> str:
    f = Function("define hidden double @r_entropy(ptr %a)")
    total = _folded(f, _accumulated(f, "entropy", 0.0), _plus)
    f.do(f"ret double {f.op(f'fsub double {double(0.0)}, {total}')}")
    return f.text()


def _lse() -> str:
    f = Function("define hidden double @r_lse(ptr %a)")
    m = f.op("call double @r_max(ptr %a)")
    inside, after = f.name("finite"), f.name("other")
    size = f.op(f"call double @llvm.fabs.f64(double {m})")
    f.do(f"br i1 {f.op(f'fcmp olt double {size}, {double(math.inf)}')}, label %{inside}, label %{after}")
    f.label(inside)
    total = _folded(f, _accumulated(f, "expsum", 0.0, (-math.inf, 0.0), m), _plus)
    tail = f.op(f"call double @log1(double {total})")
    f.do(f"ret double {f.op(f'fadd double {m}, {tail}')}")
    f.label(after)
    f.do(f"ret double {m}")
    return f.text()


def _entropyl() -> str:
    f = Function("define hidden double @r_entropyl(ptr %a)")
    whole = f.op("call double @r_lse(ptr %a)")
    total = _folded(f, _accumulated(f, "entropyl", 0.0, (-math.inf, 0.0), whole), _plus)
    f.do(f"ret double {f.op(f'fsub double {whole}, {total}')}")
    return f.text()


def _counted(name: str, pad: float) -> Callable[[], str]:
    def text() -> str:
        f = Function(f"define hidden i64 @r_{name}(ptr %a, double %p)")
        f.do(f"ret i64 {f.word(_accumulated(f, name, 0.0, (pad, 0.0), '%p'), 0)}")
        return f.text()

    return text


def _argmax() -> str:
    """Two passes: the largest number, then where it stands first."""
    f = Function("define hidden i64 @r_argmax(ptr %a)")
    top = _folded(f, _accumulated(f, "top", -math.inf, (math.nan, 0.0)), _above)
    ready, chunk = f.slot(f"[{VIEW_WORDS} x i64]"), f.slot(f"[{CHUNK} x double]", 64)
    f.do(f"call void @ready(ptr %a, ptr {ready})")
    n = f.word(ready, 0)
    with f.repeat(n, CHUNK) as start:
        size = f.op(f"call i64 @llvm.smin.i64(i64 {CHUNK}, i64 {f.op(f'sub i64 {n}, {start}')})")
        f.do(f"call void @fill(ptr {ready}, i64 {start}, i64 {size}, ptr {chunk}, double {double(0.0)})")
        with f.repeat(size) as i:
            x = f.load("double", f.at(chunk, i, "double"))
            with f.when(f.op(f"fcmp oeq double {x}, {top}")):
                found, dead = f.op(f"add i64 {start}, {i}"), f.name("dead")
                f.do(f"ret i64 {found}")
                f.label(dead)
    f.do("ret i64 0")
    return f.text()


def _parts() -> dict[str, Callable[[], str]]:
    parts: dict[str, Callable[[], str]] = {
        "r_mean": _mean,
        "r_lse": _lse,
        "r_entropyl": _entropyl,
        "r_entropy": _entropy,
        "r_argmax": _argmax,
        "r_dot": _pair("dot"),
        "r_kl": _pair("kl"),
        "r_kll": _pair("kll"),
    }
    for name, (work, pair) in _WIDE.items():
        for dtype in (F32, F64):
            parts[f"{name}_{DTYPES[dtype]}"] = _wide_lanes(name, dtype, work, pair)
    for name, test in _COUNTS.items():
        for dtype in (F32, F64):
            parts[f"{name}_{DTYPES[dtype]}"] = _bit_count(name, dtype, test)
    for name, (term, pair) in _NARROW.items():
        parts[f"{name}_float64"] = _narrow_lanes(name, term, pair)
    for name, start, pad, how in (
        ("sum", 0.0, 0.0, _plus),
        ("sumsq", 0.0, 0.0, _plus),
        ("absmax", 0.0, 0.0, _pick("maximum")),
        ("min", math.inf, math.inf, _pick("minimum")),
        ("max", -math.inf, -math.inf, _pick("maximum")),
    ):
        parts[f"r_{name}"] = _simple(name, start, pad, how)
    for name, pad in (("countgt", math.nan), ("countnf", 0.0)):
        parts[f"r_{name}"] = _counted(name, pad)
    return parts


PARTS: Final = _parts()
"""The library's modules, by name, without the declarations of what they call."""
