"""What every peer's process does: wait for a line, let its cases take turns, answer with their CPU time.

    <- {"calls": 10, "inner": 1}      -> {"ns": {case: nanoseconds a call}}

The first line it writes is {"info": ...}. Responsible for the pipe and for `Images`, by which probes run there with machine code made
elsewhere. Refuses: output of libraries on the pipe; it goes to standard error.
"""

from __future__ import annotations

import json
import os
import random
import sys
from pathlib import Path
from typing import Any

from probes import isa, jit, jit_host
from tests.bench._probes_time import SEED, Cases, turns


class Images(jit.MemoryCache):
    """Images out of a folder of PROGRAM.image files; this environment's own compiler is never asked."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        for path in folder.glob("*.image"):
            self.put(jit_host.cache_key(path.stem), path.read_bytes())


def compiler(folder: str, *programs: isa.Bytecode) -> jit.Compiler:
    """A compiler that finds the images of `programs` and makes none."""
    found = jit.Compiler(Images(Path(folder)))
    for program in programs:
        assert found.find(isa.digest(isa.encode(program))) is not None, f"no image of {program.name} in {folder}"
    return found


def serve(cases: Cases, info: dict[str, Any]) -> None:
    """Answer until the pipe is closed."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    order = random.Random(SEED)
    for _ in range(2):
        turns(cases, 1, order)
    print(json.dumps({"info": info}), file=answers, flush=True)
    for line in sys.stdin:
        ask = json.loads(line)
        print(json.dumps({"ns": turns(cases, ask["calls"], order, ask["inner"])}), file=answers, flush=True)
