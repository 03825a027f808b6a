from __future__ import annotations

import math
import os
import signal
import struct
import subprocess
import sys
from collections.abc import Iterator

import numpy as np
import pytest

from probes import isa, jit, jit_code, jit_host, jit_lib, jit_link, jit_parts, vm
from probes.jit_worker import Backend
from tests.campaign import _obpf_diff as diff
from tests.unit.obpf_support import all_reductions, array, fire, image, matrix, op, program

SIZES = (0, 1, 3, 63, 64, 65, 127, 128, 1000, 1024, 1025, 2111, 4160)


@pytest.fixture(scope="module")
def compiler() -> Iterator[jit.Compiler]:
    made = jit.Compiler()
    assert made.wait_ready(60)
    yield made
    made.close()


def values(size: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    x = rng.standard_normal(size) * 10.0 ** rng.integers(-3, 3)
    if seed % 3 == 1:
        x = np.abs(x) / max(1.0, np.abs(x).sum())
    if seed % 3 == 2 and size:
        x[rng.integers(0, size, 3)] = rng.choice([np.nan, np.inf, -np.inf, -0.0, 1e-42], 3)
    return x


def cast(x: np.ndarray, kind: str) -> vm.View:
    with np.errstate(all="ignore"):
        if kind == "bfloat16":
            return vm.View((x.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16).view(np.int16), bf16=True)
        return vm.View(
            np.nan_to_num(x).astype(kind) if kind not in ("float16", "float32", "float64") else x.astype(kind)
        )


@pytest.mark.parametrize("kind", jit_lib.DTYPES)
def test_every_reduction_of_every_element_type_agrees_bit_for_bit(kind: str) -> None:
    code = all_reductions()
    by = image(code)
    for size in SIZES:
        for seed in range(3):
            a, b = cast(values(size, seed), kind), cast(values(size, seed + 3), kind)
            views: list[vm.View | None] = [vm.View(v.array.reshape(1, -1), v.bf16) for v in (a, b)] + [None] * 3
            ours, theirs = fire(code, views), fire(code, views, by=by)
            assert ours.buffer == theirs.buffer, (size, seed, ours.take(0), theirs.take(0))


@pytest.mark.parametrize("kind", ["float16", "float32", "bfloat16", "int16"])
def test_strided_views_agree_bit_for_bit(kind: str) -> None:
    code = all_reductions(pairs=False)
    by = image(code)
    base = cast(values(3 * 70 * 90, 0), kind)
    block = base.array.reshape(70, 3, 90)
    for held in (
        block[:, 1],
        block[::7, 2, ::3],
        block[:, 0].T,
        block[::-1, 1],
        block[:1, 0],
        block[:0, 0],
        block[:, :, 4],
    ):
        view = vm.View(held, base.bf16)
        assert fire(code, [view]).buffer == fire(code, [view], by=by).buffer
    code = program(
        op("VARG", 0), op("ICONST", 0, imm=1), op("HEAD", 1, 0, 0), op("SUM", 0, 1), op("COL", 2, 1, 0), op("SUMSQ", 1, 2),
        *(op("EMIT", 0, 0, f) for f in (0, 1)), maps=(isa.MapSpec("out", isa.MapKind.RING, 4),), hook="on_attention",
    )  # fmt: skip
    view = vm.View(np.broadcast_to(block[:, :2], (3, 70, 2, 90)).transpose(0, 2, 1, 3), base.bf16)
    assert fire(code, [view]).buffer == fire(code, [view], by=image(code)).buffer


def test_every_float16_converts_exactly() -> None:
    every = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    code = program(
        op("VARG", 0), op("ICONST", 2, imm=0), op("ROW", 1, 0, 2), op("DIM", 0, 1),
        op("FOR", 1, 0), op("LD", 0, 1, 1), op("EMIT", 0, 1, 0), op("ENDFOR"),
        maps=(isa.MapSpec("out", isa.MapKind.RING, 1 << 16),),
    )  # fmt: skip
    found = np.array([row[3] for row in fire(code, [matrix(every)], by=image(code)).take(0)])
    wanted = every.astype(np.float64)
    number = ~np.isnan(wanted)
    assert np.array_equal(found[number].view(np.int64), wanted[number].view(np.int64))
    assert np.isnan(found[~number]).all()
    whole = all_reductions(pairs=False)
    for start in range(0, 1 << 16, 4096):
        part = matrix(every[start : start + 4096])
        assert fire(whole, [part]).buffer == fire(whole, [part], by=image(whole)).buffer


FLOATS = [
    0.0,
    -0.0,
    0.5,
    -0.5,
    1.5,
    -1.5,
    7.0,
    1e300,
    -1e300,
    5e-324,
    2.0**52 + 1,
    -(2.0**63),
    2.0**63,
    math.inf,
    -math.inf,
    math.nan,
    709.9,
    -745.5,
]
INTS = [0, 1, -1, 2, -2, 7, -7, 63, isa.I64_MAX, isa.I64_MIN, isa.I64_MAX - 1, isa.I64_MIN + 1]


def test_every_scalar_instruction_agrees_on_every_pair_of_edges() -> None:
    # NaN cannot be a constant: 0 / 0 makes one.
    code = []
    for n, x in enumerate(FLOATS):
        code += (
            [op("FCONST", n % 16, imm=0.0), op("FDIV", n % 16, n % 16, n % 16)]
            if math.isnan(x)
            else [op("FCONST", n % 16, imm=x)]
        )
        code += [op("ICONST", 15, imm=n), op("EMIT", 0, 15, n % 16)]
    floats = [o.name for o in isa.OPS if 0x30 <= o.nr <= 0x42 and o.name != "I2F"]
    ints = [o.name for o in isa.OPS if 0x20 <= o.nr <= 0x2F]
    ring = isa.MapSpec("out", isa.MapKind.RING, 50_000)
    for x in FLOATS:
        body = []
        for y in FLOATS:
            for register, value in ((0, x), (1, y)):
                body += (
                    [op("FCONST", register, imm=0.0), op("FDIV", register, register, register)]
                    if math.isnan(value)
                    else [op("FCONST", register, imm=value)]
                )
            for name in floats:
                o = isa.BY_NAME[name]
                b = 1 if o.b is isa.Operand.FLOAT else 0
                body += [op(name, 2, 0, b), op("EMIT", 0, 2, 2)]
        whole = program(*body, maps=(ring,))
        assert fire(whole, [None]).buffer == fire(whole, [None], by=image(whole)).buffer, x
    for p in INTS:
        body = []
        for q in INTS:
            body += [op("ICONST", 0, imm=p), op("ICONST", 1, imm=q)]
            for name in ints:
                b = 1 if isa.BY_NAME[name].b is isa.Operand.INT else 0
                body += [op(name, 2, 0, b), op("I2F", 2, 2), op("EMIT", 0, 2, 2)]
        whole = program(*body, maps=(ring,))
        assert fire(whole, [None]).buffer == fire(whole, [None], by=image(whole)).buffer, p


def test_fuzzed_programs_agree_bit_for_bit() -> None:
    tally = diff.Tally()
    diff.campaign(image, seed=7, count=None, seconds=6.0, tally=tally)
    assert not tally.violations
    assert tally.accepted * 10 >= tally.programs * 3
    assert tally.runs >= 4 * tally.accepted


def test_nothing_is_fused_and_nothing_is_called_from_outside() -> None:
    text = Backend().assembly(all_reductions())
    assert "vfmadd" not in text
    assert "vfnmadd" not in text
    for name in jit_parts.names():
        assert jit_parts.part(name)
    assert image(all_reductions()).bytes  # the linker refuses every symbol that no object defines


def test_an_object_that_needs_a_symbol_is_refused() -> None:
    backend = Backend()
    module = backend.optimised(
        "declare double @sin(double)\ndefine double @fire(double %x) {\n %y = call double @sin(double %x)\n ret double %y\n}\n"
    )
    with pytest.raises(jit_link.LinkError, match="sin"):
        jit_link.link([backend.machine.emit_object(module)], "fire")
    module = backend.optimised("@g = global i64 7\ndefine i64 @fire() {\n %y = load i64, ptr @g\n ret i64 %y\n}\n")
    with pytest.raises(jit_link.LinkError, match="writable"):
        jit_link.link([backend.machine.emit_object(module)], "fire")


def test_a_damaged_object_or_image_is_refused_and_never_mapped() -> None:
    code = Backend().compile(program(op("ICONST", 0, imm=0)))
    for cut in (0, 8, 47, len(code) - 1):
        with pytest.raises(jit.JitUnavailableError):
            jit.Image(code[:cut])
    for at in (0, 9, 41, len(code) - 1):
        bad = bytearray(code)
        bad[at] ^= 1
        with pytest.raises(jit.JitUnavailableError):
            jit.Image(bytes(bad))
    for data in (b"", b"\x7fELF" + bytes(60), os.urandom(400)):
        with pytest.raises(jit_link.LinkError):
            jit_link.link([data], "fire")


def test_fault_kinds_are_those_of_the_interpreter() -> None:
    for name in ("KEY", "INDEX", "SHAPE", "RANK", "HELPER", "ARGUMENT"):
        assert getattr(jit_code, f"FAULT_{name}") == getattr(vm, f"FAULT_{name}")


def test_the_worker_compiles_and_the_cache_is_found_again(compiler: jit.Compiler) -> None:
    code = program(op("VARG", 0), op("SUM", 0, 0), op("ICONST", 0, imm=0), op("MADD", 0, 0, 0), maps=(array(size=1),))
    data = isa.encode(code)
    made = compiler.compile(data)
    assert fire(code, [matrix(np.ones(9, np.float32))], by=made).get(0, 0, 0) == 9.0
    again = jit.Compiler(compiler.cache)
    found = again.find(isa.digest(data))
    assert found is not None
    assert again.starts == 0
    assert again.hits == 1


def test_a_damaged_cache_entry_is_compiled_again(compiler: jit.Compiler) -> None:
    code = isa.encode(program(op("ICONST", 3, imm=12)))
    compiler.compile(code)
    key = jit_host.cache_key(isa.digest(code))
    held = compiler.cache.get(key)
    assert held is not None
    cache = jit.MemoryCache()
    cache.put(key, held[:-1] + b"\0\0")
    other = jit.Compiler(cache)
    assert other.find(isa.digest(code)) is None
    other.close()


def test_what_does_not_compile_says_why(compiler: jit.Compiler) -> None:
    data = isa.encode(program(op("ENDFOR")))
    with pytest.raises(jit.JitUnavailableError, match="closes no block"):
        compiler.compile(data)
    with pytest.raises(jit.JitUnavailableError, match="magic"):
        compiler.compile(b"nonsense" + bytes(64))


def test_a_killed_worker_fails_what_it_had_and_is_replaced() -> None:
    made = jit.Compiler()
    try:
        assert made.wait_ready(60)
        assert made._worker is not None
        os.kill(made._worker.pid, signal.SIGSTOP)
        code = isa.encode(program(op("ICONST", 0, imm=1)))
        made.request(code)
        os.kill(made._worker.pid, signal.SIGKILL)
        with pytest.raises(jit.JitUnavailableError, match=r"signal 9|went away"):
            made.compile(code)
        assert made.compile(isa.encode(program(op("ICONST", 0, imm=2)))).bytes
        assert made.starts == 2
        made.forget(isa.digest(code))
        assert made.compile(code).bytes
    finally:
        made.close()


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("import sys; sys.exit(3)", "status 3"),
        ("import sys,time; sys.stdout.buffer.write(b'\\xff' * 16); sys.stdout.flush(); sys.stdin.read()", "frame of"),
        ("import sys; sys.stdout.buffer.write(b'\\x01\\0\\0\\0\\x05'); sys.stdout.flush(); sys.stdin.read()", "sent 5"),
        ("import sys; sys.stdin.read()", "did not answer"),
    ],
)
def test_a_worker_that_misbehaves_ends_and_says_why(script: str, reason: str) -> None:
    made = jit.Compiler(command=[sys.executable, "-c", script], timeout_s=1.0)
    with pytest.raises(jit.JitUnavailableError, match=reason):
        made.compile(isa.encode(program(op("ICONST", 0, imm=1))))
    assert made._worker is None
    made.close()


def test_workers_that_keep_dying_are_given_up() -> None:
    made = jit.Compiler(command=[sys.executable, "-c", "raise SystemExit(1)"])
    for n in range(jit.STARTS_MAX + 1):
        with pytest.raises(jit.JitUnavailableError):
            made.compile(isa.encode(program(op("ICONST", 0, imm=n))))
    assert "died 3 times" in made.unavailable


def test_the_largest_program_compiles() -> None:
    body = [op("FADD", 0, 0, 1) for _ in range(isa.INSTRUCTIONS_MAX - 1)]
    assert image(program(*body)).bytes


def test_the_worker_process_loads_neither_torch_nor_numpy() -> None:
    code = "import sys, probes.jit_worker; print([m for m in ('torch', 'numpy') if m in sys.modules])"
    root = os.path.dirname(os.path.dirname(os.path.dirname(__file__)))
    assert (
        subprocess.run(
            [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True
        ).stdout.strip()
        == "[]"
    )


def test_a_nan_in_a_ring_is_the_quiet_one() -> None:
    code = program(
        op("FCONST", 0, imm=math.inf), op("FSUB", 0, 0, 0), op("FNEG", 1, 0), op("ICONST", 0, imm=0),
        op("EMIT", 0, 0, 0), op("EMIT", 0, 0, 1), maps=(isa.MapSpec("out", isa.MapKind.RING, 4),),
    )  # fmt: skip
    for by in (None, image(code)):
        cells = fire(code, [None], by=by)
        at = cells.layout.places[0].cells
        for entry in (0, 1):
            assert struct.unpack_from("<Q", cells.buffer, at + 32 * entry + 24)[0] == 0x7FF8000000000000
        assert cells.counter(0, 2) == 2
        assert math.isnan(cells.take(0)[0][3])
