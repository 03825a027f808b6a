"""Frames: msgpack arrays with a fixed first column, checked on the way out and on the way in.

    CALL     [1, id, nr, cap, args]       peer -> kernel; id 0 asks for no answer
    REPLY    [2, id, ok, payload]         both ways; payload is the positional reply, or a wire error when ok is False
    DELIVER  [3, id, nr, args, sender]    kernel -> server; id 0 asks for no answer

Responsible for: bytes <-> frames within the limits. Refuses: anything but msgpack of plain types; pickle never appears.
"""

from __future__ import annotations

import threading
from typing import Any, Final, NamedTuple

import msgpack

from syscalls import limits
from syscalls.errors import RecurosError

CALL: Final = 1
REPLY: Final = 2
DELIVER: Final = 3


class Call(NamedTuple):
    """A syscall by number on the capability in slot `cap`."""

    id: int
    nr: int
    cap: int
    args: list[Any]


class Reply(NamedTuple):
    """An answer; one-shot."""

    id: int
    ok: bool
    payload: list[Any]


class Deliver(NamedTuple):
    """A request that the kernel hands to a server; `sender` is the attested principal."""

    id: int
    nr: int
    args: list[Any]
    sender: str


Frame = Call | Reply | Deliver
_KIND: Final[dict[type, int]] = {Call: CALL, Reply: REPLY, Deliver: DELIVER}
_CALL: Final = [int, int, int, int, list]
_REPLY: Final = [int, int, bool, list]
_DELIVER: Final = [int, int, int, list, str]


class _Packer(threading.local):
    """One a thread: making a packer, with its buffer, costs more than packing a frame."""

    def __init__(self) -> None:
        self.pack = msgpack.Packer(use_bin_type=True).pack


_packer: Final = _Packer()


def encode(frame: Frame) -> bytes:
    """Frame to bytes; a frame over the limit is E2-LIMIT, since larger payloads belong in a page."""
    try:
        data: bytes = _packer.pack([_KIND[type(frame)], *frame])
    except (TypeError, ValueError, OverflowError) as e:
        raise RecurosError("E2-WIRE", f"a frame holds a value that msgpack cannot carry: {e}") from e
    if len(data) > limits.FRAME_BYTES_MAX:
        size_max = limits.KERNEL_FRAME_BYTES_MAX if isinstance(frame, Deliver) else limits.FRAME_BYTES_MAX
        if len(data) > size_max:
            raise RecurosError(
                "E2-LIMIT",
                f"frame of {len(data)} bytes is over the limit of {size_max}",
                hint="send large payloads in a page",
            )
    return data


def decode(data: bytes | memoryview) -> Frame:
    """Bytes to a frame; anything malformed is E2-WIRE."""
    if len(data) > limits.KERNEL_FRAME_BYTES_MAX:  # peers are held to less, by their socket's MAXMSGSIZE
        raise RecurosError(
            "E2-WIRE", f"frame of {len(data)} bytes is over the limit of {limits.KERNEL_FRAME_BYTES_MAX}"
        )
    row = unpack(data)
    if not isinstance(row, list) or not row:
        raise RecurosError("E2-WIRE", "a frame is not an array")
    # By exact types: a truth value is no number here, and this is on the way of every message.
    types = list(map(type, row))
    if types == _CALL and row[0] == CALL and 0 <= row[1] < 1 << 53:
        return Call(row[1], row[2], row[3], row[4])
    if types == _REPLY and row[0] == REPLY:
        return Reply(row[1], row[2], row[3])
    if types == _DELIVER and row[0] == DELIVER:
        return Deliver(row[1], row[2], row[3], row[4])
    raise RecurosError("E2-WIRE", f"a frame of kind {row[0]!r:.20} does not have the shape of any frame")


def unpack(data: bytes | memoryview) -> Any:
    """Msgpack to plain values under every limit: sizes, nesting, string keys only; malformed input is E2-WIRE."""
    try:
        value = msgpack.unpackb(
            data,
            raw=False,
            strict_map_key=True,
            max_str_len=limits.STR_BYTES_MAX,
            max_bin_len=limits.FRAME_BYTES_MAX,
            max_array_len=limits.ITEMS_MAX,
            max_map_len=limits.ITEMS_MAX,
            max_ext_len=0,
        )
    except (ValueError, TypeError, RecursionError, msgpack.UnpackException) as e:
        raise RecurosError("E2-WIRE", f"a frame is not valid msgpack: {type(e).__name__}: {e}") from e
    if _depth(value) > limits.DEPTH_MAX:
        raise RecurosError("E2-WIRE", f"a frame nests deeper than {limits.DEPTH_MAX}")
    return value


def _depth(value: Any) -> int:
    """How deep it nests, up to one more than the limit. Plain loops: this looks at every value of every message."""
    level, depth = [value], 0
    while level:
        depth += 1
        if depth > limits.DEPTH_MAX:
            break
        inner: list[Any] = []
        for outer in level:
            if type(outer) is list:
                for x in outer:
                    if type(x) is list or type(x) is dict:
                        inner.append(x)
            elif type(outer) is dict:
                for key, x in outer.items():
                    if type(key) is not str:
                        raise RecurosError("E2-WIRE", "a frame holds a map whose keys are not all text")
                    if type(x) is list or type(x) is dict:
                        inner.append(x)
        level = inner
    return depth
