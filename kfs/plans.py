"""What `gc.plan` records say: which snapshots and objects were given up, by which plan.

Responsible for: the two forms of a plan's list (in the record, or in a blob when it is long), and telling "collected under plan N"
from "missing". Refuses: excusing what a later record names again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Final

import msgpack

from kfs import records
from kfs.ids import is_object_id
from kfs.records import Record, RecordKind
from syscalls.errors import RecurosError

if TYPE_CHECKING:
    from typing_extensions import Buffer

INLINE_IDS_MAX: Final = 256
"""Longer lists do not fit a record of 64 KiB beside the rest; they are stored as a blob."""
LIST_VERSION: Final = 1
LIST_KIND: Final = "report"
_MARK: Final = RecordKind.GC_PLAN.value.encode()
_DONE: Final = RecordKind.GC_DONE.value.encode()

Get = Callable[[str], "Buffer"]


def encode_list(ids: Sequence[str], scores: Sequence[float]) -> bytes:
    """The blob of a long plan."""
    data: bytes = msgpack.packb([LIST_VERSION, list(ids), [float(score) for score in scores]])
    return data


def decode_list(data: Buffer) -> tuple[list[str], list[float]]:
    """Inverse of `encode_list`; E9-INTEGRITY for anything else."""
    try:
        value: Any = msgpack.unpackb(bytes(data), max_ext_len=0)
    except (ValueError, TypeError, RecursionError, msgpack.UnpackException) as e:
        raise RecurosError("E9-INTEGRITY", f"the list of a gc.plan is not msgpack: {e}") from e
    match value:
        case [version, list(ids), list(scores)] if version == LIST_VERSION and all(map(is_object_id, ids)):
            return ids, scores
    raise RecurosError("E9-INTEGRITY", f"the list of a gc.plan is not [{LIST_VERSION}, ids, scores]")


def plan_ids(record: Record, get: Get) -> list[str]:
    """The ids that a `gc.plan` gives up; `get` returns the bytes of an object by id."""
    if record.input_ids:
        return decode_list(get(record.input_ids[0]))[0]
    return [name for name in record.args["ids"] if is_object_id(name)]


def given_up(stored: Iterable[bytes], get: Get) -> dict[str, int]:
    """id -> number of the plan, for everything that a plan gave up and no later record names again; `stored` in ledger order."""
    found: dict[str, int] = {}
    for data in stored:
        record = records.decode(data)
        for name in records.references(record):
            found.pop(name, None)
        if record.kind is RecordKind.GC_PLAN:
            found |= dict.fromkeys(plan_ids(record, get), record.seq)
    return found


def pending_ids(stored: Iterable[bytes], get: Get) -> dict[str, int]:
    """What plans without a `gc.done` give up: id -> plan. A ledger without plans is only searched, not decoded."""
    found: dict[int, list[str]] = {}
    for data in stored:
        if _MARK in data or _DONE in data:
            record = records.decode(data)
            if record.kind is RecordKind.GC_PLAN:
                found[record.seq] = plan_ids(record, get)
            elif record.kind is RecordKind.GC_DONE:
                found.pop(record.args["plan_seq"], None)
    return {name: seq for seq, names in found.items() for name in names}


def plan_of(name: str, stored: Iterable[bytes], get: Get) -> int | None:
    """The last plan that gave `name` up, without decoding other records: for a message, not for a verdict."""
    last = None
    for data in stored:
        if _MARK in data:
            record = records.decode(data)
            if record.kind is RecordKind.GC_PLAN and name in plan_ids(record, get):
                last = record.seq
    return last
