"""Programs that the benchmark of probes compiles, and how they are loaded: shared with the peers' processes.

Responsible for: `SOURCES`, each beside the hand-written kernel of the same name in `peers/numba.py`, and `load`. Refuses: nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from probes import isa, jit_host, lang
from probes.jit import Compiler
from probes.runtime import Loaded
from probes.verifier import verify

RIGHTS = ("attach-probe", "read-trace")
ROWS, WIDTH, CLASSES = 1024, 256, 64
_HEAD = 'hook("on_forward")\n\n{maps}\n\n\ndef probe(x):\n'


def _source(maps: str, *body: str) -> str:
    return _HEAD.format(maps=maps) + "".join(f"    {line}\n" for line in body)


SOURCES = {
    "rms and absmax": _source("out = map.array(4)", "out[0] += sumsq(x)", "out[1] = max(out[1], absmax(x))"),
    "row norms into a histogram": _source(
        "out = map.log2()", "for i in range(x.shape[0]):", "    out.add(sqrt(sumsq(x[i])))"
    ),
    "entropy of logits, row by row": _source(
        "out = map.array(4)", "for i in range(x.shape[0]):", "    out[0] += entropy_logits(x[i])"
    ),
    "dead units": _source(
        f"out = map.array({WIDTH})",
        "for i in range(x.shape[0]):",
        "    for j in range(x.shape[1]):",
        f"        if j < {WIDTH}:",
        "            if x[i, j] > 0.0:",
        "                out[j] += 1.0",
    ),
}
NOTHING = _source("out = map.array(1)", "out[0] += 1.0")
SUMSQ = _source("out = map.array(1)", "out[0] += sumsq(x)")


def compiled(text: str) -> isa.Bytecode:
    """The program of a source."""
    return lang.compile_source(text, "bench.py")


def width(name: str) -> int:
    """Of the rows that a program of SOURCES is given."""
    return CLASSES if "logits" in name else WIDTH


def load(program: isa.Bytecode, dims: Mapping[str, int], compiler: Compiler | None, **given: Any) -> Loaded:
    """Verified for these sizes; with machine code when a compiler is given, which must have it."""
    contract = isa.Contract(program.hook_kind, dict(dims))
    certificate = verify(program, contract, RIGHTS)
    loaded = Loaded(
        program, certificate, contract, digest=certificate.program, rights=RIGHTS, compiler=compiler, **given
    )
    assert compiler is None or loaded.backend == "jit", loaded.reason
    return loaded


def images(compiler: Compiler, folder: Path, *programs: isa.Bytecode) -> None:
    """Compile programs and put their images where `peers._serve.Images` finds them."""
    for program in programs:
        data = isa.encode(program)
        compiler.compile(data)
        image = compiler.cache.get(jit_host.cache_key(isa.digest(data)))
        assert image is not None
        (folder / f"{isa.digest(data)}.image").write_bytes(image)
