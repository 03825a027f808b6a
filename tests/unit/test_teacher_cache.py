"""The teacher cache: the same bits with and without it, fewer passes, proof before use, bounds, refusals, the store."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from kfs.store import Store
from probes.hooks import Dispatcher
from servers.archivist.server import ArchivistService
from servers.learner.engine import Engine
from servers.learner.shelf import Shelf
from servers.learner.teacher_cache import TeacherCache, fingerprints
from syscalls.errors import RecurosError
from syscalls.pages import ReadPage, WritePage

SPEC: dict[str, Any] = {
    "teacher": {"kind": "patch", "layers": 3, "width": 16, "heads": 2},
    "student": {"kind": "patch", "layers": 2, "width": 8, "heads": 2},
    "kd": {"mix": 0.5, "alpha": 0.5, "cka": 0.1, "at": 0.1, "embedding": 0.1, "minilm_vr": 0.1},
}
DISTIL = {"name": "distil", "index": 0, "train": "student", "windows": 10, "steps": 6, "lr": 3e-3}
N, B = 24, 8
IMAGES = torch.rand(N, 8, 8, generator=torch.Generator().manual_seed(1))
LABELS = torch.randint(0, 10, (N,), generator=torch.Generator().manual_seed(2))


def batch_at(step: int) -> dict[str, Tensor]:
    epoch, place = divmod(step, N // B)
    order = torch.randperm(N, generator=torch.Generator().manual_seed(epoch))
    ids = order[place * B : (place + 1) * B]
    return {"ids": ids, "x": IMAGES[ids], "labels": LABELS[ids]}


def engine_with(cache: TeacherCache | None, dispatcher: Dispatcher | None = None) -> tuple[Engine, list[int]]:
    engine = Engine(SPEC, 7, dispatcher)
    engine.begin(DISTIL)
    engine.keep_teacher_outputs(cache)
    passes = [0]
    model = engine.roles["teacher"].model
    original = model.forward

    def forward(*args: Any, **asked: Any) -> Any:
        passes[0] += 1
        return original(*args, **asked)

    model.forward = forward  # type: ignore[method-assign]
    return engine, passes


def run(engine: Engine, stop: int) -> None:
    while engine.step < stop:
        engine.micro_step(batch_at(engine.step))


def test_parameters_are_the_same_bit_for_bit_and_passes_are_saved() -> None:
    cache = TeacherCache("env", 1 << 24)
    cached, saved = engine_with(cache)
    plain, made = engine_with(None)
    for engine in (cached, plain):
        run(engine, 12)
    assert cached.digest() == plain.digest()
    assert made == [12]
    assert saved == [4], "an epoch of three, and one to prove it"
    assert cache.served() == 8
    assert cache.served() == 0


def test_another_teacher_is_another_table() -> None:
    cache = TeacherCache("env", 1 << 24)
    cached, _ = engine_with(cache)
    plain, _ = engine_with(None)
    for engine in (cached, plain):
        run(engine, 7)
        engine.swap("snapshot")
        run(engine, 12)
        engine.swap("ema")
        run(engine, 14)
    assert cached.digest() == plain.digest()


def test_rows_are_proved_before_they_are_used_and_the_cache_closes_where_bits_differ() -> None:
    cache = TeacherCache("env", 1 << 24)
    cached, saved = engine_with(cache)
    plain, _ = engine_with(None)
    run(cached, 3)
    table = next(iter(cache._tables.values()))
    table.parts["logits"][5] += 1e-6
    run(cached, 6)
    run(plain, 6)
    assert table.closed == "logits of a sample depends on the batch it is computed in"
    assert cache.says == [f"teacher cache: {table.closed}; this teacher's outputs are computed each time"]
    assert saved == [6]
    assert cached.digest() == plain.digest()


def test_a_difference_found_after_rows_were_used_fails_the_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("servers.learner.teacher_cache.CHECK_EVERY", 3)
    cache = TeacherCache("env", 1 << 24)
    cached, _ = engine_with(cache)
    run(cached, 5)
    table = next(iter(cache._tables.values()))
    table.parts["hidden.3"] += 1e-4
    with pytest.raises(RecurosError, match="rows were used before") as caught:
        run(cached, 6)
    assert caught.value.code == "E9-INTEGRITY"


def test_an_input_that_changed_under_its_id_is_refused() -> None:
    cached, _ = engine_with(TeacherCache("env", 1 << 24))
    run(cached, 3)
    batch = batch_at(3)
    batch["x"] = batch["x"].roll(1, dims=2)
    with pytest.raises(RecurosError, match="inputs are not fixed") as caught:
        cached.micro_step(batch)
    assert caught.value.code == "E2-USAGE"


def test_fingerprints_see_every_bit_and_every_place() -> None:
    batch = {"ids": torch.arange(3), "x": torch.zeros(3, 8, 8)}
    batch["x"][1, 0, 0] = 1e-45
    batch["x"][2, 0, 1] = 1e-45
    assert len(set(fingerprints(batch).tolist())) == 3
    tokens = {
        "ids": torch.arange(2),
        "input_ids": torch.tensor([[1, 2], [2, 1]]),
        "attention_mask": torch.ones(2, 2).long(),
    }
    assert len(set(fingerprints(tokens).tolist())) == 2


def test_a_full_cache_serves_what_it_has_and_stays_within_its_bytes() -> None:
    cache = TeacherCache("env", 64 << 10)
    cached, _ = engine_with(cache)
    plain, _ = engine_with(None)
    for engine in (cached, plain):
        run(engine, 9)
    assert cached.digest() == plain.digest()
    assert cache.full > 0
    held = sum(p.element_size() * p.numel() for t in cache._tables.values() for p in t.parts.values())
    assert held <= 64 << 10


def test_batches_without_ids_are_computed() -> None:
    cached, saved = engine_with(TeacherCache("env", 1 << 24))
    for step in range(6):
        batch = batch_at(step)
        del batch["ids"]
        cached.micro_step(batch)
    assert saved == [6]


class Session:
    """Pages and a real archivist, as far as a shelf uses them."""

    def __init__(self, path: Path) -> None:
        self.config: dict[str, Any] = {"store": str(path), "run": str(path.parent)}
        self.pages: dict[int, Any] = {}
        self.archivist = ArchivistService(self)  # type: ignore[arg-type]
        self.said: list[str] = []

    def offer(self, page: WritePage) -> int:
        self.pages[len(self.pages) + 1] = (os.dup(page.fd), page.size)
        return len(self.pages)

    def map(self, handle: int) -> Any:
        fd, size = self.pages[handle]
        return ReadPage(os.dup(fd), size, handle)

    def release(self, handle: int) -> None:
        fd, _ = self.pages[handle]
        if fd >= 0:
            os.close(fd)
        self.pages[handle] = (-1, 0)

    def call(self, method: str, **columns: Any) -> Any:
        self.said.append(method)
        return self.archivist.put(**columns)


def test_what_is_stored_serves_the_next_process_from_its_first_epoch(tmp_path: Path) -> None:
    session = Session(tmp_path / "store")
    store = Store.open_reader(tmp_path / "store")

    def reader() -> Store:
        store.refresh()
        return store

    shelf = Shelf(session, reader)  # type: ignore[arg-type]
    cache = TeacherCache("env", 1 << 24, shelf.load)
    first, _ = engine_with(cache)
    run(first, 3)
    assert not cache.settled()
    run(first, 4)
    assert cache.settled()
    for key, parts in cache.fresh():
        shelf.keep(key, parts)
    assert not cache.settled()
    assert session.said == ["archivist.put"]
    again = TeacherCache("env", 1 << 24, Shelf(session, reader).load)  # type: ignore[arg-type]
    second, saved = engine_with(again)
    run(second, 9)
    assert saved == [1], "one pass proves what was stored"
    plain, _ = engine_with(None)
    run(plain, 9)
    assert second.digest() == plain.digest()
    other = TeacherCache("another environment", 1 << 24, shelf.load)
    third, passes = engine_with(other)
    run(third, 3)
    assert passes == [3]
    session.archivist.drain()
    store.close()
