"""Objects: a dtype, a shape and little-endian bytes, named by their content.

Responsible for: the id of an object and the checks that make an id meaningful. The id does not depend on the container the
bytes lie in, so repacking never renames anything. Refuses: bytes whose length is not that of the shape, unknown dtypes and
kinds, buffers that are not contiguous.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from blake3 import blake3

from kfs.ids import ALGORITHM, KINDS, is_object_id
from syscalls.errors import RecurosError

if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__ = ["ITEM_BYTES", "KINDS", "NewObject", "blob", "byte_view", "is_object_id", "object_id"]

# safetensors' dtype names. The four-bit and six-bit ones are left out: their items are not whole bytes.
ITEM_BYTES: dict[str, int] = {
    "BOOL": 1,
    "U8": 1,
    "I8": 1,
    "F8_E5M2": 1,
    "F8_E4M3": 1,
    "F8_E8M0": 1,
    "I16": 2,
    "U16": 2,
    "F16": 2,
    "BF16": 2,
    "I32": 4,
    "U32": 4,
    "F32": 4,
    "I64": 8,
    "U64": 8,
    "F64": 8,
    "C64": 8,
}
DIMENSIONS_MAX = 32
_THREADED_BYTES_MIN = 1 << 20
_DOMAIN = b"recuros kfs object 1\n"


@dataclass(frozen=True, slots=True)
class NewObject:
    """Something to store: safetensors dtype, shape, C-contiguous little-endian bytes, and the kind it is filed under."""

    dtype: str
    shape: tuple[int, ...]
    data: Buffer
    kind: str


def blob(data: Buffer, kind: str) -> NewObject:
    """Plain bytes as an object: U8 of shape [n]."""
    view = byte_view(data)
    return NewObject("U8", (view.nbytes,), view, kind)


def byte_view(data: Buffer) -> memoryview:
    """The bytes of any contiguous buffer as a flat view of unsigned bytes; nothing is copied."""
    view = memoryview(data)
    if not view.c_contiguous:
        raise RecurosError("E2-LIMIT", "a buffer to store must be C-contiguous", hint="pass tensor.contiguous()")
    if view.nbytes == 0:
        return memoryview(b"")
    return view if view.format == "B" and view.ndim == 1 else view.cast("B")


def byte_length(dtype: str, shape: Sequence[int]) -> int:
    """How many bytes a tensor of `dtype` and `shape` has; E2-LIMIT for an unknown dtype or an impossible shape."""
    item_bytes = ITEM_BYTES.get(dtype)
    if item_bytes is None:
        raise RecurosError("E2-LIMIT", f"unknown dtype {dtype!r:.40}", hint=f"one of {', '.join(sorted(ITEM_BYTES))}")
    if len(shape) > DIMENSIONS_MAX:
        raise RecurosError("E2-LIMIT", f"{len(shape)} dimensions exceed the limit of {DIMENSIONS_MAX}")
    for size in shape:
        if type(size) is not int or size < 0:
            raise RecurosError("E2-LIMIT", f"shape {list(shape)!r:.80} holds {size!r:.20}; sizes are integers >= 0")
    return item_bytes * math.prod(shape)


def object_id(dtype: str, shape: Sequence[int], data: Buffer) -> str:
    """The id `b3:<64 hex>`: BLAKE3-256 over a domain line, a `dtype size size ...` line, and the bytes.

    Both lines end in a newline and neither can contain one, and the shape fixes the number of bytes, so no two different
    objects share an encoding. Raises E2-LIMIT when the bytes are not as many as the shape says.
    """
    view = byte_view(data)
    expected = byte_length(dtype, shape)
    if view.nbytes != expected:
        raise RecurosError(
            "E2-LIMIT", f"{dtype} of shape {list(shape)} takes {expected} bytes; the buffer has {view.nbytes}"
        )
    hashing = hasher(dtype, shape, max_threads=threads_for(view.nbytes))
    hashing.update(view)
    return f"{ALGORITHM}:{hashing.hexdigest()}"


def hasher(dtype: str, shape: Sequence[int], max_threads: int = 1) -> blake3:
    """A hasher that has taken what precedes an object's bytes: the id is `ALGORITHM:` and its digest after them."""
    return blake3(_DOMAIN + " ".join([dtype, *map(str, shape)]).encode() + b"\n", max_threads=max_threads)


def threads_for(size_bytes: int) -> int:
    """Threads to hash so many bytes with: those of the process's cores where that is worth waking them; the digest is the same."""
    return blake3.AUTO if size_bytes >= _THREADED_BYTES_MIN else 1


def id_of(item: NewObject) -> str:
    """The id of an object about to be stored; E2-LIMIT when its kind is not one of `KINDS`."""
    if item.kind not in KINDS:
        raise RecurosError(
            "E2-LIMIT", f"unknown object kind {item.kind!r:.40}", hint=f"one of {', '.join(sorted(KINDS))}"
        )
    return object_id(item.dtype, item.shape, item.data)
