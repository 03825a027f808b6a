"""Verified programs in the learner: what they would see, and what runs them.

Responsible for: the sizes that a program's contract is made of, checking bytes, certificate and contract once more before
anything runs, the pages of their maps, and object code that is compiled elsewhere and put in between two steps. Refuses: a
program whose digest, certificate, contract or rights are not exactly what the kernel admitted.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import torch
from torch import nn

from kfs.store import Store
from probes import isa, library, sites, sizes
from probes.catalogue import PREFIX as BUILTIN
from probes.cells import CONTROL_BYTES, layout
from probes.certificate import Certificate
from probes.helpers.subject import Subject, examining
from probes.helpers.worker import States, Worker, new_queue
from probes.hooks import Dispatcher
from probes.jit import Compiler
from probes.library.attached import BuiltIn
from probes.runtime import Loaded
from servers.learner.engine import Engine
from servers.learner.objectcode import ObjectCode
from syscalls.errors import RecurosError
from syscalls.pages import WritePage
from syscalls.serve import Kernel

T = TypeVar("T")

PREFIX: Final = "sha256:"
NEEDED: Final = ("attach-probe", "read-trace")


@dataclass(frozen=True, slots=True)
class Admitted:
    """A program that was checked here, once more, against what the kernel admitted."""

    program: isa.Bytecode
    digest: str
    certificate: Certificate
    contract: isa.Contract


@dataclass(frozen=True, slots=True)
class Saved:
    """What a window that did not happen is taken back to: a program's maps, and the states of its asynchronous helpers."""

    maps: bytes
    states: States


def admitted_program(data: bytes, hook: str, prog: str, admitted: Mapping[str, Any]) -> Admitted:
    """The program in `data`, if it is `prog` and its certificate holds for `hook`, the sizes and the rights of `admitted`.

    A built-in has no digest in its name; its certificate, which is of exact bytes, is then what says which program was admitted.
    Raises E9-INTEGRITY for other bytes, E8-ENCODING for what is no program or certificate, E8-STALE for a certificate of
    something else.
    """
    digest = prog.partition(",")[0].removeprefix(PREFIX)
    program = isa.decode(data)
    if not prog.startswith(BUILTIN) and isa.digest(data) != digest:
        raise RecurosError("E9-INTEGRITY", f"the stored object is program {isa.digest(data)}, admitted was {digest}")
    contract = isa.Contract(sites.parse(hook).kind, {str(k): int(v) for k, v in admitted["dims"].items()})
    certificate = Certificate.decode(bytes(admitted["certificate"]))
    certificate.check(data, contract, [str(right) for right in admitted["rights"]])
    for right in NEEDED:
        if right not in admitted["rights"]:
            raise RecurosError(
                "E8-STALE", f"the program was admitted without the right {right}", hint="attach it again"
            )
    return Admitted(program, isa.digest(data), certificate, contract)


class Programs:
    """The programs of one learner process, and the compiler beside it. `subject`: the models as helpers may look at them."""

    def __init__(
        self, kernel: Kernel, dispatcher: Dispatcher, reader: Callable[[], Store], subject: Callable[[], Subject | None]
    ) -> None:
        self._kernel = kernel
        self._dispatcher = dispatcher
        self._reader = reader
        self._code = ObjectCode(kernel, reader)
        self._compiler = Compiler(self._code)
        self._queue = new_queue()
        self._worker = Worker(self._queue, subject)
        self._live: dict[int, Loaded] = {}
        self._spent_ns: dict[int, int] = {}
        self._measured: dict[str, weakref.ref[nn.Module]] = {}

    def match(self, hook: str, prog: str, engine: Engine) -> dict[str, Any]:
        """Answer of `learner.match`: sites, sizes, what the hook itself costs, what would run a program; the bytes of a built-in."""
        self._measure(engine)
        found, dims, units = self._dispatcher.match(hook)
        self._beside(self._compiler.start)  # it takes a second to come up; a program is on its way
        pairs = 1
        kind = sites.parse(hook).kind
        if kind == "on_kd_step":
            dims, pairs = self._kd_sizes(engine)
        elif kind == "on_prune":
            dims = sizes.largest(sizes.of_matrix(p) for p in engine.roles["student"].model.module.parameters())
        backend = "vm" if self._compiler.unavailable else "jit"
        program = _builtin(prog) if prog.startswith(BUILTIN) else b""
        return {"sites": found, "dims": dims, "extra": units, "pairs": pairs, "backend": backend, "program": program}

    def _measure(self, engine: Engine) -> None:
        """Have each model run once on made-up inputs of the manifest's size, so that sites know their sizes before they fire.

        A model that does not take such inputs keeps the sizes that its modules declare, and `isa.REFERENCE_DIMS` for the rest.
        """
        data: Mapping[str, Any] = self._kernel.config.get("data") or {}
        for role, held in engine.roles.items():
            module, known = held.model.module, self._measured.get(role)
            if not data.get("batch") or (known is not None and known() is module):
                continue
            self._measured[role] = weakref.ref(module)
            batch = held.model.example(int(data["batch"]), int(data.get("seq_len") or 1))
            refused = (RuntimeError, ValueError, IndexError, RecurosError)
            with suppress(*refused), examining([module], self._dispatcher.seeing), torch.no_grad():
                held.model.forward(batch)

    def _kd_sizes(self, engine: Engine) -> tuple[sizes.Sizes, int]:
        """Rows by the batches of the manifest, widths by the models; hidden rows by what the layers' hooks have seen."""
        data: Mapping[str, Any] = self._kernel.config.get("data") or {}
        student, teacher = (engine.roles[role].model for role in ("student", "teacher"))
        dims: sizes.Sizes = {
            "classes": student.num_classes,
            "student_width": student.hidden_width,
            "teacher_width": teacher.hidden_width,
        }
        batch, tokens = int(data.get("batch") or 0), int(data.get("seq_len") or 1)
        if batch:
            dims["rows"] = batch * (tokens if student.task == "causal-lm" else 1)
        seen = [s for s in (self._dispatcher.seen("on_forward", role) for role in engine.roles) if s]
        if seen:
            dims["hidden_rows"] = max(s["rows"] for s in seen)
        return dims, max(1, len(engine.pair_names))

    def attach(
        self, id: int, hook: str, prog: str, every: int, admitted: dict[str, Any], engine: Engine
    ) -> dict[str, Any]:
        """Attach what the kernel admitted: at once, by the interpreter where compiled code is not there yet."""
        stored = not prog.startswith(BUILTIN)
        data = bytes(self._reader().get(str(admitted["object"])).data) if stored else _builtin(prog)
        found = admitted_program(data, hook, prog, admitted)
        labels = self._labels(hook, found, engine)
        page = WritePage(layout(found.program.maps, found.digest, labels).total, "maps")
        handle = 0
        try:
            handle = self._kernel.offer(page)
            loaded = self._load(Loaded if stored else BuiltIn, found, every, admitted, page.view, labels)
            placed = self._dispatcher.attach(id, hook, loaded)
        except RecurosError:
            if handle:
                self._kernel.release(handle)
            raise
        finally:
            page.close_descriptor()  # the mapping lives as long as the maps
        self._live[id] = loaded
        return {"sites": placed, "page": handle}

    def _load(
        self,
        kind: type[Loaded],
        found: Admitted,
        every: int,
        admitted: dict[str, Any],
        buffer: memoryview,
        labels: list[str],
    ) -> Loaded:
        def load() -> Loaded:
            return kind(
                found.program,
                found.certificate,
                found.contract,
                digest=found.digest,
                rights=list(admitted["rights"]),
                every=every,
                compiler=self._compiler,
                queue=self._queue,
                buffer=buffer,
                sites=labels,
            )

        return self._beside(load)

    def _labels(self, hook: str, found: Admitted, engine: Engine) -> list[str]:
        """Names of a program's sites, in the order of their numbers."""
        if found.contract.hook == "on_prune":
            return [name for name, _, _ in engine.pruned_matrices()]
        if found.contract.hook == "on_kd_step":
            views = {i.aux for i in found.program.code if i.op.name == "VARG"}
            return engine.pair_names if views & {3, 4} else ["on_kd_step"]
        return [name.partition(":")[2] or name for name in self._dispatcher.match(hook)[0]]

    def between_steps(self) -> None:
        """Put compiled code that has arrived in the interpreter's place; run asynchronous helpers, and their figures into the maps."""
        self._worker.serve()
        for loaded in self._live.values():
            if loaded.backend != "jit":
                loaded.upgrade()
            loaded.land()

    def between_windows(self) -> None:
        """Store the object code that was made meanwhile."""
        self._code.flush()

    def detached(self, id: int) -> None:
        """The probe is gone; the dispatcher closes its program after one step."""
        gone = self._live.pop(id, None)
        if gone is not None:
            self._worker.forget(gone.owner)
        self._spent_ns.pop(id, None)

    def rows(self, stats: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """The dispatcher's rows with what runs each probe, and why not compiled code."""
        for row in stats:
            loaded = self._live.get(row["id"])
            row["backend"] = loaded.backend if loaded else "python"
            row["reason"] = loaded.reason if loaded else ""
        return stats

    def taken(self, id: int) -> dict[str, Any]:
        """What goes with the maps of a program that somebody reads through the learner: site names; its rings are emptied."""
        loaded = self._live.get(id)
        if loaded is None:
            return {}
        for number, spec in enumerate(loaded.program.maps):
            if spec.kind is isa.MapKind.RING:
                loaded.cells.take(number)
        return {"sites": list(loaded.sites)}

    def saved(self, id: int) -> Saved | None:
        """What a program knows so far, to return to; None where it is not one of these."""
        loaded = self._live.get(id)
        return None if loaded is None else Saved(bytes(loaded.cells.buffer), self._worker.saved(loaded.owner))

    def put_back(self, id: int, held_then: Saved) -> None:
        """Return to a copy: a window did not happen. Readers see the maps change once, between two even sequence numbers."""
        loaded, saved = self._live.get(id), held_then.maps
        if loaded is None or len(saved) != len(loaded.cells.buffer):
            return
        self._worker.put_back(loaded.owner, held_then.states)
        held, numbers = loaded.cells, range(len(loaded.program.maps))
        held.begin(numbers)
        for place in held.layout.places:
            after = place.control + 8  # the sequence number itself goes on
            held.buffer[after : place.control + CONTROL_BYTES] = saved[after : place.control + CONTROL_BYTES]
            end = place.cells + 8 * place.words
            held.buffer[place.cells : end] = saved[place.cells : end]
        held.end(numbers)

    def digest(self, id: int) -> str:
        """`sha256:HEX` of a program, empty for a built-in, which goes by its name."""
        loaded = self._live.get(id)
        return "" if loaded is None or isinstance(loaded, BuiltIn) else PREFIX + loaded.digest

    def report_bytes(self, id: int) -> int:
        """About what a program's maps take in a report."""
        loaded = self._live.get(id)
        if loaded is None:
            return 0
        rows = min(len(loaded.sites), isa.SITES_MAX)
        return sum(256 + 10 * spec.cells * (rows if spec.per_site else 1) for spec in loaded.program.maps)

    def spent_ns(self) -> dict[str, int]:
        """Probe id -> nanoseconds of its firings and of its helpers since this was asked last."""
        now = {row["id"]: row["total_ns"] for row in self._dispatcher.stats()}
        for number, loaded in self._live.items():
            now[number] = now.get(number, 0) + self._worker.spent_ns(loaded.owner)
        before, self._spent_ns = self._spent_ns, now
        return {str(number): max(0, total - before.get(number, 0)) for number, total in now.items()}

    def close(self) -> None:
        """End the compiler."""
        self._compiler.close()

    def _beside(self, start: Callable[[], T]) -> T:
        """Do something that may start the compiler, so that it inherits the background's processors and not the lane's."""
        mine = os.sched_getaffinity(0)
        others = set(self._kernel.config.get("background_cpus") or mine)
        try:
            os.sched_setaffinity(0, others)
        except OSError:
            return start()
        try:
            return start()
        finally:
            os.sched_setaffinity(0, mine)


def _builtin(prog: str) -> bytes:
    """The bytes of a built-in: compiled here, since it takes milliseconds, and verified by the kernel like anyone's."""
    return isa.encode(library.compile(prog))
