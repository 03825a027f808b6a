"""Writing LLVM IR as text: functions, temporaries, blocks, and the fixed exp and log as vectors of any width.

Responsible for: the shapes that the run-time library and the program's code share: loops over stack slots (LLVM makes registers of
them), branches, vector constants. No fast-math flag is ever written, so nothing is reordered or fused. Standard library only.
Refuses: to know anything of bytecode; that is `probes.jit_code`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from probes import fixedmath

ATTRIBUTES = 'attributes #0 = { nounwind "no-builtins" }'


def double(x: float) -> str:
    """A double literal, exact."""
    return f"0x{fixedmath.bits(x) & 0xFFFFFFFFFFFFFFFF:016X}"


def floats(width: int) -> str:
    """The type of `width` doubles; 1 is the scalar."""
    return f"<{width} x double>" if width > 1 else "double"


def ints(width: int, bits: int = 64) -> str:
    """The type of `width` integers; 1 is the scalar."""
    return f"<{width} x i{bits}>" if width > 1 else f"i{bits}"


class Function:
    """One function being written, from its entry block on."""

    def __init__(self, head: str) -> None:
        self.head = head
        self._slots: list[str] = []
        self._lines: list[str] = []
        self._count = 0

    def text(self) -> str:
        """The whole definition."""
        return "\n".join(
            [f"{self.head} #0 {{", "entry:", *self._slots, "  br label %begin", "begin:", *self._lines, "}"]
        )

    def name(self, stem: str = "t") -> str:
        """A fresh name without its sigil."""
        self._count += 1
        return f"{stem}{self._count}"

    def op(self, text: str) -> str:
        """An instruction with a result; returns its name."""
        name = f"%{self.name()}"
        self._lines.append(f"  {name} = {text}")
        return name

    def do(self, text: str) -> None:
        """An instruction without a result."""
        self._lines.append(f"  {text}")

    def label(self, name: str) -> None:
        """Begin a block."""
        self._lines.append(f"{name}:")

    def slot(self, kind: str, align: int = 8) -> str:
        """A stack slot, made once at entry."""
        name = f"%{self.name('s')}"
        self._slots.append(f"  {name} = alloca {kind}, align {align}")
        return name

    def load(self, kind: str, pointer: str, align: int = 8) -> str:
        """Load a value."""
        return self.op(f"load {kind}, ptr {pointer}, align {align}")

    def store(self, kind: str, value: str, pointer: str, align: int = 8) -> None:
        """Store a value."""
        self.do(f"store {kind} {value}, ptr {pointer}, align {align}")

    def at(self, pointer: str, offset: str | int, kind: str = "i8") -> str:
        """Address of the element `offset` of type `kind` from `pointer` on."""
        return self.op(f"getelementptr {kind}, ptr {pointer}, i64 {offset}")

    def word(self, pointer: str, index: int | str) -> str:
        """An 8-byte integer of a table of them."""
        return self.load("i64", self.at(pointer, index, "i64"))

    def put(self, pointer: str, index: int | str, value: str | int) -> None:
        """Store an 8-byte integer into a table of them."""
        self.store("i64", str(value), self.at(pointer, index, "i64"))

    def bump(self, pointer: str, index: int) -> None:
        """Add one to an 8-byte integer of a table."""
        self.put(pointer, index, self.op(f"add i64 {self.word(pointer, index)}, 1"))

    @contextmanager
    def when(self, condition: str) -> Iterator[None]:
        """A block that runs when `condition` holds."""
        inside, after = self.name("then"), self.name("after")
        self.do(f"br i1 {condition}, label %{inside}, label %{after}")
        self.label(inside)
        yield
        self.do(f"br label %{after}")
        self.label(after)

    @contextmanager
    def repeat(self, count: str, step: int = 1) -> Iterator[str]:
        """A loop; gives the counter, which is below `count`."""
        head, body, after = self.name("head"), self.name("body"), self.name("after")
        slot = self.slot("i64")
        self.store("i64", "0", slot)
        self.do(f"br label %{head}")
        self.label(head)
        i = self.load("i64", slot)
        self.do(f"br i1 {self.op(f'icmp slt i64 {i}, {count}')}, label %{body}, label %{after}")
        self.label(body)
        yield i
        self.store("i64", self.op(f"add i64 {self.load('i64', slot)}, {step}"), slot)
        self.do(f"br label %{head}")
        self.label(after)

    def select(self, condition: str, kind: str, yes: str, no: str, width: int = 1) -> str:
        """One of two values, or of each pair of elements."""
        bit = f"<{width} x i1>" if width > 1 else "i1"
        return self.op(f"select {bit} {condition}, {kind} {yes}, {kind} {no}")

    def spread(self, value: str, width: int) -> str:
        """A vector of one value of type double."""
        if width == 1:
            return value
        one = self.op(f"insertelement {floats(width)} poison, double {value}, i64 0")
        return self.op(f"shufflevector {floats(width)} {one}, {floats(width)} poison, <{width} x i32> zeroinitializer")

    def horner(self, coefficients: tuple[float, ...], x: str, width: int) -> str:
        """A polynomial, highest power first."""
        kind = floats(width)
        value = constant(coefficients[-1], width)
        for c in coefficients[-2::-1]:
            value = self.op(f"fmul {kind} {value}, {x}")
            value = self.op(f"fadd {kind} {value}, {constant(c, width)}")
        return value


def constant(x: float, width: int) -> str:
    """A double constant, or a vector of it."""
    return double(x) if width == 1 else f"splat (double {double(x)})"


def integer(n: int, width: int) -> str:
    """An i64 constant, or a vector of it."""
    return str(n) if width == 1 else f"splat (i64 {n})"


def emit_exp(f: Function, x: str, width: int) -> str:
    """`fixedmath.exp` of `width` doubles."""
    d, n = floats(width), ints(width)

    def two(op: str, a: str, b: str | float) -> str:
        return f.op(f"{op} {d} {a}, {constant(b, width) if isinstance(b, float) else b}")

    def whole(op: str, a: str, b: str | int) -> str:
        return f.op(f"{op} {n} {a}, {integer(b, width) if isinstance(b, int) else b}")

    def power(k: str) -> str:
        return f.op(f"bitcast {n} {whole('shl', whole('add', k, 1023), 52)} to {d}")

    low = f.select(two("fcmp olt", x, fixedmath.EXP_LOW), d, constant(fixedmath.EXP_LOW, width), x, width)
    x = f.select(two("fcmp ogt", x, fixedmath.EXP_HIGH), d, constant(fixedmath.EXP_HIGH, width), low, width)
    shifted = two("fadd", two("fmul", x, fixedmath.INV_LN2), fixedmath.ROUND)
    k = whole("sub", f.op(f"bitcast {d} {shifted} to {n}"), fixedmath.ROUND_BITS)
    near = two("fsub", shifted, fixedmath.ROUND)
    r = two("fsub", two("fsub", x, two("fmul", near, fixedmath.LN2_HI)), two("fmul", near, fixedmath.LN2_LO))
    q = f.horner(fixedmath.EXP_Q, r, width)
    y = two("fadd", two("fadd", r, two("fmul", two("fmul", r, r), q)), 1.0)
    half = whole("ashr", k, 1)
    return two("fmul", two("fmul", y, power(half)), power(whole("sub", k, half)))


def emit_log(f: Function, x: str, width: int) -> str:
    """`fixedmath.log` of `width` doubles."""
    d, n = floats(width), ints(width)

    def two(op: str, a: str, b: str | float) -> str:
        return f.op(f"{op} {d} {a}, {constant(b, width) if isinstance(b, float) else b}")

    def whole(op: str, a: str, b: str | int) -> str:
        return f.op(f"{op} {n} {a}, {integer(b, width) if isinstance(b, int) else b}")

    small = two("fcmp olt", x, fixedmath.SMALLEST_NORMAL)
    scaled = f.select(small, d, two("fmul", x, fixedmath.TWO_54), x, width)
    m = whole("add", f.op(f"bitcast {d} {scaled} to {n}"), fixedmath.ONE_BITS - fixedmath.SQRT_HALF_BITS)
    lift = f.select(small, n, integer(-54 - 1023, width), integer(-1023, width), width)
    k = whole("add", whole("ashr", m, 52), lift)
    # An integer added to the bits of 1.5 * 2^52 is that integer after the subtraction: exact, and cheap as a vector.
    near = two("fsub", f.op(f"bitcast {n} {whole('add', k, fixedmath.ROUND_BITS)} to {d}"), fixedmath.ROUND)
    mantissa = whole("add", whole("and", m, fixedmath.MANTISSA_MASK), fixedmath.SQRT_HALF_BITS)
    t = two("fsub", f.op(f"bitcast {n} {mantissa} to {d}"), 1.0)
    ratio = two("fdiv", t, two("fadd", t, 2.0))
    z = two("fmul", ratio, ratio)
    p = f.horner(fixedmath.LOG_P, z, width)
    half = two("fmul", two("fmul", t, t), 0.5)
    inner = two("fadd", two("fmul", ratio, two("fadd", half, two("fmul", z, p))), two("fmul", near, fixedmath.LN2_LO))
    tail = two("fsub", t, two("fsub", half, inner))
    y = two("fadd", two("fmul", near, fixedmath.LN2_HI), tail)
    inf, nan = constant(fixedmath.INF, width), constant(fixedmath.NAN, width)
    zero = f.select(two("fcmp oeq", x, 0.0), d, constant(-fixedmath.INF, width), nan, width)
    y = f.select(two("fcmp ogt", x, 0.0), d, y, zero, width)
    return f.select(two("fcmp oeq", x, fixedmath.INF), d, inf, y, width)
