"""Frames: what is sent arrives, and whatever else arrives is refused with E2-WIRE and nothing worse."""

# ruff: noqa: PT017 - in a property an error is one of two right outcomes
from __future__ import annotations

from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from syscalls import limits, wire
from syscalls.errors import RecurosError
from syscalls.wire import Call, Deliver, Frame, Reply

scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(1 << 63), (1 << 64) - 1)
    | st.floats(allow_nan=False)
    | st.text(max_size=20)
    | st.binary(max_size=20)
)
values = st.recursive(
    scalars, lambda v: st.lists(v, max_size=4) | st.dictionaries(st.text(max_size=8), v, max_size=4), max_leaves=12
)
ids = st.integers(0, (1 << 53) - 1)
small = st.integers(-(1 << 63), (1 << 63) - 1)
frames = (
    st.builds(Call, ids, small, small, st.lists(values, max_size=5))
    | st.builds(Reply, ids, st.booleans(), st.lists(values, max_size=5))
    | st.builds(Deliver, ids, small, st.lists(values, max_size=5), st.text(max_size=20))
)


def refused(data: bytes) -> RecurosError:
    with pytest.raises(RecurosError) as caught:
        wire.decode(data)
    assert caught.value.code == "E2-WIRE"
    return caught.value


@given(frames)
def test_a_frame_round_trips(frame: Frame) -> None:
    try:
        data = wire.encode(frame)
    except RecurosError as error:
        assert error.code == "E2-WIRE"  # text that is no text: lone surrogates
        return
    assert wire.decode(data) == frame


@given(st.binary(max_size=200))
def test_any_bytes_are_a_frame_or_refused(data: bytes) -> None:
    try:
        frame = wire.decode(data)
    except RecurosError as error:
        assert error.code == "E2-WIRE"
    else:
        assert isinstance(frame, (Call, Reply, Deliver))


@given(values)
def test_any_msgpack_is_a_frame_or_refused(value: Any) -> None:
    try:
        wire.decode(msgpack.packb(value, use_bin_type=True))
    except RecurosError as error:
        assert error.code == "E2-WIRE"


@given(frames, st.data())
def test_a_damaged_frame_is_a_frame_or_refused(frame: Frame, data: st.DataObject) -> None:
    try:
        good = bytearray(wire.encode(frame))
    except RecurosError:
        return
    good[data.draw(st.integers(0, len(good) - 1))] = data.draw(st.integers(0, 255))
    cut = bytes(good[: data.draw(st.integers(0, len(good)))])
    try:
        wire.decode(cut)
    except RecurosError as error:
        assert error.code == "E2-WIRE"


@pytest.mark.parametrize(
    "row",
    [
        [],
        {},
        "text",
        7,
        None,
        [1],
        [4, 1, 1, 1, []],
        [0, 1, 1, 1, []],
        ["1", 1, 1, 1, []],
        [1, 1, 1, 1],
        [1, 1, 1, 1, [], 1],
        [1, -1, 1, 1, []],
        [1, 1 << 53, 1, 1, []],
        [1, 1, 1, 1, {}],
        [1, 1, 1, "1", []],
        [1, 1.0, 1, 1, []],
        [1, True, 1, 1, []],
        [1, 1, True, 1, []],
        [True, 1, 1, 1, []],
        [2, 1, 1, []],
        [2, 1, True, {}],
        [2, True, True, []],
        [3, 1, 1, []],
        [3, 1, 1, [], 5],
        [3, 1, False, [], "kernel"],
        [1, 1, 1, 1, [{b"bytes": 1}]],
    ],
    ids=repr,
)
def test_what_has_not_the_shape_of_a_frame_is_refused(row: Any) -> None:
    refused(msgpack.packb(row))


def test_maps_with_numbers_for_keys_are_refused() -> None:
    refused(msgpack.packb([1, 1, 1, 1, [{1: 2}]]))


def test_extension_types_and_timestamps_are_refused() -> None:
    refused(msgpack.packb([1, 1, 1, 1, [msgpack.ExtType(5, b"x")]]))
    refused(msgpack.packb([1, 1, 1, 1, [msgpack.Timestamp(1)]]))


def test_trailing_bytes_are_refused() -> None:
    refused(wire.encode(Call(1, 1, 1, [])) + b"\0")


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


def test_nesting_is_limited() -> None:
    wire.decode(msgpack.packb([1, 1, 1, 1, nested(limits.DEPTH_MAX - 1)]))
    assert "deeper" in refused(msgpack.packb([1, 1, 1, 1, nested(limits.DEPTH_MAX)])).message
    refused(b"\x91" * 100_000)


def test_sizes_are_limited_before_anything_is_built() -> None:
    assert "limit" in refused(b"\0" * (limits.KERNEL_FRAME_BYTES_MAX + 1)).message
    refused(msgpack.packb([1, 1, 1, 1, ["x" * (limits.STR_BYTES_MAX + 1)]]))
    refused(msgpack.packb([1, 1, 1, 1, [0] * (limits.ITEMS_MAX + 1)]))
    refused(b"\xdd\xff\xff\xff\xff")  # an array that claims four thousand million items
    refused(b"\xdb\xff\xff\xff\xff")


def test_a_frame_over_the_limit_is_not_sent() -> None:
    with pytest.raises(RecurosError, match="page") as caught:
        wire.encode(Call(1, 1, 1, [b"\0" * limits.FRAME_BYTES_MAX]))
    assert caught.value.code == "E2-LIMIT"


@pytest.mark.parametrize("value", [object(), {1, 2}, 1 << 64, "\ud800", 1j])
def test_what_msgpack_cannot_carry_is_a_typed_error(value: Any) -> None:
    with pytest.raises(RecurosError) as caught:
        wire.encode(Call(1, 1, 1, [value]))
    assert caught.value.code == "E2-WIRE"


@given(st.text(max_size=40), st.text(max_size=40), st.dictionaries(st.text(max_size=5), st.integers(-9, 9), max_size=3))
def test_an_error_round_trips(message: str, hint: str, details: dict[str, Any]) -> None:
    error = RecurosError("E5-DENIED", message, hint=hint, details=details)
    back = RecurosError.from_wire(error.to_wire())
    assert (back.code, back.message, back.hint, back.details) == (error.code, message, hint, details)


@given(values)
def test_an_unreadable_error_is_an_error_that_says_so(value: Any) -> None:
    assert isinstance(RecurosError.from_wire(value), RecurosError)
