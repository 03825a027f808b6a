"""The frozen teacher's outputs on fixed inputs, by sample: the forward pass that a second epoch need not make.

A table holds the rows of one teacher (digest of its parameters), one environment, one size of batch and one set of outputs asked for. A
batch is served when every one of its samples is there. Nobody may see a difference, so rows are only used once they were proved: the
first batch that could be served is computed as well and compared bit for bit, and so is every CHECK_EVERY-th. Where the bits differ (a
kernel that computes a row otherwise in other company) the table closes itself and says so; if rows were used before, the window that
finds out is rolled back. Each row keeps a fingerprint of its input; an input that changed under its id (augmentation) is refused.

Responsible for: tables, the bound on their bytes, what is new since it was last stored. Refuses: inputs that are not fixed (E2-USAGE).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Final

import torch
from blake3 import blake3
from torch import Tensor

from servers.learner.roles import Role
from servers.learner.state import byte_view, host_copy
from servers.models.model import Batch, Output
from syscalls.errors import RecurosError

CHECK_EVERY: Final = 256
INPUTS: Final = ("x", "input_ids", "attention_mask")
FINGERPRINT: Final = "fingerprint"

Parts = dict[str, Tensor]
"""An output by part, first axis the samples: "logits", "hidden.3", "attention.1", "values"."""


@dataclass
class Table:
    """Rows by sample id. `proved`: found equal at least once. `fresh`: ids not stored yet. `closed`: why it serves nothing."""

    key: str
    rows: dict[int, int] = field(default_factory=dict)
    parts: Parts = field(default_factory=dict)
    used: int = 0
    hits: int = 0
    proved: bool = False
    closed: str = ""
    fresh: list[int] = field(default_factory=list)


class TeacherCache:
    """`load(key)`: chunks stored for a table, from an earlier process. `closed`: why nothing is served any more. `says`: for the log."""

    def __init__(self, environment: str, bytes_max: int, load: Callable[[str], list[Parts]] = lambda _key: []) -> None:
        self._environment = environment
        self._bytes_max = bytes_max
        self._load = load
        self._tables: dict[str, Table] = {}
        self._digest: tuple[int, object, str] = (-1, None, "")
        self.closed = ""
        self.hits = 0
        self.full = 0
        self.says: list[str] = []
        self._counted = -1

    def output(
        self,
        teacher: Role,
        batch: Batch,
        layers: frozenset[int],
        asked: dict[str, bool],
        compute: Callable[[], Output],
        serve: bool = True,
    ) -> Output:
        """The teacher's output on this batch. `layers`: those of whose hidden states and attention somebody will read.

        Without `serve` it is computed in any case, and kept.
        """
        ids = batch.get("ids")
        if self.closed or ids is None or bool((ids < 0).any()):
            return compute()
        marks = fingerprints(batch)
        table = self._table(self._key(teacher, batch, layers, asked))
        if table.closed:
            return compute()
        places = [table.rows.get(i, -1) for i in ids.tolist()]
        if min(places) < 0:
            out = compute()
            self._keep(table, ids, marks, _parts(out, layers))
            return out
        if not serve:
            return compute()
        at = torch.tensor(places)
        if not torch.equal(table.parts[FINGERPRINT][at], marks):
            self.closed = "inputs are not fixed"
            raise RecurosError(
                "E2-USAGE",
                "the teacher cache met a sample whose input has changed: inputs are not fixed",
                hint='leave [cache] teacher out, or augment = "none"',
            )
        parts = {name: values[at] for name, values in table.parts.items() if name != FINGERPRINT}
        table.hits += 1
        if not table.proved or table.hits % CHECK_EVERY == 0:
            out = compute()
            self._compare(table, parts, _parts(out, layers))
            return out
        self.hits += 1
        return _output(parts, teacher.model.num_layers, ids.device)

    def fresh(self) -> list[tuple[str, Parts]]:
        """What is not stored yet: (key, a chunk); it counts as stored from here on."""
        found = []
        for table in self._tables.values():
            if table.fresh:
                at = torch.tensor([table.rows[i] for i in table.fresh])
                chunk = {name: values[at] for name, values in table.parts.items()}
                found.append((table.key, {"ids": torch.tensor(table.fresh), **chunk}))
                table.fresh = []
        return found

    def settled(self) -> bool:
        """Whether nothing was added since the last call, and something waits to be stored."""
        now = sum(len(t.rows) for t in self._tables.values())
        before, self._counted = self._counted, now
        return now == before and any(t.fresh for t in self._tables.values())

    def served(self) -> int:
        """Batches served since the last call."""
        hits, self.hits = self.hits, 0
        return hits

    # Tables

    def _key(self, teacher: Role, batch: Batch, layers: frozenset[int], asked: dict[str, bool]) -> str:
        version, module, digest = self._digest
        if version != teacher.version or module is not teacher.model:
            hasher = blake3(byte_view(host_copy(teacher.arena.flat)))
            for name, buffer in sorted(teacher.arena.buffers.items()):
                hasher.update(name.encode() + bytes(byte_view(host_copy(buffer))))
            hasher.update(repr(teacher.model.architecture).encode())
            digest = hasher.hexdigest()
            self._digest = (teacher.version, teacher.model, digest)
        shapes = [(name, tuple(batch[name].shape)) for name in INPUTS if name in batch]
        text = repr((digest, self._environment, shapes, sorted(layers), sorted(k for k, on in asked.items() if on)))
        return blake3(text.encode()).hexdigest()

    def _table(self, key: str) -> Table:
        if key not in self._tables:
            table = self._tables[key] = Table(key)
            for chunk in self._load(key):
                ids, marks = chunk.pop("ids"), chunk.pop(FINGERPRINT)
                self._keep(table, ids, marks, chunk)
            table.fresh = []
        return self._tables[key]

    def _keep(self, table: Table, ids: Tensor, marks: Tensor, parts: Parts) -> None:
        """Add the samples that are not there, while there is room; a full table serves what it has."""
        new = [(n, i) for n, i in enumerate(ids.tolist()) if i not in table.rows]
        parts = {FINGERPRINT: marks, **parts}
        size = sum(p.element_size() * p[0].numel() for p in parts.values())
        held = sum(p.element_size() * p.numel() for t in self._tables.values() for p in t.parts.values())
        seen: set[int] = set()
        for n, i in new:
            if i in seen:
                continue
            seen.add(i)
            if not table.parts or table.used >= len(table.parts[FINGERPRINT]):
                more = max(64, table.used)
                if held + more * size > self._bytes_max:
                    self.full += 1
                    return
                held += more * size
                for name, values in parts.items():
                    room = torch.empty((table.used + more, *values.shape[1:]), dtype=values.dtype)
                    if table.used:
                        room[: table.used] = table.parts[name][: table.used]
                    table.parts[name] = room
            for name, values in parts.items():
                table.parts[name][table.used] = values[n]
            table.rows[i] = table.used
            table.used += 1
            table.fresh.append(i)

    def _compare(self, table: Table, kept: Parts, computed: Parts) -> None:
        differs = [name for name, values in computed.items() if not _same_bits(kept[name], values)]
        if not differs:
            table.proved = True
            return
        table.closed = f"{differs[0]} of a sample depends on the batch it is computed in"
        table.rows, table.parts, table.fresh, table.used = {}, {}, [], 0
        self.says.append(f"teacher cache: {table.closed}; this teacher's outputs are computed each time")
        if table.proved:
            raise RecurosError(
                "E9-INTEGRITY",
                f"the teacher cache: {table.closed}; rows were used before",
                hint="leave [cache] teacher out",
            )


def fingerprints(batch: Batch) -> Tensor:
    """A number for each sample's input: I64 [B], from every bit of it."""
    total = torch.zeros(len(batch["ids"]), dtype=torch.int64)
    for number, name in enumerate(INPUTS):
        if name in batch:
            values = batch[name].detach().cpu().contiguous().flatten(1)
            words = (
                values.view(torch.int32).to(torch.int64) if values.dtype == torch.float32 else values.to(torch.int64)
            )
            total += (words * _odd(words.shape[1], number)).sum(1)
    return total


@lru_cache(maxsize=32)
def _odd(count: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(0x7EAC + seed)
    return torch.randint(-(1 << 62), 1 << 62, (count,), generator=generator) | 1


def _parts(out: Output, layers: frozenset[int]) -> Parts:
    parts = {"logits": out.logits}
    for layer in layers if out.hidden else ():
        parts[f"hidden.{layer}"] = out.hidden[layer]
    for layer in layers - {0} if out.attention else ():
        parts[f"attention.{layer}"] = out.attention[layer - 1]
    if out.values is not None:
        parts["values"] = out.values
    return {name: values.detach().cpu() for name, values in parts.items()}


def _output(parts: Parts, layers: int, device: torch.device) -> Output:
    """Layers that were not kept are empty: nobody asked for them."""
    parts = {name: values.to(device) for name, values in parts.items()}

    def filled(kind: str, first: int) -> tuple[Tensor, ...]:
        held = [values for name, values in parts.items() if name.startswith(f"{kind}.")]
        if not held:
            return ()
        nothing = held[0].new_empty((*held[0].shape[:-1], 0))
        return tuple(parts.get(f"{kind}.{n}", nothing) for n in range(first, layers + 1))

    return Output(parts["logits"], filled("hidden", 0), None, None, filled("attention", 1), parts.get("values"))


def _same_bits(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.equal(a.contiguous().view(torch.uint8), b.contiguous().view(torch.uint8))
