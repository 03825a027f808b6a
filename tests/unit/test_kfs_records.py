from __future__ import annotations

import dataclasses
import random
from typing import Any

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kfs_support import args_of, miss

from kfs import records
from kfs.records import ARGS, FIELDS, Record, RecordKind
from syscalls import limits
from syscalls.errors import RecurosError

ID = "b3:" + "ab" * 32
PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False)
    | st.text(max_size=20)
    | st.binary(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


def test_the_record_has_the_seventeen_fields_of_the_format_in_their_order() -> None:
    names = """v seq t_mono t_wall actor cap_id kind generation parent_snap result_snap args input_ids code_id env_id
               rng_before rng_after data_cursor"""
    assert list(FIELDS) == names.split()
    assert {field.name for field in dataclasses.fields(Record)} == set(FIELDS)


def test_the_bytes_of_a_record_are_the_documented_array() -> None:
    record = miss(7, seq=5, t_wall=9, parent_snap=ID, input_ids=(ID,), data_cursor=[1, 2])
    args = {"window": 7, "boot": "boot-1", "reason": "text", "late_ns": 3}
    row = [1, 5, 7, 9, "kernel", -1, "window.miss", 0, ID, None, args, [ID], None, None, None, None, [1, 2]]
    assert records.encode(record) == msgpack.packb(row)


@pytest.mark.parametrize("kind", RecordKind)
def test_every_kind_has_a_schema_and_round_trips(kind: RecordKind) -> None:
    record = Record(actor="kernel", kind=kind, args=args_of(kind), t_mono=1)
    assert records.decode(records.encode(record)) == record


@pytest.mark.parametrize("kind", RecordKind)
def test_missing_extra_and_mistyped_args_are_refused(kind: RecordKind) -> None:
    good = args_of(kind)
    name, wanted = next(iter(ARGS[kind].items()))
    bad: list[dict[str, Any]] = [good | {"surplus": 1}, {k: v for k, v in good.items() if k != name}]
    if wanted != "plain":
        bad.append(good | {name: {1, 2}})
    for args in bad:
        with pytest.raises(RecurosError) as caught:
            records.encode(Record(actor="kernel", kind=kind, args=args, t_mono=1))
        assert caught.value.code == "E2-LIMIT"


@settings(max_examples=60, deadline=None)
@given(
    PLAIN,
    st.dictionaries(st.text(max_size=8), PLAIN, max_size=4),
    st.integers(0, 2**62),
    st.lists(st.just(ID), max_size=3),
)
def test_any_plain_data_round_trips(cursor: Any, metrics: dict[str, Any], t_mono: int, inputs: list[str]) -> None:
    args = args_of(RecordKind.WINDOW_COMMIT, metrics=metrics)
    record = Record(
        actor="a", kind=RecordKind.WINDOW_COMMIT, args=args, t_mono=t_mono, input_ids=tuple(inputs), data_cursor=cursor
    )
    assert records.decode(records.encode(record)) == record
    stamped = record.stamped(12, 34)
    assert records.decode(records.encode(stamped)) == stamped
    assert stamped.draft() == record


@pytest.mark.parametrize(
    "changes",
    [
        {"v": 2}, {"seq": -2}, {"seq": 3, "t_wall": 0}, {"t_mono": -1}, {"t_mono": 1 << 63}, {"t_mono": True}, {"actor": ""},
        {"actor": "x" * 129},
        {"cap_id": -2}, {"generation": -1}, {"parent_snap": "b3:12"}, {"result_snap": ""}, {"input_ids": ("x",)}, {"input_ids": [ID]},
        {"input_ids": (ID,) * 513}, {"code_id": "HEAD"}, {"data_cursor": (1, 2)}, {"data_cursor": 1 << 63}, {"data_cursor": {1: 2}},
        {"data_cursor": {1, 2}},
        {"kind": "no.such"}, {"data_cursor": [[[[[[[[[[[[[1]]]]]]]]]]]]]},
    ],
)  # fmt: skip
def test_a_field_that_does_not_fit_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(RecurosError) as caught:
        records.encode(miss(1, **changes))
    assert caught.value.code == "E2-LIMIT"


def test_a_record_of_64_kib_is_refused_and_the_largest_draft_can_be_stamped() -> None:
    with pytest.raises(RecurosError, match="store it as an object"):
        records.encode(miss(1, data_cursor=bytes(64 << 10)))
    room = records.DRAFT_BYTES_MAX - len(records.encode(miss(1, data_cursor=bytes(1000)))) + 1000
    largest = miss(1, data_cursor=bytes(room))
    assert len(records.encode(largest)) == records.DRAFT_BYTES_MAX
    assert len(records.encode(largest.stamped(2**62, 2**62))) <= limits.RECORD_BYTES_MAX


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xc0",
        b"\x90",
        msgpack.packb([1] * 17),
        msgpack.packb([2] + [None] * 16),
        b"\xdd\xff\xff\xff\xff",
        b"\xdc\x00\x11",
        bytes(70_000),
    ],
)
def test_malformed_bytes_are_a_typed_error(data: bytes) -> None:
    with pytest.raises(RecurosError) as caught:
        records.decode(data)
    assert caught.value.code in ("E2-WIRE", "E9-VERSION")


def test_a_map_that_repeats_a_key_is_refused() -> None:
    good = records.encode(miss(1))
    assert good.count(b"\x84\xa6window") == 1
    with pytest.raises(RecurosError, match="repeats a key"):
        records.decode(good.replace(b"\x84\xa6window\x01", b"\x85\xa6window\x01\xa6window\x01"))


def test_mutated_records_decode_or_fail_with_a_typed_error() -> None:
    dice = random.Random(1)
    good = records.encode(miss(5, seq=5, t_wall=9, parent_snap=ID))
    for _ in range(3_000):
        data = bytearray(good)
        for _ in range(dice.randint(1, 4)):
            data[dice.randrange(len(data))] = dice.randrange(256)
        try:
            records.encode(records.decode(bytes(data)))
        except RecurosError as e:
            assert e.code in ("E2-WIRE", "E9-VERSION")  # noqa: PT017 - most mutations are refused, some decode


@pytest.mark.parametrize("kind", list(RecordKind))
@pytest.mark.parametrize("seq", [0, 127, 128, 65_536, 2**40])
def test_stamping_bytes_gives_the_bytes_of_the_stamped_record(kind: RecordKind, seq: int) -> None:
    for t_mono in (0, 1, 127, 128, 2**31, 2**62):
        draft = Record(actor="kernel", kind=kind, args=args_of(kind), t_mono=t_mono)
        encoded = records.encode(draft)
        assert records.stamp(encoded, draft, seq, 5 + t_mono) == records.encode(draft.stamped(seq, 5 + t_mono))


def test_only_a_draft_is_stamped_and_only_with_a_number_and_a_time() -> None:
    draft = Record(actor="kernel", kind=RecordKind.FAULT, args=args_of(RecordKind.FAULT), t_mono=7)
    for data, seq, t_wall in (
        (records.encode(draft.stamped(1, 2)), 1, 2),
        (records.encode(draft), -1, 2),
        (records.encode(draft), 1, 0),
        (records.encode(draft), 1 << 63, 2),
    ):
        with pytest.raises(RecurosError, match="E2-LIMIT"):
            records.stamp(data, draft, seq, t_wall)
