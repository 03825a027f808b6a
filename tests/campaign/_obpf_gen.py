"""A seeded generator of oBPF programs that know what they do: most follow the rules closely, some break one, by a little.

`program(rng)` builds blocks, indices and keys the way a compiler or an attacker would: loops over shapes, guards, clamps, modulo,
clamped floats, with bounds that are now and then off by one, registers that may not be written and views that were mixed up.
At least three in ten are accepted by the verifier under `contract(hook)`, whose sizes are so small that runs touch every bound.
`inputs(rng, hook)` makes views for a firing: sizes from 0 or 1 up to the contract's, NaN, infinities, strided, several dtypes.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

import numpy as np

from probes import isa, vm
from probes.isa import BY_NAME, Bytecode, Instruction, MapKind, MapSpec

DIMS: Final = {
    "rows": 5, "width": 4, "batch": 2, "heads": 3, "queries": 3, "keys": 4, "classes": 4, "hidden_rows": 5, "student_width": 4,
    "teacher_width": 6, "cols": 4,
}  # fmt: skip
"""Largest sizes of the contract that generated programs are verified for."""
HOOKS: Final = (
    "on_forward",
    "on_forward",
    "on_attention",
    "on_kd_step",
    "on_kd_step",
    "on_grad",
    "on_prune",
    "on_snapshot",
)
RIGHTS: Final = ("read-trace",)
_EDGES: Final = (0, 1, 2, 3, 4, 7, 8, -1, -2, -8, 63, isa.I64_MAX, isa.I64_MIN, isa.I64_MAX - 1, isa.I64_MIN + 1)
_FLOAT_EDGES: Final = (
    0.0,
    -0.0,
    1.0,
    -1.0,
    0.5,
    7.0,
    7.999,
    8.0,
    1e300,
    -1e300,
    5e-324,
    float("inf"),
    float("-inf"),
    2.0**63,
)
_INT_OPS: Final = [op for op in isa.OPS if 0x20 <= op.nr <= 0x2F]
_FLOAT_OPS: Final = [op for op in isa.OPS if 0x30 <= op.nr <= 0x3B]
_FLOAT_TESTS: Final = [op for op in isa.OPS if 0x3C <= op.nr <= 0x3F]
_REDUCTIONS: Final = [op for op in isa.OPS if 0x60 <= op.nr < 0x70]


def contract(hook: str) -> isa.Contract:
    """The contract that generated programs are for."""
    return isa.Contract(hook, dict(DIMS))


class Maker:
    """One program under construction: what is defined in this block, and what each view and counter is."""

    def __init__(self, rng: random.Random, hook: str, careless: float) -> None:
        self.rng = rng
        self.hook = hook
        self.careless = careless
        self.code: list[Instruction] = []
        self.ints: set[int] = set()
        self.floats: set[int] = set()
        self.views: dict[int, tuple[str, ...]] = {}
        self.counters: dict[int, str] = {}
        self.loops = 0
        self.fresh = 0
        self.maps = (
            MapSpec("cells", MapKind.ARRAY, rng.choice((1, 4, 8))),
            MapSpec("sites", MapKind.ARRAY, rng.choice((3, 8)), per_site=True),
            MapSpec("keys", MapKind.HASH, rng.choice((1, 4))),
            MapSpec("octaves", MapKind.LOG2),
            MapSpec("bins", MapKind.LINEAR, 4, low=-1.0, high=1.0),
            MapSpec("ring", MapKind.RING, rng.choice((1, 4))),
            MapSpec("cka", MapKind.ARRAY, 7, per_site=True),
        )

    # --- registers -----------------------------------------------------------------------------------------------------
    def emit(self, name: str, d: int = 0, a: int = 0, b: int = 0, aux: int = 0, imm: int | float = 0) -> None:
        self.code.append(Instruction(BY_NAME[name], d, a, b, aux, imm))

    def slip(self) -> bool:
        """Once in a while, do it wrong."""
        return self.rng.random() < self.careless

    def new_int(self) -> int:
        free = [r for r in range(isa.INT_REGS) if r not in self.counters]
        register = self.rng.randrange(isa.INT_REGS) if self.slip() else self.rng.choice(free)
        self.ints.add(register)
        return register

    def new_float(self) -> int:
        register = self.rng.randrange(isa.FLOAT_REGS)
        self.floats.add(register)
        return register

    def new_view(self, dims: tuple[str, ...]) -> int:
        register = self.rng.randrange(isa.VIEW_REGS)
        self.views[register] = dims
        return register

    def an_int(self) -> int:
        if self.slip():
            return self.rng.randrange(isa.INT_REGS)
        if not self.ints or self.rng.random() < 0.2:
            value = self.rng.choice(_EDGES) if self.rng.random() < 0.6 else self.rng.randrange(-20, 20)
            return self.constant(value)
        return self.rng.choice(sorted(self.ints))

    def constant(self, value: int) -> int:
        register = self.new_int()
        self.emit("ICONST", register, imm=value)
        return register

    def a_float(self) -> int:
        if self.slip():
            return self.rng.randrange(isa.FLOAT_REGS)
        if not self.floats or self.rng.random() < 0.15:
            value = self.rng.choice(_FLOAT_EDGES) if self.rng.random() < 0.5 else self.rng.uniform(-20, 20)
            return self.float_constant(value)
        return self.rng.choice(sorted(self.floats))

    def float_constant(self, value: float) -> int:
        register = self.new_float()
        self.emit("FCONST", register, imm=value)
        return register

    def a_view(self, least: int = 1, most: int = isa.RANK_MAX) -> int | None:
        fit = [r for r, dims in sorted(self.views.items()) if least <= len(dims) <= most]
        if self.slip() and self.views:
            return self.rng.choice(sorted(self.views))
        return self.rng.choice(fit) if fit else None

    # --- blocks --------------------------------------------------------------------------------------------------------
    @contextmanager
    def scope(self) -> Iterator[None]:
        ints, floats, views, counters = set(self.ints), set(self.floats), dict(self.views), dict(self.counters)
        yield
        # What the block wrote anew is not defined after it; a view that it replaced may be another one now.
        self.ints, self.floats, self.counters = ints, floats, counters
        self.views = {r: dims for r, dims in views.items() if self.views.get(r) == dims}

    def block(self, statements: int) -> None:
        for _ in range(statements):
            self.statement()

    def statement(self) -> None:
        choices: list[tuple[int, Callable[[], None]]] = [
            (4, self.argument), (3, self.arithmetic), (3, self.float_arithmetic), (2, self.compare_floats), (2, self.context),
            (6, self.index), (4, self.reduce), (3, self.pair), (5, self.map), (2, self.cut), (2, self.call), (2, self.move),
            (3, self.dim), (2, self.convert), (1, self.accumulate),
        ]  # fmt: skip
        if len(self.code) < 120:
            choices += [(4, self.condition), (5, self.loop), (2, self.walk), (1, self.shrink)]
        weights = [weight for weight, _ in choices]
        self.rng.choices([act for _, act in choices], weights)[0]()

    def argument(self) -> None:
        specs = isa.HOOK_VIEWS[self.hook]
        if not specs and not self.slip():
            return
        number = self.rng.randrange(16) if self.slip() or not specs else self.rng.randrange(len(specs))
        dims = specs[number].dims if number < len(specs) else ("rows",)
        self.emit("VARG", self.new_view(dims), aux=number)

    def arithmetic(self) -> None:
        op = self.rng.choice(_INT_OPS)
        a = self.an_int()
        b = self.an_int() if op.b is isa.Operand.INT else 0
        self.emit(op.name, self.new_int(), a, b)

    def float_arithmetic(self) -> None:
        op = self.rng.choice(_FLOAT_OPS)
        a = self.a_float()
        b = self.a_float() if op.b is isa.Operand.FLOAT else 0
        self.emit(op.name, self.new_float(), a, b)

    def compare_floats(self) -> None:
        a, b = self.a_float(), self.a_float()
        self.emit(self.rng.choice(_FLOAT_TESTS).name, self.new_int(), a, b)

    def context(self) -> None:
        if self.rng.random() < 0.3:
            self.emit("CTXF", self.new_float(), aux=self.rng.randrange(len(isa.CONTEXT_FLOATS)))
        else:
            self.emit("CTXI", self.new_int(), aux=self.rng.randrange(len(isa.CONTEXT_INTS)))

    def move(self) -> None:
        if self.rng.random() < 0.5:
            a = self.an_int()
            self.emit("IMOV", self.new_int(), a)
        elif (view := self.a_view()) is not None:
            self.emit("VMOV", self.new_view(self.views[view]), view)

    def convert(self) -> None:
        match self.rng.randrange(3):
            case 0:
                a = self.a_float()
                self.emit("F2I", self.new_int(), a)
            case 1:
                a = self.an_int()
                self.emit("I2F", self.new_float(), a)
            case _:
                a = self.a_float()
                self.emit("ISFINITE", self.new_int(), a)

    def accumulate(self) -> None:
        """A register that a loop changes: one that was written before it."""
        if self.ints and self.rng.random() < 0.5:
            free = sorted(self.ints - set(self.counters))
            if free:
                register = self.rng.choice(free)
                self.emit(self.rng.choice(("IADD", "ISUB", "IMIN", "IMAX", "IMUL")), register, register, self.an_int())
        elif self.floats:
            register = self.rng.choice(sorted(self.floats))
            self.emit(self.rng.choice(("FADD", "FMUL", "FMIN", "FMAX")), register, register, self.a_float())

    def dim(self) -> None:
        view = self.a_view()
        if view is not None:
            self.size(view, self.rng.randrange(len(self.views[view])))

    def size(self, view: int, axis: int) -> int:
        if self.slip():
            axis = self.rng.randrange(isa.RANK_MAX)
        register = self.new_int()
        self.emit("DIM", register, view, aux=axis)
        return register

    # --- control -------------------------------------------------------------------------------------------------------
    def test(self) -> int:
        """A register that says yes or no."""
        match self.rng.randrange(6):
            case 0:
                return self.an_int()
            case 1:
                a, b = self.a_float(), self.a_float()
                register = self.new_int()
                self.emit(self.rng.choice(_FLOAT_TESTS).name, register, a, b)
                return register
            case 2:
                first, second = self.relation(), self.relation()
                register = self.new_int()
                self.emit(self.rng.choice(("IAND", "IOR", "IXOR")), register, first, second)
                return register
            case 3:
                inner = self.relation()
                register = self.new_int()
                self.emit(self.rng.choice(("IEQ", "INE")), register, inner, self.constant(0))
                return register
        return self.relation()

    def relation(self) -> int:
        a, b = self.an_int(), self.an_int()
        register = self.new_int()
        self.emit(self.rng.choice(("ILT", "ILE", "IEQ", "INE")), register, a, b)
        return register

    @contextmanager
    def when(self, register: int) -> Iterator[None]:
        self.emit("IF", a=register)
        with self.scope():
            yield
        if self.rng.random() < 0.3:
            self.emit("ELSE")
            with self.scope():
                self.block(self.rng.randrange(1, 3))
        self.emit("ENDIF")

    def condition(self) -> None:
        with self.when(self.test()):
            self.block(self.rng.randrange(1, 4))
            if self.rng.random() < 0.08:
                self.emit("EXIT")

    def loop(self) -> None:
        if self.loops >= isa.NESTING_MAX and not self.slip():
            return
        symbol = ""
        view = self.a_view()
        how = self.rng.random()
        if view is not None and how < 0.7:
            axis = self.rng.randrange(len(self.views[view]))
            symbol = self.views[view][axis]
            bound = self.size(view, axis)
            if how < 0.15:
                limit = self.constant(self.rng.randrange(1, 6))
                capped = self.new_int()
                self.emit("IMIN", capped, bound, limit)
                bound = capped
        elif how < 0.95:
            bound = self.constant(self.rng.randrange(-1, 5))
        else:
            bound = self.an_int()
        with self.scope():
            counter = self.new_int()
            self.emit("FOR", counter, bound)
            self.counters[counter] = symbol
            self.ints.add(counter)
            self.loops += 1
            self.block(self.rng.randrange(1, 5))
            self.loops -= 1
            self.emit("ENDFOR")
        self.ints.discard(counter)

    def walk(self) -> None:
        """A key that a loop moves and clamps: its bounds are found only after widening has gone too far."""
        number = self.rng.choice((0, 1))
        top = self.maps[number].size - 1 + (1 if self.slip() else 0)
        key, one, limit = self.constant(0), self.constant(1), self.constant(top)
        if len({key, one, limit}) < 3 or self.loops >= isa.NESTING_MAX or {key, one, limit} & set(self.counters):
            return
        turned = self.rng.random() < 0.3
        if turned:
            self.emit("ICONST", limit, imm=top + 1)
        bound = self.constant(self.rng.randrange(1, 12))
        if bound in (key, one, limit):
            return
        with self.scope():
            counter = self.new_int()
            if counter in (key, one, limit):
                return
            self.emit("FOR", counter, bound)
            self.counters[counter] = ""
            self.loops += 1
            self.emit("MINC", 0, key, 0, number)
            self.block(self.rng.randrange(0, 3))
            self.emit("IADD", key, key, one)
            self.emit("IMOD" if turned else "IMIN", key, key, limit)
            self.loops -= 1
            self.emit("ENDFOR")

    def shrink(self) -> None:
        """A view register that a loop cuts shorter, or swaps with another, and reads by its own size."""
        views = [r for r, dims in sorted(self.views.items()) if len(dims) >= 2]
        if not views or self.loops >= isa.NESTING_MAX - 1:
            return
        view, one, many = self.rng.choice(views), self.constant(self.rng.randrange(0, 2)), self.constant(99)
        bound, counter, size, inner = self.constant(3), self.new_int(), self.new_int(), self.new_int()
        if len({one, many, bound, counter, size, inner}) < 6 or {one, many, bound, size} & set(self.counters):
            return
        with self.scope():
            self.emit("FOR", counter, bound)
            self.emit("DIM", size, view, aux=0)
            if self.rng.random() < 0.5:
                self.emit("SLICE", view, view, one, aux=many)
                if self.rng.random() < 0.7:
                    self.emit("DIM", size, view, aux=0)
            elif len(views) > 1:
                self.emit("VMOV", view, self.rng.choice(views))
            self.emit("FOR", inner, size)
            self.emit("ROW", self.rng.randrange(isa.VIEW_REGS), view, inner)
            self.emit("ENDFOR")
            self.emit("ENDFOR")
        self.views.pop(view, None)

    # --- views ---------------------------------------------------------------------------------------------------------
    def index(self) -> None:
        """ROW, COL, HEAD or LD with an index that is proved in one of several ways, or not."""
        name = self.rng.choice(("ROW", "ROW", "COL", "HEAD", "LD", "LD"))
        least, most = {"HEAD": (3, 4), "LD": (1, 1)}.get(name, (2, 4))
        view = self.a_view(least, most)
        if view is None:
            return
        dims = self.views[view]
        axis = {"COL": len(dims) - 1, "HEAD": min(1, len(dims) - 1)}.get(name, 0)
        counters = [c for c, symbol in self.counters.items() if symbol == dims[axis] and symbol]
        if counters and self.rng.random() < 0.7:
            self.take(name, view, self.rng.choice(counters), axis)
            return
        if self.slip():
            self.take(name, view, self.an_int(), axis)
            return
        how = self.rng.randrange(5)
        wanted = self.an_int()
        if how == 0:
            wanted = self.constant(self.rng.randrange(-1, 4))
        size = self.size(view, axis)
        if how <= 1:
            below, zero, above, both = self.new_int(), self.constant(0), self.new_int(), self.new_int()
            if len({below, zero, above, both, wanted, size}) < 6 and not self.slip():
                return
            self.emit("ILE" if self.slip() else "ILT", below, wanted, size)
            self.emit("ILT" if self.rng.random() < 0.2 else "ILE", above, zero, wanted)
            self.emit("IAND", both, below, above)
            with self.when(both):
                self.take(name, view, wanted, axis)
            return
        at = self.new_int()
        if at in (wanted, size):
            return
        with self.when(size):
            if how == 2:
                self.emit("IMOD", at, wanted, size)
            elif how == 3:
                one, zero = self.constant(1), self.constant(0)
                if len({one, zero, at, wanted, size}) < 5:
                    return
                self.emit("ISUB", at, size, one)
                self.emit("IMIN", at, at, wanted)
                self.emit("IMAX", at, at, zero)
            else:
                one = self.constant(self.rng.choice((1, 1, 1, 2)))
                if one == size:
                    return
                self.emit("ISUB", at, size, one)
            self.ints.add(at)
            self.take(name, view, at, axis)

    def take(self, name: str, view: int, index: int, axis: int) -> None:
        dims = self.views.get(view, ("rows", "width"))
        if name == "LD":
            self.emit("LD", self.new_float(), view, index)
        else:
            # A row of a vector is refused; whatever uses it then is too, so its dims do not matter.
            self.emit(name, self.new_view(dims[:axis] + dims[axis + 1 :] or dims), view, index)

    def cut(self) -> None:
        view = self.a_view()
        if view is None:
            return
        first, last = self.an_int(), self.an_int()
        self.fresh += 1
        dims = (f"cut{self.fresh}", *self.views[view][1:])
        again = self.rng.random() < 0.4
        self.emit("SLICE", self.new_view(dims), view, first, aux=last)
        if again and view in self.views:
            self.emit("SLICE", self.new_view(dims), view, first, aux=last)

    def reduce(self) -> None:
        op = self.rng.choice([op for op in _REDUCTIONS if op.b is not isa.Operand.VIEW])
        view = self.a_view()
        if view is None:
            return
        b = self.a_float() if op.b is isa.Operand.FLOAT else 0
        self.emit(op.name, self.new_int() if op.d is isa.Operand.INT else self.new_float(), view, b)

    def pair(self) -> None:
        view = self.a_view()
        if view is None:
            return
        equal = [r for r, dims in sorted(self.views.items()) if dims == self.views.get(view)]
        other = self.a_view() if self.slip() else self.rng.choice(equal or [view])
        self.emit(self.rng.choice(("DOT", "KL", "KLL")), self.new_float(), view, other if other is not None else view)

    # --- maps and helpers ----------------------------------------------------------------------------------------------
    def key(self, size: int) -> int:
        """A key that is in [0, size) for one of several reasons, or not quite."""
        top = size - 1 + (1 if self.slip() else 0)
        match self.rng.randrange(5):
            case 0:
                return self.constant(self.rng.randrange(0, top + 1))
            case 1:
                wanted, register = self.an_int(), self.new_int()
                self.emit("IMAX", register, wanted, self.constant(0))
                self.ints.add(register)
                self.emit("IMIN", register, register, self.constant(top))
                return register
            case 2:
                wanted, register = self.an_int(), self.new_int()
                self.emit("IMOD", register, wanted, self.constant(top + 1))
                return register
            case 3:
                value, register, out = self.a_float(), self.new_float(), self.new_int()
                low, high = self.float_constant(0.0), self.float_constant(top + 0.5)
                self.emit("FMAX", register, value, low)
                self.emit("FMIN", register, register, high)
                self.emit("F2I", out, register)
                return out
        small = [c for c, symbol in self.counters.items() if DIMS.get(symbol, 99) <= size]
        return self.rng.choice(small) if small else self.constant(0)

    def map(self) -> None:
        number = self.rng.randrange(len(self.maps) - 1)
        name = {3: "MHIST", 4: "MHIST", 5: "EMIT"}.get(number) or self.rng.choice(
            ("MGET", "MSET", "MADD", "MINC", "MMAX")
        )
        if self.slip():
            number = self.rng.randrange(len(self.maps) + 1)
        value = 0 if name in ("MGET", "MINC") else self.a_float()
        key = 0
        if name != "MHIST":
            spec = self.maps[min(number, len(self.maps) - 1)]
            key = self.key(spec.size) if spec.kind is MapKind.ARRAY else self.an_int()
        self.emit(name, self.new_float() if name == "MGET" else 0, key, value, number)

    def call(self) -> None:
        """cosine of two rows, or one of the helpers of on_kd_step."""
        if self.hook == "on_kd_step" and self.rng.random() < 0.5:
            a = next((r for r, dims in sorted(self.views.items()) if dims == ("hidden_rows", "student_width")), None)
            b = next((r for r, dims in sorted(self.views.items()) if dims == ("hidden_rows", "teacher_width")), None)
            if a is not None and b is not None:
                if self.rng.random() < 0.5:
                    self.emit("CALL_ASYNC", a=a, b=b, aux=isa.HELPER_BY_NAME["cka"].nr, imm=6)
                else:
                    self.emit("CALL", self.new_float(), a, b, isa.HELPER_BY_NAME["rkd_distance"].nr)
            return
        view = self.a_view(1, 1)
        if view is not None:
            equal = [r for r, dims in sorted(self.views.items()) if dims == self.views.get(view)]
            self.emit("CALL", self.new_float(), view, self.rng.choice(equal or [view]), isa.HELPER_BY_NAME["cosine"].nr)


def program(rng: random.Random, careless: float | None = None) -> Bytecode:
    """A program of some 10 to 150 instructions. `careless`: how often a choice is made without looking; drawn when None."""
    hook = rng.choice(HOOKS)
    maker = Maker(rng, hook, rng.choice((0.0, 0.0, 0.01, 0.05)) if careless is None else careless)
    for number, spec in enumerate(isa.HOOK_VIEWS[hook]):
        if rng.random() < 0.8:
            register = len(maker.views)
            maker.views[register] = spec.dims
            maker.emit("VARG", register, aux=number)
    maker.block(rng.randrange(3, 14))
    maker.emit("EXIT")
    return Bytecode("fuzz", hook, 1, maker.maps, tuple(maker.code))


# --- inputs ----------------------------------------------------------------------------------------------------------------
def inputs(rng: random.Random, hook: str, kind: str = "any") -> list[vm.View]:
    """Views of a firing within `contract(hook)`. kind: "ones" (every size 1), "full" (the largest), "empty", or "any"."""
    sizes = {
        symbol: {"ones": 1, "full": most, "empty": rng.choice((0, most))}.get(kind, rng.randrange(0, most + 1))
        for symbol, most in DIMS.items()
    }
    return [_view(rng, spec, [sizes[symbol] for symbol in spec.dims]) for spec in isa.HOOK_VIEWS[hook]]


def _view(rng: random.Random, spec: isa.ViewSpec, shape: list[int]) -> vm.View:
    source = np.random.default_rng(rng.getrandbits(32))
    if spec.name == "labels":
        return vm.View(source.integers(-100, 10, shape))
    values = source.standard_normal(shape).astype(np.float64) * rng.choice((0.1, 1.0, 1e4))
    if spec.name == "attn" and values.size:
        values = np.exp(values - values.max())
    for special in (np.nan, np.inf, -np.inf, 0.0, -0.0):
        if rng.random() < 0.25:
            values[source.random(shape) < 0.2] = special
    if rng.random() < 0.3:
        wide = np.repeat(values, 2, axis=-1)
        return vm.View(_typed(rng, wide)[0][..., ::2])
    array, bf16 = _typed(rng, values)
    return vm.View(array, bf16)


def _typed(rng: random.Random, values: Any) -> tuple[Any, bool]:
    with np.errstate(all="ignore"):
        match rng.randrange(4):
            case 0:
                return values.astype(np.float16), False
            case 1 if rng.random() < 0.5:
                return (values.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16).view(np.int16), True
        return values.astype(np.float32), False


def firing(rng: random.Random) -> vm.Firing:
    """What CTXI and CTXF read."""
    return vm.Firing(
        step=rng.choice((0, 1, 7, 1 << 40)),
        site=rng.randrange(4),
        sites=4,
        firing=rng.randrange(100),
        temperature=rng.choice((float("nan"), 2.0)),
        sparsity=rng.choice((float("nan"), 0.5)),
    )


def helpers() -> dict[int, Callable[..., Any]]:
    """Stand-ins that take whatever they are given: the fuzz is about what reaches a helper, not about its figure."""
    inline = {h.nr: (lambda *tensors: float(tensors[0].numel())) for h in isa.HELPERS if h.tier is isa.Tier.INLINE}
    return {**inline, **{h.nr: (lambda *_: True) for h in isa.HELPERS if h.tier is isa.Tier.ASYNC}}
