"""Packs: one safetensors file per commit, named by the BLAKE3 of all its bytes.

Responsible for: the bytes of a pack, and reading its header back. Any program that reads safetensors reads a pack; the tensor
names are the object ids. Refuses: headers that are not what `encode` writes.

The `__metadata__` map holds `kfs.pack` = "1", `kind` = the kind of most objects, and one `<object id>` = kind entry for each
object of another kind.
"""

from __future__ import annotations

import json
import mmap
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from blake3 import blake3

from kfs.ids import KINDS, is_object_id
from kfs.objects import ITEM_BYTES, NewObject, byte_length, byte_view
from syscalls.errors import RecurosError

if TYPE_CHECKING:
    from typing_extensions import Buffer

PACK_VERSION: Final = "1"
HEADER_BYTES_MAX: Final = 100_000_000  # safetensors' own limit
_ALIGN: Final = 8
_SMALL_BYTES_MAX: Final = 1 << 20
_RUN_BYTES_MAX: Final = 4 << 20
_MAP_BYTES_MIN: Final = 1 << 20  # smaller objects are read, larger ones are mapped


@dataclass(frozen=True, slots=True)
class Entry:
    """Where one object lies: dtype, shape, kind, and its bytes as offset and length in the pack file."""

    dtype: str
    shape: tuple[int, ...]
    kind: str
    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class Pack:
    """The header of a pack as read; entries are checked one at a time, when they are used."""

    path: Path
    data_offset: int
    file_bytes: int
    header: dict[str, Any]
    metadata: dict[str, Any]

    def entry(self, object_id: str) -> Entry:
        """Where an object of this pack lies; E9-INTEGRITY when the header says something impossible."""
        try:
            row = self.header[object_id]
            dtype, shape, (start, end) = row["dtype"], tuple(row["shape"]), row["data_offsets"]
            kind = self.metadata.get(object_id, self.metadata["kind"])
            fits = 0 <= start <= end <= self.file_bytes - self.data_offset and end - start == byte_length(dtype, shape)
        except (KeyError, TypeError, ValueError, RecurosError) as e:
            raise RecurosError("E9-INTEGRITY", f"pack {self.path.name}: entry {object_id} is malformed: {e}") from e
        if not fits or kind not in KINDS or not is_object_id(object_id):
            raise RecurosError(
                "E9-INTEGRITY", f"pack {self.path.name}: entry {object_id:.80} is malformed: {row!r:.200}"
            )
        return Entry(dtype, shape, kind, self.data_offset + start, end - start)


def encode(objects: Mapping[str, NewObject]) -> tuple[str, list[Buffer]]:
    """The digest (64 hex digits) and the buffers of the pack of `objects` (id -> object); large tensors are not copied.

    Objects are ordered by falling item size, then id: every tensor is aligned for its dtype, and the same objects make the
    same pack.
    """
    ordered = sorted(objects.items(), key=lambda pair: (-ITEM_BYTES[pair[1].dtype], pair[0]))
    views = [byte_view(item.data) for _, item in ordered]
    buffers = _coalesce([byte_view(_header(ordered, views)), *views])
    hasher = blake3()
    for buffer in buffers:
        hasher.update(buffer)
    return hasher.hexdigest(), buffers


def _coalesce(views: Sequence[memoryview]) -> list[Buffer]:
    """Copy runs of small buffers together: hashing and writing hundreds of small pieces costs several times the copy."""
    buffers: list[Buffer] = []
    run: list[memoryview] = []
    run_bytes = 0
    for view in views:
        if run and run_bytes + view.nbytes > _RUN_BYTES_MAX:
            buffers.append(b"".join(run))
            run, run_bytes = [], 0
        if view.nbytes > _SMALL_BYTES_MAX:
            if run:
                buffers.append(b"".join(run))
                run, run_bytes = [], 0
            buffers.append(view)
        else:
            run.append(view)
            run_bytes += view.nbytes
    return [*buffers, b"".join(run)] if run else buffers


def _header(ordered: Sequence[tuple[str, NewObject]], views: Sequence[memoryview]) -> bytes:
    usual = Counter(item.kind for _, item in ordered).most_common(1)[0][0]
    metadata = {"kfs.pack": PACK_VERSION, "kind": usual}
    metadata |= {object_id: item.kind for object_id, item in ordered if item.kind != usual}
    table: dict[str, Any] = {"__metadata__": metadata}
    at = 0
    for (object_id, item), view in zip(ordered, views, strict=True):
        table[object_id] = {"dtype": item.dtype, "shape": item.shape, "data_offsets": (at, at + view.nbytes)}
        at += view.nbytes
    text = json.dumps(table, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGN)
    return len(text).to_bytes(8, "little") + text


def read_header(path: Path) -> Pack:
    """Read the header of the pack at `path`, not its tensors; E9-INTEGRITY when it is not a pack's header."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        file_bytes = os.fstat(fd).st_size
        # One read covers the header of most packs.
        head = os.pread(fd, 65_536, 0)
        length = int.from_bytes(head[:8], "little")
        if len(head) < 8 or length > min(HEADER_BYTES_MAX, file_bytes - 8):
            raise RecurosError("E9-INTEGRITY", f"pack {path.name}: header of {length} bytes in a file of {file_bytes}")
        text = head[8 : 8 + length] if 8 + length <= len(head) else os.pread(fd, length, 8)
    finally:
        os.close(fd)
    try:
        header = json.loads(text)
        metadata = header.pop("__metadata__")
        version = metadata["kfs.pack"]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as e:
        raise RecurosError("E9-INTEGRITY", f"pack {path.name}: header is not a pack's: {e}") from e
    if version != PACK_VERSION or not isinstance(metadata, dict):
        raise RecurosError(
            "E9-VERSION", f"pack {path.name} is of version {version!r:.20}; this program reads {PACK_VERSION}"
        )
    return Pack(path, 8 + length, file_bytes, header, metadata)


def read_bytes(path: Path, entry: Entry) -> memoryview:
    """The bytes of an object, unverified; fewer than its length when the file is short. Large ones are a mapping, not a copy."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if entry.length < _MAP_BYTES_MIN or entry.offset + entry.length > os.fstat(fd).st_size:
            return memoryview(os.pread(fd, entry.length, entry.offset))
        start = entry.offset - entry.offset % mmap.ALLOCATIONGRANULARITY
        mapping = mmap.mmap(fd, entry.offset + entry.length - start, mmap.MAP_SHARED, mmap.PROT_READ, offset=start)
        return memoryview(mapping)[entry.offset - start :]
    finally:
        os.close(fd)
