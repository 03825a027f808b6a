"""The ledger record: seventeen positional fields, and a schema for the `args` of each kind.

Responsible for: what a record may hold, checked the same way when it is written and when it is read. Imports the standard
library and msgpack only, because the kernel process makes records. Refuses: records of 64 KiB or more (larger payloads are
objects), unknown kinds, missing or extra args, anything that is not plain data.

A producer makes a *draft*: everything except `seq` and `t_wall`, which the archivist stamps. A draft's bytes identify it: sending
the same draft twice within a boot stores it once.
"""

from __future__ import annotations

import dataclasses
import enum
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import msgpack

from kfs.ids import is_object_id
from syscalls import limits
from syscalls.errors import RecurosError

VERSION: Final = 1
DRAFT_SEQ: Final = -1
NO_CAP: Final = -1
NAME_CHARS_MAX: Final = 128
INPUTS_MAX: Final = 512
DEPTH_MAX: Final = 12
# Stamping replaces two one-byte integers by two of up to nine bytes.
DRAFT_BYTES_MAX: Final = limits.RECORD_BYTES_MAX - 16
_I64_MIN: Final = -(1 << 63)
_I64_END: Final = 1 << 63
_DIGEST = re.compile(r"(?:[a-z0-9]{1,16}:)?[0-9a-f]{16,128}\Z")


class RecordKind(enum.StrEnum):
    """Every kind of record; the value is what the ledger holds."""

    BOOT = "boot"
    HALT = "halt"
    SPAWN = "spawn"
    EXIT = "exit"
    RESTART = "restart"
    CAP_DERIVE = "cap.derive"
    CAP_REVOKE = "cap.revoke"
    SCHED_ADMIT = "sched.admit"
    SCHED_REFUSE = "sched.refuse"
    SCHED_SET = "sched.set"
    WINDOW_GRANT = "window.grant"
    WINDOW_COMMIT = "window.commit"
    WINDOW_MISS = "window.miss"
    WINDOW_ROLLBACK = "window.rollback"
    SNAPSHOT = "snapshot"
    SWAP = "swap"
    GENERATION = "generation"
    KD_SET = "kd.set"
    GATE_SET = "gate.set"
    PRUNE = "prune"
    CALIBRATE = "calibrate"
    POLICY = "policy"
    PROBE_LOAD = "probe.load"
    PROBE_ATTACH = "probe.attach"
    PROBE_DETACH = "probe.detach"
    PROBE_EVICT = "probe.evict"
    INTERRUPT = "interrupt"
    EVALUATE = "evaluate"
    GC_PLAN = "gc.plan"
    GC_DONE = "gc.done"
    FAULT = "fault"


# kind -> {argument: type}. Every argument is required; "?" after a type also allows nil. "key" is text or an integer, "num" an
# integer or a float, "id" an object id, "plain" any plain value.
_SCHED_ARGS: Final = {"name": "str", "budget_ns": "int", "period_ns": "int", "deadline_ns": "int", "witness": "plain"}
ARGS: Final[dict[RecordKind, dict[str, str]]] = {
    RecordKind.BOOT: {"boot": "key", "app": "str", "abi": "key", "resumed_from": "plain", "env": "map"},
    RecordKind.HALT: {"boot": "key", "mode": "str", "reason": "str"},
    RecordKind.SPAWN: {"name": "str", "pid": "int", "incarnation": "int"},
    RecordKind.EXIT: {"name": "str", "pid": "int", "status": "int?"},
    RecordKind.RESTART: {"name": "str", "incarnation": "int", "reason": "str"},
    RecordKind.CAP_DERIVE: {
        "slot": "int",
        "parent": "int",
        "holder": "str",
        "object": "str",
        "rights": "list",
        "badge": "str",
    },
    RecordKind.CAP_REVOKE: {"slot": "int", "holder": "str", "removed": "int"},
    RecordKind.SCHED_ADMIT: _SCHED_ARGS,
    RecordKind.SCHED_REFUSE: _SCHED_ARGS,
    RecordKind.SCHED_SET: _SCHED_ARGS,
    RecordKind.WINDOW_GRANT: {
        "window": "int",
        "boot": "key",
        "phase": "plain",
        "step0": "int",
        "steps": "int",
        "deadline_ns": "int",
        "budget_ns": "int",
        "policy_seq": "int?",
        "directives": "plain",
    },
    RecordKind.WINDOW_COMMIT: {
        "window": "int",
        "boot": "key",
        "phase": "plain",
        "step0": "int",
        "steps": "int",
        "grant_seq": "int",
        "metrics": "map",
        "resume": "map",
    },
    RecordKind.WINDOW_MISS: {"window": "int", "boot": "key", "reason": "str", "late_ns": "int?"},
    RecordKind.WINDOW_ROLLBACK: {"window": "int", "boot": "key", "base": "id?", "restored": "id?", "exact": "bool"},
    RecordKind.SNAPSHOT: {"name": "str", "window": "int"},
    RecordKind.SWAP: {"mode": "str", "window": "int"},
    RecordKind.GENERATION: {"generation": "int", "window": "int", "reason": "str"},
    RecordKind.KD_SET: {"temperature": "num", "alpha": "num", "proj": "plain", "mix": "num", "window": "int"},
    RecordKind.GATE_SET: {"criteria": "map", "window": "int"},
    RecordKind.PRUNE: {"mask_spec": "map", "window": "int", "report": "map"},
    RecordKind.CALIBRATE: {"mode": "str", "result": "map"},
    RecordKind.POLICY: {"window": "int", "applies_at": "int", "settings": "map", "pack": "str"},
    RecordKind.PROBE_LOAD: {"prog": "str", "digest": "str", "hook": "str", "bytes": "int"},
    RecordKind.PROBE_ATTACH: {"id": "int", "hook": "str", "prog": "str", "sites": "list", "step": "int"},
    RecordKind.PROBE_DETACH: {"id": "int", "step": "int"},
    RecordKind.PROBE_EVICT: {"id": "int", "step": "int", "reason": "str"},
    RecordKind.INTERRUPT: {"kind": "str", "window": "int?", "step": "int?", "reason": "str"},
    RecordKind.EVALUATE: {"split": "str", "scores": "map"},
    RecordKind.GC_PLAN: {"ids": "list", "scores": "list", "reason": "str"},
    RecordKind.GC_DONE: {"plan_seq": "int", "packs": "int", "bytes": "int"},
    RecordKind.FAULT: {"name": "str", "code": "str", "message": "str"},
}
_ARG_TYPES: Final[dict[str, tuple[type, ...]]] = {
    "int": (int,),
    "num": (int, float),
    "str": (str,),
    "key": (str, int),
    "bool": (bool,),
    "map": (dict,),
    "list": (list,),
    "id": (str,),
    "plain": (type(None), bool, int, float, str, bytes, list, dict),
}


@dataclass(frozen=True, slots=True)
class Record:
    """One entry of the ledger.

    v               version of this layout
    seq             position in the ledger from 0; -1 in a draft
    t_mono, t_wall  nanoseconds on the producer's monotonic clock; nanoseconds since 1970 at the archivist, 0 in a draft
    actor, cap_id   the principal that decided, and the capability slot it used (-1: none)
    kind, args      what happened, by the schema of the kind
    generation      generation of the student
    parent_snap, result_snap    snapshot before and after, object ids or None
    input_ids       stored objects that the decision rests on
    code_id, env_id             digests of the code and of the environment, or None
    rng_before, rng_after       digests of the generator states, or None
    data_cursor     position in the data stream: plain data
    """

    actor: str
    kind: RecordKind
    args: dict[str, Any]
    t_mono: int
    cap_id: int = NO_CAP
    generation: int = 0
    parent_snap: str | None = None
    result_snap: str | None = None
    input_ids: tuple[str, ...] = ()
    code_id: str | None = None
    env_id: str | None = None
    rng_before: str | None = None
    rng_after: str | None = None
    data_cursor: Any = None
    v: int = VERSION
    seq: int = DRAFT_SEQ
    t_wall: int = 0

    @property
    def is_draft(self) -> bool:
        """Whether the archivist has yet to stamp it."""
        return self.seq == DRAFT_SEQ

    def stamped(self, seq: int, t_wall: int) -> Record:
        """This draft at its place in the ledger."""
        return dataclasses.replace(self, seq=seq, t_wall=t_wall)

    def draft(self) -> Record:
        """This record as its producer sent it."""
        return dataclasses.replace(self, seq=DRAFT_SEQ, t_wall=0)


FIELDS: Final = (
    "v",
    "seq",
    "t_mono",
    "t_wall",
    "actor",
    "cap_id",
    "kind",
    "generation",
    "parent_snap",
    "result_snap",
    "args",
    "input_ids",
    "code_id",
    "env_id",
    "rng_before",
    "rng_after",
    "data_cursor",
)


def encode(record: Record) -> bytes:
    """The bytes of a record or draft; E2-LIMIT names the field that does not fit."""
    _validate(record)
    row = [getattr(record, name) for name in FIELDS]
    row[FIELDS.index("kind")] = record.kind.value
    try:
        data: bytes = msgpack.packb(row, use_bin_type=True)
    except (ValueError, TypeError, OverflowError, RecursionError) as e:
        raise RecurosError("E2-LIMIT", f"record {record.kind}: cannot be encoded: {e}") from e
    size_max = DRAFT_BYTES_MAX if record.is_draft else limits.RECORD_BYTES_MAX
    if len(data) > size_max:
        raise RecurosError(
            "E2-LIMIT",
            f"record {record.kind} takes {len(data)} bytes; the limit is {size_max}",
            hint="store it as an object",
        )
    return data


def decode(data: bytes) -> Record:
    """Inverse of `encode`; malformed bytes are E2-WIRE. Memory is bounded by the size of `data`."""
    if len(data) > limits.RECORD_BYTES_MAX:
        raise RecurosError("E2-WIRE", f"record of {len(data)} bytes; the limit is {limits.RECORD_BYTES_MAX}")
    try:
        row = msgpack.unpackb(data, max_ext_len=0, object_pairs_hook=_unique)
    except (ValueError, TypeError, RecursionError, msgpack.UnpackException) as e:
        raise RecurosError("E2-WIRE", f"record is not valid msgpack: {type(e).__name__}: {e}") from e
    if not isinstance(row, list) or len(row) != len(FIELDS):
        raise RecurosError("E2-WIRE", f"record is not an array of {len(FIELDS)} fields")
    if row[0] != VERSION:
        raise RecurosError("E9-VERSION", f"record of version {row[0]!r:.20}; this program reads version {VERSION}")
    values = dict(zip(FIELDS, row, strict=True))
    try:
        values["kind"] = RecordKind(values["kind"])
        values["input_ids"] = tuple(values["input_ids"])
        record = Record(**values)
        _validate(record)
    except (ValueError, TypeError) as e:
        raise RecurosError("E2-WIRE", f"record is malformed: {e}") from e
    except RecurosError as e:
        raise RecurosError("E2-WIRE", e.message) from e
    return record


def references(record: Record) -> tuple[str, ...]:
    """Ids that the store must hold when it takes this record: the result and the inputs.

    Not the parent: it is the result of an earlier record, or the state as built, which nobody stores. A rollback's result is its
    parent again.
    """
    if record.result_snap is None or record.kind is RecordKind.WINDOW_ROLLBACK:
        return record.input_ids
    return (record.result_snap, *record.input_ids)


def _unique(pairs: list[tuple[Any, Any]]) -> dict[Any, Any]:
    entries = dict(pairs)
    if len(entries) != len(pairs):
        raise ValueError("a map repeats a key")
    return entries


def check_args(kind: RecordKind, args: Mapping[str, Any]) -> None:
    """Refuse args that do not fit the schema of the kind: E2-LIMIT names the argument."""
    schema = ARGS[kind]
    if args.keys() != schema.keys():
        missing, extra = sorted(schema.keys() - args.keys()), sorted(map(repr, args.keys() - schema.keys()))
        raise RecurosError("E2-LIMIT", f"record {kind}: missing args {missing}, extra args {extra}")
    for name, wanted in schema.items():
        value = args[name]
        if value is None and wanted.endswith("?"):
            continue
        base = wanted.rstrip("?")
        fits = isinstance(value, _ARG_TYPES[base]) and (base in ("bool", "plain") or not isinstance(value, bool))
        if not fits or (base == "id" and not is_object_id(value)):
            raise RecurosError(
                "E2-LIMIT", f"record {kind}: {name} must be {wanted}, got {type(value).__name__} {value!r:.80}"
            )


def _validate(record: Record) -> None:
    _check(record, "v", record.v == VERSION and type(record.v) is int)
    draft = record.seq == DRAFT_SEQ and record.t_wall == 0
    _check(record, "seq", type(record.seq) is int and (draft or 0 <= record.seq < _I64_END))
    _check(record, "t_wall", type(record.t_wall) is int and (draft or 0 < record.t_wall < _I64_END))
    _check(record, "t_mono", type(record.t_mono) is int and 0 <= record.t_mono < _I64_END)
    _check(record, "actor", type(record.actor) is str and 0 < len(record.actor) <= NAME_CHARS_MAX)
    _check(record, "cap_id", type(record.cap_id) is int and NO_CAP <= record.cap_id < 1 << 32)
    _check(record, "kind", isinstance(record.kind, RecordKind))
    _check(record, "generation", type(record.generation) is int and 0 <= record.generation < 1 << 32)
    for name in ("parent_snap", "result_snap"):
        value = getattr(record, name)
        _check(record, name, value is None or is_object_id(value))
    for name in ("code_id", "env_id", "rng_before", "rng_after"):
        value = getattr(record, name)
        _check(record, name, value is None or (type(value) is str and _DIGEST.match(value) is not None))
    inputs = record.input_ids
    _check(record, "input_ids", type(inputs) is tuple and len(inputs) <= INPUTS_MAX and all(map(is_object_id, inputs)))
    _check(record, "args", type(record.args) is dict)
    check_args(record.kind, record.args)
    _check_plain(record, "args", record.args, DEPTH_MAX)
    _check_plain(record, "data_cursor", record.data_cursor, DEPTH_MAX)


def _check(record: Record, name: str, ok: bool) -> None:
    if not ok:
        raise RecurosError(
            "E2-LIMIT", f"record {record.kind!s:.40}: field {name} cannot be {getattr(record, name)!r:.120}"
        )


def _check_plain(record: Record, name: str, value: Any, depth: int) -> None:
    kind = type(value)
    if kind is int:
        if not _I64_MIN <= value < _I64_END:
            raise RecurosError("E2-LIMIT", f"record {record.kind}: {name} holds {value}, which is not a 64-bit integer")
    elif kind is dict or kind is list:
        if depth == 0:
            raise RecurosError("E2-LIMIT", f"record {record.kind}: {name} nests deeper than {DEPTH_MAX}")
        if kind is dict and not all(type(key) is str for key in value):
            raise RecurosError("E2-LIMIT", f"record {record.kind}: {name} holds a map whose keys are not all text")
        for item in value.values() if kind is dict else value:
            _check_plain(record, name, item, depth - 1)
    elif kind not in (str, float, bool, bytes, type(None)):
        raise RecurosError(
            "E2-LIMIT", f"record {record.kind}: {name} holds a {kind.__name__}; only plain data is allowed"
        )
