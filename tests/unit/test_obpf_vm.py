from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from probes import fixedmath, isa, lanes, scalars, vm
from probes.cells import Cells, read
from syscalls.errors import RecurosError
from tests.unit.obpf_support import array, fire, matrix, op, program

INTS = st.integers(isa.I64_MIN, isa.I64_MAX) | st.sampled_from([isa.I64_MIN, isa.I64_MAX, 0, -1, 1])
SIZES = [0, 1, 2, 31, 63, 64, 65, 127, 128, 129, 640, 1000, 4096, 10_007]


def slow_sum(x: list[float]) -> float:
    """The order of the instruction table, one addition at a time."""
    held = [0.0] * 64
    for k, value in enumerate(x):
        held[k % 64] += value
    stride = 32
    while stride:
        for j in range(stride):
            held[j] += held[j + stride]
        stride //= 2
    return held[0]


def same(a: float, b: float) -> bool:
    return (math.isnan(a) and math.isnan(b)) or (a == b and math.copysign(1, a) == math.copysign(1, b))


@pytest.mark.parametrize("size", SIZES)
def test_a_sum_visits_elements_in_the_order_of_the_table(size: int) -> None:
    rng = np.random.default_rng(size)
    for x in (rng.standard_normal(size) * 10.0 ** rng.integers(-12, 12, size), np.full(size, -0.0)):
        assert same(lanes.lane_sum(x), slow_sum(x.tolist()))


def test_the_order_of_a_sum_is_not_any_other_order() -> None:
    x = np.random.default_rng(0).standard_normal(5000) * 1e8
    assert lanes.lane_sum(x) != float(np.sum(x)) or lanes.lane_sum(x) != math.fsum(x)


@given(st.lists(st.floats(), max_size=200))
def test_reductions_are_what_the_table_says(x: list[float]) -> None:
    with np.errstate(all="ignore"):
        a = np.array(x, dtype=np.float64)
        low, high = math.inf, -math.inf
        for value in x:
            low, high = scalars.smaller(low, value), scalars.larger(high, value)
        assert same(lanes.least(a), low)
        assert same(lanes.greatest(a), high)
        numbers = [v for v in x if not math.isnan(v)]
        assert lanes.argmax(a) == (x.index(max(numbers)) if numbers else 0)
        terms = [0.0 if v <= 0 else v * fixedmath.log(v) for v in x]
        assert same(lanes.entropy(a), 0.0 - slow_sum(terms))


@given(INTS, INTS)
def test_integers_saturate(a: int, b: int) -> None:
    code = program(
        op("ICONST", 0, imm=a), op("ICONST", 1, imm=b),
        *(step for n, name in enumerate(("IADD", "ISUB", "IMUL", "IDIV", "IMOD", "INEG", "IABS"))
          for step in (op(name, 2, 0, 1 if n < 5 else 0), op("EMIT", 0, 2, 0))),
        maps=(isa.MapSpec("out", isa.MapKind.RING, 16),),
    )  # fmt: skip
    found = [row[2] for row in fire(code, [None]).take(0)]

    def clamp(n: int) -> int:
        return max(isa.I64_MIN, min(isa.I64_MAX, n))

    wanted = [
        clamp(a + b),
        clamp(a - b),
        clamp(a * b),
        clamp(a // b) if b else 0,
        a % b if b else a,
        clamp(-a),
        clamp(abs(a)),
    ]
    assert found == wanted


@pytest.mark.parametrize(
    ("a", "b", "quotient"),
    [
        (1.0, 0.0, math.inf),
        (-1.0, 0.0, -math.inf),
        (1.0, -0.0, -math.inf),
        (0.0, 0.0, math.nan),
        (math.inf, -0.0, -math.inf),
        (math.nan, 0.0, math.nan),
        (1.0, 4.0, 0.25),
    ],
)
def test_division_is_that_of_ieee(a: float, b: float, quotient: float) -> None:
    assert same(scalars.divide(a, b), quotient)


def test_minimum_and_maximum_order_zeros_and_keep_nan() -> None:
    assert same(scalars.smaller(0.0, -0.0), -0.0)
    assert same(scalars.larger(-0.0, 0.0), 0.0)
    assert math.isnan(scalars.smaller(math.nan, 1.0))
    assert math.isnan(scalars.larger(1.0, math.nan))


@pytest.mark.parametrize(
    ("x", "n"),
    [
        (math.nan, 0),
        (math.inf, isa.I64_MAX),
        (-math.inf, isa.I64_MIN),
        (2.0**63, isa.I64_MAX),
        (-2.9, -2),
        (1e300, isa.I64_MAX),
    ],
)
def test_a_double_becomes_an_integer_towards_zero(x: float, n: int) -> None:
    assert scalars.to_int(x) == n


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "int64", "int32", "uint8", "bool"])
def test_every_element_type_is_exact_in_double(dtype: str) -> None:
    x = np.array([0, 1, 0, 3, 1], dtype=dtype)
    assert vm.View(x).doubles().tolist() == [float(v) for v in x]


def test_bfloat16_is_the_upper_half_of_a_float32() -> None:
    x = torch.tensor([1.5, -3.25, float("inf"), 6e-39, -0.0]).bfloat16()
    view = vm.View(x.view(torch.int16).numpy(), bf16=True)
    assert view.doubles().tolist() == x.double().tolist()
    assert view.tensor().dtype is torch.bfloat16
    assert torch.equal(view.tensor(), x)


def test_strided_and_empty_views_are_read_in_c_order() -> None:
    base = np.arange(60, dtype=np.float32).reshape(3, 4, 5)
    held = base.transpose(2, 0, 1)[::2, :, 1:]
    assert vm.View(held).doubles().tolist() == [float(v) for v in held.flatten()]
    assert vm.View(base[:, 4:]).doubles().size == 0


def test_a_view_is_cut_as_the_table_says() -> None:
    x = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    full = np.stack([x, x + 100])
    code = program(
        op("VARG", 0), op("ICONST", 0, imm=1), op("ROW", 1, 0, 0), op("HEAD", 2, 1, 0), op("COL", 3, 2, 0),
        op("SUM", 0, 3), op("ICONST", 1, imm=-5), op("ICONST", 2, imm=99), op("SLICE", 4, 3, 1, aux=2),
        op("SUM", 1, 4), op("SLICE", 5, 3, 2, aux=1), op("SUM", 2, 5), op("DIM", 3, 5), op("LD", 3, 3, 0),
        op("ICONST", 4, imm=0), *(op("EMIT", 0, 4, f) for f in range(4)), op("EMIT", 0, 3, 0),
        maps=(isa.MapSpec("out", isa.MapKind.RING, 8),), hook="on_attention",
    )  # fmt: skip
    rows = fire(code, [vm.View(full)]).take(0)
    column = full[1][:, 1][:, 1]
    assert [row[3] for row in rows[:4]] == [column.sum(), column.sum(), 0.0, column[1]]
    assert rows[4][2] == 0


def test_a_loop_reads_its_bound_once_and_an_exit_ends_the_firing() -> None:
    code = program(
        op("ICONST", 0, imm=3), op("ICONST", 2, imm=0), op("FOR", 1, 0), op("ICONST", 0, imm=100), op("MINC", 0, 2),
        op("ENDFOR"), op("ICONST", 3, imm=-1), op("FOR", 1, 3), op("MINC", 0, 2), op("ENDFOR"),
        op("IF", 0, 3), op("EXIT"), op("ELSE"), op("MINC", 0, 2), op("ENDIF"), op("MINC", 0, 2),
        maps=(array(size=1),),
    )  # fmt: skip
    assert fire(code, [None]).get(0, 0, 0) == 3.0


def test_what_a_proof_excludes_is_a_fault_that_names_the_instruction() -> None:
    cases: list[tuple[int, int, list[isa.Instruction], Any]] = [
        (vm.FAULT_KEY, 1, [op("ICONST", 0, imm=16), op("MINC", 0, 0)], None),
        (vm.FAULT_INDEX, 2, [op("VARG", 0), op("ICONST", 0, imm=-1), op("ROW", 0, 0, 0)], matrix([1.0])),
        (vm.FAULT_RANK, 1, [op("VARG", 0), op("LD", 0, 0, 0)], matrix([1.0])),
        (vm.FAULT_ARGUMENT, 0, [op("VARG", 0)], None),
        (vm.FAULT_ARGUMENT, 0, [op("SUM", 0, 0)], None),
        (vm.FAULT_HELPER, 1, [op("VARG", 0), op("CALL", 0, 0, 0, aux=1)], matrix([1.0])),
    ]
    for kind, pc, code, view in cases:
        with pytest.raises(vm.Fault) as caught:
            fire(program(*code, maps=(array(),)), [view])
        assert (caught.value.kind, caught.value.pc) == (kind, pc)
        assert f"instruction {pc}" in str(caught.value)


def test_a_fault_leaves_the_maps_readable() -> None:
    code = program(op("ICONST", 0, imm=0), op("MINC", 0, 0), op("VARG", 0), maps=(array(size=1),))
    cells = Cells(code.maps)
    with pytest.raises(vm.Fault):
        vm.run(code, [None], vm.Firing(), cells)
    found = read(cells.buffer)["maps"]["out"]
    assert found["values"] == [1.0]
    assert not found["torn"]


def test_blocks_that_do_not_nest_are_refused() -> None:
    for code in ([op("ENDFOR")], [op("IF", 0, 0), op("ENDFOR")], [op("FOR", 0, 1), op("ELSE")], [op("IF", 0, 0)]):
        with pytest.raises(RecurosError) as caught:
            fire(program(*code), [None])
        assert caught.value.code == "E8-VERIFY"


def test_the_trace_sees_every_register_before_each_instruction() -> None:
    code = program(op("ICONST", 0, imm=7), op("I2F", 3, 0))
    seen: list[tuple[int, int, float]] = []
    vm.run(code, [None], vm.Firing(), Cells(()), trace=lambda pc, i, f, v: seen.append((pc, i[0], f[3])))
    assert seen == [(0, 0, 0.0), (1, 7, 0.0), (2, 7, 7.0)]


def test_units_count_what_was_executed() -> None:
    code = program(op("VARG", 0), op("SUM", 0, 0))
    assert vm.run(code, [matrix(np.zeros(100, np.float32))], vm.Firing(), Cells(())) == 1 + 20 + 100 + 1
