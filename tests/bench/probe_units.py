"""`python tests/bench/probe_units.py`: nanoseconds of a proven unit of cost, by what runs a program and by kind of instruction.

Responsible for: the figures behind `kernel.programs.JIT_UNIT_NS`, `VM_UNIT_NS` and `VM_INSTRUCTION_NS`. Every program is run at
exactly the sizes that its contract names, so that the proven cost is what it could have cost. Prints one JSON line a program.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from probes import isa, lang
from probes.jit import Compiler
from probes.program import Context
from probes.runtime import Loaded
from probes.verifier import verify

RIGHTS = ("attach-probe", "read-trace")
ROWS, WIDTH = 512, 128
REPEATS = 30
FORWARD = 'hook("on_forward")\nout = map.array(4)\nhist = map.log2()\nkeys = map.hash(64)\n\n\ndef probe(x):\n'
KD = 'hook("on_kd_step")\nout = map.array(4)\n\n\ndef probe(student, teacher):\n'
SOURCES = {
    "sum": FORWARD + "    out[0] += sum(x)\n",
    "sumsq": FORWARD + "    out[0] += sumsq(x)\n",
    "absmax": FORWARD + "    out[0] += absmax(x)\n",
    "min": FORWARD + "    out[0] += min(x)\n",
    "mean": FORWARD + "    out[0] += mean(x)\n",
    "count_gt": FORWARD + "    out[0] += count_gt(x, 0.5)\n",
    "count_nonfinite": FORWARD + "    out[0] += count_nonfinite(x)\n",
    "rows": FORWARD + "    for i in range(x.shape[0]):\n        hist.add(sumsq(x[i]))\n",
    "rows argmax": FORWARD + "    for i in range(x.shape[0]):\n        keys[argmax(x[i])] += 1.0\n",
    "rows lse": FORWARD + "    for i in range(x.shape[0]):\n        out[0] += lse(x[i])\n",
    "rows entropy": FORWARD + "    for i in range(x.shape[0]):\n        out[0] += entropy(x[i])\n",
    "rows entropy_logits": FORWARD + "    for i in range(x.shape[0]):\n        out[0] += entropy_logits(x[i])\n",
    "rows kl_logits": KD
    + "    for i in range(student.shape[0]):\n        out[0] += kl_logits(student[i], teacher[i])\n",
    "rows dot": KD + "    for i in range(student.shape[0]):\n        out[0] += dot(student[i], teacher[i])\n",
    "elements": FORWARD
    + "    for i in range(x.shape[0]):\n        for j in range(x.shape[1]):\n            out[0] += x[i][j]\n",
    "scalars": FORWARD
    + "    a = 0.5\n    for i in range(10000):\n        a = sqrt(a * 1.5 + 0.25) if a > 0.1 else a + 0.5\n    out[0] += a\n",
    "integers": FORWARD
    + "    a = 1\n    for i in range(10000):\n        a = (a * 7 + i) % 1009 // 2\n    out[0] += float(a)\n",
    "exp log": FORWARD + "    a = 0.5\n    for i in range(10000):\n        a = log(exp(a) + 0.5)\n    out[0] += a\n",
    "maps": FORWARD + "    for i in range(10000):\n        keys[i] += 1.0\n        hist.add(float(i))\n",
}


def tensors_of(program: isa.Bytecode) -> dict[str, Any]:
    """Float32 tensors of exactly the contract's sizes."""
    generator = torch.Generator().manual_seed(0)
    first, second = (torch.randn(ROWS, WIDTH, generator=generator) for _ in range(2))
    return (
        {"output": first} if program.hook_kind == "on_forward" else {"student_logits": first, "teacher_logits": second}
    )


def timed(run: Callable[[], None]) -> float:
    """The median CPU nanoseconds of a run."""
    spent = []
    for _ in range(REPEATS):
        begun = time.process_time_ns()
        run()
        spent.append(time.process_time_ns() - begun)
        if sum(spent) > 2e9 and len(spent) > 2:
            break
    return float(sorted(spent)[len(spent) // 2])


def main() -> int:
    """One line a program and backend."""
    torch.set_num_threads(1)
    compiler = Compiler()
    for name, source in SOURCES.items():
        program = lang.compile_source(source, "unit.py")
        data = isa.encode(program)
        contract = isa.Contract(program.hook_kind, {"rows": ROWS, "width": WIDTH, "classes": WIDTH})
        certificate = verify(program, contract, RIGHTS)
        context = Context(program.hook_kind, "site", 0, tensors_of(program))
        for backend in ("vm", "jit"):
            if backend == "jit":
                if compiler.unavailable:
                    continue
                compiler.compile(data)
            loaded = Loaded(
                program,
                certificate,
                contract,
                digest=isa.digest(data),
                rights=RIGHTS,
                compiler=compiler if backend == "jit" else None,
            )
            assert loaded.backend == backend, loaded.reason
            ns = timed(lambda fired=loaded, c=context: fired.fire(c))  # type: ignore[misc]
            row = {"program": name, "units": certificate.cost, "instructions": len(program.code), "backend": backend}
            print(json.dumps({**row, "ns": ns, "ns_per_unit": round(ns / certificate.cost, 3)}), flush=True)
    compiler.close()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
