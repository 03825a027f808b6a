"""Text assembly of oBPF: one instruction on a line, exactly as in the table, and back.

Responsible for: `assemble` and `disassemble`, inverse to each other: `assemble(disassemble(p)) == p` for every program that
`isa.decode` accepts, and what the assembler takes is what the encoding holds. Refuses with E8-SYNTAX, line and column: what
is not in the table or over a limit of it. It does not judge safety: programs that the verifier refuses can be written.

    .name NAME                  .map NAME KIND SIZE [per_site] [low=F] [high=F] [label=TEXT] [fields=a+b+c]
    .hook HOOK                  .line N         source line of the instructions that follow
    .every N                    .lines none     no source lines at all
    .source "TEXT"              one line of the source, in JSON's string form; repeated, they are joined by newlines
    OPNAME operand, ...         columns in the order d, a, b, aux, imm; only those that the opcode uses

Registers are i0, f0, v0; a map is @NAME or @NUMBER; a view, context value or helper is its name or number. `;` or `#` begins a
comment. Without `.line` an instruction's line is its line in the assembly, and without `.source` the assembly is its source
(up to SOURCE_KEPT_MAX characters; a longer one is not kept).
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from probes import isa
from probes.isa import Bytecode, Instruction, MapKind, MapSpec, Op, Operand
from probes.lang.position import Text, checked
from syscalls.errors import RecurosError

ASSEMBLY_CHARS_MAX: Final = 1 << 20
SOURCE_KEPT_MAX: Final = 32 << 10
NUMBER_CHARS_MAX: Final = 40
_TOKEN: Final = re.compile(r'\s*("(?:[^"\\]|\\.)*"|[;#].*|[^\s;#",]+(?:"(?:[^"\\]|\\.)*")?|,)')
_INT: Final = re.compile(r"[+-]?[0-9]+\Z")
_FLOAT: Final = re.compile(r"[+-]?(?:inf|(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?)\Z")
_BARE: Final = re.compile(r"[A-Za-z0-9_.:/*?\[\]!-]+\Z")
_REGISTERS: Final = {
    Operand.INT: ("i", isa.INT_REGS),
    Operand.FLOAT: ("f", isa.FLOAT_REGS),
    Operand.VIEW: ("v", isa.VIEW_REGS),
}
_OPENS: Final = frozenset({"FOR", "IF", "ELSE"})
_CLOSES: Final = frozenset({"ENDFOR", "ELSE", "ENDIF"})
_DIRECTIVES: Final = (".name", ".hook", ".every", ".map", ".line", ".lines", ".source")


# --- writing ---------------------------------------------------------------------------------------------------------


def disassemble(program: Bytecode) -> str:
    """The program as assembly; `assemble` of it gives an equal program back."""
    out = [f".name {_text(program.name)}", f".hook {_text(program.hook)}", f".every {program.every}"]
    out += [_map_line(spec) for spec in program.maps]
    if not program.lines:
        out.append(".lines none")
    source = program.source.split("\n")
    depth, line = 0, -1
    for pc, instruction in enumerate(program.code):
        if program.lines and program.lines[pc] != line:
            line = program.lines[pc]
            quote = source[line - 1].strip()[:80] if 0 < line <= len(source) else ""
            quote = "".join(c for c in quote if c.isprintable())
            out.append(f".line {line}" + (f"  ; {quote}" if quote else ""))
        depth -= instruction.op.name in _CLOSES
        out.append("    " + "  " * max(0, depth) + _instruction(instruction, program))
        depth += instruction.op.name in _OPENS
    out += [f".source {json.dumps(row)}" for row in source]
    return "\n".join(out) + "\n"


def _text(value: str) -> str:
    return value if _BARE.match(value) else json.dumps(value)


def _map_line(spec: MapSpec) -> str:
    parts = [".map", spec.name, spec.kind.value, str(spec.size)]
    if spec.per_site:
        parts.append("per_site")
    for name, number in (("low", spec.low), ("high", spec.high)):
        if spec.kind is MapKind.LINEAR or repr(number) != "0.0":
            parts.append(f"{name}={number!r}")
    if spec.label:
        parts.append(f"label={json.dumps(spec.label)}")
    if spec.fields:
        parts.append(f"fields={'+'.join(spec.fields)}")
    return " ".join(parts)


def _instruction(instruction: Instruction, program: Bytecode) -> str:
    op = instruction.op
    columns = ((op.d, instruction.d), (op.a, instruction.a), (op.b, instruction.b), (op.aux, instruction.aux))
    shown = [_operand(operand, value, program) for operand, value in columns if operand is not Operand.NONE]
    if op.imm is Operand.IMM_MAP:
        shown.append(_operand(Operand.MAP, int(instruction.imm), program))
    elif op.imm is not Operand.NONE:
        shown.append(repr(instruction.imm))
    return f"{op.name} {', '.join(shown)}".rstrip()


def _names(operand: Operand, hook: str) -> dict[str, int]:
    """Names that stand for numbers in an operand."""
    if operand is Operand.CONTEXT_INT:
        return {name: number for number, (name, _) in enumerate(isa.CONTEXT_INTS)}
    if operand is Operand.CONTEXT_FLOAT:
        return {name: number for number, name in enumerate(isa.CONTEXT_FLOATS)}
    if operand is Operand.ARGUMENT:
        views = isa.HOOK_VIEWS.get(hook.partition(":")[0], ())
        return {view.name: number for number, view in enumerate(views)}
    return {helper.name: helper.nr for helper in isa.HELPERS}


def _operand(operand: Operand, value: int, program: Bytecode) -> str:
    if operand in _REGISTERS:
        return f"{_REGISTERS[operand][0]}{value}"
    if operand is Operand.MAP:
        return f"@{program.maps[value].name}" if value < len(program.maps) else f"@{value}"
    if operand is Operand.AXIS:
        return str(value)
    by_number = {number: name for name, number in _names(operand, program.hook).items()}
    return by_number.get(value, str(value))


# --- reading ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Token:
    text: str
    column: int


@dataclass
class _Assembly:
    """What has been read so far."""

    source: Text
    name: str = ""
    hook: str = ""
    every: int = 1
    maps: dict[str, MapSpec] = field(default_factory=dict)
    rows: list[tuple[int, Op, list[_Token]]] = field(default_factory=list)
    """Line of the assembly, opcode and operands: read once all maps and the hook are known."""
    numbers: list[int] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    without_lines: bool = False
    line: int = 0
    seen: set[str] = field(default_factory=set)


def assemble(text: str, filename: str = "probe.asm") -> Bytecode:
    """The program that the assembly says; E8-SYNTAX with line and column."""
    source = checked(text, filename, ASSEMBLY_CHARS_MAX)
    unit = _Assembly(source)
    for number, row in enumerate(source.lines, 1):
        tokens = _tokens(source, number, row)
        if tokens and tokens[0].text.startswith("."):
            _directive(unit, number, tokens)
        elif tokens:
            _queue(unit, number, tokens)
    if not unit.hook:
        raise source.error("the program names no hook", 1, 1, f".hook HOOK, HOOK one of {', '.join(isa.HOOK_VIEWS)}")
    if not unit.rows:
        raise source.error("the program has no instruction", 1, 1, "write EXIT for one that does nothing")
    code = tuple(_read(unit, number, op, operands) for number, op, operands in unit.rows)
    program = Bytecode(
        name=unit.name or _stem(filename),
        hook=unit.hook,
        every=unit.every,
        maps=tuple(unit.maps.values()),
        code=code,
        lines=() if unit.without_lines else tuple(unit.numbers),
        source=_kept(unit),
    )
    try:
        isa.encode(program)
    except RecurosError as e:
        raise source.error(e.message.removeprefix("not an oBPF program: "), 1) from e
    return program


def _kept(unit: _Assembly) -> str:
    if unit.kept:
        return "\n".join(unit.kept)
    return unit.source.text if len(unit.source.text) <= SOURCE_KEPT_MAX else ""


def _stem(filename: str) -> str:
    stem = re.sub(r"\.[^.]*\Z", "", filename.replace("\\", "/").rpartition("/")[2])
    return stem[: isa.NAME_CHARS_MAX] or "probe"


def _tokens(source: Text, number: int, row: str) -> list[_Token]:
    found: list[_Token] = []
    at = 0
    while at < len(row) and not row[at:].isspace():
        match = _TOKEN.match(row, at)
        if match is None:
            raise source.error("a string is not closed", number, at + 1, 'strings are "..." in JSON\'s form')
        if match[1][0] in ";#":
            break
        found.append(_Token(match[1], match.start(1) + 1))
        at = match.end()
    return found


def _directive(unit: _Assembly, number: int, tokens: list[_Token]) -> None:
    head, rest = tokens[0], tokens[1:]
    if head.text not in _DIRECTIVES:
        raise unit.source.error(
            f"no directive {head.text[:40]}", number, head.column, f"directives: {', '.join(_DIRECTIVES)}"
        )
    if head.text == ".map":
        _map(unit, number, head, rest)
        return
    if len(rest) != 1:
        raise unit.source.error(f"{head.text} takes one value, got {len(rest)}", number, head.column, "quote blanks")
    if head.text in {".name", ".hook", ".every", ".lines"}:
        if head.text in unit.seen:
            raise unit.source.error(f"{head.text} is given twice", number, head.column)
        unit.seen.add(head.text)
    value = rest[0]
    if head.text == ".name":
        unit.name = _string(unit, number, value)
        if not 0 < len(unit.name) <= isa.NAME_CHARS_MAX:
            limit = f"a name has 1 to {isa.NAME_CHARS_MAX} characters"
            raise unit.source.error(limit, number, value.column)
    elif head.text == ".hook":
        unit.hook = _string(unit, number, value)
        if unit.hook.partition(":")[0] not in isa.HOOK_VIEWS:
            raise unit.source.error(
                f"no hook {unit.hook[:40]!r}", number, value.column, f"hooks: {', '.join(isa.HOOK_VIEWS)}"
            )
    elif head.text == ".every":
        unit.every = _int(unit, number, value, 1, isa.EVERY_MAX)
    elif head.text == ".line":
        unit.line = _int(unit, number, value, 0, (1 << 31) - 1) + 1
    elif head.text == ".lines":
        if value.text != "none":
            raise unit.source.error(".lines is only ever `.lines none`", number, value.column)
        unit.without_lines = True
    else:
        unit.kept.append(_string(unit, number, value))


def _map(unit: _Assembly, number: int, head: _Token, rest: list[_Token]) -> None:
    form = ".map NAME KIND SIZE [per_site] [low=F] [high=F] [label=TEXT] [fields=a+b+c]"
    if len(rest) < 3:
        raise unit.source.error(".map needs a name, a kind and a size", number, head.column, form)
    name, kind, size, *options = rest
    if name.text in unit.maps:
        raise unit.source.error(f"map {name.text[:64]} is declared twice", number, name.column)
    if kind.text not in set(MapKind):
        raise unit.source.error(f"no map kind {kind.text[:40]!r}", number, kind.column, f"kinds: {', '.join(MapKind)}")
    low, high, label, per_site = 0.0, 0.0, "", False
    fields: tuple[str, ...] = ()
    for option in options:
        key, _, raw = option.text.partition("=")
        value = _Token(raw, option.column + len(key) + 1)
        if option.text == "per_site":
            per_site = True
        elif key == "low":
            low = _float(unit, number, value)
        elif key == "high":
            high = _float(unit, number, value)
        elif key == "label":
            label = _string(unit, number, value)
        elif key == "fields":
            fields = tuple(raw.split("+"))
        else:
            raise unit.source.error(f"no map option {option.text[:40]!r}", number, option.column, form)
    cells = _int(unit, number, size, 1, isa.MAP_CELLS_MAX)
    spec = MapSpec(name.text, MapKind(kind.text), cells, per_site, low, high, label, fields)
    check_map(spec, lambda message: unit.source.error(message, number, head.column, form))
    if len(unit.maps) == isa.MAPS_MAX:
        raise unit.source.error(f"more than {isa.MAPS_MAX} maps", number, head.column)
    unit.maps[name.text] = spec


def check_map(spec: MapSpec, error: Callable[[str], RecurosError]) -> None:
    """Raise `error(message)` when the encoding would refuse this declaration."""
    try:
        isa.encode(Bytecode("map", "on_kd_step", 1, (spec,), (Instruction(isa.BY_NAME["EXIT"]),)))
    except RecurosError as e:
        raise error(e.message.removeprefix("not an oBPF program: ")) from e


def _queue(unit: _Assembly, number: int, tokens: list[_Token]) -> None:
    op = isa.BY_NAME.get(tokens[0].text)
    if op is None:
        close = [o.name for o in isa.OPS if o.name[:2] == tokens[0].text[:2].upper()] or [o.name for o in isa.OPS]
        raise unit.source.error(
            f"no opcode {tokens[0].text[:40]!r}", number, tokens[0].column, f"opcodes: {', '.join(close)}"
        )
    operands = tokens[1:]
    for place, token in enumerate(operands):
        last = place == len(operands) - 1
        if (token.text == ",") != (place % 2 == 1) or (last and token.text == ","):
            raise unit.source.error("operands are separated by single commas", number, token.column, _form(op))
    if len(unit.rows) == isa.INSTRUCTIONS_MAX:
        raise unit.source.error(f"more than {isa.INSTRUCTIONS_MAX} instructions", number, tokens[0].column)
    unit.rows.append((number, op, operands[::2]))
    unit.numbers.append(unit.line - 1 if unit.line else number)


def _form(op: Op) -> str:
    columns = (("d", op.d), ("a", op.a), ("b", op.b), ("aux", op.aux), ("imm", op.imm))
    return f"{op.name} {', '.join(f'{name}: {o.value}' for name, o in columns if o is not Operand.NONE)}".rstrip()


def _read(unit: _Assembly, number: int, op: Op, operands: list[_Token]) -> Instruction:
    columns = {"d": op.d, "a": op.a, "b": op.b, "aux": op.aux, "imm": op.imm}
    wanted = {name: operand for name, operand in columns.items() if operand is not Operand.NONE}
    if len(wanted) != len(operands):
        column = operands[-1].column if operands else 1
        raise unit.source.error(f"{op.name} has {len(wanted)} operands, got {len(operands)}", number, column, _form(op))
    values: dict[str, int | float] = {}
    for (name, operand), token in zip(wanted.items(), operands, strict=True):
        values[name] = _value(unit, number, op, operand, token)
    columns_of = {name: int(values.get(name, 0)) for name in ("d", "a", "b", "aux")}
    return Instruction(op, **columns_of, imm=values.get("imm", 0))


def _value(unit: _Assembly, number: int, op: Op, operand: Operand, token: _Token) -> int | float:
    source = unit.source
    if operand in _REGISTERS:
        prefix, count = _REGISTERS[operand]
        digits = token.text[len(prefix) :]
        if token.text.startswith(prefix) and digits in map(str, range(count)):
            return int(digits)
        raise source.error(
            f"{token.text[:40]!r} is no {operand.value}; they are {prefix}0 to {prefix}{count - 1}",
            number,
            token.column,
            _form(op),
        )
    if operand is Operand.IMM_INT:
        return _int(unit, number, token, isa.I64_MIN, isa.I64_MAX)
    if operand is Operand.IMM_FLOAT:
        return _float(unit, number, token)
    if operand in {Operand.MAP, Operand.IMM_MAP}:
        names = {f"@{name}": place for place, name in enumerate(unit.maps)}
        if token.text in names:
            return names[token.text]
        if token.text.startswith("@") and _INT.match(token.text[1:]):
            return _int(unit, number, _Token(token.text[1:], token.column + 1), 0, isa.MAPS_MAX - 1)
        listed = ", ".join(names) or "none is declared"
        raise source.error(f"no map {token.text[:70]}", number, token.column, f"maps: {listed}")
    if operand is Operand.AXIS:
        return _int(unit, number, token, 0, isa.RANK_MAX - 1)
    known = _names(operand, unit.hook)
    if token.text in known:
        return known[token.text]
    if not _INT.match(token.text):
        listed = ", ".join(known) or "none"
        raise source.error(f"no {operand.value} {token.text[:40]!r}", number, token.column, f"there are: {listed}")
    return _int(unit, number, token, 0, _NUMBERED[operand])


_NUMBERED: Final = {
    Operand.CONTEXT_INT: len(isa.CONTEXT_INTS) - 1,
    Operand.CONTEXT_FLOAT: len(isa.CONTEXT_FLOATS) - 1,
    Operand.ARGUMENT: 15,
    Operand.HELPER: 255,
}


def _int(unit: _Assembly, number: int, token: _Token, low: int, high: int) -> int:
    if len(token.text) <= NUMBER_CHARS_MAX and _INT.match(token.text) and low <= int(token.text) <= high:
        return int(token.text)
    raise unit.source.error(f"{token.text[:40]!r} is no whole number from {low} to {high}", number, token.column)


def _float(unit: _Assembly, number: int, token: _Token) -> float:
    if len(token.text) <= NUMBER_CHARS_MAX and _FLOAT.match(token.text):
        value = float(token.text)
        if math.isfinite(value) or "inf" in token.text:
            return value
    raise unit.source.error(
        f"{token.text[:40]!r} is no number", number, token.column, "write 1.5, -2e-3, inf or -inf; a NaN is no constant"
    )


def _string(unit: _Assembly, number: int, token: _Token) -> str:
    if not token.text.startswith('"'):
        return token.text
    try:
        value = json.loads(token.text)
        value.encode()
    except ValueError as e:
        raise unit.source.error("not a string in JSON's form", number, token.column) from e
    return str(value)
