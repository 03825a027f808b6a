"""Verified programs at the hooks of a watched model.

Responsible for: compiling and verifying what is asked for, at once for the reference sizes and once more for the tensors that the
first step showed, with room for larger batches; machine code from a worker beside the script; reading maps. A program whose tensors
outgrew what it was verified for is verified for the larger ones and put back. Refuses: what the verifier refuses, hooks that match
nothing (both when they are asked for), and hooks of distillation: one model has no teacher.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from probes import catalogue, isa, lang, library, sites
from probes.helpers.worker import Worker, new_queue
from probes.hooks import Dispatcher
from probes.jit import Compiler
from probes.library.attached import RIGHTS, BuiltIn
from probes.runtime import Loaded
from probes.verifier import verify
from syscalls.errors import RecurosError

ROOM: Final = {"rows": 4, "batch": 4, "queries": 2, "keys": 2}
"""How many times larger than in the first step these sizes may become: batches and sequences vary."""
AGAIN_MAX: Final = 3
KINDS: Final = ("on_forward", "on_grad", "on_attention")
SOURCE_BYTES_MAX: Final = 1 << 20


@dataclass
class Wanted:
    """A program on its way to its hook, or there."""

    id: int
    hook: str
    prog: str
    program: isa.Bytecode
    every: int
    sites: list[str] = field(default_factory=list)
    again: int = 0
    outgrown: bool = False
    kept: dict[str, Any] | None = None

    @property
    def data(self) -> bytes:
        """Its bytes for the store; empty for a built-in, which goes by its name."""
        return b"" if self.prog.startswith(catalogue.PREFIX) else isa.encode(self.program)


class Programs:
    """The programs of one watch."""

    def __init__(self, dispatcher: Dispatcher, every: int) -> None:
        self.pending: list[Wanted] = []
        self._dispatcher = dispatcher
        self._every = every
        self._compiler = Compiler()
        self._queue = new_queue()
        self._worker = Worker(self._queue)
        self._next = 1
        self._live: dict[int, tuple[Wanted, Loaded]] = {}
        self._evictions: list[tuple[int, str]] = []

    def add(self, hook: str, prog: str) -> Wanted:
        """Check everything that can be checked before a step: hook, program, proof for the reference sizes."""
        where = sites.parse(hook) if hook else None
        if prog.startswith(catalogue.PREFIX):
            if where is None:
                raise RecurosError(
                    "E2-USAGE", f"{prog} needs a hook", hint="watcher.probe('on_forward:student/*', 'builtin:rms')"
                )
            chosen = prog if "every=" in prog else f"{prog},every={self._every}"
            admitted = catalogue.check(str(where), chosen, RIGHTS)
            name, program = admitted.prog, library.compile(admitted.prog)
            every = int(admitted.params["every"])
        else:
            program = _compiled(prog)
            where = where or sites.parse(program.hook)
            every = program.every or self._every
            name = f"sha256:{isa.digest(isa.encode(program))},every={every}"
            if where.kind != program.hook_kind:
                raise RecurosError(
                    "E8-VERIFY", f"program {program.name} is written for {program.hook_kind}, not for {where.kind}"
                )
        if where.kind not in KINDS:
            raise RecurosError(
                "E4-HOOK", f"{where.kind} does not happen in a watched script", hint=f"hooks: {', '.join(KINDS)}"
            )
        self._dispatcher.match(str(where))
        verify(program, isa.Contract(where.kind), RIGHTS)
        self._next += 1
        return Wanted(self._next - 1, str(where), name, program, every)

    def look(self, on: bool) -> None:
        """Whether sites that have not fired yet learn their sizes from the passes to come."""
        self._dispatcher._seeing = on

    def take_off(self) -> None:
        """Before the next step begins: take programs whose tensors have outgrown them off, to be put back by `place`."""
        for wanted, _ in self._live.values():
            if wanted.outgrown:
                wanted.kept = self._dispatcher.maps(wanted.id)
                self._dispatcher.detach(wanted.id)
                wanted.outgrown, wanted.again = False, wanted.again + 1
                self.pending.append(wanted)

    def place(self) -> list[Wanted]:
        """After a step, so that the sizes are known, put what is pending at its hooks; what is new there."""
        self.look(False)
        placed, self.pending = self.pending, []
        return [wanted for wanted in placed if self._placed(wanted) and not wanted.again]

    def _placed(self, wanted: Wanted) -> bool:
        _, dims, _ = self._dispatcher.match(wanted.hook)
        try:
            roomy = {k: min(isa.DIM_MAX, v * (ROOM.get(k, 1) << 2 * wanted.again)) for k, v in dims.items()}
            loaded = self._loaded(wanted, roomy)
        except RecurosError:
            try:
                loaded = self._loaded(wanted, dims)  # the proof does not reach so far: as large as now, and no larger
            except RecurosError as error:
                self._evictions.append((wanted.id, error.message))
                return False
        wanted.sites = self._dispatcher.attach(wanted.id, wanted.hook, loaded)
        if wanted.kept is not None:
            self._dispatcher.restore(wanted.id, wanted.kept)
        self._live[wanted.id] = (wanted, loaded)
        return True

    def _loaded(self, wanted: Wanted, dims: dict[str, int]) -> Loaded:
        contract = isa.Contract(wanted.program.hook_kind, dims)
        certificate = verify(wanted.program, contract, RIGHTS)
        kind = BuiltIn if wanted.prog.startswith(catalogue.PREFIX) else Loaded
        labels = [name.partition(":")[2] or name for name in self._dispatcher.match(wanted.hook)[0]]
        return kind(
            wanted.program, certificate, contract, digest=certificate.program, rights=RIGHTS, every=wanted.every,
            compiler=self._compiler, queue=self._queue, sites=labels,
        )  # fmt: skip

    def between_steps(self) -> None:
        """Machine code that has been made, and what helpers have worked out."""
        self._worker.serve()
        for _, loaded in self._live.values():
            if loaded.backend == "vm":
                loaded.upgrade()
            loaded.land()

    def evicted(self, number: int, reason: str) -> None:
        """A program is off its hooks: outgrown it comes back, whatever else stays away."""
        wanted = self._live[number][0]
        if "E8-STALE" in reason or "was verified for" in reason:
            wanted.outgrown = wanted.again < AGAIN_MAX
        if not wanted.outgrown:
            self._evictions.append((number, reason))

    def take_evictions(self) -> list[tuple[int, str]]:
        """Programs that are gone for good since this was asked last."""
        taken, self._evictions = self._evictions, []
        return taken

    def read(self, number: int) -> dict[str, Any]:
        """The maps of a probe; E4-NOENT where it has none."""
        self.between_steps()
        return self._dispatcher.maps(number)

    def document(self) -> dict[str, Any]:
        """The maps of all probes and what they cost, for the store."""
        costs = {row["id"]: {k: row[k] for k in ("cost_ns", "drops")} for row in self._dispatcher.stats()}
        return {
            str(n): {"program": w.prog, "hook": w.hook, "map": self._dispatcher.maps(n), "cost": costs.get(n, {})}
            for n, (w, _) in self._live.items()
        }

    def resume(self) -> list[dict[str, Any]]:
        """The probes as a commit record names them."""
        return [
            {"id": n, "hook": w.hook, "prog": w.prog, "every": w.every, "owner": "watch", "object": ""}
            for n, (w, _) in self._live.items()
        ]

    def close(self) -> None:
        """End the compiler's process."""
        self._compiler.close()


def _compiled(prog: str) -> isa.Bytecode:
    """The one program of a file or of a one-liner."""
    path = Path(prog)
    if "{" not in prog or path.is_file():
        try:
            data = path.read_bytes()[:SOURCE_BYTES_MAX]
        except OSError as error:
            raise RecurosError("E4-NOENT", f"{prog!r:.200} cannot be read: {error.strerror}") from error
        if data.startswith(isa.MAGIC):
            return isa.decode(data)
        text, name = data.decode("utf-8", "replace"), prog
    else:
        text, name = prog, "one-liner.obpf"
    found = lang.compile_all(text, name)
    if len(found) != 1:
        raise RecurosError("E2-USAGE", f"{name} holds {len(found)} programs", hint="attach them one by one")
    return found[0]
