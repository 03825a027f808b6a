"""The instruction set of oBPF: what bytecode is, as data.

Responsible for: every opcode with its operands and exact meaning, the kinds of maps, the views each hook hands to a program,
the helpers a program may call, the limits, and the encoding of instructions and programs, both ways. Standard library and
msgpack only: the kernel's verifier, the learner's interpreter and the compilers all read this one table, and the reference
page is generated from it. Refuses: bytes that are not exactly what `encode` would have written. It says nothing about whether
a program is *safe*; that is the verifier's word.

A program is a list of 16-byte instructions over three register files: 16 saturating 64-bit integers `i0`..`i15`, 16 IEEE
doubles `f0`..`f15` and 8 read-only tensor views `v0`..`v7`. Control is structured: FOR/ENDFOR and IF/ELSE/ENDIF nest, and there
are no jumps. Nothing can observe the payload or the sign of a NaN.

    instruction = op u8 | d u8 | a u8 | b u8 | aux i32 | imm 8 bytes        (little-endian; imm is i64 or f64 by opcode)
    program     = "OBPF" | ISA version u16 | 0 u16 | header length u32 | header (msgpack) | instructions | SHA-256 of all before
"""

from __future__ import annotations

import enum
import hashlib
import re
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import msgpack

from probes.isa_helpers import HELPER_BY_NAME as HELPER_BY_NAME
from probes.isa_helpers import HELPER_BY_NR as HELPER_BY_NR
from probes.isa_helpers import HELPERS as HELPERS
from probes.isa_helpers import Helper as Helper
from probes.isa_helpers import Tier as Tier
from syscalls.errors import RecurosError

ISA_VERSION: Final = 1
MAGIC: Final = b"OBPF"
INT_REGS: Final = 16
FLOAT_REGS: Final = 16
VIEW_REGS: Final = 8
INSTRUCTION_BYTES: Final = 16
INSTRUCTIONS_MAX: Final = 4_096
NESTING_MAX: Final = 4
VISITS_MAX: Final = 16_384
"""Instructions the verifier looks at, repeats included, before it gives up with its own error."""
RANK_MAX: Final = 4
MAPS_MAX: Final = 16
MAP_CELLS_MAX: Final = 1 << 18
"""8-byte cells of one map, all sites together."""
SITES_MAX: Final = 512
"""Rows of a per-site map; a site with a higher number is a counted drop."""
FIELDS_MAX: Final = 256
"""Named cells of one array."""
NAME_CHARS_MAX: Final = 64
HEADER_BYTES_MAX: Final = 64 << 10
PROGRAM_BYTES_MAX: Final = INSTRUCTIONS_MAX * INSTRUCTION_BYTES + HEADER_BYTES_MAX + 64
EVERY_MAX: Final = 1_000_000
LANES: Final = 64
"""A reduction adds element k into lane k mod 64, in order, then folds lanes 32, 16, 8, 4, 2, 1 apart: lane[j] += lane[j + stride]."""
I64_MIN: Final = -(1 << 63)
I64_MAX: Final = (1 << 63) - 1
HIST_LOG2_LOW: Final = -32
HIST_LOG2_BINS: Final = 64
_NAME = re.compile(r"[a-z_][a-z0-9_]{0,63}\Z")
_LAYOUT: Final = struct.Struct("<BBBBi8s")
_I64: Final = struct.Struct("<q")
_F64: Final = struct.Struct("<d")
_PREFIX: Final = struct.Struct("<4sHHI")


class Operand(enum.Enum):
    """What a column of an instruction holds. NONE must be zero."""

    NONE = "none"
    INT = "int register"
    FLOAT = "float register"
    VIEW = "view register"
    MAP = "map number"
    AXIS = "axis"
    CONTEXT_INT = "integer of the firing"
    CONTEXT_FLOAT = "float of the firing"
    ARGUMENT = "view of the hook"
    HELPER = "helper number"
    IMM_INT = "64-bit integer"
    IMM_FLOAT = "double"
    IMM_MAP = "map number in imm"


_N, _I, _F, _V = Operand.NONE, Operand.INT, Operand.FLOAT, Operand.VIEW


@dataclass(frozen=True, slots=True)
class Op:
    """One opcode. `cost`: units of a run, `per_element`: further units for each element of the view(s); a unit is about 1 ns."""

    nr: int
    name: str
    d: Operand
    a: Operand
    b: Operand
    aux: Operand
    imm: Operand
    doc: str
    cost: int = 1
    per_element: int = 0


def _op(
    nr: int,
    name: str,
    operands: tuple[Operand, ...],
    doc: str,
    *,
    aux: Operand = _N,
    imm: Operand = _N,
    cost: int = 1,
    per: int = 0,
) -> Op:
    d, a, b = (*operands, _N, _N, _N)[:3]
    return Op(nr, name, d, a, b, aux, imm, doc, cost, per)


_CELL = 20
_MAP = Operand.MAP
# fmt: off
OPS: Final[tuple[Op, ...]] = (
    # --- control -------------------------------------------------------------------------------------------------------
    _op(0x00, "EXIT", (), "End the firing."),
    _op(0x01, "FOR", (_I, _I), "Run the body up to ENDFOR with d = 0, 1, ... a-1; a is read once, at entry; not at all when a <= 0. "
        "The body may not write d, and d is undefined after the loop."),
    _op(0x02, "ENDFOR", (), "End of a loop's body."),
    _op(0x03, "IF", (_N, _I), "Run the block up to ELSE or ENDIF when a is not 0."),
    _op(0x04, "ELSE", (), "The block for a = 0."),
    _op(0x05, "ENDIF", (), "End of IF."),
    # --- constants, moves, the firing ----------------------------------------------------------------------------------
    _op(0x10, "ICONST", (_I,), "d = imm.", imm=Operand.IMM_INT),
    _op(0x11, "FCONST", (_F,), "d = imm; a NaN constant is refused, infinities are allowed.", imm=Operand.IMM_FLOAT),
    _op(0x12, "IMOV", (_I, _I), "d = a."),
    _op(0x13, "FMOV", (_F, _F), "d = a."),
    _op(0x14, "VMOV", (_V, _V), "d = a: the same elements, nothing is copied."),
    _op(0x15, "CTXI", (_I,), "d = an integer of the firing.", aux=Operand.CONTEXT_INT),
    _op(0x16, "CTXF", (_F,), "d = a float of the firing; NaN where the hook has none.", aux=Operand.CONTEXT_FLOAT),
    _op(0x17, "VARG", (_V,), "d = a view of the hook, by its number in the hook's contract.", aux=Operand.ARGUMENT),
    # --- integers: saturating at both ends -----------------------------------------------------------------------------
    _op(0x20, "IADD", (_I, _I, _I), "d = a + b, saturating."),
    _op(0x21, "ISUB", (_I, _I, _I), "d = a - b, saturating."),
    _op(0x22, "IMUL", (_I, _I, _I), "d = a * b, saturating.", cost=2),
    _op(0x23, "IDIV", (_I, _I, _I), "d = floor(a / b); 0 when b = 0; -2^63 / -1 saturates.", cost=8),
    _op(0x24, "IMOD", (_I, _I, _I), "d = a - floor(a / b) * b, which has the sign of b; a when b = 0.", cost=8),
    _op(0x25, "IMIN", (_I, _I, _I), "d = the smaller."),
    _op(0x26, "IMAX", (_I, _I, _I), "d = the larger."),
    _op(0x27, "INEG", (_I, _I), "d = -a, saturating."),
    _op(0x28, "IABS", (_I, _I), "d = |a|, saturating."),
    _op(0x29, "IAND", (_I, _I, _I), "d = bitwise and of the two's complements."),
    _op(0x2A, "IOR", (_I, _I, _I), "d = bitwise or of the two's complements."),
    _op(0x2B, "IXOR", (_I, _I, _I), "d = bitwise exclusive or of the two's complements."),
    _op(0x2C, "ILT", (_I, _I, _I), "d = 1 if a < b else 0."),
    _op(0x2D, "ILE", (_I, _I, _I), "d = 1 if a <= b else 0."),
    _op(0x2E, "IEQ", (_I, _I, _I), "d = 1 if a = b else 0."),
    _op(0x2F, "INE", (_I, _I, _I), "d = 1 if a differs from b else 0."),
    # --- floats: IEEE double, nearest even, never fused ----------------------------------------------------------------
    _op(0x30, "FADD", (_F, _F, _F), "d = a + b."),
    _op(0x31, "FSUB", (_F, _F, _F), "d = a - b."),
    _op(0x32, "FMUL", (_F, _F, _F), "d = a * b."),
    _op(0x33, "FDIV", (_F, _F, _F), "d = a / b, IEEE: x/0 is an infinity or NaN.", cost=4),
    _op(0x34, "FNEG", (_F, _F), "d = -a."),
    _op(0x35, "FABS", (_F, _F), "d = |a|."),
    _op(0x36, "FMIN", (_F, _F, _F), "d = the smaller; NaN when either is NaN; -0 is smaller than +0."),
    _op(0x37, "FMAX", (_F, _F, _F), "d = the larger; NaN when either is NaN; +0 is larger than -0."),
    _op(0x38, "FSQRT", (_F, _F), "d = square root, correctly rounded; NaN below 0; sqrt(-0) = -0.", cost=6),
    _op(0x39, "FEXP", (_F, _F), "d = e^a by the fixed polynomial of the reference page.", cost=12),
    _op(0x3A, "FLOG", (_F, _F), "d = ln a by the fixed polynomial of the reference page; -inf at 0, NaN below.", cost=12),
    _op(0x3B, "FFLOOR", (_F, _F), "d = the largest integer not above a."),
    _op(0x3C, "FLT", (_I, _F, _F), "d = 1 if a < b else 0; 0 with a NaN."),
    _op(0x3D, "FLE", (_I, _F, _F), "d = 1 if a <= b else 0; 0 with a NaN."),
    _op(0x3E, "FEQ", (_I, _F, _F), "d = 1 if a = b else 0; 0 with a NaN."),
    _op(0x3F, "FNE", (_I, _F, _F), "d = 1 if a differs from b else 0; 1 with a NaN."),
    _op(0x40, "ISFINITE", (_I, _F), "d = 1 if a is neither NaN nor infinite else 0."),
    _op(0x41, "F2I", (_I, _F), "d = a towards zero, saturating; 0 for NaN."),
    _op(0x42, "I2F", (_F, _I), "d = a, rounded to nearest even."),
    # --- views ---------------------------------------------------------------------------------------------------------
    _op(0x50, "DIM", (_I, _V), "d = the size of a along an axis.", aux=Operand.AXIS),
    _op(0x51, "ROW", (_V, _V, _I), "d = a[b], the first axis taken out; 0 <= b < dim(a, 0) must be proved; rank 2 or more.", cost=3),
    _op(0x52, "COL", (_V, _V, _I), "d = a[..., b], the last axis taken out; 0 <= b < dim(a, last) must be proved; rank 2 or more.", cost=3),
    _op(0x53, "HEAD", (_V, _V, _I), "d = a[:, b], the second axis taken out; 0 <= b < dim(a, 1) must be proved; rank 3 or more.", cost=3),
    _op(0x54, "SLICE", (_V, _V, _I), "d = a[b : c] along the first axis, c the integer register named by aux; both are clamped into "
        "[0, dim(a, 0)], and c below b gives an empty view.", aux=_I, cost=4),
    _op(0x55, "LD", (_F, _V, _I), "d = a[b] as a double; a has rank 1 and 0 <= b < dim(a, 0) must be proved. 16-bit floats and float32 are exact; "
        "integers are rounded to nearest even.", cost=4),
    # --- reductions over every element of a view, in C order, in double ------------------------------------------------
    _op(0x60, "SUM", (_F, _V), "d = sum; 0 of nothing.", cost=_CELL, per=1),
    _op(0x61, "SUMSQ", (_F, _V), "d = sum of squares; 0 of nothing.", cost=_CELL, per=1),
    _op(0x62, "ABSMAX", (_F, _V), "d = largest magnitude, NaN when any element is NaN; 0 of nothing.", cost=_CELL, per=1),
    _op(0x63, "MIN", (_F, _V), "d = smallest, by FMIN; +inf of nothing.", cost=_CELL, per=1),
    _op(0x64, "MAX", (_F, _V), "d = largest, by FMAX; -inf of nothing.", cost=_CELL, per=1),
    _op(0x65, "MEAN", (_F, _V), "d = SUM / number of elements; NaN of nothing.", cost=_CELL, per=1),
    _op(0x66, "DOT", (_F, _V, _V), "d = sum of the products; the shapes must be proved equal.", cost=_CELL, per=2),
    _op(0x67, "COUNTGT", (_I, _V, _F), "d = number of elements above b.", cost=_CELL, per=1),
    _op(0x68, "COUNTNF", (_I, _V), "d = number of elements that are NaN or infinite.", cost=_CELL, per=1),
    _op(0x69, "ARGMAX", (_I, _V), "d = position in C order of the first largest element, NaNs left out; 0 when there is none.", cost=_CELL, per=2),
    _op(0x6A, "ENTROPY", (_F, _V), "d = -sum p ln p over probabilities; elements <= 0 add 0, NaNs make NaN.", cost=_CELL, per=8),
    _op(0x6B, "KL", (_F, _V, _V), "d = sum a (ln a - ln b) over probabilities of proved equal shape; a <= 0 adds 0, b <= 0 under a > 0 gives +inf.",
        cost=_CELL, per=16),
    _op(0x6C, "LSE", (_F, _V), "d = m + ln sum e^(x - m), m = MAX; -inf of nothing; m itself when m is infinite or NaN.", cost=2 * _CELL, per=8),
    _op(0x6D, "ENTROPYL", (_F, _V), "d = entropy of softmax(a): LSE - sum (e^(x - LSE)) x, a term of weight 0 adding 0.", cost=3 * _CELL, per=16),
    _op(0x6E, "KLL", (_F, _V, _V), "d = KL(softmax(a) || softmax(b)) = sum e^(a - LSE a) ((a - LSE a) - (b - LSE b)), weight 0 adding 0; equal shapes.",
        cost=4 * _CELL, per=32),
    # --- maps ----------------------------------------------------------------------------------------------------------
    _op(0x70, "MGET", (_F, _I), "d = the cell of key a; 0 when a hash does not hold it.", aux=_MAP, cost=8),
    _op(0x71, "MSET", (_N, _I, _F), "cell[a] = b; a NaN is counted and not stored.", aux=_MAP, cost=8),
    _op(0x72, "MADD", (_N, _I, _F), "cell[a] += b; a NaN is counted and not added, nor is what would make one (inf - inf).", aux=_MAP, cost=8),
    _op(0x73, "MINC", (_N, _I), "cell[a] += 1.", aux=_MAP, cost=8),
    _op(0x74, "MHIST", (_N, _N, _F), "Count b in the histogram's bin; NaN has a bin of its own.", aux=_MAP, cost=10),
    _op(0x75, "EMIT", (_N, _I, _F), "Append (step, site, a, b) to the ring; a full ring counts a drop and keeps what it has; a NaN is counted and kept.", aux=_MAP, cost=12),
    _op(0x76, "MMAX", (_N, _I, _F), "cell[a] = the larger of cell[a] and b; a NaN is counted and not stored.", aux=_MAP, cost=8),
    # --- helpers -------------------------------------------------------------------------------------------------------
    _op(0x80, "CALL", (_F, _V, _V), "d = helper(a, b); b is 0 for a helper of one view.", aux=Operand.HELPER, cost=50),
    _op(0x81, "CALL_ASYNC", (_N, _V, _V), "Hand copies of the views to a helper that runs outside the step; its figures land in the per-site array "
        "imm. A full queue is a counted drop of that map.", aux=Operand.HELPER, imm=Operand.IMM_MAP, cost=2_000, per=1),
)
# fmt: on
BY_NR: Final[dict[int, Op]] = {op.nr: op for op in OPS}
BY_NAME: Final[dict[str, Op]] = {op.name: op for op in OPS}
assert len(BY_NR) == len(BY_NAME) == len(OPS), "an opcode is used twice"

CONTEXT_INTS: Final[tuple[tuple[str, int], ...]] = (
    ("step", I64_MAX),
    ("site", SITES_MAX - 1),
    ("sites", SITES_MAX),
    ("firing", I64_MAX),
)
"""Integers of the firing, by number, with the largest value; the smallest is 0. `site`: number of this site among the probe's sites."""
CONTEXT_FLOATS: Final[tuple[str, ...]] = ("temperature", "sparsity")


@dataclass(frozen=True, slots=True)
class ViewSpec:
    """A view that a hook hands out. `dims`: a symbol for each axis; equal symbols of one hook are equal sizes in every firing."""

    name: str
    dims: tuple[str, ...]
    doc: str

    @property
    def rank(self) -> int:
        """Number of axes, 1 to RANK_MAX."""
        return len(self.dims)


HOOK_VIEWS: Final[dict[str, tuple[ViewSpec, ...]]] = {
    "on_forward": (ViewSpec("x", ("rows", "width"), "the layer's output, leading axes flattened to rows"),),
    "on_attention": (
        ViewSpec("attn", ("batch", "heads", "queries", "keys"), "attention probabilities; each row of keys sums to 1"),
    ),
    "on_kd_step": (
        ViewSpec("student", ("rows", "classes"), "student logits, leading axes flattened to rows"),
        ViewSpec("teacher", ("rows", "classes"), "teacher logits"),
        ViewSpec("labels", ("rows",), "class numbers, -100 where there is none"),
        ViewSpec("hs", ("hidden_rows", "student_width"), "student hidden states of one mapped pair of layers"),
        ViewSpec("ht", ("hidden_rows", "teacher_width"), "teacher hidden states of the same pair"),
    ),
    "on_grad": (
        ViewSpec(
            "grad", ("rows", "cols"), "gradient of the parameter, axes after the first flattened; a vector is one row"
        ),
        ViewSpec("param", ("rows", "cols"), "the parameter itself"),
    ),
    "on_snapshot": (),
    "on_prune": (
        ViewSpec("mask", ("rows", "cols"), "1 where a weight is kept, 0 where it is pruned"),
        ViewSpec("param", ("rows", "cols"), "the parameter after pruning"),
    ),
}
"""A program of on_kd_step that uses `hs` or `ht` fires once per mapped pair, its site being the pair; else once per step."""

REFERENCE_DIMS: Final[dict[str, int]] = {
    "rows": 4_096,
    "width": 1_024,
    "batch": 16,
    "heads": 32,
    "queries": 512,
    "keys": 512,
    "classes": 1_024,
    "hidden_rows": 4_096,
    "student_width": 1_024,
    "teacher_width": 4_096,
    "cols": 4_096,
}
"""Largest sizes assumed where no model is known yet (`recuros probe check`); at attach the live model's sizes replace them."""
DIM_MAX: Final = 1 << 31


@dataclass(frozen=True)
class Contract:
    """What a firing promises: the hook's views, and the largest size of each symbolic dimension. Checked before every firing."""

    hook: str
    dims_max: dict[str, int] = field(default_factory=dict)

    @property
    def views(self) -> tuple[ViewSpec, ...]:
        """The hook's views in order."""
        return HOOK_VIEWS[self.hook]

    def largest(self, symbol: str) -> int:
        """The largest size of a dimension."""
        return self.dims_max.get(symbol, REFERENCE_DIMS[symbol])

    def breach(self, shapes: Sequence[tuple[int, ...] | None]) -> tuple[str, int, int] | None:
        """What of a firing's views is not as promised, one shape per view, None where it has none: ("rank" or a symbol, found, promised).

        None when they keep to it. A symbol's promise is its largest size, or the size that it has in an earlier view.
        """
        sizes: dict[str, int] = {}
        for view, shape in zip(self.views, shapes, strict=True):
            if shape is None:
                continue
            if len(shape) != view.rank:
                return "rank", len(shape), view.rank
            for symbol, size in zip(view.dims, shape, strict=True):
                if size > self.largest(symbol):
                    return symbol, size, self.largest(symbol)
                if sizes.setdefault(symbol, size) != size:
                    return symbol, size, sizes[symbol]
        return None

    def digest(self) -> str:
        """SHA-256 of the contract in hex: what a certificate is bound to."""
        symbols = sorted({s for view in self.views for s in view.dims})
        body = [self.hook, [[v.name, list(v.dims)] for v in self.views], [[s, self.largest(s)] for s in symbols]]
        return hashlib.sha256(msgpack.packb(body)).hexdigest()


class MapKind(enum.StrEnum):
    """Kinds of maps. All are allocated whole when a probe is attached."""

    ARRAY = "array"
    HASH = "hash"
    LOG2 = "log2"
    LINEAR = "linear"
    RING = "ring"


KEYED: Final = frozenset({MapKind.ARRAY, MapKind.HASH})


@dataclass(frozen=True, slots=True)
class MapSpec:
    """A declared map.

    kind array: `size` double cells, keys 0 .. size-1 must be proved; `per_site`: such a row for each site (a per-layer array, or a
    per-head array when the key is a head). hash: at most `size` keys of any value; a new key in a full one, or with no free slot
    within reach, is a counted drop. log2: bins for NaN, <= 0, and floor(log2 b) clamped into [-32, 31]; size is 1. linear: `size` bins over [low, high) and bins for
    NaN, below and above. ring: `size` entries (step, site, tag, value). `label` says what a key is ("head", "bin", ...), for readers;
    `fields` names the cells of an array.
    """

    name: str
    kind: MapKind
    size: int = 1
    per_site: bool = False
    low: float = 0.0
    high: float = 0.0
    label: str = ""
    fields: tuple[str, ...] = ()

    @property
    def cells(self) -> int:
        """8-byte cells of one row."""
        extra = {MapKind.LOG2: HIST_LOG2_BINS + 2 - self.size, MapKind.LINEAR: 3, MapKind.HASH: self.size}
        return self.size * (4 if self.kind is MapKind.RING else 1) + extra.get(self.kind, 0)

    @property
    def cells_total(self) -> int:
        """8-byte cells of the whole map."""
        return self.cells * (SITES_MAX if self.per_site else 1)


@dataclass(frozen=True, slots=True)
class Instruction:
    """One instruction; `imm` is an int or a float by its opcode. Columns an opcode does not use are 0."""

    op: Op
    d: int = 0
    a: int = 0
    b: int = 0
    aux: int = 0
    imm: int | float = 0

    def encode(self) -> bytes:
        """16 bytes."""
        imm = _F64.pack(self.imm) if self.op.imm is Operand.IMM_FLOAT else _I64.pack(int(self.imm))
        data: bytes = _LAYOUT.pack(self.op.nr, self.d, self.a, self.b, self.aux, imm)
        return data


@dataclass(frozen=True)
class Bytecode:
    """A whole program. `hook`: the default hook string; `lines`: source line of each instruction, or empty; `source`: for readers."""

    name: str
    hook: str
    every: int
    maps: tuple[MapSpec, ...]
    code: tuple[Instruction, ...]
    lines: tuple[int, ...] = ()
    source: str = ""

    @property
    def hook_kind(self) -> str:
        """The kind of hook, such as `on_forward`."""
        return self.hook.partition(":")[0]


def _bad(detail: str) -> RecurosError:
    return RecurosError(
        "E8-ENCODING", f"not an oBPF program: {detail}", hint="compile it again: recuros probe check FILE"
    )


def encode(program: Bytecode) -> bytes:
    """The bytes of a program; E8-ENCODING when it is over a limit."""
    header = {
        "name": program.name,
        "hook": program.hook,
        "every": program.every,
        "maps": [
            [m.name, m.kind.value, m.size, m.per_site, m.low, m.high, m.label, list(m.fields)] for m in program.maps
        ],
        "lines": list(program.lines),
        "source": program.source,
    }
    packed: bytes = msgpack.packb(header)
    if len(packed) > HEADER_BYTES_MAX:
        raise _bad(f"its header takes {len(packed)} bytes; the limit is {HEADER_BYTES_MAX}")
    body: bytes = _PREFIX.pack(MAGIC, ISA_VERSION, 0, len(packed)) + packed + b"".join(i.encode() for i in program.code)
    data = body + hashlib.sha256(body).digest()
    decode(data)
    return data


def digest(data: bytes) -> str:
    """A program's name by content: the SHA-256 that ends it, in hex. Call `decode` first: this checks nothing."""
    return data[-32:].hex()


def decode(data: bytes) -> Bytecode:
    """Inverse of `encode`. E8-ENCODING says what is malformed; E9-VERSION names both ISA versions. Memory is bounded by `data`."""
    program = Decoding(data).step(INSTRUCTIONS_MAX)
    assert program is not None
    return program


class Decoding:
    """`decode` in slices, for a caller that may not be busy for long. The constructor checks all but the instructions."""

    def __init__(self, data: bytes) -> None:
        self._body, self._at, self._header = _open(data)
        self._code: list[Instruction] = []

    def step(self, instructions: int) -> Bytecode | None:
        """Read that many instructions more; the program when they were the last."""
        header, last = self._header, min(len(self._code) + instructions, self._header["count"])
        for pc in range(len(self._code), last):
            self._code.append(decode_instruction(self._body, self._at + pc * INSTRUCTION_BYTES, pc))
        if last < header["count"]:
            return None
        return Bytecode(
            name=header["name"],
            hook=header["hook"],
            every=header["every"],
            maps=header["maps"],
            code=tuple(self._code),
            lines=tuple(header["lines"]),
            source=header["source"],
        )


def _open(data: bytes) -> tuple[bytes, int, dict[str, Any]]:
    """The checked body, where its instructions begin, and the header with their count."""
    if len(data) > PROGRAM_BYTES_MAX:
        raise _bad(f"{len(data)} bytes; the limit is {PROGRAM_BYTES_MAX}")
    if len(data) < _PREFIX.size + 32 or data[:4] != MAGIC:
        raise _bad(
            "it does not begin with the magic OBPF" if data[:4] != MAGIC else f"it is cut off after {len(data)} bytes"
        )
    _, version, zero, header_bytes = _PREFIX.unpack_from(data)
    if version != ISA_VERSION:
        raise RecurosError(
            "E9-VERSION",
            f"the program is for ISA version {version}; this runtime has {ISA_VERSION}",
            hint="compile it again",
        )
    body = data[:-32]
    if hashlib.sha256(body).digest() != data[-32:]:
        raise _bad("its checksum does not match: the bytes were cut off or changed")
    code_at = _PREFIX.size + header_bytes
    if zero or header_bytes > HEADER_BYTES_MAX or code_at > len(body) or (len(body) - code_at) % INSTRUCTION_BYTES:
        raise _bad("its lengths do not add up")
    count = (len(body) - code_at) // INSTRUCTION_BYTES
    if not 0 < count <= INSTRUCTIONS_MAX:
        raise _bad(f"{count} instructions; there must be 1 to {INSTRUCTIONS_MAX}")
    return body, code_at, {**_header(body[_PREFIX.size : code_at], count), "count": count}


def decode_instruction(data: bytes, at: int, pc: int) -> Instruction:
    """The instruction at byte `at`; unknown opcodes, registers outside their file and unused columns that are not 0 are E8-ENCODING."""
    nr, d, a, b, aux, raw = _LAYOUT.unpack_from(data, at)
    op = BY_NR.get(nr)
    if op is None:
        raise _bad(f"instruction {pc}: opcode 0x{nr:02x} does not exist")
    for column, operand, value in (("d", op.d, d), ("a", op.a, a), ("b", op.b, b), ("aux", op.aux, aux)):
        if not 0 <= value < _BOUNDS[operand]:
            raise _bad(f"instruction {pc}: {op.name} has {column} = {value}, which is no {operand.value}")
    imm: int | float = _F64.unpack(raw)[0] if op.imm is Operand.IMM_FLOAT else _I64.unpack(raw)[0]
    if imm != imm:  # noqa: PLR0124 - a NaN
        raise _bad(f"instruction {pc}: {op.name} of NaN")
    if (op.imm is Operand.NONE and imm != 0) or (op.imm is Operand.IMM_MAP and not 0 <= imm < MAPS_MAX):
        raise _bad(f"instruction {pc}: {op.name} has imm = {imm}")
    return Instruction(op, d, a, b, aux, imm)


_BOUNDS: Final[dict[Operand, int]] = {
    Operand.NONE: 1,
    Operand.INT: INT_REGS,
    Operand.FLOAT: FLOAT_REGS,
    Operand.VIEW: VIEW_REGS,
    Operand.MAP: MAPS_MAX,
    Operand.AXIS: RANK_MAX,
    Operand.CONTEXT_INT: len(CONTEXT_INTS),
    Operand.CONTEXT_FLOAT: len(CONTEXT_FLOATS),
    Operand.ARGUMENT: 16,
    Operand.HELPER: 256,
}


def _header(data: bytes, count: int) -> dict[str, Any]:
    try:
        header = msgpack.unpackb(data, max_ext_len=0)
    except (ValueError, TypeError, RecursionError, msgpack.UnpackException) as e:
        raise _bad(f"its header is not msgpack: {type(e).__name__}") from e
    if not isinstance(header, dict) or list(header) != ["name", "hook", "every", "maps", "lines", "source"]:
        raise _bad("its header does not hold name, hook, every, maps, lines, source")
    texts = all(isinstance(header[key], str) for key in ("name", "hook", "source"))
    lists = all(isinstance(header[key], list) for key in ("maps", "lines"))
    if not texts or not lists or msgpack.packb(header) != data:
        raise _bad("its header is not in its one form")
    if not 0 < len(header["name"]) <= NAME_CHARS_MAX or header["hook"].partition(":")[0] not in HOOK_VIEWS:
        raise _bad(f"it is called {header['name']!r:.80} and names the hook {header['hook']!r:.80}")
    if type(header["every"]) is not int or not 1 <= header["every"] <= EVERY_MAX:
        raise _bad(f"every = {header['every']!r:.40}; it must be 1 to {EVERY_MAX} steps")
    if len(header["lines"]) not in (0, count):
        raise _bad(f"{len(header['lines'])} line numbers for {count} instructions")
    if not all(type(line) is int and 0 <= line < 1 << 31 for line in header["lines"]):
        raise _bad("its line numbers are not all numbers")
    header["maps"] = _maps(header["maps"])
    return header


def _maps(rows: Sequence[Any]) -> tuple[MapSpec, ...]:
    if len(rows) > MAPS_MAX:
        raise _bad(f"{len(rows)} maps; the limit is {MAPS_MAX}")
    specs = tuple(map(_map, rows))
    if len({spec.name for spec in specs}) != len(specs):
        raise _bad("two maps have one name")
    return specs


def _map(row: Any) -> MapSpec:
    match row:
        case [str(name), str(kind), int(size), bool(per_site), float(low), float(high), str(label), list(fields)] if (
            len(fields) <= FIELDS_MAX
        ):
            pass
        case _:
            raise _bad(f"a map is declared as {row!r:.120}")
    if (
        not _NAME.match(name)
        or kind not in set(MapKind)
        or not all(isinstance(f, str) and _NAME.match(f) for f in fields)
    ):
        raise _bad(f"map {name!r:.80} of kind {kind!r:.40}: names are a-z, 0-9 and _; kinds are {', '.join(MapKind)}")
    spec = MapSpec(name, MapKind(kind), size, per_site, low, high, label, tuple(fields))
    if (
        type(size) is not int
        or size < 1
        or (spec.kind is MapKind.LOG2 and size != 1)
        or spec.cells_total > MAP_CELLS_MAX
    ):
        raise _bad(f"map {name} of size {size} takes {spec.cells_total} cells; the limit is {MAP_CELLS_MAX}")
    if spec.kind in (MapKind.HASH, MapKind.RING) and per_site:
        raise _bad(f"map {name}: a {kind} is not per site; use the site as a key")
    if spec.kind is MapKind.LINEAR and not -1e300 < low < high < 1e300:
        raise _bad(f"map {name}: a linear histogram needs low < high, got {low:g} and {high:g}")
    if fields and (spec.kind is not MapKind.ARRAY or len(fields) != size):
        raise _bad(f"map {name}: {len(fields)} field names for {size} cells")
    if len(label) > NAME_CHARS_MAX:
        raise _bad(f"map {name}: its label has {len(label)} characters; the limit is {NAME_CHARS_MAX}")
    return spec
