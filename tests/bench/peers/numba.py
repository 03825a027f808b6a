"""The programs of `_probes_sources.SOURCES` written by hand for numba, beside our machine code of the same sources.

Two kernels each, where that makes a difference: `lanes`, which adds in our fixed order (64 strided lanes, then halves), and `fast`,
which lets the compiler reassociate (fastmath). Both read float32 and add in double, as the programs do. Both sides are called with
everything made ready: what is compared is the code, not the way in.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from typing import Any

import numba
import numpy as np
import torch

from probes.program import Context
from tests.bench import _probes_sources as sources
from tests.bench.peers._serve import compiler, serve

LANES = 64


@numba.njit
def folded(lanes: Any) -> float:
    stride = LANES // 2
    while stride:
        for j in range(stride):
            lanes[j] += lanes[j + stride]
        stride //= 2
    return lanes[0]


@numba.njit
def sumsq_lanes(x: Any) -> float:
    lanes = np.zeros(LANES)
    whole = len(x) // LANES * LANES
    for at in range(0, whole, LANES):
        for j in range(LANES):
            value = np.float64(x[at + j])
            lanes[j] += value * value
    for k in range(whole, len(x)):
        value = np.float64(x[k])
        lanes[k - whole] += value * value
    return folded(lanes)


def _sumsq(x: Any) -> float:
    total = 0.0
    for k in range(len(x)):
        value = np.float64(x[k])
        total += value * value
    return total


def _absmax(x: Any) -> float:
    largest = np.float32(0.0)
    for k in range(len(x)):
        largest = max(largest, abs(x[k]))
    return largest


sumsq_fast = numba.njit(fastmath=True)(_sumsq)
absmax_fast = numba.njit(fastmath=True)(_absmax)


@numba.njit
def rms_lanes(x: Any, out: Any) -> None:
    flat = x.ravel()
    out[0] += sumsq_lanes(flat)
    out[1] = max(out[1], absmax_fast(flat))


@numba.njit
def rms_fast(x: Any, out: Any) -> None:
    flat = x.ravel()
    out[0] += sumsq_fast(flat)
    out[1] = max(out[1], absmax_fast(flat))


@numba.njit
def _counted(out: Any, value: float) -> None:
    if value != value:  # noqa: PLR0124 - a NaN
        out[0] += 1.0
    elif value <= 0.0:
        out[1] += 1.0
    else:
        exponent = min(max(math.floor(math.log2(value)), -32), 31)
        out[2 + exponent + 32] += 1.0


@numba.njit
def norms_lanes(x: Any, out: Any) -> None:
    for i in range(x.shape[0]):
        _counted(out, math.sqrt(sumsq_lanes(x[i])))


@numba.njit
def norms_fast(x: Any, out: Any) -> None:
    for i in range(x.shape[0]):
        _counted(out, math.sqrt(sumsq_fast(x[i])))


def _entropies(x: Any, out: Any) -> None:
    for i in range(x.shape[0]):
        row = x[i]
        top = row[0]
        for j in range(len(row)):
            top = max(top, row[j])
        total, weighted = 0.0, 0.0
        for j in range(len(row)):
            shifted = np.float64(row[j]) - np.float64(top)
            power = math.exp(shifted)
            total += power
            weighted += power * shifted
        out[0] += math.log(total) - weighted / total


entropies_plain, entropies_fast = numba.njit(_entropies), numba.njit(fastmath=True)(_entropies)


@numba.njit
def dead(x: Any, out: Any) -> None:
    for i in range(x.shape[0]):
        for j in range(x.shape[1]):
            if x[i, j] > 0.0:
                out[j] += 1.0


KERNELS: dict[str, dict[str, Callable[[Any, Any], None]]] = {
    "rms and absmax": {"lanes": rms_lanes, "fast": rms_fast},
    "row norms into a histogram": {"lanes": norms_lanes, "fast": norms_fast},
    "entropy of logits, row by row": {"plain": entropies_plain, "fast": entropies_fast},
    "dead units": {"plain": dead},
}


def main() -> None:
    torch.set_num_threads(1)
    cases: dict[str, Callable[[], object]] = {}
    programs = {name: sources.compiled(text) for name, text in sources.SOURCES.items()}
    made = compiler(sys.argv[1], *programs.values())
    for name, program in programs.items():
        x = torch.randn(sources.ROWS, sources.width(name), generator=torch.Generator().manual_seed(0))
        loaded = sources.load(program, {"rows": len(x), "width": x.shape[1]}, made)
        loaded.fire(Context("on_forward", "site", 0, {"output": x}))
        place = loaded.cells.layout.places[0]
        ours = np.frombuffer(loaded.cells.buffer, np.float64, place.words, place.cells).copy()
        # The firing that was packed just now, again and again: `loaded` keeps the tensor, and so its address.
        fire = lambda at=loaded: at._image.fire(at._address)  # noqa: E731
        cases[f"{name}: ours"] = fire
        cases[f"{name}: a/a"] = fire
        for kind, kernel in KERNELS[name].items():
            array, out = x.numpy(), np.zeros(max(66, sources.WIDTH))
            kernel(array, out)
            if not np.allclose(out[: len(ours)], ours, rtol=1e-6):
                raise SystemExit(f"{name}: {kind} kernel of numba gives {out[:4]}, the program {ours[:4]}")
            cases[f"{name}: {kind}"] = lambda k=kernel, a=array, o=out: k(a, o)
    serve(cases, {"version": numba.__version__, "programs": {name: list(KERNELS[name]) for name in programs}})


if __name__ == "__main__":
    main()
