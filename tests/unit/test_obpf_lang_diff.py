"""The compiler against a second reading of the language: random programs, every map compared bit for bit."""

from __future__ import annotations

import ast
import random
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from obpf_lang_support import Reading, Writer

from probes import isa, lang, vm
from probes.cells import Cells
from probes.lang import fold

RNG = np.random.default_rng(5)
INPUTS = [
    RNG.standard_normal((5, 7)).astype(np.float32),
    np.array([[np.nan, 1.0, -np.inf], [0.0, -0.0, 2.0]]),
    np.zeros((1, 1), np.float32),
    RNG.standard_normal((70, 3))[:, ::-1].T,
    np.zeros((0, 4)),
]
FIRINGS = [vm.Firing(step=3, site=1, sites=2, firing=9, temperature=2.5), vm.Firing(step=isa.I64_MAX)]


def agree(text: str) -> None:
    """Machine and reading leave the same bytes in every map."""
    program = lang.compile_source(text, "random.py")
    tree = ast.parse(text)
    ran, read = Cells(program.maps), Cells(program.maps)
    for array in INPUTS:
        for firing in FIRINGS:
            vm.run(program, [vm.View(array)], firing, ran)
            read.begin(vm.written_maps(program))
            Reading(tree, program.maps, {"x": array}, firing, read).run()
            read.end(vm.written_maps(program))
            assert bytes(ran.buffer) == bytes(read.buffer), f"{text}\n{lang.disassemble(program)}\n{array}\n{firing}"


@settings(max_examples=100)
@given(st.randoms(use_true_random=False))
def test_a_compiled_program_does_what_its_source_says(rng: random.Random) -> None:
    agree(Writer(rng).source())


INTS = [0, 1, -1, 2, 7, -3, isa.I64_MAX, isa.I64_MIN, isa.I64_MAX - 1]
FLOATS = [0.0, -0.0, 1.0, -1.5, 0.1, 1e308, -1e308, 5e-324, float("inf"), float("-inf"), 2.0**63, -(2.0**63), 1e19, 0.5]


@pytest.mark.parametrize("name", fold._FOLDS)
def test_a_folded_constant_is_what_the_machine_computes(name: str) -> None:
    op = isa.BY_NAME[name]
    is_int = op.a is isa.Operand.INT
    pool: list[Any] = INTS if is_int else FLOATS
    seconds = pool if op.b is not isa.Operand.NONE else [None]
    for a in pool:
        for b in seconds:
            operands = [a] if b is None else [a, b]
            folded = fold.fold(name, *operands)
            if folded is not None:
                assert repr(folded) == repr(computed(op, operands)), (name, operands)


def computed(op: isa.Op, operands: list[Any]) -> int | float:
    """The result register of one instruction of constants, on the reference machine."""
    prefix = {isa.Operand.INT: "i", isa.Operand.FLOAT: "f"}
    const = {isa.Operand.INT: "ICONST", isa.Operand.FLOAT: "FCONST"}[op.a]
    lines = [f"{const} {prefix[op.a]}{k + 1}, {value!r}" for k, value in enumerate(operands)]
    regs = ", ".join(f"{prefix[op.a]}{k + 1}" for k in range(len(operands)))
    program = lang.assemble("\n".join([".hook on_kd_step", *lines, f"{op.name} {prefix[op.d]}0, {regs}", "EXIT"]))
    seen: list[Any] = []

    def trace(pc: int, ints: Any, floats: Any, views: Any) -> None:
        if program.code[pc].op.name == "EXIT":
            seen.append(ints[0] if op.d is isa.Operand.INT else floats[0])

    vm.run(program, [None] * 5, vm.Firing(), Cells(program.maps), trace=trace)
    (result,) = seen
    return float(result) if op.d is isa.Operand.FLOAT else int(result)
