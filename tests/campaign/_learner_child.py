"""A process that is meant to be killed: an engine with every term and every kind of pruning on, and a checkpoint every few steps.

`python -m tests.campaign._learner_child FOLDER STEPS`: goes on from FOLDER's last checkpoint and says `step N` after each step and `kept N
ROOT` after each checkpoint, which is one file, written beside and renamed.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from servers.learner.engine import Engine
from servers.learner.losses import WEIGHTS
from servers.learner.state import Leaf

KEEP_EVERY: Final = 3
CYCLE: Final = 120
SPEC: Final[dict[str, Any]] = {
    "teacher": {"kind": "patch", "layers": 2, "width": 16, "heads": 4},
    "student": {"kind": "patch", "layers": 2, "width": 16, "heads": 4},
    "ema": 0.9,
    "kd": {"mix": 0.5, "alpha": 0.5, "every": {"jacobian": 3}, **dict.fromkeys(WEIGHTS, 0.05)},
}
TEACH: Final = {"name": "teach", "index": 0, "train": "teacher", "steps_total": CYCLE, "lr": 2e-3}
DISTIL: Final = {
    "name": "distil",
    "index": 1,
    "train": "student",
    "steps_total": CYCLE,
    "lr": 2e-3,
    "schedule": "cyclic",
    "cycles": 3,
}


def batch_at(step: int) -> dict[str, Tensor]:
    """The data of a step, from its number alone."""
    g = torch.Generator().manual_seed(9_000 + step)
    return {
        "ids": torch.arange(8) + 8 * step,
        "x": torch.rand(8, 8, 8, generator=g),
        "labels": torch.randint(0, 10, (8,), generator=g),
        "weight": torch.rand(8, generator=g) + 0.1,
    }


def steer(engine: Engine) -> None:
    """What happens before a step, again in every cycle: phases, swaps of each kind, schedules of pruning, settings."""
    at = engine.step % CYCLE
    if at == 0:
        engine.begin(TEACH)
    elif at == 8:
        engine.begin(DISTIL)
    elif at == 12:
        engine.prune({"method": "movement", "target": 0.5, "steps": 30})
    elif at == 30:
        engine.apply_policy({"temperature": 3.0, "cka": 0.2, "at": 0.0})
    elif at == 45:
        engine.swap("ema")
    elif at == 50:
        engine.prune({"method": "heads", "target": 0.2})
    elif at == 55:
        engine.prune({"method": "l0", "target": 0.2, "steps": 20})
    elif at == 78:
        engine.swap("snapshot")
    elif at == 90:
        engine.set_kd(temperature=1.5, proj="linear", terms={"rkd": 0.2})
    elif at == 100:
        engine.swap("checkpoint")
    elif at == 105:
        engine.prune(0.3)


def save(engine: Engine, folder: Path) -> str:
    """One file: a line of JSON that says what follows, then the leaves."""
    leaves = engine.capture()
    index = [[path, leaf.dtype, list(leaf.shape), leaf.data.nbytes] for path, leaf in leaves.items()]
    with (folder / "next").open("wb") as file:
        file.write(json.dumps(index).encode() + b"\n")
        for leaf in leaves.values():
            file.write(leaf.data)
    os.rename(folder / "next", folder / "kept")
    return engine.root_of(leaves)


def load(folder: Path) -> dict[str, Leaf]:
    """Inverse of `save`; {} where nothing was kept."""
    if not (folder / "kept").exists():
        return {}
    data = (folder / "kept").read_bytes()
    at = data.index(b"\n") + 1
    leaves = {}
    for path, dtype, shape, size in json.loads(data[:at]):
        leaves[path] = Leaf(dtype, tuple(shape), memoryview(data[at : at + size]))
        at += size
    return leaves


def main() -> None:
    """Go on until STEPS."""
    folder, steps = Path(sys.argv[1]), int(sys.argv[2])
    engine = Engine(SPEC, 7)
    if leaves := load(folder):
        engine.restore(leaves)
        print(f"back {engine.step} {engine.digest()}", flush=True)
    while engine.step < steps:
        steer(engine)
        engine.micro_step(batch_at(engine.step))
        print(f"step {engine.step}", flush=True)
        if engine.step % KEEP_EVERY == 0 or engine.step == steps:
            print(f"kept {engine.step} {save(engine, folder)}", flush=True)


if __name__ == "__main__":
    main()
