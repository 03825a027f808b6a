"""The reference interpreter of oBPF: what every instruction does, in plain Python and numpy.

Responsible for: the truth. The compiler's machine code is compared with it bit for bit, over every map and counter. Scalars are
`probes.scalars`, reductions `probes.lanes`, exp and log `probes.fixedmath`, map operations `probes.cells`: this module is the
control, the views and the checks around them.
Refuses: to trust its caller. What the verifier proves is checked again at every instruction, and a program that breaks it stops
with `Fault`, which names the instruction; the machine code does the same, so a wrong proof ends a probe and not the process.
Torch-free: a view is a numpy array, bfloat16 being the upper half of a float32.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from probes import fixedmath, lanes, scalars
from probes.cells import Cells
from probes.isa import (
    FLOAT_REGS,
    HELPER_BY_NR,
    INT_REGS,
    KEYED,
    VIEW_REGS,
    Bytecode,
    Instruction,
    MapKind,
    Tier,
)
from probes.lanes import Doubles
from syscalls.errors import RecurosError

Helpers = Mapping[int, Callable[..., Any]]
"""By helper number. Inline: f(tensor, ...) -> float. Asynchronous: f(map number, firing, tensor, ...) -> accepted; False drops."""

FAULT_KEY: Final = 1
FAULT_INDEX: Final = 2
FAULT_SHAPE: Final = 3
FAULT_RANK: Final = 4
FAULT_HELPER: Final = 5
FAULT_ARGUMENT: Final = 6
FAULTS: Final[dict[int, str]] = {
    FAULT_KEY: "a map key outside the array",
    FAULT_INDEX: "an index outside the view",
    FAULT_SHAPE: "two views of different shapes",
    FAULT_RANK: "an axis that the view does not have",
    FAULT_HELPER: "a helper that raised",
    FAULT_ARGUMENT: "a view that this firing does not have",
}


class Fault(Exception):  # noqa: N818 - the term of art: a firing faults
    """A program did what its proof excludes, or its helper raised. `kind`: a key of FAULTS; `pc`: the instruction."""

    def __init__(self, kind: int, pc: int, detail: str = "") -> None:
        super().__init__(f"instruction {pc}: {FAULTS[kind]}{': ' if detail else ''}{detail}")
        self.kind = kind
        self.pc = pc


class Firing(NamedTuple):
    """What CTXI and CTXF read, in the order of the instruction table."""

    step: int = 0
    site: int = 0
    sites: int = 1
    firing: int = 0
    temperature: float = math.nan
    sparsity: float = math.nan


@dataclass(frozen=True, slots=True)
class View:
    """A read-only tensor. `array` of any strides; `bf16`: its 16-bit integers are bfloat16."""

    array: NDArray[Any]
    bf16: bool = False

    def doubles(self) -> Doubles:
        """Every element as a double, in C order."""
        held = self.array
        if self.bf16:
            wide = np.ascontiguousarray(held).astype(np.uint16, copy=False).astype(np.uint32) << 16
            held = wide.view(np.float32)
        return held.astype(np.float64, order="C", copy=False).reshape(-1)

    def tensor(self) -> Any:
        """The same elements as a torch tensor; nothing is copied."""
        import torch

        tensor = torch.from_numpy(self.array.view(np.int16) if self.bf16 else self.array)
        return tensor.view(torch.bfloat16) if self.bf16 else tensor


Trace = Callable[[int, Sequence[int], Sequence[float], Sequence[View | None]], None]
"""Called before each instruction with its pc and the live register files."""


def run(
    program: Bytecode,
    views: Sequence[View | None],
    context: Firing,
    cells: Cells,
    helpers: Helpers | None = None,
    trace: Trace | None = None,
) -> int:
    """Fire a program once; returns the cost units that it really spent.

    `views`: one for each of the hook's views, in order; None where this firing has none. Raises Fault; what it wrote before stays.
    """
    written = written_maps(program)
    machine = _Machine(program, views, context, cells, helpers or {})
    cells.begin(written)
    try:
        with np.errstate(all="ignore"):
            machine.run(trace)
    finally:
        cells.end(written)
    return machine.units


@lru_cache(maxsize=256)
def written_maps(program: Bytecode) -> tuple[int, ...]:
    """Numbers of the maps that a program may write inside a firing, sorted."""
    writers = {"MSET", "MADD", "MINC", "MHIST", "EMIT", "MMAX"}
    numbers = {ins.aux for ins in program.code if ins.op.name in writers}
    return tuple(sorted(number for number in numbers if number < len(program.maps)))


@lru_cache(maxsize=256)
def block_ends(code: tuple[Instruction, ...]) -> tuple[int, ...]:
    """Of every FOR its ENDFOR and of every ENDFOR its FOR; of IF its ELSE or ENDIF, of ELSE its ENDIF; else 0.

    Raises RecurosError E8-VERIFY where blocks do not nest.
    """
    ends, open_ = [0] * len(code), []
    for pc, ins in enumerate(code):
        match ins.op.name:
            case "FOR" | "IF":
                open_.append(pc)
            case "ELSE" if open_ and code[open_[-1]].op.name == "IF":
                ends[open_[-1]] = pc
                open_[-1] = pc
            case "ENDFOR" if open_ and code[open_[-1]].op.name == "FOR":
                start = open_.pop()
                ends[start], ends[pc] = pc, start
            case "ENDIF" if open_ and code[open_[-1]].op.name in ("IF", "ELSE"):
                start = open_.pop()
                ends[start] = pc
            case "ELSE" | "ENDFOR" | "ENDIF":
                raise RecurosError("E8-VERIFY", f"instruction {pc}: {ins.op.name} closes no block of its kind")
    if open_:
        raise RecurosError("E8-VERIFY", f"instruction {open_[-1]}: {code[open_[-1]].op.name} is never closed")
    return tuple(ends)


class _Machine:
    """The registers and the state of one firing."""

    def __init__(
        self, program: Bytecode, views: Sequence[View | None], context: Firing, cells: Cells, helpers: Helpers
    ) -> None:
        self.program, self.views, self.context, self.cells, self.helpers = program, views, context, cells, helpers
        self.i = [0] * INT_REGS
        self.f = [0.0] * FLOAT_REGS
        self.v: list[View | None] = [None] * VIEW_REGS
        self.units = 0
        self.pc = 0

    def run(self, trace: Trace | None) -> None:
        code, ends = self.program.code, block_ends(self.program.code)
        loops: list[tuple[int, int]] = []
        pc, i = 0, self.i
        while pc < len(code):
            ins = code[pc]
            op = ins.op
            self.pc = pc
            if trace is not None:
                trace(pc, self.i, self.f, self.v)
            self.units += op.cost
            pc += 1
            handler = _HANDLERS.get(op.name)
            if handler is not None:
                handler(self, ins)
            elif op.name == "EXIT":
                return
            elif op.name == "FOR":
                if i[ins.a] > 0:
                    loops.append((0, i[ins.a]))
                    i[ins.d] = 0
                else:
                    pc = ends[pc - 1] + 1
            elif op.name == "ENDFOR":
                count, limit = loops.pop()
                if count + 1 < limit:
                    loops.append((count + 1, limit))
                    start = ends[pc - 1]
                    i[code[start].d] = count + 1
                    pc = start + 1
            elif (op.name == "IF" and i[ins.a] == 0) or op.name == "ELSE":
                # A skipped ELSE is stepped over and a skipped ENDIF is not, so that both ways pass the same ENDIF.
                pc = ends[pc - 1] + (code[ends[pc - 1]].op.name == "ELSE")

    def fault(self, kind: int, detail: str = "") -> Fault:
        return Fault(kind, self.pc, detail)

    def view(self, number: int) -> View:
        held = self.v[number]
        if held is None:
            raise self.fault(FAULT_ARGUMENT, f"v{number} is empty")
        return held

    def elements(self, ins: Instruction, number: int) -> Doubles:
        x = self.view(number).doubles()
        self.units += ins.op.per_element * x.size
        return x

    def pair(self, ins: Instruction) -> tuple[Doubles, Doubles]:
        a, b = self.view(ins.a), self.view(ins.b)
        if a.array.shape != b.array.shape:
            raise self.fault(FAULT_SHAPE, f"{list(a.array.shape)} and {list(b.array.shape)}")
        return self.elements(ins, ins.a), b.doubles()

    def index(self, size: int, number: int) -> int:
        at = self.i[number]
        if not 0 <= at < size:
            raise self.fault(FAULT_INDEX, f"{at} of {size}")
        return at

    def rank(self, number: int, least: int) -> View:
        view = self.view(number)
        if view.array.ndim < least:
            raise self.fault(FAULT_RANK, f"rank {view.array.ndim}, {least} needed")
        return view

    def key(self, ins: Instruction) -> int:
        spec, key = self.program.maps[ins.aux], self.i[ins.a]
        if spec.kind not in KEYED or (spec.kind is MapKind.ARRAY and not 0 <= key < spec.size):
            raise self.fault(FAULT_KEY, f"{key} of {spec.name}, which is a {spec.kind} of {spec.size}")
        return key

    def call(self, ins: Instruction) -> Any:
        """Call a helper of either tier with the instruction's views."""
        declared = HELPER_BY_NR.get(ins.aux)
        function = self.helpers.get(ins.aux)
        if declared is None or function is None:
            raise self.fault(FAULT_HELPER, f"there is no helper {ins.aux} here")
        views = [self.view(n) for n in (ins.a, ins.b)[: len(declared.views)]]
        self.units += declared.cost + declared.per_element * sum(view.array.size for view in views)
        self.units += ins.op.per_element * sum(view.array.size for view in views)
        tensors = [view.tensor() for view in views]
        try:
            if declared.tier is Tier.ASYNC:
                return function(int(ins.imm), self.context, *tensors)
            return float(function(*tensors))
        except Exception as e:
            raise self.fault(FAULT_HELPER, f"{declared.name}: {type(e).__name__}: {e}"[:300]) from e


# --- instructions ------------------------------------------------------------------------------------------------------

_Handler = Callable[[_Machine, Instruction], None]


def _ints(compute: Callable[[int, int], int]) -> _Handler:
    def step(m: _Machine, ins: Instruction) -> None:
        m.i[ins.d] = compute(m.i[ins.a], m.i[ins.b])

    return step


def _floats(compute: Callable[[float, float], float]) -> _Handler:
    def step(m: _Machine, ins: Instruction) -> None:
        m.f[ins.d] = compute(m.f[ins.a], m.f[ins.b])

    return step


def _float(compute: Callable[[float], float]) -> _Handler:
    def step(m: _Machine, ins: Instruction) -> None:
        m.f[ins.d] = compute(m.f[ins.a])

    return step


def _compare(compute: Callable[[float, float], bool]) -> _Handler:
    def step(m: _Machine, ins: Instruction) -> None:
        m.i[ins.d] = int(compute(m.f[ins.a], m.f[ins.b]))

    return step


def _reduce(compute: Callable[[Doubles], float]) -> _Handler:
    def step(m: _Machine, ins: Instruction) -> None:
        m.f[ins.d] = compute(m.elements(ins, ins.a))

    return step


def _reduce_pair(compute: Callable[[Doubles, Doubles], float]) -> _Handler:
    def step(m: _Machine, ins: Instruction) -> None:
        m.f[ins.d] = compute(*m.pair(ins))

    return step


def _context(m: _Machine, ins: Instruction) -> None:
    if ins.op.name == "CTXI":
        m.i[ins.d] = int(m.context[ins.aux])
    else:
        m.f[ins.d] = float(m.context[4 + ins.aux])


def _argument(m: _Machine, ins: Instruction) -> None:
    if ins.aux >= len(m.views) or m.views[ins.aux] is None:
        raise m.fault(FAULT_ARGUMENT, f"number {ins.aux}")
    m.v[ins.d] = m.views[ins.aux]


def _move(m: _Machine, ins: Instruction) -> None:
    match ins.op.name:
        case "ICONST":
            m.i[ins.d] = int(ins.imm)
        case "FCONST":
            m.f[ins.d] = float(ins.imm)
        case "IMOV":
            m.i[ins.d] = m.i[ins.a]
        case "FMOV":
            m.f[ins.d] = m.f[ins.a]
        case _:
            m.v[ins.d] = m.view(ins.a)


def _to_int(m: _Machine, ins: Instruction) -> None:
    x = m.f[ins.a]
    m.i[ins.d] = scalars.to_int(x) if ins.op.name == "F2I" else int(math.isfinite(x))


def _to_float(m: _Machine, ins: Instruction) -> None:
    m.f[ins.d] = float(m.i[ins.a])


def _dim(m: _Machine, ins: Instruction) -> None:
    m.i[ins.d] = m.rank(ins.a, ins.aux + 1).array.shape[ins.aux]


def _subview(m: _Machine, ins: Instruction) -> None:
    view = m.rank(ins.a, {"HEAD": 3, "SLICE": 1}.get(ins.op.name, 2))
    held = view.array
    match ins.op.name:
        case "ROW":
            held = held[m.index(held.shape[0], ins.b)]
        case "COL":
            held = held[..., m.index(held.shape[-1], ins.b)]
        case "HEAD":
            held = held[:, m.index(held.shape[1], ins.b)]
        case _:
            low, high = (min(max(m.i[n], 0), held.shape[0]) for n in (ins.b, ins.aux))
            held = held[low : max(low, high)]
    m.v[ins.d] = View(held, view.bf16)


def _load(m: _Machine, ins: Instruction) -> None:
    view = m.view(ins.a)
    if view.array.ndim != 1:
        raise m.fault(FAULT_RANK, f"rank {view.array.ndim}, 1 needed")
    at = m.index(view.array.shape[0], ins.b)
    m.f[ins.d] = float(View(view.array[at : at + 1], view.bf16).doubles()[0])


def _count(m: _Machine, ins: Instruction) -> None:
    x = m.elements(ins, ins.a)
    match ins.op.name:
        case "COUNTGT":
            m.i[ins.d] = int(np.count_nonzero(x > m.f[ins.b]))
        case "COUNTNF":
            m.i[ins.d] = int(np.count_nonzero(~np.isfinite(x)))
        case _:
            m.i[ins.d] = lanes.argmax(x)


def _map(m: _Machine, ins: Instruction) -> None:
    cells, site, number = m.cells, m.context.site, ins.aux
    kind = m.program.maps[number].kind
    match ins.op.name:
        case "MHIST":
            if kind not in (MapKind.LOG2, MapKind.LINEAR):
                raise m.fault(FAULT_KEY, f"MHIST of a {kind}")
            cells.hist(number, m.f[ins.b], site)
        case "EMIT":
            if kind is not MapKind.RING:
                raise m.fault(FAULT_KEY, f"EMIT into a {kind}")
            cells.emit(number, m.i[ins.a], m.f[ins.b], m.context.step, site)
        case "MGET":
            m.f[ins.d] = cells.get(number, m.key(ins), site)
        case "MSET":
            cells.set(number, m.key(ins), m.f[ins.b], site)
        case "MMAX":
            cells.raise_to(number, m.key(ins), m.f[ins.b], site)
        case _:
            cells.add(number, m.key(ins), 1.0 if ins.op.name == "MINC" else m.f[ins.b], site)


def _call(m: _Machine, ins: Instruction) -> None:
    m.f[ins.d] = m.call(ins)


def _call_async(m: _Machine, ins: Instruction) -> None:
    if not m.call(ins):
        m.cells.drop(int(ins.imm))


_HANDLERS: Final[dict[str, _Handler]] = {
    **dict.fromkeys(("ICONST", "FCONST", "IMOV", "FMOV", "VMOV"), _move),
    **dict.fromkeys(("CTXI", "CTXF"), _context),
    **dict.fromkeys(("ROW", "COL", "HEAD", "SLICE"), _subview),
    **dict.fromkeys(("COUNTGT", "COUNTNF", "ARGMAX"), _count),
    **dict.fromkeys(("MGET", "MSET", "MADD", "MINC", "MHIST", "EMIT", "MMAX"), _map),
    **dict.fromkeys(("F2I", "ISFINITE"), _to_int),
    "VARG": _argument,
    "IADD": _ints(lambda a, b: scalars.saturate(a + b)),
    "ISUB": _ints(lambda a, b: scalars.saturate(a - b)),
    "IMUL": _ints(lambda a, b: scalars.saturate(a * b)),
    "IDIV": _ints(scalars.floor_div),
    "IMOD": _ints(scalars.floor_mod),
    "IMIN": _ints(min),
    "IMAX": _ints(max),
    "INEG": _ints(lambda a, _: scalars.saturate(-a)),
    "IABS": _ints(lambda a, _: scalars.saturate(abs(a))),
    "IAND": _ints(lambda a, b: a & b),
    "IOR": _ints(lambda a, b: a | b),
    "IXOR": _ints(lambda a, b: a ^ b),
    "ILT": _ints(lambda a, b: int(a < b)),
    "ILE": _ints(lambda a, b: int(a <= b)),
    "IEQ": _ints(lambda a, b: int(a == b)),
    "INE": _ints(lambda a, b: int(a != b)),
    "FADD": _floats(lambda a, b: a + b),
    "FSUB": _floats(lambda a, b: a - b),
    "FMUL": _floats(lambda a, b: a * b),
    "FDIV": _floats(scalars.divide),
    "FMIN": _floats(scalars.smaller),
    "FMAX": _floats(scalars.larger),
    "FNEG": _float(lambda a: -a),
    "FABS": _float(abs),
    "FSQRT": _float(scalars.square_root),
    "FEXP": _float(fixedmath.exp),
    "FLOG": _float(fixedmath.log),
    "FFLOOR": _float(scalars.floor),
    "FLT": _compare(lambda a, b: a < b),
    "FLE": _compare(lambda a, b: a <= b),
    "FEQ": _compare(lambda a, b: a == b),
    "FNE": _compare(lambda a, b: a != b),
    "I2F": _to_float,
    "DIM": _dim,
    "LD": _load,
    "SUM": _reduce(lanes.lane_sum),
    "SUMSQ": _reduce(lambda x: lanes.lane_sum(x * x)),
    "ABSMAX": _reduce(lanes.absmax),
    "MIN": _reduce(lanes.least),
    "MAX": _reduce(lanes.greatest),
    "MEAN": _reduce(lanes.mean),
    "ENTROPY": _reduce(lanes.entropy),
    "LSE": _reduce(lanes.lse),
    "ENTROPYL": _reduce(lanes.entropy_logits),
    "DOT": _reduce_pair(lambda a, b: lanes.lane_sum(a * b)),
    "KL": _reduce_pair(lanes.kl),
    "KLL": _reduce_pair(lanes.kl_logits),
    "CALL": _call,
    "CALL_ASYNC": _call_async,
}
