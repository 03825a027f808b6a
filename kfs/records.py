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
import operator
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
    SCHED_DISPATCH = "sched.dispatch"
    WINDOW_GRANT = "window.grant"
    WINDOW_COMMIT = "window.commit"
    WINDOW_MISS = "window.miss"
    WINDOW_ROLLBACK = "window.rollback"
    SNAPSHOT = "snapshot"
    SWAP = "swap"
    RESTORE = "restore"
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
    DEVICE = "device"
    NEXUS_STAGE = "nexus.stage"
    NEXUS_LOOP = "nexus.loop"
    NEXUS_TEACHER = "nexus.teacher"
    NEXUS_GATE = "nexus.gate"


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
    # rows: [t_mono, server, number of the method or 0 for a job that goes on after a yield], in order; see kernel/replay.py
    RecordKind.SCHED_DISPATCH: {"boot": "key", "rows": "list"},
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
    RecordKind.RESTORE: {"snapshot": "id", "window": "int"},
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
    # the guard changed its verdict, or a window's batches are cut into another number of parts
    RecordKind.DEVICE: {"event": "str", "verdict": "str", "reason": "str", "micro_batches": "int", "window": "int?"},
    # stage: 0 to 7; capability: "" for the whole stage; state: begun or done; artifacts: path in the run directory -> BLAKE3
    RecordKind.NEXUS_STAGE: {
        "stage": "int",
        "capability": "str",
        "attempt": "int",
        "state": "str",
        "artifacts": "map",
        "figures": "map",
    },
    RecordKind.NEXUS_LOOP: {"edge": "str", "capability": "str", "attempt": "int", "reason": "str", "change": "map"},
    # act: registered, restored, removed, dropped, added, unchanged
    RecordKind.NEXUS_TEACHER: {"teacher": "str", "capability": "str", "act": "str", "reason": "str", "figures": "map"},
    RecordKind.NEXUS_GATE: {"artifact": "str", "verdict": "str", "capabilities": "map"},
}
# Arguments that came later: older records lack them, and what writes records may leave them out.
#   inputs   config: papers of the run; weights, gate: what the batches were weighted by; evidence: trace and probe maps ("" or {}: none)
#   cancelled: queued calls that the revocation took back; taken: the capability itself went too
#   terms: weights of further terms of the objective, those that were ever set by hand
#   reason: what whoever asked for the change said why
_WHY: Final = {"reason": "str"}
OPTIONAL_ARGS: Final[dict[RecordKind, dict[str, str]]] = {
    RecordKind.WINDOW_COMMIT: {"inputs": "map"},
    RecordKind.CAP_DERIVE: _WHY,
    RecordKind.CAP_REVOKE: {"cancelled": "int", "taken": "bool", **_WHY},
    RecordKind.SCHED_SET: _WHY,
    RecordKind.SNAPSHOT: _WHY,
    RecordKind.SWAP: _WHY,
    RecordKind.RESTORE: _WHY,
    RecordKind.KD_SET: {"terms": "map", **_WHY},
    RecordKind.GATE_SET: _WHY,
    RecordKind.INTERRUPT: {"body": "map", "verdict": "str", "asked": "int"},
    RecordKind.PRUNE: _WHY,
    RecordKind.CALIBRATE: _WHY,
    RecordKind.EVALUATE: _WHY,
    RecordKind.PROBE_LOAD: _WHY,
    RecordKind.PROBE_ATTACH: _WHY,
    RecordKind.PROBE_DETACH: _WHY,
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
# Types that fit without a second look; others (subclasses, ids) get one. What follows from a type's name alone is worked out once.
_EXACTLY: Final[dict[str, tuple[type, ...]]] = {
    name: found
    for base, types in _ARG_TYPES.items()
    if base != "id"
    for name, found in ((base, types), (base + "?", (*types, type(None))))
} | {"id": (), "id?": (type(None),)}


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


_ROW: Final = operator.attrgetter(*FIELDS)
_KIND: Final = FIELDS.index("kind")
# What a draft's bytes begin with: an array of 17, v = 1, seq = -1. Then t_mono, and t_wall = 0 in one byte.
_DRAFT_HEAD: Final = b"\xdc\x00\x11\x01\xff"
_HEAD: Final = _DRAFT_HEAD[:-1]


def encode(record: Record) -> bytes:
    """The bytes of a record or draft; E2-LIMIT names the field that does not fit."""
    _validate(record)
    row = list(_ROW(record))
    row[_KIND] = record.kind.value
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


def stamp(draft: bytes, record: Record, seq: int, t_wall: int) -> bytes:
    """`encode(record.stamped(seq, t_wall))`, given `draft` = `encode(record)`: what was checked is not checked again."""
    if not (0 <= seq < _I64_END and 0 < t_wall < _I64_END):
        raise RecurosError("E2-LIMIT", f"record {record.kind}: seq {seq} or t_wall {t_wall} is out of range")
    mono: bytes = msgpack.packb(record.t_mono)
    rest = len(_DRAFT_HEAD) + len(mono)
    if not draft.startswith(_DRAFT_HEAD + mono + b"\0"):
        raise RecurosError("E2-LIMIT", f"record {record.kind}: only a draft can be stamped")
    return b"".join((_HEAD, msgpack.packb(seq), mono, msgpack.packb(t_wall), draft[rest + 1 :]))


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
        schema = {**schema, **{k: v for k, v in OPTIONAL_ARGS.get(kind, {}).items() if k in args}}
    if args.keys() != schema.keys():
        missing, extra = sorted(schema.keys() - args.keys()), sorted(map(repr, args.keys() - schema.keys()))
        raise RecurosError("E2-LIMIT", f"record {kind}: missing args {missing}, extra args {extra}")
    for name, wanted in schema.items():
        value = args[name]
        if type(value) in _EXACTLY[wanted]:
            continue
        base = wanted.rstrip("?")
        fits = isinstance(value, _ARG_TYPES[base]) and (base in ("bool", "plain") or not isinstance(value, bool))
        if not fits or (base == "id" and not is_object_id(value)):
            raise RecurosError(
                "E2-LIMIT", f"record {kind}: {name} must be {wanted}, got {type(value).__name__} {value!r:.80}"
            )


def _validate(record: Record) -> None:
    name = _unfit(record)
    if name:
        raise RecurosError(
            "E2-LIMIT", f"record {record.kind!s:.40}: field {name} cannot be {getattr(record, name)!r:.120}"
        )
    check_args(record.kind, record.args)
    _check_plain(record, "args", record.args, DEPTH_MAX)
    if record.data_cursor is not None:
        _check_plain(record, "data_cursor", record.data_cursor, DEPTH_MAX)


def _unfit(record: Record) -> str:
    """The first field that cannot be what it is; empty when all can. On the path of every append, so it is written for speed."""
    seq, t_wall, inputs = record.seq, record.t_wall, record.input_ids
    draft = seq == DRAFT_SEQ and t_wall == 0
    if record.v != VERSION or type(record.v) is not int:
        return "v"
    if type(seq) is not int or not (draft or 0 <= seq < _I64_END):
        return "seq"
    if type(t_wall) is not int or not (draft or 0 < t_wall < _I64_END):
        return "t_wall"
    if type(record.t_mono) is not int or not 0 <= record.t_mono < _I64_END:
        return "t_mono"
    if type(record.actor) is not str or not 0 < len(record.actor) <= NAME_CHARS_MAX:
        return "actor"
    if type(record.cap_id) is not int or not NO_CAP <= record.cap_id < 1 << 32:
        return "cap_id"
    if type(record.kind) is not RecordKind:
        return "kind"
    if type(record.generation) is not int or not 0 <= record.generation < 1 << 32:
        return "generation"
    if type(inputs) is not tuple or len(inputs) > INPUTS_MAX or not all(map(is_object_id, inputs)):
        return "input_ids"
    if type(record.args) is not dict:
        return "args"
    for name in ("parent_snap", "result_snap"):
        value = getattr(record, name)
        if value is not None and not is_object_id(value):
            return name
    for name in ("code_id", "env_id", "rng_before", "rng_after"):
        value = getattr(record, name)
        if value is not None and (type(value) is not str or _DIGEST.match(value) is None):
            return name
    return ""


_NO_CONTENT: Final = frozenset({str, float, bool, bytes, type(None)})


def _check_plain(record: Record, name: str, value: Any, depth: int) -> None:
    kind = type(value)
    if kind is dict or kind is list:
        if depth == 0:
            raise RecurosError("E2-LIMIT", f"record {record.kind}: {name} nests deeper than {DEPTH_MAX}")
        if kind is dict and not all([type(key) is str for key in value]):
            raise RecurosError("E2-LIMIT", f"record {record.kind}: {name} holds a map whose keys are not all text")
        for item in value.values() if kind is dict else value:
            inner = type(item)
            if inner not in _NO_CONTENT and (inner is not int or not _I64_MIN <= item < _I64_END):
                _check_plain(record, name, item, depth - 1)
    elif kind is int:
        if not _I64_MIN <= value < _I64_END:
            raise RecurosError("E2-LIMIT", f"record {record.kind}: {name} holds {value}, which is not a 64-bit integer")
    elif kind not in _NO_CONTENT:
        raise RecurosError(
            "E2-LIMIT", f"record {record.kind}: {name} holds a {kind.__name__}; only plain data is allowed"
        )
