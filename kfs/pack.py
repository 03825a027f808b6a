"""Packs: one safetensors file per commit, named by the BLAKE3 of all its bytes.

Responsible for: the bytes of a pack, and reading its header back. Any program that reads safetensors reads a pack; the tensor
names are the object ids. Refuses: headers that are not what `encode` writes.

The `__metadata__` map holds `kfs.pack` = "1", `kind` = the kind of most objects, and one `<object id>` = kind entry for each
object of another kind. A pack that the compactor wrote has `kfs.pack` = "2"; `kfs.encoded` in it is JSON text, a map from object
id to [dtype, shape, base]: the tensor of that name is a payload (U8) of `kfs.delta`, and base is the object it is XORed with, or "".
"""

from __future__ import annotations

import json
import mmap
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from blake3 import blake3

from kfs.ids import KINDS, is_object_id
from kfs.objects import ITEM_BYTES, NewObject, byte_length, byte_view, threads_for
from syscalls.errors import RecurosError

if TYPE_CHECKING:
    from typing_extensions import Buffer

PACK_VERSION: Final = "1"
COMPACTED_VERSION: Final = "2"
HEADER_BYTES_MAX: Final = 100_000_000  # safetensors' own limit
_ALIGN: Final = 8
_SMALL_BYTES_MAX: Final = 1 << 20
_RUN_BYTES_MAX: Final = 4 << 20
_MAP_BYTES_MIN: Final = 1 << 20  # smaller objects are read, larger ones are mapped
_MAPPINGS_KEPT: Final = 2


@dataclass(frozen=True, slots=True)
class Entry:
    """Where one object lies: dtype, shape, kind, and what is stored of it as offset and length in the pack file.

    `base` is None for plain bytes. Otherwise what is stored is a payload of `kfs.delta`: against the object `base`, or "" for none.
    """

    dtype: str
    shape: tuple[int, ...]
    kind: str
    offset: int
    length: int
    base: str | None = None

    @property
    def object_bytes(self) -> int:
        """How many bytes the object itself has."""
        return byte_length(self.dtype, self.shape)


@dataclass(frozen=True, slots=True)
class Encoded:
    """An object as a payload of `kfs.delta`, in pieces; see `Entry`."""

    dtype: str
    shape: tuple[int, ...]
    kind: str
    base: str
    pieces: Sequence[Buffer]


@dataclass(frozen=True, slots=True)
class Pack:
    """The header of a pack as read; entries are checked one at a time, when they are used."""

    path: Path
    data_offset: int
    file_bytes: int
    header: dict[str, Any]
    metadata: dict[str, Any]
    encoded: dict[str, Any]

    @property
    def digest(self) -> str:
        """The digest that names the pack."""
        return self.path.name[:64]

    @property
    def compacted(self) -> bool:
        """Whether the compactor wrote it."""
        return bool(self.metadata["kfs.pack"] == COMPACTED_VERSION)

    def entry(self, object_id: str) -> Entry:
        """Where an object of this pack lies; E9-INTEGRITY when the header says something impossible."""
        base = None
        try:
            row = self.header[object_id]
            dtype, shape, (start, end) = row["dtype"], tuple(row["shape"]), row["data_offsets"]
            kind = self.metadata.get(object_id, self.metadata["kind"])
            fits = 0 <= start <= end <= self.file_bytes - self.data_offset and end - start == byte_length(dtype, shape)
            if object_id in self.encoded:
                fits = fits and dtype == "U8"
                dtype, sizes, base = self.encoded[object_id]
                shape = tuple(sizes)
                byte_length(dtype, shape)
                fits = fits and (base == "" or is_object_id(base))
        except (KeyError, TypeError, ValueError, RecurosError) as e:
            raise RecurosError("E9-INTEGRITY", f"pack {self.path.name}: entry {object_id} is malformed: {e}") from e
        if not fits or kind not in KINDS or not is_object_id(object_id):
            raise RecurosError(
                "E9-INTEGRITY", f"pack {self.path.name}: entry {object_id:.80} is malformed: {row!r:.200}"
            )
        return Entry(dtype, shape, kind, self.data_offset + start, end - start, base)


def encode(objects: Mapping[str, NewObject]) -> list[Buffer]:
    """The buffers of the pack of `objects` (id -> object); large tensors are not copied.

    Objects are ordered by falling item size, then id: every tensor is aligned for its dtype, and the same objects make the
    same pack.
    """
    return _coalesce(layout(objects))


def digest_of(buffers: Sequence[Buffer]) -> str:
    """The 64 hexadecimal digits that name the pack of these bytes. Large buffers are hashed without the interpreter's lock."""
    hasher = blake3(max_threads=threads_for(max((memoryview(buffer).nbytes for buffer in buffers), default=0)))
    for buffer in buffers:
        hasher.update(buffer)
    return hasher.hexdigest()


def layout(objects: Mapping[str, NewObject | Encoded], *, compacted: bool = False) -> list[memoryview]:
    """The bytes of a pack in pieces, none of them copied; payloads come after everything that needs an alignment."""
    ordered = sorted(objects.items(), key=lambda pair: (-_stored_item_bytes(pair[1]), pair[0]))
    rows = [_Row(key, item, _pieces(item)) for key, item in ordered]
    pieces = [piece for row in rows for piece in row.pieces]
    return [byte_view(_header(rows, compacted)), *pieces]


@dataclass(frozen=True, slots=True)
class _Row:
    key: str
    item: NewObject | Encoded
    pieces: list[memoryview]

    @property
    def nbytes(self) -> int:
        return sum(piece.nbytes for piece in self.pieces)


def _stored_item_bytes(item: NewObject | Encoded) -> int:
    return 1 if isinstance(item, Encoded) else ITEM_BYTES[item.dtype]


def _pieces(item: NewObject | Encoded) -> list[memoryview]:
    return [byte_view(piece) for piece in item.pieces] if isinstance(item, Encoded) else [byte_view(item.data)]


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


def _header(rows: Sequence[_Row], compacted: bool) -> bytes:
    usual = Counter(row.item.kind for row in rows).most_common(1)[0][0]
    metadata = {"kfs.pack": COMPACTED_VERSION if compacted else PACK_VERSION, "kind": usual}
    metadata |= {row.key: row.item.kind for row in rows if row.item.kind != usual}
    if compacted:
        encoded = {
            row.key: [row.item.dtype, row.item.shape, row.item.base] for row in rows if isinstance(row.item, Encoded)
        }
        metadata["kfs.encoded"] = json.dumps(encoded, separators=(",", ":"))
    table: dict[str, Any] = {"__metadata__": metadata}
    at = 0
    for row in rows:
        plain = isinstance(row.item, NewObject)
        dtype, shape = (row.item.dtype, row.item.shape) if plain else ("U8", (row.nbytes,))
        table[row.key] = {"dtype": dtype, "shape": shape, "data_offsets": (at, at + row.nbytes)}
        at += row.nbytes
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
        encoded = json.loads(metadata["kfs.encoded"]) if version == COMPACTED_VERSION else {}
        if not isinstance(metadata, dict) or not isinstance(encoded, dict):
            raise TypeError("a map is missing")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as e:
        raise RecurosError("E9-INTEGRITY", f"pack {path.name}: header is not a pack's: {e}") from e
    if version not in (PACK_VERSION, COMPACTED_VERSION):
        raise RecurosError(
            "E9-VERSION",
            f"pack {path.name} is of version {version!r:.20}; this program reads {PACK_VERSION} and {COMPACTED_VERSION}",
        )
    return Pack(path, 8 + length, file_bytes, header, metadata, encoded)


def read_bytes(path: Path, entry: Entry) -> memoryview:
    """What is stored of an object, unverified; fewer bytes than its length when the file is short. Large ones are mapped, not
    copied."""
    if entry.length >= _MAP_BYTES_MIN:
        found = path.stat()
        if entry.offset + entry.length <= found.st_size:
            mapping = _mapped(str(path), found.st_ino, found.st_size, found.st_mtime_ns)
            return memoryview(mapping)[entry.offset : entry.offset + entry.length]
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return memoryview(os.pread(fd, entry.length, entry.offset))
    finally:
        os.close(fd)


@lru_cache(maxsize=_MAPPINGS_KEPT)
def _mapped(path: str, inode: int, size: int, mtime_ns: int) -> mmap.mmap:
    """A whole pack: its objects are read one after the other, and a mapping for each would cost more than it holds.

    The rest of the key tells a file of the same name apart. What is kept may be unlinked meanwhile; its space is free when two others
    have been read.
    """
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return mmap.mmap(fd, size, mmap.MAP_SHARED, mmap.PROT_READ)
    finally:
        os.close(fd)
