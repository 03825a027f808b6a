"""The instructions of oBPF as torch operations, for tensors that live on an accelerator.

Responsible for: running a program where its tensors are. Floats stay on the device as doubles, arrays and histograms are device
tensors that the step adds to without waiting, and `drain`, at the step's end, copies them into the program's `Cells`. What decides
control flow or an address (a condition, a loop bound, an index, a key) and a hash's value is read back when it comes from the device;
`reads` counts that, since each one makes the host wait.
Refuses: bit-for-bit agreement. Sums are in torch's order, exp and log are torch's: sums agree with the interpreter to 1e-12 of the
sum of magnitudes, all else to a few units in the last place. Devices without doubles cannot run it.

It has been run on the CPU only, against the interpreter. It has not run on a GPU: what it costs there is not known.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Final

import torch
from torch import Tensor

from probes import scalars, vm
from probes.cells import BINS_BEFORE, Cells, linear_bin
from probes.isa import (
    HELPER_BY_NR,
    HIST_LOG2_BINS,
    HIST_LOG2_LOW,
    I64_MAX,
    I64_MIN,
    SITES_MAX,
    Bytecode,
    Instruction,
    MapKind,
    Tier,
)

_ON_DEVICE: Final = (MapKind.ARRAY, MapKind.LOG2, MapKind.LINEAR)


class Lowered:
    """One program on one device. `cells`: where `drain` puts the maps; `helpers`: as for the interpreter."""

    def __init__(
        self, program: Bytecode, cells: Cells, device: torch.device | str, helpers: vm.Helpers | None = None
    ) -> None:
        self.program, self.cells, self.helpers = program, cells, helpers or {}
        self.device = torch.device(device)
        self.reads = 0
        self._ends = vm.block_ends(program.code)
        self._held = {
            n: torch.zeros(spec.cells_total, dtype=torch.float64, device=self.device)
            for n, spec in enumerate(program.maps)
            if spec.kind in _ON_DEVICE
        }
        self._nans = {n: torch.zeros((), dtype=torch.int64, device=self.device) for n in self._held}
        self._rings: list[tuple[int, int, Tensor, int, int]] = []
        self._i: list[int | Tensor] = []
        self._f: list[Tensor] = []
        self._v: list[Tensor | None] = []
        self._pc = 0

    @torch.no_grad()
    def fire(self, views: Sequence[Tensor | None], firing: vm.Firing) -> None:
        """Fire once; raises vm.Fault as the interpreter does."""
        self._views, self._firing = views, firing
        zero = self._double(0.0)
        self._i, self._f, self._v = [0] * 16, [zero] * 16, [None] * 8
        code, loops, pc = self.program.code, list[tuple[int, int]](), 0
        while pc < len(code):
            ins, self._pc = code[pc], pc
            pc += 1
            match ins.op.name:
                case "EXIT":
                    return
                case "FOR":
                    limit = self._int(ins.a)
                    if limit > 0:
                        loops.append((0, limit))
                        self._i[ins.d] = 0
                    else:
                        pc = self._ends[pc - 1] + 1
                case "ENDFOR":
                    count, limit = loops.pop()
                    if count + 1 < limit:
                        loops.append((count + 1, limit))
                        pc = self._ends[pc - 1]
                        self._i[code[pc].d] = count + 1
                        pc += 1
                case "IF" if self._int(ins.a):
                    pass
                case "IF" | "ELSE":
                    end = self._ends[pc - 1]
                    pc = end + (code[end].op.name == "ELSE")
                case "ENDIF":
                    pass
                case name:
                    _STEPS[name](self, ins)

    def drain(self) -> None:
        """At the step's end: put what the device holds into the cells. Waits for the device."""
        for number, held in self._held.items():
            place = self.cells.layout.places[number]
            self.cells.begin((number,))
            try:
                data = held.cpu().numpy().tobytes()
                self.cells.buffer[place.cells : place.cells + len(data)] = data
                self.cells.count_nans(number, int(self._nans[number]))
                self._nans[number].zero_()
            finally:
                self.cells.end((number,))
        pending, self._rings = self._rings, []
        for number, tag, value, step, site in pending:
            self.cells.begin((number,))
            self.cells.emit(number, tag, float(value), step, site)
            self.cells.end((number,))

    # Registers

    def _double(self, x: float) -> Tensor:
        return torch.full((), x, dtype=torch.float64, device=self.device)

    def _int(self, register: int) -> int:
        held = self._i[register]
        if isinstance(held, Tensor):
            self.reads += 1
            held = self._i[register] = int(held)
        return held

    def _fault(self, kind: int, detail: str = "") -> vm.Fault:
        return vm.Fault(kind, self._pc, detail)

    def _view(self, register: int, rank: int = 1) -> Tensor:
        view = self._v[register]
        if view is None:
            raise self._fault(vm.FAULT_ARGUMENT, f"v{register} is empty")
        if view.dim() < rank:
            raise self._fault(vm.FAULT_RANK, f"rank {view.dim()}, {rank} needed")
        return view

    def _flat(self, register: int) -> Tensor:
        return self._view(register).double().reshape(-1)

    def _index(self, register: int, size: int) -> int:
        at = self._int(register)
        if not 0 <= at < size:
            raise self._fault(vm.FAULT_INDEX, f"{at} of {size}")
        return at

    # Instructions

    def move(self, ins: Instruction) -> None:
        """Constants, moves and what the firing says."""
        match ins.op.name:
            case "ICONST":
                self._i[ins.d] = int(ins.imm)
            case "FCONST":
                self._f[ins.d] = self._double(float(ins.imm))
            case "IMOV":
                self._i[ins.d] = self._i[ins.a]
            case "FMOV":
                self._f[ins.d] = self._f[ins.a]
            case "VMOV":
                self._v[ins.d] = self._view(ins.a)
            case "CTXI":
                self._i[ins.d] = int(self._firing[ins.aux])
            case "CTXF":
                self._f[ins.d] = self._double(self._firing[4 + ins.aux])
            case _:
                given = self._views[ins.aux] if ins.aux < len(self._views) else None
                if given is None:
                    raise self._fault(vm.FAULT_ARGUMENT, f"number {ins.aux}")
                self._v[ins.d] = given.detach()

    def integer(self, ins: Instruction) -> None:
        """Integer arithmetic, on the host by the interpreter's own rules."""
        b = self._int(ins.b) if ins.op.name not in ("INEG", "IABS") else 0
        self._i[ins.d] = _INTEGERS[ins.op.name](self._int(ins.a), b)

    def floating(self, ins: Instruction) -> None:
        """Float arithmetic."""
        self._f[ins.d] = _FLOATS[ins.op.name](self._f[ins.a], self._f[ins.b])

    def test(self, ins: Instruction) -> None:
        """A float comparison; its result stays on the device until something depends on it."""
        self._i[ins.d] = _TESTS[ins.op.name](self._f[ins.a], self._f[ins.b]).to(torch.int64)

    def convert(self, ins: Instruction) -> None:
        """I2F, F2I."""
        if ins.op.name == "I2F":
            held = self._i[ins.a]
            self._f[ins.d] = held.double() if isinstance(held, Tensor) else self._double(float(held))
            return
        x = self._f[ins.a]
        # The largest double below 2^63; what is not below it is the largest integer.
        near = x.nan_to_num(0.0).clamp(float(I64_MIN), 2.0**63 - 1024).to(torch.int64)
        self._i[ins.d] = torch.where(x >= 2.0**63, I64_MAX, near)

    def dim(self, ins: Instruction) -> None:
        """DIM."""
        self._i[ins.d] = self._view(ins.a, ins.aux + 1).shape[ins.aux]

    def subview(self, ins: Instruction) -> None:
        """ROW, COL, HEAD, SLICE."""
        view = self._view(ins.a, {"HEAD": 3, "SLICE": 1}.get(ins.op.name, 2))
        match ins.op.name:
            case "ROW":
                view = view[self._index(ins.b, view.shape[0])]
            case "COL":
                view = view[..., self._index(ins.b, view.shape[-1])]
            case "HEAD":
                view = view[:, self._index(ins.b, view.shape[1])]
            case _:
                low, high = (min(max(self._int(n), 0), view.shape[0]) for n in (ins.b, ins.aux))
                view = view[low : max(low, high)]
        self._v[ins.d] = view

    def load(self, ins: Instruction) -> None:
        """LD."""
        view = self._view(ins.a)
        if view.dim() != 1:
            raise self._fault(vm.FAULT_RANK, f"rank {view.dim()}, 1 needed")
        self._f[ins.d] = view[self._index(ins.b, view.shape[0])].double()

    def reduce(self, ins: Instruction) -> None:
        """A reduction of one view, or of two of one shape."""
        function = _REDUCTIONS[ins.op.name]
        x = self._flat(ins.a)
        if ins.op.name in ("DOT", "KL", "KLL"):
            if self._view(ins.a).shape != self._view(ins.b).shape:
                raise self._fault(vm.FAULT_SHAPE)
            result = function(x, self._flat(ins.b))
        else:
            result = function(x, self._f[ins.b])
        if ins.op.name in ("COUNTGT", "COUNTNF", "ARGMAX"):
            self._i[ins.d] = result
        else:
            self._f[ins.d] = result

    def keyed(self, ins: Instruction) -> None:
        """MGET, MSET, MADD, MINC, MMAX."""
        number, name, spec, key = ins.aux, ins.op.name, self.program.maps[ins.aux], self._int(ins.a)
        if spec.kind is MapKind.HASH:
            self._hashed(ins, key)
            return
        if spec.kind is not MapKind.ARRAY or not 0 <= key < spec.size:
            raise self._fault(vm.FAULT_KEY, f"{key} of {spec.name}")
        value = self._double(1.0) if name == "MINC" else self._f[ins.b]
        if name == "MGET":
            at = self._cell(number, key, write=False)
            self._f[ins.d] = self._double(0.0) if at is None else self._held[number][at].clone()
            return
        # Unlike the cells, this asks for the row before it knows of a NaN, which is on the device: beyond the last site a NaN
        # counts as a drop too, and a site that wrote only NaNs has a row of zeros.
        at = self._cell(number, key, write=True)
        old = self._double(0.0) if at is None else self._held[number][at]
        new = {"MSET": value, "MMAX": torch.maximum(old, value)}.get(name, old + value)
        bad = new.isnan()
        self._nans[number] += bad
        if at is not None:
            self._held[number][at] = torch.where(bad, old, new)

    def _cell(self, number: int, key: int, *, write: bool) -> int | None:
        spec, site = self.program.maps[number], self._firing.site
        if not spec.per_site:
            return key
        row = self.cells.row(number, site) if write else site if site < SITES_MAX else -1
        return None if row < 0 else site * spec.cells + key

    def _hashed(self, ins: Instruction, key: int) -> None:
        name, number, site = ins.op.name, ins.aux, self._firing.site
        if name == "MGET":
            self._f[ins.d] = self._double(self.cells.get(number, key, site))
            return
        if name != "MINC":
            self.reads += 1
        value = 1.0 if name == "MINC" else float(self._f[ins.b])
        self.cells.begin((number,))
        {"MSET": self.cells.set, "MMAX": self.cells.raise_to}.get(name, self.cells.add)(number, key, value, site)
        self.cells.end((number,))

    def histogram(self, ins: Instruction) -> None:
        """MHIST."""
        number, place, x = ins.aux, self.cells.layout.places[ins.aux], self._f[ins.b]
        spec = place.spec
        if spec.kind is MapKind.LOG2:
            exponent = torch.frexp(x).exponent.to(torch.int64) - 1
            bin_ = exponent.clamp(HIST_LOG2_LOW, HIST_LOG2_LOW + HIST_LOG2_BINS - 1) + BINS_BEFORE - HIST_LOG2_LOW
            bin_ = torch.where(x == math.inf, BINS_BEFORE + HIST_LOG2_BINS - 1, bin_)
            bin_ = torch.where(x <= 0, 1, bin_)
        elif spec.kind is MapKind.LINEAR and math.isfinite(place.scale):
            position = ((x - spec.low) * place.scale).nan_to_num(0.0, 0.0, 0.0).clamp(0, spec.size - 1)
            bin_ = torch.where(x >= spec.high, BINS_BEFORE + spec.size, position.to(torch.int64) + BINS_BEFORE)
            bin_ = torch.where(x < spec.low, 1, bin_)
        elif spec.kind is MapKind.LINEAR:
            self.reads += 1
            bin_ = torch.full((), linear_bin(float(x), place), device=self.device)
        else:
            raise self._fault(vm.FAULT_KEY, f"MHIST of a {spec.kind}")
        bin_ = torch.where(x.isnan(), 0, bin_)
        self._nans[number] += x.isnan()
        at = self._cell(number, 0, write=True)
        if at is not None:
            self._held[number].index_add_(0, (bin_ + at).reshape(1), self._double(1.0).reshape(1))

    def ring(self, ins: Instruction) -> None:
        """EMIT: kept with its place in time, put into the ring by `drain`."""
        spec, number = self.program.maps[ins.aux], ins.aux
        if spec.kind is not MapKind.RING:
            raise self._fault(vm.FAULT_KEY, f"EMIT into a {spec.kind}")
        if sum(row[0] == number for row in self._rings) >= spec.size:
            self.cells.drop(number)
            return
        step, site = self._firing.step, self._firing.site
        self._rings.append((number, self._int(ins.a), self._f[ins.b], step, site))

    def call(self, ins: Instruction) -> None:
        """CALL, CALL_ASYNC."""
        declared, function = HELPER_BY_NR.get(ins.aux), self.helpers.get(ins.aux)
        if declared is None or function is None:
            raise self._fault(vm.FAULT_HELPER, f"there is no helper {ins.aux} here")
        views = [self._view(n) for n in (ins.a, ins.b)[: len(declared.views)]]
        try:
            if declared.tier is not Tier.ASYNC:
                self._f[ins.d] = self._double(float(function(*views)))
            elif not function(int(ins.imm), self._firing, *views):
                self.cells.drop(int(ins.imm))
        except Exception as e:
            raise self._fault(vm.FAULT_HELPER, f"{declared.name}: {type(e).__name__}: {e}"[:300]) from e


def _least(x: Tensor, _: Tensor) -> Tensor:
    return x.min() if x.numel() else x.new_full((), math.inf)


def _greatest(x: Tensor, _: Tensor) -> Tensor:
    return x.max() if x.numel() else x.new_full((), -math.inf)


def _argmax(x: Tensor, _: Tensor) -> Tensor:
    if not x.numel():
        return x.new_zeros((), dtype=torch.int64)
    top = torch.where(x.isnan(), -math.inf, x).max()
    return (x == top).to(torch.int8).argmax()


def _weighted(weight: Tensor, value: Tensor) -> Tensor:
    return torch.where(weight == 0, 0.0, weight * value).sum()


def _entropy(p: Tensor, _: Tensor) -> Tensor:
    return 0.0 - torch.where(p <= 0, 0.0, p * p.log()).sum()


def _kl(a: Tensor, b: Tensor) -> Tensor:
    terms = torch.where(b <= 0, math.inf, a * (a.log() - b.log()))
    return torch.where(a <= 0, 0.0, terms).sum()


def _lse(x: Tensor, _: Tensor) -> Tensor:
    top = _greatest(x, _)
    return torch.where(top.isfinite(), top + (x - top).exp().sum().log(), top)


def _entropy_logits(x: Tensor, _: Tensor) -> Tensor:
    whole = _lse(x, _)
    return whole - _weighted((x - whole).exp(), x)


def _kl_logits(a: Tensor, b: Tensor) -> Tensor:
    da, db = a - _lse(a, a), b - _lse(b, b)
    return _weighted(da.exp(), da - db)


_INTEGERS: Final[dict[str, Callable[[int, int], int]]] = {
    "IADD": lambda a, b: scalars.saturate(a + b),
    "ISUB": lambda a, b: scalars.saturate(a - b),
    "IMUL": lambda a, b: scalars.saturate(a * b),
    "IDIV": scalars.floor_div,
    "IMOD": scalars.floor_mod,
    "IMIN": min,
    "IMAX": max,
    "INEG": lambda a, _: scalars.saturate(-a),
    "IABS": lambda a, _: scalars.saturate(abs(a)),
    "IAND": lambda a, b: a & b,
    "IOR": lambda a, b: a | b,
    "IXOR": lambda a, b: a ^ b,
    "ILT": lambda a, b: int(a < b),
    "ILE": lambda a, b: int(a <= b),
    "IEQ": lambda a, b: int(a == b),
    "INE": lambda a, b: int(a != b),
}
_FLOATS: Final[dict[str, Callable[[Tensor, Tensor], Tensor]]] = {
    "FADD": lambda a, b: a + b,
    "FSUB": lambda a, b: a - b,
    "FMUL": lambda a, b: a * b,
    "FDIV": lambda a, b: a / b,
    "FNEG": lambda a, _: -a,
    "FABS": lambda a, _: a.abs(),
    "FMIN": torch.minimum,
    "FMAX": torch.maximum,
    "FSQRT": lambda a, _: a.sqrt(),
    "FEXP": lambda a, _: a.exp(),
    "FLOG": lambda a, _: a.log(),
    "FFLOOR": lambda a, _: a.floor(),
}
_TESTS: Final[dict[str, Callable[[Tensor, Tensor], Tensor]]] = {
    "FLT": lambda a, b: a < b,
    "FLE": lambda a, b: a <= b,
    "FEQ": lambda a, b: a == b,
    "FNE": lambda a, b: a != b,
    "ISFINITE": lambda a, _: a.isfinite(),
}
_REDUCTIONS: Final[dict[str, Callable[[Tensor, Tensor], Tensor]]] = {
    "SUM": lambda x, _: x.sum(),
    "SUMSQ": lambda x, _: x @ x,
    "ABSMAX": lambda x, _: x.abs().max() if x.numel() else x.new_zeros(()),
    "MIN": _least,
    "MAX": _greatest,
    "MEAN": lambda x, _: x.mean(),
    "DOT": lambda a, b: a @ b,
    "COUNTGT": lambda x, limit: (x > limit).sum(),
    "COUNTNF": lambda x, _: (~x.isfinite()).sum(),
    "ARGMAX": _argmax,
    "ENTROPY": _entropy,
    "KL": _kl,
    "LSE": _lse,
    "ENTROPYL": _entropy_logits,
    "KLL": _kl_logits,
}
_STEPS: Final[dict[str, Callable[[Lowered, Instruction], Any]]] = {
    **dict.fromkeys(("ICONST", "FCONST", "IMOV", "FMOV", "VMOV", "CTXI", "CTXF", "VARG"), Lowered.move),
    **dict.fromkeys(_INTEGERS, Lowered.integer),
    **dict.fromkeys(_FLOATS, Lowered.floating),
    **dict.fromkeys(_TESTS, Lowered.test),
    **dict.fromkeys(_REDUCTIONS, Lowered.reduce),
    **dict.fromkeys(("F2I", "I2F"), Lowered.convert),
    **dict.fromkeys(("ROW", "COL", "HEAD", "SLICE"), Lowered.subview),
    **dict.fromkeys(("MGET", "MSET", "MADD", "MINC", "MMAX"), Lowered.keyed),
    **dict.fromkeys(("CALL", "CALL_ASYNC"), Lowered.call),
    "DIM": Lowered.dim,
    "LD": Lowered.load,
    "MHIST": Lowered.histogram,
    "EMIT": Lowered.ring,
}
