"""What the compilers emit before registers are chosen: instructions over any number of virtual registers.

Responsible for: `Ins`, `Block`, values and their types. Refuses: more instructions than a program may have, as soon as they
are emitted, so that no source makes the compiler work without end.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from probes import isa
from probes.isa import Op, Operand
from probes.lang.fold import fold

REGISTERS: Final = (Operand.INT, Operand.FLOAT, Operand.VIEW)
EMITTED_MAX: Final = 4 * isa.INSTRUCTIONS_MAX
"""Instructions emitted in one pass, those of branches that are then left out included."""


class Type(enum.IntEnum):
    """Types of values, each wider than the one before up to FLOAT. A view stands apart and has a rank."""

    BOOL = 0
    INT = 1
    FLOAT = 2
    VIEW = 3


FILES: Final = {Type.BOOL: Operand.INT, Type.INT: Operand.INT, Type.FLOAT: Operand.FLOAT, Type.VIEW: Operand.VIEW}


@dataclass(frozen=True, slots=True)
class Value:
    """A typed value: a constant, or a virtual register. `temporary`: nothing else reads the register."""

    type: Type
    reg: int = -1
    const: int | float | None = None
    rank: int = 0
    temporary: bool = False

    @property
    def word(self) -> str:
        """The type as errors name it."""
        return f"view of rank {self.rank}" if self.type is Type.VIEW else self.type.name.lower()


@dataclass(slots=True)
class Ins:
    """An instruction whose register columns hold virtual registers."""

    op: Op
    d: int
    a: int
    b: int
    aux: int
    imm: int | float
    line: int

    def reads(self) -> Iterator[int]:
        """Virtual registers read."""
        for operand, value in ((self.op.a, self.a), (self.op.b, self.b), (self.op.aux, self.aux)):
            if operand in REGISTERS and value >= 0:
                yield value

    @property
    def writes(self) -> int:
        """The virtual register written, or -1."""
        return self.d if self.op.d in REGISTERS else -1


@dataclass
class TooMany(Exception):  # noqa: N818 - not an error of its own: the compiler turns it into one
    """More instructions than a program may have; `line`: where they were passed."""

    line: int


@dataclass
class Block:
    """Instructions being emitted, and the virtual registers they use."""

    code: list[Ins] = field(default_factory=list)
    files: list[Operand] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    line: int = 0
    emitted: int = 0

    def register(self, file: Operand, name: str = "") -> int:
        """A new virtual register; `name` is the variable it holds."""
        self.files.append(file)
        self.names.append(name)
        return len(self.files) - 1

    def emit(
        self, name: str, a: int = 0, b: int = 0, *, d: int = -1, aux: int = 0, imm: int | float = 0, of: str = ""
    ) -> int:
        """Append an instruction; a `d` that is not given becomes a new register. Returns d."""
        op = isa.BY_NAME[name]
        self.emitted += 1
        if self.emitted > EMITTED_MAX:
            raise TooMany(self.line)
        if op.d in REGISTERS and d < 0:
            d = self.register(op.d, of)
        self.code.append(Ins(op, max(d, 0), a, b, aux, imm, self.line))
        return d

    def capture(self) -> list[Ins]:
        """Begin a list of its own; give what this returns to `release`."""
        outer, self.code = self.code, []
        return outer

    def release(self, outer: list[Ins]) -> list[Ins]:
        """End a list begun by `capture`; returns what was emitted in it."""
        inner, self.code = self.code, outer
        return inner

    # --- values ------------------------------------------------------------------------------------------------------

    def reg(self, value: Value) -> int:
        """The register of a value; a constant is put into a new one."""
        if value.const is None:
            return value.reg
        if value.type is Type.FLOAT:
            return self.emit("FCONST", imm=float(value.const))
        return self.emit("ICONST", imm=int(value.const))

    def apply(self, name: str, *values: Value, type_: Type) -> Value:
        """A scalar instruction of values, folded where all are constants."""
        if all(v.const is not None for v in values):
            result = fold(name, *(v.const for v in values if v.const is not None))
            if result is not None:
                return Value(type_, const=result)
        regs = [self.reg(v) for v in values]
        return Value(type_, reg=self.emit(name, *regs), temporary=True)

    def to_float(self, value: Value) -> Value:
        """The value as a float."""
        return value if value.type is Type.FLOAT else self.apply("I2F", value, type_=Type.FLOAT)

    def convert(self, value: Value, type_: Type) -> Value:
        """The value as a wider type."""
        return self.to_float(value) if type_ is Type.FLOAT else value

    def put(self, value: Value, d: int) -> None:
        """Write a value into a register of its file: the instruction that made it, when it was the last, writes there itself."""
        last = self.code[-1] if self.code else None
        if value.const is not None:
            name = "FCONST" if value.type is Type.FLOAT else "ICONST"
            self.emit(name, d=d, imm=float(value.const) if value.type is Type.FLOAT else int(value.const))
        elif value.temporary and last is not None and last.writes == value.reg and last.op.name != "FOR":
            last.d = d
        else:
            self.emit({Type.FLOAT: "FMOV", Type.VIEW: "VMOV"}.get(value.type, "IMOV"), value.reg, d=d)
