"""Interpreter against machine code: the same program on the same inputs, every byte of every map compared.

`difference(program, image, inputs)` fires both on fresh maps, several times over, and says where they differ, or "". A firing that
faults in one must fault in the other at the same instruction for the same reason; what both wrote before must be the same too.
Views of float16, bfloat16, float32, double and integers, strided, empty and of size one are handed over by address as live tensors are.
`campaign(seed, count, seconds)` draws programs from the structure-aware generator, accepted or not: the machine code checks for
itself whatever the verifier would have proved, so even a rejected program has to stop at the same place.
"""

from __future__ import annotations

import contextlib
import ctypes
import random
import struct
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from probes import isa, jit, jit_lib, vm
from probes.cells import Cells
from probes.jit_code import FIRING_CALLBACK, FIRING_FAILED, FIRING_HEAD, FIRING_INTS, FIRING_MAPS, VIEW_BYTES
from probes.verifier import verify
from syscalls.errors import RecurosError
from tests.campaign import _obpf_gen as gen

DTYPES = {np.dtype(name): n for n, name in enumerate(jit_lib.DTYPES) if name != "bfloat16"}
Inputs = tuple[Sequence[vm.View | None], vm.Firing]
RUNS = 4
"""Inputs that each program is run on."""


@dataclass
class Tally:
    """Counts of a campaign."""

    programs: int = 0
    accepted: int = 0
    runs: int = 0
    faults: int = 0
    violations: list[str] = field(default_factory=list)


def view_words(view: vm.View | None, argument: int) -> list[int]:
    """A view as compiled code reads it."""
    if view is None:
        return [0] * jit_lib.VIEW_WORDS
    held = view.array
    dtype = jit_lib.BF16 if view.bf16 else DTYPES[held.dtype]
    pad = 4 - held.ndim
    return [held.ctypes.data, dtype, held.ndim, argument, *held.shape, *[1] * pad, *held.strides, *[0] * pad]


class Endless(Exception):  # noqa: N818 - says what the program is
    """A rejected program that does not end soon."""


class _Patience:
    """A trace that gives up, so that a program without a proof cannot hold up the campaign."""

    def __init__(self) -> None:
        self.left = 200_000

    def __call__(self, *registers: Any) -> None:
        self.left -= 1
        if not self.left:
            raise Endless


class Frame:
    """One firing's memory, and the helpers behind its callback."""

    def __init__(self, views: Sequence[vm.View | None], context: vm.Firing, cells: Cells, helpers: vm.Helpers) -> None:
        self.views, self.context, self.helpers = views, context, helpers
        control = cells.layout.places[0].control if cells.layout.places else 0
        self.memory = ctypes.create_string_buffer(FIRING_HEAD + VIEW_BYTES * max(1, len(views)))
        self.cells_at = ctypes.addressof(ctypes.c_char.from_buffer(cells.buffer)) + control
        words = [w for n, view in enumerate(views) for w in view_words(view, n)]
        struct.pack_into("<Q", self.memory, 8 * FIRING_MAPS, self.cells_at)
        struct.pack_into("<4q2d", self.memory, 8 * FIRING_INTS, *context)
        struct.pack_into(f"<{len(words)}q", self.memory, FIRING_HEAD, *words)
        kind = ctypes.CFUNCTYPE(ctypes.c_double, ctypes.c_int64, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)
        self.callback = kind(self._call)
        address = ctypes.cast(self.callback, ctypes.c_void_p).value
        struct.pack_into("<Q", self.memory, 8 * FIRING_CALLBACK, address)

    def _call(self, nr: int, a: int, b: int, number: int) -> float:
        declared = isa.HELPER_BY_NR[nr]
        try:
            tensors = [self._view(at).tensor() for at in (a, b)[: len(declared.views)]]
            if declared.tier is isa.Tier.ASYNC:
                return float(bool(self.helpers[nr](number, self.context, *tensors)))
            return float(self.helpers[nr](*tensors))
        except Exception:  # noqa: BLE001 - a helper's fault is reported to the code that called it
            struct.pack_into("<q", self.memory, 8 * FIRING_FAILED, 1)
            return 0.0

    def _view(self, address: int) -> vm.View:
        words = struct.unpack("<12q", ctypes.string_at(address, VIEW_BYTES))
        base = self.views[words[3]]
        assert base is not None
        # Made from the address itself, as the learner's callback does, so that wrong arithmetic in the code would show.
        first = np.frombuffer((ctypes.c_char * base.array.itemsize).from_address(words[0]), base.array.dtype)
        rank = words[2]
        held = np.lib.stride_tricks.as_strided(first, words[4 : 4 + rank], words[8 : 8 + rank])
        return vm.View(held, base.bf16)


def difference(
    program: isa.Bytecode, image: jit.Image, firings: Sequence[Inputs], helpers: Callable[[], vm.Helpers], tally: Tally
) -> str:
    """Where interpreter and machine code differ, firing after firing on one set of maps each, or ""."""
    ours, theirs = Cells(program.maps), Cells(program.maps)
    our_helpers, their_helpers = helpers(), helpers()
    for n, (views, context) in enumerate(firings):
        tally.runs += 1
        try:
            vm.run(program, views, context, ours, our_helpers, _Patience())
            said = 0
        except vm.Fault as fault:
            said = fault.kind << 32 | fault.pc
            tally.faults += 1
        frame = Frame(views, context, theirs, their_helpers)
        found = image.fire(ctypes.addressof(frame.memory))
        if said != found:
            return f"firing {n}: interpreter fault {said:#x}, machine code {found:#x}"
        if ours.buffer != theirs.buffer:
            at = next(i for i, (a, b) in enumerate(zip(ours.buffer, theirs.buffer, strict=True)) if a != b)
            return f"firing {n}: byte {at} of the maps differs"
    return ""


def helpers() -> vm.Helpers:
    """Deterministic stand-ins: each inline helper a sum, each asynchronous one taking every second job."""
    taken = [0]

    def inline(*tensors: Any) -> float:
        return float(sum(float(t.double().nan_to_num(0.5, 0.25, -0.25).sum()) for t in tensors))

    def queue(number: int, context: vm.Firing, *tensors: Any) -> bool:
        taken[0] += 1
        return taken[0] % 2 == 1

    return {h.nr: queue if h.tier is isa.Tier.ASYNC else inline for h in isa.HELPERS}


def large(rng: random.Random, hook: str) -> list[vm.View]:
    """Views beyond the generator's contract: sizes about the lanes and the chunks, every element type, strides of all kinds."""
    symbols = sorted({symbol for spec in isa.HOOK_VIEWS[hook] for symbol in spec.dims})
    sizes = {symbol: rng.choice((0, 1, 2, 3)) for symbol in symbols}
    for symbol in rng.sample(symbols, min(len(symbols), rng.choice((1, 2)))):
        sizes[symbol] = rng.choice((7, 63, 64, 65, 130, 1025, 2100))
    return [_large_view(rng, [sizes[symbol] for symbol in spec.dims]) for spec in isa.HOOK_VIEWS[hook]]


def _large_view(rng: random.Random, shape: list[int]) -> vm.View:
    source = np.random.default_rng(rng.getrandbits(32))
    order = list(range(len(shape)))
    rng.shuffle(order)
    steps = [rng.choice((1, 1, 2, 3)) for _ in shape]
    wide = source.standard_normal([shape[k] * steps[k] for k in order]) * rng.choice((1e-3, 1.0, 30.0, 1e5))
    if rng.random() < 0.5:
        wide = np.abs(wide)
    for special in (np.nan, np.inf, -np.inf, 0.0, -0.0, 1e-45, 6e-8):
        if rng.random() < 0.2:
            wide[source.random(wide.shape) < 0.02] = special
    kind = rng.choice((*jit_lib.DTYPES, "float32", "float32"))
    with np.errstate(all="ignore"):
        if kind == "bfloat16":
            wide = (wide.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16).view(np.int16)
        else:
            wide = wide.astype(kind)
    held = np.transpose(wide, np.argsort(order))[tuple(slice(None, None, step) for step in steps)]
    if rng.random() < 0.1 and held.ndim > 1:
        held = np.broadcast_to(held[:1], held.shape) if held.shape[0] else held
    return vm.View(held, kind == "bfloat16")


def campaign(
    compiler: Callable[[isa.Bytecode], jit.Image], seed: int, count: int | None, seconds: float | None, tally: Tally
) -> None:
    """Fuzz until `count` programs or `seconds` have gone by."""
    deadline = None if seconds is None else time.monotonic() + seconds
    number = 0
    while (count is None or number < count) and (deadline is None or time.monotonic() < deadline):
        rng = random.Random(f"{seed}/{number}")
        program = gen.program(rng)
        tally.programs += 1
        number += 1
        accepted = _accepted(program)
        tally.accepted += accepted
        firings = [(gen.inputs(rng, program.hook_kind), gen.firing(rng)) for _ in range(RUNS)]
        big = [(large(rng, program.hook_kind), gen.firing(rng)._replace(site=rng.choice((0, 511, 512, 9_000))))]
        try:
            image = compiler(program)
            why = difference(program, image, firings, helpers, tally)
        except (Endless, RecurosError, IndexError):
            if accepted:
                raise
            continue  # blocks that do not nest, maps that do not exist, loops without end: no run to compare
        with contextlib.suppress(Endless):  # these sizes are beyond the contract that the loops' costs were proved for
            why = why or difference(program, image, big, helpers, tally)
        if why:
            tally.violations.append(f"seed {seed}/{number - 1}: {why}")


def _accepted(program: isa.Bytecode) -> bool:
    try:
        verify(program, gen.contract(program.hook_kind), gen.RIGHTS)
    except RecurosError:
        return False
    return True
