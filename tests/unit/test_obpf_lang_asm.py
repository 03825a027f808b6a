"""Assembly: what is written is read back exactly, whatever the program, sound or not."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from probes import isa, lang
from probes.isa import Bytecode, Instruction, MapKind, MapSpec, Operand

CONTEXT = st.sampled_from(sorted(isa.HOOK_VIEWS))
TEXT = st.text(st.characters(codec="utf-8"), max_size=40)
NAME = st.from_regex(r"[a-z_][a-z0-9_]{0,12}", fullmatch=True)
FLOATS = st.floats(allow_nan=False)


@st.composite
def map_specs(draw: st.DrawFn) -> MapSpec:
    kind = draw(st.sampled_from(list(MapKind)))
    size = 1 if kind is MapKind.LOG2 else draw(st.integers(1, 9))
    fields = draw(st.lists(NAME, min_size=size, max_size=size)) if kind is MapKind.ARRAY and draw(st.booleans()) else []
    low, high = draw(FLOATS), draw(FLOATS)
    if kind is MapKind.LINEAR:
        low, high = -1.5, draw(st.floats(0, 1e200))
    per_site = kind not in {MapKind.HASH, MapKind.RING} and draw(st.booleans())
    return MapSpec(draw(NAME), kind, size, per_site, low, high, draw(TEXT), tuple(fields))


@st.composite
def instructions(draw: st.DrawFn) -> Instruction:
    """Any instruction that the encoding holds: its program need not make sense."""
    op = draw(st.sampled_from(isa.OPS))
    values = {
        name: draw(st.integers(0, isa._BOUNDS[operand] - 1))
        for name, operand in (("d", op.d), ("a", op.a), ("b", op.b), ("aux", op.aux))
    }
    imm: int | float = 0
    if op.imm is Operand.IMM_INT:
        imm = draw(st.integers(isa.I64_MIN, isa.I64_MAX))
    elif op.imm is Operand.IMM_FLOAT:
        imm = draw(FLOATS)
    elif op.imm is Operand.IMM_MAP:
        imm = draw(st.integers(0, isa.MAPS_MAX - 1))
    elif op.imm is Operand.NONE:
        imm = 0
    return Instruction(op, **values, imm=imm)


@st.composite
def programs(draw: st.DrawFn) -> Bytecode:
    code = draw(st.lists(instructions(), min_size=1, max_size=12))
    lines = draw(st.lists(st.integers(0, (1 << 31) - 1), min_size=len(code), max_size=len(code)))
    hook = draw(CONTEXT) + draw(st.sampled_from(["", ":student/a.*"])) + draw(st.sampled_from(["", ":", "é;#\n"]))
    kind = hook.partition(":")[0]
    return Bytecode(
        name=draw(TEXT.filter(bool)),
        hook=hook if kind in isa.HOOK_VIEWS else "on_prune",
        every=draw(st.integers(1, isa.EVERY_MAX)),
        maps=tuple(draw(st.lists(map_specs(), max_size=4, unique_by=lambda m: m.name))),
        code=tuple(code),
        lines=tuple(lines) if draw(st.booleans()) else (),
        source=draw(TEXT),
    )


@settings(max_examples=300)
@given(programs())
def test_assembly_and_bytecode_are_inverse(program: Bytecode) -> None:
    data = isa.encode(program)
    assert isa.encode(lang.assemble(lang.disassemble(program), "again.asm")) == data


def test_hand_written_assembly_keeps_its_own_lines_and_text() -> None:
    text = "; a comment\n.hook on_kd_step\n\n  VARG v0, student  # the logits\n  EXIT\n"
    program = lang.assemble(text, "/tmp/by-hand.asm")
    assert (program.name, program.lines, program.source) == ("by-hand", (4, 5), text)


def test_names_and_numbers_of_operands_are_the_same() -> None:
    named = ".hook on_kd_step\n.map m array 2\nCTXI i0, step\nVARG v1, hs\nVARG v2, ht\nMINC i0, @m\nCALL f0, v1, v2, cosine\nEXIT\n"
    numbers = (
        ".hook on_kd_step\n.map m array 2\nCTXI i0, 0\nVARG v1, 3\nVARG v2, 4\nMINC i0, @0\nCALL f0, v1, v2, 1\nEXIT\n"
    )
    assert lang.assemble(named).code == lang.assemble(numbers).code


def test_blocks_are_indented() -> None:
    text = ".hook on_kd_step\nICONST i1, 1\nIF i1\nFOR i0, i1\nENDFOR\nELSE\nENDIF\nEXIT\n"
    shown = [line for line in lang.disassemble(lang.assemble(text)).split("\n") if line.startswith("    ")]
    assert [len(line) - len(line.lstrip()) for line in shown] == [4, 4, 6, 6, 4, 4, 4]
