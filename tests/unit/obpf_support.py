"""Small programs for the tests of what runs oBPF: written as lists of instructions, verified, loaded."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np

from probes import isa, jit, vm
from probes.cells import Cells
from probes.jit_worker import Backend
from probes.runtime import Loaded
from probes.verifier import verify
from tests.campaign._obpf_diff import Frame

RIGHTS = ("read-trace",)
REDUCTIONS = ("SUM", "SUMSQ", "ABSMAX", "MIN", "MAX", "MEAN", "ENTROPY", "LSE", "ENTROPYL")
COUNTS = ("COUNTGT", "COUNTNF", "ARGMAX")
PAIRS = ("DOT", "KL", "KLL")
_backend: list[Backend] = []


def op(name: str, d: int = 0, a: int = 0, b: int = 0, aux: int = 0, imm: float = 0) -> isa.Instruction:
    return isa.Instruction(isa.BY_NAME[name], d, a, b, aux, imm)


def program(
    *code: isa.Instruction, maps: tuple[isa.MapSpec, ...] = (), hook: str = "on_forward", every: int = 1
) -> isa.Bytecode:
    return isa.Bytecode("test", hook, every, maps, (*code, op("EXIT")))


def array(name: str = "out", size: int = 16, **more: Any) -> isa.MapSpec:
    return isa.MapSpec(name, isa.MapKind.ARRAY, size, **more)


def image(code: isa.Bytecode) -> jit.Image:
    """Machine code made in this process."""
    if not _backend:
        _backend.append(Backend())
    return jit.Image(_backend[0].compile(code))


def fire(
    code: isa.Bytecode, views: list[vm.View | None], firing: vm.Firing | None = None, by: jit.Image | None = None
) -> Cells:
    """Fresh maps after one firing by the interpreter, or by machine code."""
    cells, firing = Cells(code.maps), firing or vm.Firing()
    if by is None:
        vm.run(code, views, firing, cells)
        return cells
    frame = Frame(views, firing, cells, {})
    fault = by.fire(ctypes.addressof(frame.memory))
    assert fault == 0, hex(fault)
    return cells


def matrix(x: Any) -> vm.View:
    """One row."""
    return vm.View(np.asarray(x).reshape(1, -1))


def loaded(code: isa.Bytecode, dims: dict[str, int] | None = None, **more: Any) -> Loaded:
    contract = isa.Contract(code.hook_kind, dims or {})
    certificate = verify(code, contract, RIGHTS)
    return Loaded(code, certificate, contract, digest=isa.digest(isa.encode(code)), rights=RIGHTS, **more)


def all_reductions(pairs: bool = True) -> isa.Bytecode:
    """Every reduction of view 0 (and of views 0 and 1, on_kd_step) into cells 0, 1, 2, ..."""
    code = [op("VARG", 0), *([op("VARG", 1, aux=1)] if pairs else []), op("FCONST", 9, imm=0.25)]
    names = [*REDUCTIONS, *COUNTS, *(PAIRS if pairs else ())]
    for n, name in enumerate(names):
        if name in COUNTS:
            code += [op(name, 1, 0, 9 if name == "COUNTGT" else 0), op("I2F", 0, 1)]
        else:
            code.append(op(name, 0, 0, 1 if name in PAIRS else 0))
        code += [op("ICONST", 0, imm=n), op("EMIT", 0, 0, 0)]
    ring = isa.MapSpec("out", isa.MapKind.RING, len(names))
    return program(*code, maps=(ring,), hook="on_kd_step" if pairs else "on_forward")
