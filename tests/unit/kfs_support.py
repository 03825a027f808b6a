"""What the kfs tests share: records of every kind, and small snapshots."""

from __future__ import annotations

import random
from typing import Any

from kfs.objects import NewObject, object_id
from kfs.records import ARGS, Record, RecordKind

_SAMPLES: dict[str, Any] = {
    "int": 3,
    "num": 1.5,
    "str": "text",
    "key": "boot-1",
    "bool": True,
    "map": {"a": 1, "b": [1.0, None, b"\x00\xff"]},
    "list": ["x", 2],
    "id": "b3:" + "0f" * 32,
    "plain": {"deep": [{"er": True}]},
}


def args_of(kind: RecordKind, **changes: Any) -> dict[str, Any]:
    """Args that fit the schema of a kind."""
    return {name: _SAMPLES[wanted.rstrip("?")] for name, wanted in ARGS[kind].items()} | changes


def miss(number: int, **changes: Any) -> Record:
    """A small record that differs from every other number's."""
    args = args_of(RecordKind.WINDOW_MISS, window=number)
    return Record(**{"actor": "kernel", "kind": RecordKind.WINDOW_MISS, "args": args, "t_mono": number} | changes)


def commit(window: int, *, boot: str = "boot-1", t_mono: int = 1, result: str | None = None) -> Record:
    """A window commit."""
    args = args_of(RecordKind.WINDOW_COMMIT, boot=boot, window=window)
    return Record(actor="kernel", kind=RecordKind.WINDOW_COMMIT, args=args, t_mono=t_mono, result_snap=result)


def tensor(seed: int, items: int = 16) -> NewObject:
    """A reproducible F32 tensor."""
    return NewObject("F32", (items,), random.Random(seed).randbytes(4 * items), "snapshot")


def key_of(item: NewObject) -> str:
    """Its object id."""
    return object_id(item.dtype, item.shape, item.data)


def snapshot_of(*seeds: int, role: str = "student") -> tuple[dict[str, str], dict[str, NewObject]]:
    """Refs and new objects of a snapshot with one tensor per seed, four to a module."""
    items = [tensor(seed) for seed in seeds]
    refs = {f"{role}/blocks.{i // 4}/w{i % 4}": key_of(item) for i, item in enumerate(items)}
    return refs, {key_of(item): item for item in items}
