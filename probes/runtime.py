"""A verified program at its hook: views made of live tensors, guarded, fired by machine code or by the interpreter.

Responsible for: `Loaded`, which checks the certificate, lays out the maps, makes the hook's views in place (sizes and strides, no
copy where the axes can be flattened), compares every firing's sizes with the contract, and runs the program. It begins with the
interpreter and goes over to machine code between two firings, when `upgrade` finds it made; `backend` says which it is now and
`reason` why it is not the other.
Refuses: to alter the step: tensors are read by address and never written, no autograd is recorded and no random number drawn. A size
beyond the contract, an element type that has no place in the instruction set, a helper that raises and a failed check inside the
program raise; the dispatcher then evicts the program and training goes on.
"""

from __future__ import annotations

import ctypes
import itertools
import math
import struct
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, Final

import torch
from torch import Tensor

from probes import isa, jit, jit_lib, vm
from probes.cells import Cells, document_of
from probes.certificate import Certificate
from probes.helpers.inline import INLINE
from probes.helpers.queue import AsyncQueue
from probes.jit_code import (
    FIRING_CALLBACK,
    FIRING_FAILED,
    FIRING_FLOATS,
    FIRING_HEAD,
    FIRING_INTS,
    FIRING_MAPS,
    VIEW_BYTES,
)
from probes.lower_torch import Lowered
from probes.maps import Map
from probes.program import Context, Program
from syscalls.errors import RecurosError

JIT: Final = "jit"
VM: Final = "vm"
TORCH: Final = "torch"
SHAPES_KEPT: Final = 64
FORMS_KEPT: Final = 256
IGNORE_LABEL: Final = -100
_DTYPES: Final = {getattr(torch, name): n for n, name in enumerate(jit_lib.DTYPES)}
_CALLBACK: Final = ctypes.CFUNCTYPE(ctypes.c_double, ctypes.c_int64, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)
_WORDS: Final = struct.Struct(f"<{jit_lib.VIEW_WORDS}q")
_EMPTY: Final = (0,) * jit_lib.VIEW_WORDS
_NO_FLOATS: Final = (math.nan, math.nan)
_OWNERS: Final = itertools.count(1)


def _form(number: int, tensor: Tensor) -> tuple[Any, ...]:
    """What a view's words depend on besides the address."""
    if tensor.is_contiguous():
        return number, tensor.shape, tensor.dtype
    return number, tensor.shape, tensor.dtype, tensor.stride() if tensor.layout is torch.strided else None


class CellsMap(Map):
    """One map of a program as the dispatcher and the shell see it: a reader of its cells."""

    def __init__(self, cells: Cells, number: int) -> None:
        self._cells, self._number = cells, number
        self.kind = cells.maps[number].kind.value

    @property
    def drops(self) -> int:  # type: ignore[override]
        """Writes that found no room."""
        return self._cells.counter(self._number, 1)

    @property
    def nans(self) -> int:  # type: ignore[override]
        """NaN values not folded in."""
        return self._cells.counter(self._number, 2)

    def to_dict(self) -> dict[str, Any]:
        """The map's part of `cells.read`."""
        return document_of(self._cells, self._number)

    def load(self, document: dict[str, Any]) -> None:
        """Restore from `to_dict`; E2-LIMIT when the document describes another map."""
        self._cells.restore(self._number, document)

    def _body(self) -> dict[str, Any]:
        return self.to_dict()

    def _restore(self, document: dict[str, Any]) -> None:
        self.load(document)


class Loaded(Program):
    """A program that may run.

    `certificate` must hold for `digest`, `contract` and `rights` (E8-STALE otherwise). `compiler`: where machine code comes from; None
    keeps the interpreter. `helpers`: further helpers by number, beside the inline ones; `queue`: where asynchronous calls go; without
    one each is a counted drop. `buffer`: writable memory for the maps, such as a page. `sites`: site labels in order of their numbers;
    others are numbered as they are first seen. `copies`: views that had to be copied to be flattened or reached; `skipped`: firings
    without a view that the program reads. `device`: where the tensors are; anywhere but on the CPU the program is lowered to torch
    operations there (backend "torch"; see `probes.lower_torch`), and its maps are those of the last `land`. "torch" lowers it on the
    CPU, for comparison.
    """

    def __init__(
        self,
        program: isa.Bytecode,
        certificate: Certificate,
        contract: isa.Contract,
        *,
        digest: str,
        rights: Collection[str],
        every: int = 0,
        compiler: jit.Compiler | None = None,
        helpers: Mapping[int, Callable[..., Any]] | None = None,
        queue: AsyncQueue | None = None,
        buffer: Any = None,
        sites: Sequence[str] = (),
        device: str = "cpu",
    ) -> None:
        certificate.check_digest(digest, contract, rights)
        if contract.hook != program.hook_kind or certificate.hook != program.hook_kind:
            raise RecurosError(
                "E8-STALE", f"{program.name} is for {program.hook_kind}, its contract for {contract.hook}"
            )
        self.name, self.every = program.name, every or program.every
        self.program, self.certificate, self.contract, self.digest = program, certificate, contract, digest
        self.cells = Cells(program.maps, buffer, program=digest, sites=sites)
        self.maps = {spec.name: CellsMap(self.cells, n) for n, spec in enumerate(program.maps)}
        self.sites = {label: n for n, label in enumerate(sites)}
        self.queue = queue
        self.owner = next(_OWNERS)
        self.backend, self.reason = VM, "" if compiler else "no compiler was given"
        self.copies = self.skipped = self.firings = 0
        self.paths: dict[str, str] = {}
        self._views = isa.HOOK_VIEWS[program.hook_kind]
        self._needed = tuple(sorted({i.aux for i in program.code if i.op.name == "VARG"}))
        self._forward = program.hook_kind == "on_forward"
        self._floats = any(i.op.name == "CTXF" for i in program.code)
        self._numbers = range(len(self._views))
        self._tails: dict[Any, tuple[int, ...]] = {}
        self._seen: set[Any] = set()
        self._checked: list[tuple[int, ...]] = []
        self._tensors: list[Tensor | None] = []
        self._failure = ""
        self._helpers = {**INLINE, **self._async_helpers(), **(helpers or {})}
        self._firing: tuple[int, int, int, int, float, float] = (0, 0, 1, 0, math.nan, math.nan)
        self._compiler: jit.Compiler | None = None
        self._frame()
        self._lowered = None
        if device != "cpu":
            self.backend, self.reason = TORCH, f"its tensors are on {device}"
            self._lowered = Lowered(program, self.cells, "cpu" if device == TORCH else device, self._helpers)
        elif compiler is not None:
            self._want(compiler)

    # Compilation

    def _want(self, compiler: jit.Compiler) -> None:
        self._compiler = compiler
        image = compiler.find(self.digest)
        if image is not None:
            self._use(image)
            return
        compiler.request(isa.encode(self.program))
        self.reason = "its machine code is being made"
        self.upgrade()

    def upgrade(self) -> bool:
        """Between two firings: go over to machine code if it is made by now. True when `backend` changed."""
        if self._compiler is None or self.backend != VM:
            return False
        found = self._compiler.result(self.digest)
        if isinstance(found, jit.Image):
            self._use(found)
            return True
        if isinstance(found, str):
            self._compiler, self.reason = None, found
        return False

    def _use(self, image: jit.Image) -> None:
        self._image, self.backend, self.reason = image, JIT, ""

    # Firing

    def fire(self, context: Context) -> None:
        """Fire once, or once per pair of layers; see the class for what raises."""
        if self._forward:
            words = self._guarded([context.peek("output")])
            if words is not None:
                self._run(context, context.site, words)
            return
        for label, tensors in self._sources(context):
            words = self._guarded(tensors)
            if words is not None:
                self._run(context, label, words)

    def land(self) -> None:
        """Between steps: write the figures that asynchronous helpers have handed back into their rows, and what a device holds."""
        if self._lowered is not None:
            self._lowered.drain()
        if self.queue is None:
            return
        for answer in self.queue.landed(self.owner):
            self.cells.put_row(answer.map, answer.values, answer.site)

    def close(self) -> None:
        """Let go of the maps' buffer, the machine code and the queue; neither firing nor reading is possible afterwards."""
        if self.queue is not None:
            self.queue.forget(self.owner)
        self._tensors = []
        # Both refer back to this object, or to its page, from memory that the collector does not follow quickly.
        del self._callback, self._held
        self.cells.close()

    def summary(self) -> dict[str, Any]:
        """{"backend", "reason", "firings", "copies", "skipped", "cost"}: how it ran, and the proven units of one firing."""
        return {
            "backend": self.backend,
            "reason": self.reason,
            "firings": self.firings,
            "copies": self.copies,
            "skipped": self.skipped,
            "cost": self.certificate.cost,
        }

    def _sources(self, context: Context) -> Iterator[tuple[str, list[Tensor | None]]]:
        """For each firing of this event its site and the tensors of the hook's views, before flattening."""
        match self.program.hook_kind:
            case "on_attention":
                probs = None
                if self._needed:
                    probs, self.paths[context.site] = context.attention()
                yield context.site, [probs]
            case "on_grad":
                yield context.site, [context.peek("grad"), context.peek("param")]
            case "on_kd_step":
                yield from self._distillation(context)
            case "on_prune":
                for name, mask, param in context.listed("pruned"):
                    yield name, [mask, param]
            case _:
                yield context.site, []

    def _distillation(self, context: Context) -> Iterator[tuple[str, list[Tensor | None]]]:
        student = context.peek("student_logits")
        labels = context.peek("labels")
        if 2 in self._needed and student is not None and student.dim():
            rows = student.shape[:-1]
            if labels is None or labels.is_floating_point() or labels.shape != rows:
                labels = torch.full(rows, IGNORE_LABEL, device=student.device)
        common = [student, context.peek("teacher_logits"), labels]
        if self._needed and self._needed[-1] >= 3:
            for name, hs, ht in context.listed("hidden"):
                if (
                    hs.shape[:-1] != ht.shape[:-1]
                ):  # as many tokens on both sides, or the mean over those of each sample
                    hs, ht = (h.detach().flatten(1, -2).mean(1) for h in (hs, ht))  # noqa: PLW2901
                    self.copies += 2
                yield name, [*common, hs, ht]
        else:
            yield context.site, [*common, None, None]

    def _guarded(self, tensors: list[Tensor | None]) -> list[int] | None:
        """The views' words, sizes compared with the contract; None (a skipped firing) when one that is read is missing."""
        words: list[int] = []
        tails: list[tuple[int, ...]] = []
        for number in self._numbers:
            tensor = tensors[number]
            if number not in self._needed:
                words += _EMPTY
                continue
            if tensor is None:
                self.skipped += 1
                return None
            # Nearly always a tensor of a form that was seen before (gradients come transposed): then only its address is new.
            tail = self._tails.get(_form(number, tensor))
            if tail is None or not (tensor.is_cpu or self._lowered):
                tensor, tail = self._described(number, tensor)
                tensors[number] = tensor
            words.append(tensor.data_ptr())
            words += tail
            tails.append(tail)
        self._tensors = tensors
        if tails != self._checked:  # nearly always the very same objects, which compares faster than a key is hashed
            key = tuple(tails)
            if key not in self._seen:
                self._check(tails)
                self._seen.add(key)
            self._checked = tails
        return words

    def _check(self, tails: list[tuple[int, ...]]) -> None:
        """Every size within the contract, and those of one symbol equal."""
        shapes: list[tuple[int, ...] | None] = [None] * len(self._views)
        for _, rank, number, *sizes in tails:
            shapes[number] = tuple(sizes[:rank])
        breach = self.contract.breach(shapes)
        if breach is not None:
            what, found, promised = breach
            raise RecurosError(
                "E8-STALE",
                f"{self.name} was verified for {what} = {promised} at most; this firing has {what} = {found}",
                hint="attach it again: it is then verified for the sizes that are there now",
            )
        if len(self._seen) >= SHAPES_KEPT:
            self._seen.clear()
            self._tails.clear()

    def _described(self, number: int, tensor: Tensor) -> tuple[Tensor, tuple[int, ...]]:
        """A tensor over the view's memory, on the CPU, and the view's words after its address."""
        spec, form, copies = self._views[number], _form(number, tensor), self.copies
        dtype = _DTYPES.get(tensor.dtype)
        if dtype is None or tensor.layout is not torch.strided:
            raise TypeError(f"{spec.name} is a {tensor.layout} tensor of {tensor.dtype}, which programs cannot read")
        if not tensor.is_cpu and self._lowered is None:
            tensor = tensor.detach().cpu()
            self.copies += 1
        flat = self._flattened(spec, tensor)
        pad = isa.RANK_MAX - flat.dim()
        strides = [jit_lib.ITEM_BYTES[dtype] * stride for stride in flat.stride()]
        tail = (dtype, flat.dim(), number, *flat.shape, *[1] * pad, *strides, *[0] * pad)
        if self.copies == copies:  # read where it lies: the same words hold for any tensor of this form
            if len(self._tails) >= FORMS_KEPT:
                self._tails.clear()
            self._tails[form] = tail
        return flat, tail

    def _flattened(self, spec: isa.ViewSpec, tensor: Tensor) -> Tensor:
        tensor = tensor.detach()
        if spec.rank == 1:
            wanted: tuple[int, ...] = (tensor.numel(),)
        elif spec.rank > 2 or tensor.dim() == 2:
            return tensor
        elif self.program.hook_kind in ("on_grad", "on_prune"):
            wanted = (tensor.shape[0], math.prod(tensor.shape[1:])) if tensor.dim() > 1 else (1, tensor.numel())
        else:
            wanted = (math.prod(tensor.shape[:-1]), tensor.shape[-1]) if tensor.dim() else (1, 1)
        try:
            return tensor.view(wanted)
        except RuntimeError:  # these axes do not lie in one line: the one case that costs a copy
            self.copies += 1
            return tensor.reshape(wanted)

    def _run(self, context: Context, label: str, words: list[int]) -> None:
        site = self.sites.get(label)
        if site is None:
            site = self.sites[label] = len(self.sites)
        temperature, sparsity = _NO_FLOATS
        if self._floats:
            temperature, sparsity = context.number("temperature"), context.number("sparsity")
        firing = (context.step, site, len(self.sites), self.firings, temperature, sparsity)
        self._firing = firing
        self.firings += 1
        if self.backend == JIT:
            self._pack(self._memory, 8 * FIRING_INTS, *firing, *words)
            fault = self._image.fire(self._address)
            if fault:
                self._raise(fault)
            return
        try:
            if self._lowered is not None:
                self._lowered.fire([self._live(words, n) for n in self._numbers], vm.Firing(*firing))
            else:
                views = [self._array(words, n) for n in self._numbers]
                vm.run(self.program, views, vm.Firing(*firing), self.cells, self._helpers)
        except vm.Fault as fault:
            raise self._named(fault) from fault

    def _array(self, words: Sequence[int], number: int) -> vm.View | None:
        tensor = self._live(words, number)
        if tensor is None:
            return None
        if tensor.dtype is torch.bfloat16:
            return vm.View(tensor.view(torch.int16).numpy(), bf16=True)
        return vm.View(tensor.numpy())

    def _live(self, words: Sequence[int], number: int) -> Tensor | None:
        at = number * jit_lib.VIEW_WORDS
        return self._tensor(words[at : at + jit_lib.VIEW_WORDS]) if words[at + 2] else None

    def _tensor(self, words: Sequence[int]) -> Tensor:
        """A view's words as a tensor over the same memory; torch checks that it lies inside its storage."""
        base = self._tensors[words[3]]
        assert base is not None
        base, rank, item = base.detach(), words[2], base.element_size()
        offset = base.storage_offset() + (words[0] - base.data_ptr()) // item
        return base.as_strided(words[4 : 4 + rank], [stride // item for stride in words[8 : 8 + rank]], offset)

    def _frame(self) -> None:
        """The memory that machine code reads a firing from; its address stays."""
        count = len(self._views)
        self._memory = ctypes.create_string_buffer(FIRING_HEAD + VIEW_BYTES * max(1, count))
        self._address = ctypes.addressof(self._memory)
        gap = FIRING_HEAD - 8 * FIRING_FLOATS - 16
        self._pack = struct.Struct(f"<4q2d{gap}x{jit_lib.VIEW_WORDS * count}q").pack_into
        places = self.cells.layout.places
        self._held = ctypes.c_char.from_buffer(self.cells.buffer)
        base = ctypes.addressof(self._held) + (places[0].control if places else 0)
        struct.pack_into("<Q", self._memory, 8 * FIRING_MAPS, base)
        self._callback = _CALLBACK(self._called)
        address = ctypes.cast(self._callback, ctypes.c_void_p).value
        struct.pack_into("<Q", self._memory, 8 * FIRING_CALLBACK, address)

    def _called(self, nr: int, a: int, b: int, number: int) -> float:
        """A helper call out of machine code; nothing may be raised through it."""
        try:
            declared = isa.HELPER_BY_NR[nr]
            given = (a, b)[: len(declared.views)]
            views = [self._tensor(_WORDS.unpack(ctypes.string_at(at, VIEW_BYTES))) for at in given]
            if declared.tier is isa.Tier.ASYNC:
                return float(bool(self._helpers[nr](number, vm.Firing(*self._firing), *views)))
            return float(self._helpers[nr](*views))
        except Exception as e:  # noqa: BLE001 - it cannot cross machine code; the firing faults with these words
            self._failure = f"helper {nr}: {type(e).__name__}: {e}"[:300]
            struct.pack_into("<q", self._memory, 8 * FIRING_FAILED, 1)
            return 0.0

    def _raise(self, fault: int) -> None:
        detail, self._failure = self._failure, ""
        struct.pack_into("<q", self._memory, 8 * FIRING_FAILED, 0)
        raise self._named(vm.Fault(fault >> 32, fault & 0xFFFFFFFF, detail))

    def _named(self, fault: vm.Fault) -> RuntimeError:
        lines = self.program.lines
        where = f"{self.name}, line {lines[fault.pc]}: " if fault.pc < len(lines) else f"{self.name}: "
        return RuntimeError(f"{where}{fault}")

    def _async_helpers(self) -> dict[int, Callable[..., Any]]:
        def caller(nr: int) -> Callable[..., bool]:
            def call(number: int, firing: vm.Firing, *views: Tensor) -> bool:
                return self.queue is not None and self.queue.put(self.owner, nr, number, firing, *views)

            return call

        return {h.nr: caller(h.nr) for h in isa.HELPERS if h.tier is isa.Tier.ASYNC}
