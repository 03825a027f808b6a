"""The encodings of a compacted object: byte planes and zstd, with or without an XOR against another object.

Responsible for: payload bytes from object bytes and back, block by block, so that whoever encodes can stop after any block.
Neighbouring states of training differ in the low bytes of each number; XOR against a keyframe zeroes the high ones, and one plane
for each byte position puts the zeroes next to each other. Refuses: payloads that are not whole or whose blocks are of another
size than the object's shape says, before it allocates for them.

    payload = for each block of BLOCK_BYTES of the object (the last is shorter): length u32 little-endian | one zstd frame
    frame   = the planes of the block, one after the other: every first byte of an item, every second byte, ...

With a base the bytes are XORed with those at the same place of the base, an object of the same dtype and shape.
"""

from __future__ import annotations

import functools
import struct
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, Final

from syscalls.errors import RecurosError

if TYPE_CHECKING:
    from typing_extensions import Buffer

BLOCK_BYTES: Final = 1 << 19
LEVEL: Final = 1
_LENGTH: Final = struct.Struct("<I")
_FRAME_SLACK_BYTES: Final = 1 << 10  # what zstd adds to a block that it cannot shrink, generously


def encode_blocks(data: memoryview, item_bytes: int, base: memoryview | None = None) -> Iterator[bytes]:
    """The payload of an object in pieces, one a block; `data` and `base` are flat byte views of one length."""
    for start in range(0, data.nbytes, BLOCK_BYTES):
        block: Buffer = data[start : start + BLOCK_BYTES]
        if base is not None:
            block = _xor(block, base[start : start + BLOCK_BYTES])
        frame: bytes = _compressor().compress(_split(bytes(block), item_bytes))
        yield _LENGTH.pack(len(frame)) + frame


def decode_blocks(payload: memoryview, length: int, item_bytes: int, base: memoryview | None = None) -> Iterator[bytes]:
    """The `length` bytes of an object in pieces, one a block: inverse of `encode_blocks`; E9-INTEGRITY for anything else."""
    at = 0
    for start in range(0, length, BLOCK_BYTES):
        size = min(BLOCK_BYTES, length - start)
        if at + _LENGTH.size > payload.nbytes:
            raise _broken(f"it ends before block {start // BLOCK_BYTES}")
        (packed,) = _LENGTH.unpack_from(payload, at)
        at += _LENGTH.size
        if packed > min(payload.nbytes - at, BLOCK_BYTES + _FRAME_SLACK_BYTES):
            raise _broken(f"block {start // BLOCK_BYTES} says {packed} bytes")
        block = _join(_unpack(payload[at : at + packed], size), item_bytes)
        at += packed
        yield block if base is None else _xor(block, base[start : start + size])
    if at != payload.nbytes:
        raise _broken(f"{payload.nbytes - at} bytes follow its last block")


def decode(payload: memoryview, length: int, item_bytes: int, base: memoryview | None = None) -> memoryview:
    """All bytes of an object at once; see `decode_blocks`."""
    return memoryview(b"".join(decode_blocks(payload, length, item_bytes, base)))


def payload_bytes(pieces: Iterable[Buffer]) -> int:
    """How long the pieces are together."""
    return sum(memoryview(piece).nbytes for piece in pieces)


def _unpack(frame: memoryview, size: int) -> bytes:
    zstd = _zstandard()
    try:
        # The frame states its content size; asking first bounds what decompressing may allocate.
        found = zstd.frame_content_size(frame)
        data: bytes = _decompressor().decompress(frame, max_output_size=size) if found == size else b""
    except zstd.ZstdError as e:
        raise _broken(str(e)) from e
    if len(data) != size:
        raise _broken(f"a block of {found} bytes where {size} are due")
    return data


def _split(block: bytes, item_bytes: int) -> bytes:
    return block if item_bytes == 1 else b"".join([block[i::item_bytes] for i in range(item_bytes)])


def _join(planes: bytes, item_bytes: int) -> bytes:
    if item_bytes == 1:
        return planes
    block = bytearray(len(planes))
    items = len(planes) // item_bytes
    for i in range(item_bytes):
        block[i::item_bytes] = planes[i * items : (i + 1) * items]
    return bytes(block)


def _xor(left: Buffer, right: Buffer) -> bytes:
    """One XOR of two big integers: the standard library's only vectorised one."""
    size = memoryview(left).nbytes
    return (int.from_bytes(left, "little") ^ int.from_bytes(right, "little")).to_bytes(size, "little")


def _broken(why: str) -> RecurosError:
    return RecurosError("E9-INTEGRITY", f"compacted payload is damaged: {why}", hint="recuros kfs verify")


# Loaded when a compacted object is met: most stores that a command opens hold none, and the import takes as long as the opening.
@functools.cache
def _zstandard() -> Any:
    import zstandard

    return zstandard


@functools.cache
def _compressor() -> Any:
    return _zstandard().ZstdCompressor(level=LEVEL, write_content_size=True, write_checksum=False)


@functools.cache
def _decompressor() -> Any:
    return _zstandard().ZstdDecompressor()
