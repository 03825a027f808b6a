"""A built-in in the learner: a verified program like any other, which also says what its maps amount to.

Responsible for: `BuiltIn`, whose summary are the figures of its reader; `load`, which compiles and verifies one on the spot where no
kernel does (tests, benchmarks, a library user). Refuses: what `probes.runtime.Loaded` refuses.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from probes import catalogue, isa, library
from probes.helpers.worker import Worker, new_queue
from probes.runtime import Loaded
from probes.verifier import verify

RIGHTS: Final = ("attach-probe", "read-trace")


class BuiltIn(Loaded):
    """`name` is `builtin:NAME`. `worker`: who serves its asynchronous helpers when it is read; None where somebody else does."""

    worker: Worker | None = None

    def __init__(self, program: isa.Bytecode, *args: Any, **given: Any) -> None:
        super().__init__(program, *args, **given)
        self.name = catalogue.PREFIX + program.name

    def summary(self) -> dict[str, Any]:
        """The figures, and under "ran" how the program ran."""
        if self.worker is not None:
            self.worker.serve()
            self.land()
        maps = {name: held.to_dict() for name, held in self.maps.items()}
        document = {"sites": list(self.sites), "maps": maps, "paths": self.paths}
        return {**library.summary(self.name, document), "ran": super().summary()}


def load(prog: str, dims: Mapping[str, int], **given: Any) -> BuiltIn:
    """Compile, verify for `dims` and load; `subject` (see `Worker`) and what `Loaded` takes may be given."""
    builtin, params = catalogue.parse(prog)
    program = library.compile(catalogue.canonical(builtin, params))
    contract = isa.Contract(program.hook_kind, dict(dims))
    certificate = verify(program, contract, RIGHTS)
    queue = new_queue()
    subject = given.pop("subject", None)
    made = BuiltIn(program, certificate, contract, digest=certificate.program, rights=RIGHTS, queue=queue, **given)
    made.worker = Worker(queue, subject) if subject is not None else Worker(queue)
    return made
