"""Attach and detach, over and over, of compiled programs at the hooks of a live model.

Responsible for: `cycles`, which counts what must not happen: a firing of a detached program, maps that another program wrote into,
memory that grows with the number of cycles. `python -m tests.campaign._obpf_attach --count N` prints one line.
"""

from __future__ import annotations

import argparse
import gc
import json
import mmap
import os
import sys
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from probes import isa, lang
from probes.cells import layout, read
from probes.hooks import Dispatcher
from probes.jit import Compiler
from probes.runtime import Loaded
from probes.verifier import verify
from servers.models.patch import PatchConfig, PatchTransformer

GROWTH_BYTES_MAX = 5 << 20
WARM = 200
RIGHTS = ("attach-probe", "read-trace")
SOURCE = """hook("on_forward:student/**", every=1)
seen = map.array(1, per_site=True)
sizes = map.log2()


def probe(x):
    seen[0] += 1.0
    sizes.add(sqrt(sumsq(x)))
"""


def resident_bytes() -> int:
    """Of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")


def cycles(count: int) -> dict[str, Any]:
    """Run `count` cycles, two programs at a time, with a step in between; returns what was counted."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return _cycles(count)
    finally:
        torch.set_num_threads(threads)


def _cycles(count: int) -> dict[str, Any]:
    program = lang.compile_source(SOURCE, "cycle.py")
    digest = isa.digest(isa.encode(program))
    contract = isa.Contract("on_forward", {"rows": 64, "width": 256})
    certificate = verify(program, contract, RIGHTS)
    evicted: list[str] = []
    dispatcher = Dispatcher(on_evict=lambda number, reason: evicted.append(reason))
    model = PatchTransformer(PatchConfig(layers=1, width=8, heads=2))
    dispatcher.install("student", model)
    images, compiler = torch.rand(2, 8, 8), Compiler()
    if not compiler.unavailable:
        compiler.compile(isa.encode(program))
    labels = [s.partition(":")[2] for s in dispatcher.match("on_forward:student/**")[0]]
    size = layout(program.maps, digest, labels).total
    stale = wrong = 0
    before = 0
    lively: list[tuple[int, mmap.mmap]] = []
    for cycle in range(count + WARM):
        if cycle == WARM:
            gc.collect()
            before = resident_bytes()
        page = mmap.mmap(-1, size)
        loaded = Loaded(
            program, certificate, contract, digest=digest, rights=RIGHTS, compiler=compiler, buffer=page, sites=labels
        )
        dispatcher.attach(cycle, "on_forward:student/**", loaded)
        lively.append((cycle, page))
        dispatcher.step(cycle)
        with torch.no_grad():
            model(images)
        if len(lively) < 2:
            continue
        number, old = lively.pop(0)
        fired = fired_sum(old)
        # At its own step, after its predecessor was detached (the first had none), and at its successor's step.
        wrong += fired != (3 if number else 2) * len(labels)
        dispatcher.detach(number)
        with torch.no_grad():
            model(images)
        stale += fired_sum(old) != fired
    gc.collect()
    for number, _ in lively:
        dispatcher.detach(number)
    dispatcher.step(count + WARM)
    compiler.close()
    return {
        "cycles": count,
        "sites": len(labels),
        "stale": stale,
        "wrong": wrong,
        "evicted": evicted[:3],
        "attached": len(dispatcher.stats()),
        "growth_bytes": resident_bytes() - before,
    }


def fired_sum(page: mmap.mmap) -> float:
    """What the maps in a page counted at all sites."""
    return float(sum(row["values"][0] for row in read(page)["maps"]["seen"]["rows"]))


def violations(found: dict[str, Any]) -> int:
    """How many of the promises are broken."""
    grown = found["growth_bytes"] > GROWTH_BYTES_MAX
    return int(found["stale"] + found["wrong"] + len(found["evicted"]) + found["attached"] + grown)


def main() -> int:
    """One JSON line; exit status 1 when something was broken."""
    parser = argparse.ArgumentParser(prog="python -m tests.campaign._obpf_attach")
    parser.add_argument("--count", type=int, default=10_000)
    found = cycles(parser.parse_args().count)
    broken = violations(found)
    print(json.dumps({"campaign": "attach", "count": found["cycles"], "violations": broken, **found}))
    return int(bool(broken))


if __name__ == "__main__":
    raise SystemExit(main())
