"""How small 100 snapshots become: three kinds of training of a GPT-2 shape with 7 million parameters, one step between snapshots.

Each case is real training (Hugging Face's GPT-2 with fresh weights on bytes of this repository's own sources), stored as the learner stores
it and compacted by the compactor. The figure is bytes in `packs/` over bytes of all leaves of all snapshots.

    .venv/bin/python -m tests.bench._kfs_space [--count SNAPSHOTS] [--case NAME] [--block N]
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kfs.compactor import BLOCK_COMMITS, HOT_COMMITS, Compactor
from kfs.objects import NewObject, object_id
from kfs.records import Record, RecordKind
from kfs.store import Store, StoreWriter
from kfs.trash import unlink_due
from kfs.verify import verify
from tests.bench._rows import ROOT

SEED = 42
RANK = 8
SWAP_EVERY = 25
WARM_STEPS = 100
"""Steps before the first snapshot: what is stored is training under way, not the first jump away from random weights."""
CONFIG = {
    "vocab_size": 8_192,
    "n_positions": 256,
    "n_embd": 256,
    "n_layer": 6,
    "n_head": 4,
    "bos_token_id": 0,
    "eos_token_id": 0,
}

Leaves = dict[str, Tensor]


@dataclass(frozen=True)
class Space:
    """One case. `stored_bytes`: the files in packs/; `first_bytes`: the same before compaction."""

    snapshots: int
    raw_bytes: int
    first_bytes: int
    stored_bytes: int
    compact_s: float
    step_ms_max: float
    verified: bool

    @property
    def ratio(self) -> float:
        """Stored over raw."""
        return self.stored_bytes / self.raw_bytes


def batches() -> Iterator[Tensor]:
    """Bytes of the sources as token ids, 4 rows of 64."""
    text = b"".join(path.read_bytes() for path in sorted((ROOT / "kfs").glob("*.py")))
    tokens = torch.tensor(list(text), dtype=torch.long)
    order = torch.Generator().manual_seed(SEED)
    while True:
        at = torch.randint(0, len(tokens) - 64, (4,), generator=order)
        yield torch.stack([tokens[i : i + 64] for i in at.tolist()])


def gpt2() -> nn.Module:
    """A fresh GPT-2 of the shape."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(SEED)
    model: nn.Module = GPT2LMHeadModel(GPT2Config(**CONFIG, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0))
    return model


def _warm(model: nn.Module, optimizer: torch.optim.Optimizer, data: Iterator[Tensor]) -> None:
    for _ in range(WARM_STEPS):
        _train(model, optimizer, data)


def _train(model: nn.Module, optimizer: torch.optim.Optimizer, data: Iterator[Tensor]) -> None:
    ids = next(data)
    loss: Tensor = model(input_ids=ids, labels=ids).loss
    optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()


def _state(model: nn.Module, role: str) -> Leaves:
    return {_path(role, name): p.detach() for name, p in model.named_parameters()}


def _path(role: str, name: str) -> str:
    module, _, tensor = name.rpartition(".")
    return f"{role}/{module}/{tensor}"


def dense_sgd() -> Iterator[Leaves]:
    """Every weight moves by 1e-3 of its gradient."""
    model, data = gpt2(), batches()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    _warm(model, optimizer, data)
    while True:
        _train(model, optimizer, data)
        yield _state(model, "student")


def adamw_weights() -> Iterator[Leaves]:
    """Every weight moves by about 1e-3; the moments are not stored."""
    model, data = gpt2(), batches()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    _warm(model, optimizer, data)
    while True:
        _train(model, optimizer, data)
        yield _state(model, "student")


class Adapted(nn.Module):
    """A linear map of GPT-2 (`Conv1D`: weight [in, out]) plus a low-rank one (Hu et al. 2021); only the latter learns."""

    def __init__(self, inner: Any) -> None:
        super().__init__()
        self.inner = inner
        rows, columns = inner.weight.shape
        self.down = nn.Parameter(torch.randn(rows, RANK) / rows**0.5)
        self.up = nn.Parameter(torch.zeros(RANK, columns))

    def forward(self, x: Tensor) -> Tensor:
        """The sum of both maps."""
        out: Tensor = self.inner(x) + (x @ self.down) @ self.up
        return out

    def merge(self) -> None:
        """Add the low-rank map to the inner one and begin anew."""
        with torch.no_grad():
            self.inner.weight += self.down @ self.up
            self.up.zero_()


def adapter_student() -> Iterator[Leaves]:
    """The student is the teacher and adapters; every 25 snapshots they are merged, and that student is the next teacher."""
    model, data = gpt2(), batches()
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    adapters = []
    for block in model.transformer.h:  # type: ignore[union-attr]
        block.attn.c_attn = Adapted(block.attn.c_attn)
        adapters.append(block.attn.c_attn)
    optimizer = torch.optim.AdamW([p for a in adapters for p in (a.down, a.up)], lr=1e-3)
    _warm(model, optimizer, data)
    step = 0
    while True:
        _train(model, optimizer, data)
        step += 1
        if step % SWAP_EVERY == 0:
            for adapter in adapters:
                adapter.merge()
        student = _state(model, "student")
        teacher = {
            p.replace("student/", "teacher/", 1): t for p, t in student.items() if not p.endswith(("down", "up"))
        }
        yield {**student, **teacher}


CASES: dict[str, tuple[Callable[[], Iterator[Leaves]], str]] = {
    "dense SGD 1e-3": (dense_sgd, "<= 0.5"),
    "AdamW 1e-3, weights": (adamw_weights, "<= 0.7"),
    "teacher + adapter student, swap every 25": (adapter_student, "<= 0.05"),
}


def _put(store: StoreWriter, window: int, leaves: Leaves) -> int:
    refs: dict[str, str] = {}
    new: dict[str, NewObject] = {}
    for path, tensor in leaves.items():
        data = memoryview(tensor.contiguous().view(-1).view(torch.uint8).numpy())
        name = object_id("F32", tuple(tensor.shape), data)
        refs[path], new[name] = name, NewObject("F32", tuple(tensor.shape), data, "snapshot")
    root, _ = store.put_snapshot(refs, new)
    args = {
        "window": window,
        "boot": "bench",
        "phase": None,
        "step0": window,
        "steps": 1,
        "grant_seq": -1,
        "metrics": {},
        "resume": {},
    }
    store.append([Record("bench", RecordKind.WINDOW_COMMIT, args, window, result_snap=root)])
    return sum(len(item.data) for item in map(new.__getitem__, refs.values()))  # type: ignore[arg-type]


def _stored(store: StoreWriter) -> int:
    return sum(path.stat().st_size for path in store.layout.packs.iterdir())


def measure(case: str, snapshots: int = 100, *, block: int = BLOCK_COMMITS, hot: int = HOT_COMMITS) -> Space:
    """Train, store, compact and verify one case in a scratch folder; compaction follows the commits as it would in a runtime."""
    states = CASES[case][0]()
    with (
        tempfile.TemporaryDirectory(prefix="recuros-space-") as folder,
        Store.open_writer(Path(folder) / "store") as store,
    ):
        compactor = Compactor(store, block=block, hot=hot)
        raw = first = 0
        seconds = 0.0
        for window in range(snapshots):
            before = _stored(store)
            raw += _put(store, window, next(states))
            first += _stored(store) - before
            started = time.perf_counter()
            while compactor.step():
                pass
            seconds += time.perf_counter() - started
            for _ in unlink_due(store, 0):
                pass
        compactor.run()
        for _ in unlink_due(store, 0):
            pass
        stored = _stored(store)
        report = verify(store.layout.store)
        return Space(snapshots, raw, first, stored, seconds, compactor.figures.step_ns_max / 1e6, report.ok)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=100, help="snapshots of each case")
    parser.add_argument("--case", choices=list(CASES), help="only this one")
    parser.add_argument("--block", type=int, default=BLOCK_COMMITS, help="commits a keyframe")
    options = parser.parse_args()
    for case, (_, target) in CASES.items():
        if options.case in (None, case):
            found = measure(case, options.count, block=options.block)
            print(
                f"{case:<42} stored/raw {found.ratio:.4f} ({target}), before compaction {found.first_bytes / found.raw_bytes:.4f}; "
                f"{found.raw_bytes / 1e6:.0f} MB raw, {found.compact_s:.1f} s, longest step {found.step_ms_max:.1f} ms, "
                f"verified {found.verified}",
                flush=True,
            )


if __name__ == "__main__":
    main()
