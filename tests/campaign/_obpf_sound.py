"""What the verifier says against what really happens: the abstract states of a verification and a traced run of the interpreter.

A run of an accepted program breaks a promise when it faults, when a register that the verifier holds defined is outside what it
said of it (interval, NaN, facts about sizes, equal sizes), or when it costs more than the certificate allows.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from probes import isa, vm
from probes.abstract import Float, Int, Size
from probes.cells import Cells, read
from probes.states import State
from probes.verifier import Rejected, Verification
from tests.campaign import _obpf_cases as cases
from tests.campaign import _obpf_gen as gen

KINDS = ("any", "ones", "full", "empty")
"""Inputs that each accepted program is run on."""
UNITS_MAX = 200_000
"""Programs that may cost more are not run: the interpreter, traced, would take minutes."""
_NUMBERS = {op.nr for op in isa.OPS if op.name == "ENDIF"}


@dataclass
class Tally:
    """Counts of a campaign."""

    programs: int = 0
    accepted: int = 0
    runs: int = 0
    states: int = 0
    rejected: dict[str, int] = field(default_factory=dict)
    violations: list[str] = field(default_factory=list)


def known(program: isa.Bytecode, contract: isa.Contract) -> tuple[Verification, dict[int, list[State]]]:
    """A finished verification with the states that it saw before each instruction. Raises Rejected."""
    seen: dict[int, list[State]] = {}
    verification = Verification(
        program,
        contract,
        gen.RIGHTS,
        program_digest="0" * 64,
        watch=lambda pc, s: seen.setdefault(pc, []).append(s.copy()),
    )
    while verification.step(isa.VISITS_MAX) is None:
        pass
    return verification, seen


def outside(
    state: State,
    ints: Sequence[int],
    floats: Sequence[float],
    views: Sequence[vm.View | None],
    symbols: dict[Size, int],
) -> str:
    """Why the registers are not in the state, or ""."""
    sizes = dict(symbols)
    for register, said_view in enumerate(state.views):
        if said_view is None:
            continue
        view = views[register]
        if view is None or view.array.ndim != len(said_view.dims):
            return f"v{register} has another rank than {len(said_view.dims)}"
        for size, real in zip(said_view.dims, view.array.shape, strict=True):
            if sizes.setdefault(size, real) != real:
                return f"v{register}: {size} is {real} here and {sizes[size]} elsewhere"
    for size, real in sizes.items():
        low, high = state.size(size)
        if not low <= real <= high:
            return f"{size} is {real}, not in [{low}, {high}]"
    for register, said in enumerate(state.ints):
        if said is not None and (why := _int_outside(said, ints[register], sizes)):
            return f"i{register} = {ints[register]}: {why}"
    for register, told in enumerate(state.floats):
        if told is not None and not _float_inside(told, floats[register]):
            return f"f{register} = {floats[register]} is not in {told}"
    return _names_differ(state, ints)


def _int_outside(said: Int, value: int, sizes: dict[Size, int]) -> str:
    if not said.low <= value <= said.high:
        return f"not in {said}"
    for size, k in said.facts.items():
        if size in sizes and value > sizes[size] - k:
            return f"above {size} - {k} = {sizes[size] - k}"
    if said.exactly is not None and said.exactly[0] in sizes and value != sizes[said.exactly[0]] + said.exactly[1]:
        return f"not {said.exactly[0]} + {said.exactly[1]}"
    return ""


def _float_inside(said: Float, value: float) -> bool:
    return said.nan if value != value else said.low <= value <= said.high  # noqa: PLR0124 - a NaN


def _names_differ(state: State, ints: Sequence[int]) -> str:
    """Registers of one name hold one value."""
    held: dict[Any, int] = {}
    for register, said in enumerate(state.ints):
        if said is not None and held.setdefault(said.name, ints[register]) != ints[register]:
            return f"i{register} = {ints[register]} has the name of a register that is {held[said.name]}"
    return ""


def check(program: isa.Bytecode, rng: random.Random, tally: Tally, contract: isa.Contract | None = None) -> None:
    """Verify, and if accepted run on every kind of input and compare."""
    tally.programs += 1
    contract = contract or gen.contract(program.hook_kind)
    try:
        verification, seen = known(program, contract)
    except Rejected as e:
        tally.rejected[e.rule] = tally.rejected.get(e.rule, 0) + 1
        return
    tally.accepted += 1
    certificate = verification.step(1)
    if certificate is None or certificate.cost > UNITS_MAX:
        return
    for kind in KINDS:
        tally.runs += 1
        fault = run(program, gen.inputs(rng, program.hook_kind, kind), gen.firing(rng), verification, seen, tally)
        if fault:
            tally.violations.append(f"{kind}: {fault}")
            return


def run(
    program: isa.Bytecode,
    views: Sequence[vm.View],
    firing: vm.Firing,
    verification: Verification,
    seen: dict[int, list[State]],
    tally: Tally,
) -> str:
    """One traced firing; what it broke, or ""."""
    symbols: dict[Size, int] = {}
    for spec, view in zip(isa.HOOK_VIEWS[program.hook_kind], views, strict=True):
        for symbol, size in zip(spec.dims, view.array.shape, strict=True):
            symbols[verification._symbol(symbol)] = size
    broken: list[str] = []

    def trace(pc: int, ints: Sequence[int], floats: Sequence[float], registers: Sequence[vm.View | None]) -> None:
        if broken or program.code[pc].op.nr in _NUMBERS:
            return  # two ways meet at ENDIF; what is known there is checked after it
        tally.states += 1
        why = "the verifier never came here"
        for state in reversed(seen.get(pc, [])):
            why = outside(state, ints, floats, registers, symbols)
            if not why:
                return
        broken.append(f"instruction {pc} {program.code[pc].op.name}: {why}")

    try:
        units = vm.run(program, views, firing, Cells(program.maps), gen.helpers(), trace)
    except vm.Fault as e:
        return f"fault: {e}"
    except Exception as e:  # noqa: BLE001 - whatever an accepted program makes the interpreter raise is a finding
        return f"{type(e).__name__}: {e}"
    certificate = verification.step(1)
    assert certificate is not None
    if units > certificate.cost:
        broken.append(f"it cost {units} units; the certificate says {certificate.cost}")
    return broken[0] if broken else ""


def fuzz(count: int, seed0: int = 0, tally: Tally | None = None) -> Tally:
    """`count` generated programs from one seed on; a violation names the seed that gives it again."""
    tally = tally or Tally()
    for seed in range(seed0, seed0 + count):
        rng = random.Random(seed)
        before = len(tally.violations)
        check(gen.program(rng), rng, tally)
        tally.violations[before:] = [f"seed {seed}: {text}" for text in tally.violations[before:]]
    return tally


# --- the corpus, run -----------------------------------------------------------------------------------------------------
def corpus_views(case: cases.Case, program: isa.Bytecode, size: int) -> list[vm.View]:
    """Views of a firing: as `run:` says, else `size` along every axis, or the contract's size where that is smaller."""
    given = dict(part.split("=") for part in case.head.get("run", "").split())
    contract, found = case.contract(program.hook_kind), []
    for spec in contract.views:
        shape = [min(size, contract.largest(symbol)) for symbol in spec.dims]
        if spec.name in given:
            shape = [int(n) for n in given[spec.name].split("x")]
        values = np.random.default_rng(len(found)).standard_normal(shape)
        found.append(vm.View(np.zeros(shape, np.int64) if spec.name == "labels" else values.astype(np.float32)))
    return found


def observed(case: cases.Case) -> str:
    """What a case that is decided at run time does, other than `observe:` says; "" when it does just that."""
    program = cases.compiled(case)
    contract = case.contract(program.hook_kind)
    verification, seen = known(program, contract)
    views = corpus_views(case, program, 1)
    breach = contract.breach([view.array.shape for view in views])
    wanted = case.head["observe"].split()
    if wanted[0] == "refused":
        return "" if breach == (wanted[1], int(wanted[2]), int(wanted[3])) else f"refused as {breach}"
    if breach:
        return f"refused as {breach}"
    maps = Cells(program.maps)
    for step in range(int(case.head.get("times", "1"))):
        vm.run(program, views, vm.Firing(step=step), maps, gen.helpers())
    names = [spec.name for spec in program.maps]
    for what, place in zip(wanted[::2], wanted[1::2], strict=True):
        name, _, number = place.partition("=")
        row = read(maps.buffer)["maps"][name]
        if row[what] != int(number):
            return f"{name} of {names} has {row[what]} {what}, not {number}"
    return run(program, views, vm.Firing(), verification, seen, Tally())


def accepted(case: cases.Case, tally: Tally) -> str:
    """What an accepted case breaks on views of several sizes; "" when nothing."""
    program = cases.compiled(case)
    verification, seen = known(program, case.contract(program.hook_kind))
    for size in (0, 1, 4):
        for step in (0, 7):
            tally.runs += 1
            firing = vm.Firing(step=step, site=step, sites=8, temperature=2.0 if step else math.nan)
            fault = run(program, corpus_views(case, program, size), firing, verification, seen, tally)
            if fault:
                return f"sizes {size}, step {step}: {fault}"
    return ""
