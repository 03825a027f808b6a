"""What `recuros.watch` costs a training loop at its default cadence, against the very same loop without it.

Responsible for: two equal models, one watched, trained in turns of a few steps on the same batches; a group of turns is as long as
a window, so that each holds one snapshot. Refuses: a median over turns, which would hide the snapshot.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import torch
from torch import nn

import recuros
from tests.bench._rows import Rows

TURN_STEPS = 50
WINDOW_STEPS = 500
EVERY = 50
TARGET = "<= 0.02"


class Loop:
    """A small language model's loop: 4 layers, 128 wide, batches of 16 x 64 tokens; about 20 ms a step on one core."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.model = nn.ModuleDict(
            {
                "embed": nn.Embedding(256, 128),
                "blocks": nn.ModuleList([nn.TransformerEncoderLayer(128, 4, 512, 0.0, batch_first=True) for _ in range(4)]),
                "head": nn.Linear(128, 256),
            }
        )  # fmt: skip
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-3)
        self.batches = torch.Generator().manual_seed(1)

    def run(self, steps: int) -> float:
        """Seconds that these steps took."""
        began = time.perf_counter()
        for _ in range(steps):
            tokens = torch.randint(0, 256, (16, 64), generator=self.batches)
            x = self.model["embed"](tokens)
            for block in self.model["blocks"]:  # type: ignore[union-attr]
                x = block(x)
            loss = nn.functional.cross_entropy(self.model["head"](x).flatten(0, 1), tokens.flatten())
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
        return time.perf_counter() - began


def shares(groups: int) -> tuple[list[float], float]:
    """For each group of turns the share that watching added, and the share that the watch says it took."""
    torch.set_num_threads(1)
    plain, watched = Loop(), Loop()
    found = []
    with tempfile.TemporaryDirectory(prefix="recuros-bench-") as folder:
        watch = recuros.watch(
            watched.model, Path(folder) / "run", optimizer=watched.optimizer, every=EVERY, window=WINDOW_STEPS
        )
        with watch:
            for loop in (plain, watched):
                loop.run(TURN_STEPS)  # warm, and the programs have become machine code
            for _ in range(groups):
                spent = {"plain": 0.0, "watched": 0.0}
                for turn in range(WINDOW_STEPS // TURN_STEPS):
                    order = [("plain", plain), ("watched", watched)]
                    for name, loop in order if turn % 2 else order[::-1]:
                        spent[name] += loop.run(TURN_STEPS)
                found.append(spent["watched"] / spent["plain"] - 1)
            own = watch.overhead
    return found, own


def measure(rows: Rows, groups: int = 6) -> None:
    """Add the rows of `recuros.watch`."""
    found, own = shares(groups)
    rows.add(
        "recuros.watch: time added at the default cadence", found, TARGET, unit="share", peer="the same loop without"
    )
    rows.add(
        "recuros.watch: share of the time that it says it took",
        own,
        TARGET,
        unit="share",
        note="probes, records, copies",
    )


if __name__ == "__main__":
    found = Rows("watch", "python -m tests.bench._watch")
    measure(found)
    found.write()
