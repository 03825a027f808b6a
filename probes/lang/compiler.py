"""From a parsed program to bytecode.

Responsible for: passes until the types of all variables stand, the choice of registers, and the limits of a program; `compile_unit`.
Refuses with E8-SYNTAX: more values alive at once than there are registers, more instructions or deeper nesting than the instruction
set has. Whether the program is safe is the verifier's word.
"""

from __future__ import annotations

import ast
from typing import Final

from probes import isa
from probes.isa import Bytecode, Operand
from probes.lang.ir import Block, TooMany, Value
from probes.lang.parser import Unit
from probes.lang.regalloc import COUNTS, Pressure, allocate
from probes.lang.statements import Statements
from syscalls.errors import RecurosError

PASSES_MAX: Final = 24
_WORDS: Final = {Operand.INT: "whole numbers", Operand.FLOAT: "floats", Operand.VIEW: "views"}


def compile_unit(unit: Unit) -> Bytecode:
    """The program of a unit; E8-SYNTAX with line and column where the language or a limit is left."""
    try:
        block = _lowered(unit)
    except TooMany as e:
        raise _at(
            unit,
            e.line,
            f"the program has more than {isa.INSTRUCTIONS_MAX} instructions",
            "split it into several probes",
        ) from e
    except RecursionError as e:
        raise _at(unit, 1, "an expression is nested too deeply", "write it in several steps") from e
    _limits(unit, block)
    try:
        code, lines = allocate(block)
    except Pressure as e:
        raise _pressure(unit, e) from e
    program = Bytecode(unit.name, unit.hook, unit.every, tuple(unit.maps.values()), code, lines, unit.kept)
    try:
        isa.encode(program)
    except RecurosError as e:
        raise _at(unit, 1, e.message.removeprefix("not an oBPF program: "), "shorten the source") from e
    return program


def _lowered(unit: Unit) -> Block:
    types: dict[str, Value] = {}
    for _ in range(PASSES_MAX):
        statements = Statements(unit, types)
        statements.program()
        if not statements.changed:
            return statements.block
    raise _at(
        unit, 1, "the types of the variables hang on each other in too long a chain", "write floats as 0.0, not 0"
    )


def deepest(block: Block) -> tuple[int, int]:
    """Greatest nesting of loops, and the line where it is reached."""
    depth, found = 0, (0, 0)
    for ins in block.code:
        depth += (ins.op.name == "FOR") - (ins.op.name == "ENDFOR")
        if depth > found[0]:
            found = depth, ins.line
    return found


def _limits(unit: Unit, block: Block) -> None:
    if len(block.code) > isa.INSTRUCTIONS_MAX:
        raise _at(
            unit,
            block.code[isa.INSTRUCTIONS_MAX].line,
            f"the program has {len(block.code)} instructions; the limit is {isa.INSTRUCTIONS_MAX}",
            "split it into several probes",
        )
    depth, line = deepest(block)
    if depth > isa.NESTING_MAX:
        raise _at(
            unit,
            line,
            f"loops are nested {depth} deep here, those inside mean(f(x)) included; the limit is {isa.NESTING_MAX}",
            "take a figure of a row, for example sum(x[i]), instead of a loop over it",
        )


def _pressure(unit: Unit, e: Pressure) -> RecurosError:
    named = f"; alive there: {', '.join(e.names[:12])}" if e.names else ""
    return _at(
        unit,
        e.line,
        f"too many live values: {e.count} {_WORDS[e.file]}, {COUNTS[e.file]} registers{named}",
        "write a value into a map as soon as it is known, compute it where it is needed, or split the probe in two",
    )


def _at(unit: Unit, line: int, message: str, allowed: str) -> RecurosError:
    rows = unit.source.lines
    row = rows[line - 1] if 1 <= line <= len(rows) else ""
    place = ast.Name("", lineno=line, col_offset=len(row) - len(row.lstrip()))
    return unit.fail(place, message, allowed)
