"""Bytecode to LLVM IR: one function per program, beside the library functions it needs.

Responsible for: the meaning of every instruction as `probes.vm` has it, its faults included (the same instruction, the same kind).
The function takes the address of a firing and returns 0 or a fault, kind << 32 | pc. Map offsets, bin edges and loop structure
are constants of the code; addresses, sizes, strides and element types come with each firing, so one object serves every tensor.
Refuses: nothing that decodes and nests; blocks that do not nest are E8-VERIFY. Torch-free, numpy-free, LLVM-free.

    firing = maps' address | helper callback | helper failed (i64) | 0 | step, site, sites, firing (i64)
             | temperature, sparsity (f64) | 0, 0 | views, 96 bytes each, in the hook's order; rank 0 where this firing has none
    callback = f64 (i64 helper, ptr view a, ptr view b, i64 map): the result, or for an asynchronous helper 1 when it was taken
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from probes import cells
from probes.isa import (
    CONTEXT_INTS,
    FLOAT_REGS,
    HELPER_BY_NR,
    HOOK_VIEWS,
    I64_MAX,
    I64_MIN,
    INT_REGS,
    KEYED,
    SITES_MAX,
    VIEW_REGS,
    Bytecode,
    Instruction,
    MapKind,
)
from probes.jit_ir import Function, double
from probes.jit_lib import DATA, DIMS, DTYPE, F32, ORIGIN, RANK, STRIDES, VIEW_WORDS, widen
from syscalls.errors import RecurosError

CODEGEN_VERSION: Final = 3
"""Raised with every change of the generated code, so that cached objects of another one are not found."""
ENTRY: Final = "fire"
FIRING_MAPS, FIRING_CALLBACK, FIRING_FAILED, FIRING_INTS, FIRING_FLOATS = 0, 1, 2, 4, 8
FIRING_HEAD: Final = 96
VIEW_BYTES: Final = 8 * VIEW_WORDS
FAULT_KEY, FAULT_INDEX, FAULT_SHAPE, FAULT_RANK, FAULT_HELPER, FAULT_ARGUMENT = 1, 2, 3, 4, 5, 6
"""The kinds of `probes.vm`; a test keeps them equal."""
_WRITERS: Final = frozenset({"MSET", "MADD", "MINC", "MHIST", "EMIT", "MMAX"})
_INT_OPS: Final = {
    "IADD": "call i64 @llvm.sadd.sat.i64(i64 {a}, i64 {b})",
    "ISUB": "call i64 @llvm.ssub.sat.i64(i64 {a}, i64 {b})",
    "IMIN": "call i64 @llvm.smin.i64(i64 {a}, i64 {b})",
    "IMAX": "call i64 @llvm.smax.i64(i64 {a}, i64 {b})",
    "IAND": "and i64 {a}, {b}",
    "IOR": "or i64 {a}, {b}",
    "IXOR": "xor i64 {a}, {b}",
}
_INT_TESTS: Final = {"ILT": "slt", "ILE": "sle", "IEQ": "eq", "INE": "ne"}
_FLOAT_OPS: Final = {
    "FADD": "fadd double {a}, {b}",
    "FSUB": "fsub double {a}, {b}",
    "FMUL": "fmul double {a}, {b}",
    "FDIV": "fdiv double {a}, {b}",
    "FMIN": "call double @llvm.minimum.f64(double {a}, double {b})",
    "FMAX": "call double @llvm.maximum.f64(double {a}, double {b})",
}
_FLOAT_TESTS: Final = {"FLT": "olt", "FLE": "ole", "FEQ": "oeq", "FNE": "une"}
_FLOAT_ONES: Final = {
    "FNEG": "fneg double {a}",
    "FABS": "call double @llvm.fabs.f64(double {a})",
    "FSQRT": "call double @llvm.sqrt.f64(double {a})",
    "FEXP": "call double @exp1(double {a})",
    "FLOG": "call double @log1(double {a})",
}
_REDUCTIONS: Final = {
    name: f"r_{name.lower()}"
    for name in ("SUM", "SUMSQ", "ABSMAX", "MIN", "MAX", "MEAN", "ENTROPY", "LSE", "ENTROPYL", "DOT", "KL", "KLL")
}  # fmt: skip
_PAIRS: Final = frozenset({"DOT", "KL", "KLL"})


def function(program: Bytecode) -> str:
    """The program's function as LLVM IR; `jit_parts.complete` makes a module of it."""
    return _Code(program).text()


class _Code:
    """The program's function while it is written."""

    def __init__(self, program: Bytecode) -> None:
        self.program = program
        self.places = cells.layout(program.maps).places
        self.f = f = Function(f"define i64 @{ENTRY}(ptr %firing)")
        self.i = [f.slot("i64") for _ in range(INT_REGS)]
        self.x = [f.slot("double") for _ in range(FLOAT_REGS)]
        self.v = [f.slot(f"[{VIEW_WORDS} x i64]", 32) for _ in range(VIEW_REGS)]
        self.fault = f.slot("i64")
        self.faults: list[tuple[str, str]] = []
        self.blocks: list[_Block] = []
        self.pc = 0
        base_at = "0" if not program.maps else str(self.places[0].control)
        maps = f.op(f"inttoptr i64 {f.word('%firing', FIRING_MAPS)} to ptr")
        # Control blocks lie at offsets that depend on the descriptor's length; the address given is the first one's.
        self.base, self.base_at = maps, int(base_at)

    def text(self) -> str:
        """The whole function."""
        f = self.f
        for register in self.i:
            f.store("i64", "0", register)
        for register in self.x:
            f.store("double", double(0.0), register)
        for register in self.v:
            f.put(register, RANK, 0)
        f.store("i64", "0", self.fault)
        written = sorted({n.aux for n in self.program.code if n.op.name in _WRITERS and n.aux < len(self.places)})
        for number in written:
            self._sequence(number, begin=True)
        for pc, ins in enumerate(self.program.code):
            self.pc = pc
            self._instruction(ins)
        if self.blocks:
            raise RecurosError("E8-VERIFY", f"the block opened at instruction {self.blocks[-1].pc} is never closed")
        f.do("br label %out")
        for label, value in self.faults:
            f.label(label)
            f.store("i64", value, self.fault)
            f.do("br label %out")
        f.label("out")
        for number in written:
            self._sequence(number, begin=False)
        f.do(f"ret i64 {f.load('i64', self.fault)}")
        return f.text()

    def _sequence(self, number: int, *, begin: bool) -> None:
        f, control = self.f, self._control(number)
        odd = f.op(f"or i64 {f.load('i64', control)}, 1")
        if begin:
            f.do(f"store atomic i64 {odd}, ptr {control} monotonic, align 8")
            f.do("fence release")
        else:
            f.do(f"store atomic i64 {f.op(f'add i64 {odd}, 1')}, ptr {control} release, align 8")

    # Pieces

    def _int(self, number: int) -> str:
        return self.f.load("i64", self.i[number])

    def _float(self, number: int) -> str:
        return self.f.load("double", self.x[number])

    def _set_int(self, number: int, value: str) -> None:
        self.f.store("i64", value, self.i[number])

    def _set_float(self, number: int, value: str) -> None:
        self.f.store("double", value, self.x[number])

    def _set_bit(self, number: int, bit: str) -> None:
        self._set_int(number, self.f.op(f"zext i1 {bit} to i64"))

    def _control(self, number: int) -> str:
        return self.f.at(self.base, self.places[number].control - self.base_at)

    def _cells(self, number: int) -> str:
        return self.f.at(self.base, self.places[number].cells - self.base_at)

    def _fail_if(self, condition: str, kind: int) -> None:
        label, after = self.f.name("fault"), self.f.name("good")
        self.faults.append((label, str(kind << 32 | self.pc)))
        self.f.do(f"br i1 {condition}, label %{label}, label %{after}")
        self.f.label(after)

    def _view(self, number: int, rank_min: int = 1) -> str:
        """A view register that must hold a view of at least this rank."""
        held = self.f.word(self.v[number], RANK)
        self._fail_if(self.f.op(f"icmp eq i64 {held}, 0"), FAULT_ARGUMENT)
        if rank_min > 1:
            self._fail_if(self.f.op(f"icmp slt i64 {held}, {rank_min}"), FAULT_RANK)
        return self.v[number]

    def _index(self, size: str, register: int) -> str:
        at = self._int(register)
        self._fail_if(self.f.op(f"icmp uge i64 {at}, {size}"), FAULT_INDEX)
        return at

    def _copy(self, source: str, target: str) -> None:
        words = [self.f.load("<4 x i64>", self.f.at(source, k, "i64")) for k in (0, 4, 8)]
        for k, word in zip((0, 4, 8), words, strict=True):
            self.f.store("<4 x i64>", word, self.f.at(target, k, "i64"))

    def _same_shape(self, a: str, b: str) -> None:
        differ = "false"
        for k in (RANK, *range(DIMS, DIMS + 4)):
            other = self.f.op(f"icmp ne i64 {self.f.word(a, k)}, {self.f.word(b, k)}")
            differ = self.f.op(f"or i1 {differ}, {other}")
        self._fail_if(differ, FAULT_SHAPE)

    # Instructions

    def _instruction(self, ins: Instruction) -> None:
        name, f = ins.op.name, self.f
        if name in _INT_OPS:
            self._set_int(ins.d, f.op(_INT_OPS[name].format(a=self._int(ins.a), b=self._int(ins.b))))
        elif name in _INT_TESTS:
            self._set_bit(ins.d, f.op(f"icmp {_INT_TESTS[name]} i64 {self._int(ins.a)}, {self._int(ins.b)}"))
        elif name in _FLOAT_OPS:
            self._set_float(ins.d, f.op(_FLOAT_OPS[name].format(a=self._float(ins.a), b=self._float(ins.b))))
        elif name in _FLOAT_TESTS:
            self._set_bit(ins.d, f.op(f"fcmp {_FLOAT_TESTS[name]} double {self._float(ins.a)}, {self._float(ins.b)}"))
        elif name in _FLOAT_ONES:
            self._set_float(ins.d, f.op(_FLOAT_ONES[name].format(a=self._float(ins.a))))
        elif name in _REDUCTIONS:
            self._reduction(ins)
        elif name in _SPECIAL:
            _SPECIAL[name](self, ins)
        elif name in KEYED_OPS:
            self._keyed(ins)
        else:
            raise RecurosError("E8-VERIFY", f"instruction {self.pc}: no code is known for {name}")

    def _reduction(self, ins: Instruction) -> None:
        name = _REDUCTIONS[ins.op.name]
        a = self._view(ins.a)
        arguments = f"ptr {a}"
        if ins.op.name in _PAIRS:
            b = self._view(ins.b)
            self._same_shape(a, b)
            arguments += f", ptr {b}"
        self._set_float(ins.d, self.f.op(f"call double @{name}({arguments})"))

    def count(self, ins: Instruction) -> None:
        """COUNTGT, COUNTNF, ARGMAX."""
        name = f"r_{ins.op.name.lower()}"
        view = self._view(ins.a)
        p = {"COUNTGT": f", double {self._float(ins.b)}", "COUNTNF": f", double {double(0.0)}"}.get(ins.op.name, "")
        self._set_int(ins.d, self.f.op(f"call i64 @{name}(ptr {view}{p})"))

    def control(self, ins: Instruction) -> None:
        """EXIT, FOR, ENDFOR, IF, ELSE, ENDIF."""
        f, name = self.f, ins.op.name
        if name == "EXIT":
            f.do("br label %out")
            f.label(f.name("dead"))
        elif name in ("FOR", "IF"):
            self.blocks.append(_Block(self, ins))
        else:
            opener = {"ENDFOR": ("FOR",), "ELSE": ("IF",), "ENDIF": ("IF", "ELSE")}[name]
            if not self.blocks or self.blocks[-1].state not in opener:
                raise RecurosError("E8-VERIFY", f"instruction {self.pc}: {name} closes no block of its kind")
            if self.blocks[-1].close(name):
                self.blocks.pop()

    def move(self, ins: Instruction) -> None:
        """ICONST, FCONST, IMOV, FMOV, VMOV, CTXI, CTXF, VARG."""
        match ins.op.name:
            case "ICONST":
                self._set_int(ins.d, str(int(ins.imm)))
            case "FCONST":
                self._set_float(ins.d, double(float(ins.imm)))
            case "IMOV":
                self._set_int(ins.d, self._int(ins.a))
            case "FMOV":
                self._set_float(ins.d, self._float(ins.a))
            case "VMOV":
                self._copy(self._view(ins.a), self.v[ins.d])
            case "CTXI":
                self._set_int(ins.d, self.f.word("%firing", FIRING_INTS + ins.aux))
            case "CTXF":
                self._set_float(ins.d, self.f.load("double", self.f.at("%firing", FIRING_FLOATS + ins.aux, "i64")))
            case _:
                if ins.aux >= len(HOOK_VIEWS[self.program.hook_kind]):
                    self._fail_if("true", FAULT_ARGUMENT)
                else:
                    given = self.f.at("%firing", FIRING_HEAD + ins.aux * VIEW_BYTES)
                    self._fail_if(self.f.op(f"icmp eq i64 {self.f.word(given, RANK)}, 0"), FAULT_ARGUMENT)
                    self._copy(given, self.v[ins.d])

    def integer(self, ins: Instruction) -> None:
        """IMUL, IDIV, IMOD, INEG, IABS."""
        f, a = self.f, self._int(ins.a)
        b = self._int(ins.b)
        match ins.op.name:
            case "IMUL":
                both = f.op(f"call {{ i64, i1 }} @llvm.smul.with.overflow.i64(i64 {a}, i64 {b})")
                over = f.op(f"extractvalue {{ i64, i1 }} {both}, 1")
                negative = f.op(f"icmp slt i64 {f.op(f'xor i64 {a}, {b}')}, 0")
                edge = f.select(negative, "i64", str(I64_MIN), str(I64_MAX))
                value = f.select(over, "i64", edge, f.op(f"extractvalue {{ i64, i1 }} {both}, 0"))
            case "IDIV" | "IMOD":
                value = self._divide(ins.op.name, a, b)
            case "INEG":
                value = f.op(f"call i64 @llvm.ssub.sat.i64(i64 0, i64 {a})")
            case _:
                flipped = f.op(f"call i64 @llvm.ssub.sat.i64(i64 0, i64 {a})")
                value = f.select(f.op(f"icmp slt i64 {a}, 0"), "i64", flipped, a)
        self._set_int(ins.d, value)

    def _divide(self, name: str, a: str, b: str) -> str:
        f = self.f
        zero, minus = f.op(f"icmp eq i64 {b}, 0"), f.op(f"icmp eq i64 {b}, -1")
        # Both cases in which the machine would trap are divided by 1 instead and put right below.
        divisor = f.select(f.op(f"or i1 {zero}, {minus}"), "i64", "1", b)
        q, r = f.op(f"sdiv i64 {a}, {divisor}"), f.op(f"srem i64 {a}, {divisor}")
        uneven = f.op(f"icmp ne i64 {r}, 0")
        below = f.op(f"icmp slt i64 {f.op(f'xor i64 {r}, {divisor}')}, 0")
        adjust = f.op(f"and i1 {uneven}, {below}")
        if name == "IDIV":
            value = f.op(f"sub i64 {q}, {f.op(f'zext i1 {adjust} to i64')}")
            negated = f.op(f"call i64 @llvm.ssub.sat.i64(i64 0, i64 {a})")
            return f.select(zero, "i64", "0", f.select(minus, "i64", negated, value))
        value = f.op(f"add i64 {r}, {f.select(adjust, 'i64', divisor, '0')}")
        return f.select(zero, "i64", a, f.select(minus, "i64", "0", value))

    def convert(self, ins: Instruction) -> None:
        """FFLOOR, ISFINITE, F2I, I2F."""
        f = self.f
        if ins.op.name == "I2F":
            self._set_float(ins.d, f.op(f"sitofp i64 {self._int(ins.a)} to double"))
            return
        a = self._float(ins.a)
        size = f.op(f"call double @llvm.fabs.f64(double {a})")
        if ins.op.name == "ISFINITE":
            self._set_bit(ins.d, f.op(f"fcmp olt double {size}, {double(float('inf'))}"))
            return
        cut = f.op(f"call i64 @llvm.fptosi.sat.i64.f64(double {a})")
        if ins.op.name == "F2I":
            self._set_int(ins.d, cut)
            return
        # Not llvm.floor: a machine without the instruction would call libm.
        toward_zero = f.op(f"sitofp i64 {cut} to double")
        less = f.op(f"fsub double {toward_zero}, {double(1.0)}")
        floor = f.select(f.op(f"fcmp ogt double {toward_zero}, {a}"), "double", less, toward_zero)
        floor = f.op(f"call double @llvm.copysign.f64(double {floor}, double {a})")
        small = f.op(f"fcmp olt double {size}, {double(2.0**52)}")
        self._set_float(ins.d, f.select(small, "double", floor, a))

    def dim(self, ins: Instruction) -> None:
        """DIM."""
        view = self._view(ins.a, ins.aux + 1)
        self._set_int(ins.d, self.f.word(view, DIMS + ins.aux))

    def subview(self, ins: Instruction) -> None:
        """ROW, HEAD: a fixed axis taken out."""
        f, axis = self.f, int(ins.op.name == "HEAD")
        view = self._view(ins.a, axis + 2)
        at = self._index(f.word(view, DIMS + axis), ins.b)
        offset = f.op(f"mul i64 {at}, {f.word(view, STRIDES + axis)}")
        data = f.op(f"add i64 {f.word(view, DATA)}, {offset}")
        rank = f.op(f"sub i64 {f.word(view, RANK)}, 1")
        kept = [(f.word(view, DIMS + k), f.word(view, STRIDES + k)) for k in range(4) if k != axis]
        fixed = [(k, f.word(view, k)) for k in (DTYPE, ORIGIN)]
        target = self.v[ins.d]
        for k, word in [*fixed, (DATA, data), (RANK, rank), (DIMS + 3, "1"), (STRIDES + 3, "0")]:
            f.put(target, k, word)
        for k, (size, stride) in enumerate(kept):
            f.put(target, DIMS + k, size)
            f.put(target, STRIDES + k, stride)

    def column(self, ins: Instruction) -> None:
        """COL: the last axis taken out, whichever it is."""
        f, view = self.f, self._view(ins.a, 2)
        last = f.op(f"sub i64 {f.word(view, RANK)}, 1")
        size_at, stride_at = f.op(f"add i64 {last}, {DIMS}"), f.op(f"add i64 {last}, {STRIDES}")
        at = self._index(f.word(view, size_at), ins.b)
        data = f.op(f"add i64 {f.word(view, DATA)}, {f.op(f'mul i64 {at}, {f.word(view, stride_at)}')}")
        self._copy(view, self.v[ins.d])
        for where, word in ((DATA, data), (RANK, last), (size_at, "1"), (stride_at, "0")):
            f.put(self.v[ins.d], where, word)

    def slice(self, ins: Instruction) -> None:
        """SLICE."""
        f, view = self.f, self._view(ins.a)
        size = f.word(view, DIMS)
        ends = []
        for register in (ins.b, ins.aux):
            low = f.op(f"call i64 @llvm.smax.i64(i64 {self._int(register)}, i64 0)")
            ends.append(f.op(f"call i64 @llvm.smin.i64(i64 {low}, i64 {size})"))
        length = f.op(f"call i64 @llvm.smax.i64(i64 {f.op(f'sub i64 {ends[1]}, {ends[0]}')}, i64 0)")
        data = f.op(f"add i64 {f.word(view, DATA)}, {f.op(f'mul i64 {ends[0]}, {f.word(view, STRIDES)}')}")
        self._copy(view, self.v[ins.d])
        f.put(self.v[ins.d], DATA, data)
        f.put(self.v[ins.d], DIMS, length)

    def load(self, ins: Instruction) -> None:
        """LD."""
        f, view = self.f, self._view(ins.a)
        self._fail_if(f.op(f"icmp ne i64 {f.word(view, RANK)}, 1"), FAULT_RANK)
        at = self._index(f.word(view, DIMS), ins.b)
        data = f.op(f"add i64 {f.word(view, DATA)}, {f.op(f'mul i64 {at}, {f.word(view, STRIDES)}')}")
        address, dtype = f.op(f"inttoptr i64 {data} to ptr"), f.word(view, DTYPE)
        # The usual type where it stands, without a call.
        single = f.op(f"icmp eq i64 {dtype}, {F32}")
        with f.when(single):
            self._set_float(ins.d, widen(f, F32, address, 1))
        with f.when(f.op(f"xor i1 {single}, true")):
            self._set_float(ins.d, f.op(f"call double @load1(ptr {address}, i64 {dtype})"))

    # Maps

    def _row(self, number: int, *, write: bool) -> str:
        """Address of the row of this site, or null (a counted drop when writing)."""
        f, spec, first = self.f, self.places[number].spec, self._cells(number)
        if not spec.per_site:
            return first
        site = f.word("%firing", FIRING_INTS + 1)
        fits = f.op(f"icmp slt i64 {site}, {SITES_MAX}")
        control = self._control(number)
        if write:
            with f.when(f.op(f"xor i1 {fits}, true")):
                f.bump(control, cells.DROPS)
            with f.when(fits):
                more = f.op(f"add i64 {site}, 1")
                used = f.op(f"call i64 @llvm.smax.i64(i64 {f.word(control, cells.USED)}, i64 {more})")
                f.put(control, cells.USED, used)
        row = f.at(first, f.op(f"mul i64 {site}, {8 * spec.cells}"))
        return f.select(fits, "ptr", row, "null")

    def _cell(self, number: int, key: str, *, write: bool) -> str:
        """Address of a key's double, or null."""
        f, place = self.f, self.places[number]
        if place.spec.kind is MapKind.HASH:
            return f.op(
                f"call ptr @hash_slot(ptr {self._control(number)}, ptr {self._cells(number)}, i64 {place.slots}, "
                f"i64 {place.spec.size}, i64 {key}, i1 {'true' if write else 'false'})"
            )
        row = self._row(number, write=write)
        cell = f.at(row, key, "double")
        if not place.spec.per_site:
            return cell
        return f.select(f.op(f"icmp eq ptr {row}, null"), "ptr", "null", cell)

    @contextmanager
    def _number(self, number: int, value: str) -> Iterator[None]:
        """What follows is for a value that is no NaN; a NaN is counted."""
        f = self.f
        nan = f.op(f"fcmp uno double {value}, {value}")
        with f.when(nan):
            f.bump(self._control(number), cells.NANS)
        with f.when(f.op(f"xor i1 {nan}, true")):
            yield

    def _checked_key(self, ins: Instruction) -> str:
        spec, key = self.program.maps[ins.aux], self._int(ins.a)
        if spec.kind not in KEYED:
            self._fail_if("true", FAULT_KEY)
        elif spec.kind is MapKind.ARRAY:
            self._fail_if(self.f.op(f"icmp uge i64 {key}, {spec.size}"), FAULT_KEY)
        return key

    def _keyed(self, ins: Instruction) -> None:
        """MGET, MSET, MADD, MINC, MMAX."""
        f, name, number = self.f, ins.op.name, ins.aux
        key = self._checked_key(ins)
        if name == "MGET":
            cell, held = self._cell(number, key, write=False), f.slot("double")
            f.store("double", double(0.0), held)
            with f.when(f.op(f"icmp ne ptr {cell}, null")):
                f.store("double", f.load("double", cell), held)
            self._set_float(ins.d, f.load("double", held))
            return
        value = double(1.0) if name == "MINC" else self._float(ins.b)
        with self._number(number, value):
            cell = self._cell(number, key, write=True)
            with f.when(f.op(f"icmp ne ptr {cell}, null")):
                old = f.load("double", cell)
                if name == "MSET":
                    f.store("double", value, cell)
                elif name == "MMAX":
                    f.store("double", f.op(f"call double @llvm.maximum.f64(double {old}, double {value})"), cell)
                else:
                    total = f.op(f"fadd double {old}, {value}")
                    with self._number(number, total):
                        f.store("double", total, cell)

    def histogram(self, ins: Instruction) -> None:
        """MHIST."""
        f, place, value = self.f, self.places[ins.aux], self._float(ins.b)
        spec = place.spec
        if spec.kind is MapKind.LOG2:
            bin_ = f.op(f"call i64 @bin_log2(double {value})")
        elif spec.kind is MapKind.LINEAR:
            edges = ", ".join(f"double {double(x)}" for x in (spec.low, spec.high, place.scale))
            bin_ = f.op(f"call i64 @bin_linear(double {value}, {edges}, i64 {spec.size})")
        else:
            self._fail_if("true", FAULT_KEY)
            return
        with f.when(f.op(f"fcmp uno double {value}, {value}")):
            f.bump(self._control(ins.aux), cells.NANS)
        row = self._row(ins.aux, write=True)
        with f.when(f.op(f"icmp ne ptr {row}, null")):
            cell = f.at(row, bin_, "double")
            f.store("double", f.op(f"fadd double {f.load('double', cell)}, {double(1.0)}"), cell)

    def ring(self, ins: Instruction) -> None:
        """EMIT."""
        f, spec = self.f, self.program.maps[ins.aux]
        if spec.kind is not MapKind.RING:
            self._fail_if("true", FAULT_KEY)
            return
        step, site = f.word("%firing", FIRING_INTS), f.word("%firing", FIRING_INTS + 1)
        f.do(
            f"call void @ring_emit(ptr {self._control(ins.aux)}, ptr {self._cells(ins.aux)}, i64 {spec.size}, "
            f"i64 {step}, i64 {site}, i64 {self._int(ins.a)}, double {self._float(ins.b)})"
        )

    def helper(self, ins: Instruction) -> None:
        """CALL, CALL_ASYNC."""
        f, declared = self.f, HELPER_BY_NR.get(ins.aux)
        if declared is None:
            self._fail_if("true", FAULT_HELPER)
            return
        # A helper without views is handed a register that it does not look at; it may be empty.
        a = self._view(ins.a) if declared.views else self.v[ins.a]
        b = self._view(ins.b) if len(declared.views) > 1 else a
        target = f.op(f"inttoptr i64 {f.word('%firing', FIRING_CALLBACK)} to ptr")
        result = f.op(f"call double {target}(i64 {ins.aux}, ptr {a}, ptr {b}, i64 {int(ins.imm)})")
        self._fail_if(f.op(f"icmp ne i64 {f.word('%firing', FIRING_FAILED)}, 0"), FAULT_HELPER)
        if ins.op.name == "CALL":
            self._set_float(ins.d, result)
            return
        with f.when(f.op(f"fcmp oeq double {result}, {double(0.0)}")):
            f.bump(self._control(int(ins.imm)), cells.DROPS)


class _Block:
    """An open FOR or IF."""

    def __init__(self, code: _Code, ins: Instruction) -> None:
        self.code, self.ins, self.pc = code, ins, code.pc
        self.state = ins.op.name
        f = code.f
        self.head, self.body, self.other, self.after = (f.name(s) for s in ("head", "body", "else", "end"))
        if self.state == "IF":
            f.do(f"br i1 {f.op(f'icmp ne i64 {code._int(ins.a)}, 0')}, label %{self.body}, label %{self.other}")
            f.label(self.body)
            return
        self.counter, limit = f.slot("i64"), f.slot("i64")
        f.store("i64", code._int(ins.a), limit)
        f.store("i64", "0", self.counter)
        f.do(f"br label %{self.head}")
        f.label(self.head)
        count = f.load("i64", self.counter)
        more = f.op(f"icmp slt i64 {count}, {f.load('i64', limit)}")
        f.do(f"br i1 {more}, label %{self.body}, label %{self.after}")
        f.label(self.body)
        f.store("i64", count, code.i[ins.d])

    def close(self, name: str) -> bool:
        """Meet ENDFOR, ELSE or ENDIF; True when the block is done."""
        f = self.code.f
        if name == "ENDFOR":
            f.store("i64", f.op(f"add i64 {f.load('i64', self.counter)}, 1"), self.counter)
            f.do(f"br label %{self.head}")
            f.label(self.after)
            return True
        f.do(f"br label %{self.after}")
        if name == "ELSE":
            f.label(self.other)
            self.state = "ELSE"
            return False
        if self.state == "IF":
            f.label(self.other)
            f.do(f"br label %{self.after}")
        f.label(self.after)
        return True


KEYED_OPS: Final = frozenset({"MGET", "MSET", "MADD", "MINC", "MMAX"})
_SPECIAL: Final[dict[str, Callable[[_Code, Instruction], None]]] = {
    **dict.fromkeys(("EXIT", "FOR", "ENDFOR", "IF", "ELSE", "ENDIF"), _Code.control),
    **dict.fromkeys(("ICONST", "FCONST", "IMOV", "FMOV", "VMOV", "CTXI", "CTXF", "VARG"), _Code.move),
    **dict.fromkeys(("IMUL", "IDIV", "IMOD", "INEG", "IABS"), _Code.integer),
    **dict.fromkeys(("FFLOOR", "ISFINITE", "F2I", "I2F"), _Code.convert),
    **dict.fromkeys(("COUNTGT", "COUNTNF", "ARGMAX"), _Code.count),
    **dict.fromkeys(("ROW", "HEAD"), _Code.subview),
    **dict.fromkeys(("CALL", "CALL_ASYNC"), _Code.helper),
    "DIM": _Code.dim,
    "COL": _Code.column,
    "SLICE": _Code.slice,
    "LD": _Code.load,
    "MHIST": _Code.histogram,
    "EMIT": _Code.ring,
}
assert len(CONTEXT_INTS) == FIRING_FLOATS - FIRING_INTS
