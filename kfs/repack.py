"""Writing packs in short steps, and reading them back before anybody relies on them.

Responsible for: what compaction and collection share. Refuses: a pack whose objects, read from its file and decoded, do not hash to
their ids.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Mapping
from typing import Final, TypeAlias, TypeVar

from blake3 import blake3

from kfs import delta
from kfs import pack as packs
from kfs.files import TempFile
from kfs.ids import ALGORITHM
from kfs.objects import ITEM_BYTES, NewObject, hasher
from kfs.pack import Encoded, Entry, Pack
from kfs.store import StoreWriter
from syscalls.errors import RecurosError

_T = TypeVar("_T")
Steps: TypeAlias = Generator[None, None, _T]
"""Work in short steps, with a result at the end."""
_STEP_BYTES: Final = 1 << 20


class DamagedPackError(Exception):
    """An object of a pack does not match its id; the pack is best left as it is, for `kfs verify` to name."""

    def __init__(self, pack: Pack, why: str) -> None:
        super().__init__(f"pack {pack.path.name} is left as it is: {why}")
        self.digest = pack.digest


def write(store: StoreWriter, batch: Mapping[str, NewObject | Encoded], *, compacted: bool) -> Steps[Pack]:
    """Publish a pack, read it back, and add it to the catalog; what it holds may be dropped elsewhere after that."""
    pieces = packs.layout(batch, compacted=compacted)
    yield
    hashing = blake3()
    temp = TempFile(store.files, store.layout.packs)
    try:
        for piece in _chunks(pieces):
            hashing.update(piece)
            yield from temp.write(piece)
        yield from temp.sync()
        path = store.layout.pack(hashing.hexdigest())
        temp.publish(path)
    finally:
        temp.discard()
    pack = packs.read_header(path)
    try:
        for name in pack.header:
            yield from check(store, name, pack)
    except DamagedPackError as e:
        store.files.remove(path)
        raise RecurosError(
            "E9-INTEGRITY",
            f"what was just written does not read back: {e}; nothing was dropped",
            hint="check the disk and the memory",
        ) from e
    store.catalog.add(pack)
    store.born[pack.digest] = store.size
    return pack


def _chunks(pieces: Iterable[memoryview]) -> Iterator[memoryview]:
    """The same bytes, small pieces together and large ones apart."""
    run: list[memoryview] = []
    run_bytes = 0
    for piece in pieces:
        for start in range(0, piece.nbytes, _STEP_BYTES):
            part = piece[start : start + _STEP_BYTES]
            if run and run_bytes + part.nbytes > _STEP_BYTES:
                yield memoryview(b"".join(run))
                run, run_bytes = [], 0
            run.append(part)
            run_bytes += part.nbytes
    if run:
        yield memoryview(b"".join(run))


def check(store: StoreWriter, name: str, pack: Pack) -> Steps[None]:
    """Decode one object of a pack and compare with its id."""
    entry = pack.entry(name)
    stored = packs.read_bytes(pack.path, entry)
    pieces: Iterator[memoryview | bytes] = iter([stored])
    if entry.base is not None:
        base = plain_base(store, entry.base, pack) if entry.base else None
        pieces = iter(delta.decode_blocks(stored, entry.object_bytes, ITEM_BYTES[entry.dtype], base))
    hashing = hasher(entry.dtype, entry.shape)
    try:
        for piece in pieces:
            view = memoryview(piece)
            for start in range(0, view.nbytes, _STEP_BYTES):
                hashing.update(view[start : start + _STEP_BYTES])
                yield
    except RecurosError as e:
        raise DamagedPackError(pack, f"object {name}: {e.message}") from e
    if f"{ALGORITHM}:{hashing.hexdigest()}" != name:
        where = f"bytes {entry.offset} to {entry.offset + entry.length}"
        raise DamagedPackError(pack, f"its {where} are not object {name}")


def plain_base(store: StoreWriter, base: str, pack: Pack) -> memoryview:
    """The bytes of the base of an object of `pack`, which may be in that pack itself."""
    holder: Pack | None = pack if base in pack.header else store.catalog.find_surely(base)
    entry: Entry | None = holder.entry(base) if holder is not None else None
    if holder is None or entry is None or entry.base is not None:
        raise DamagedPackError(pack, f"{base}, a base, is not stored plain")
    return packs.read_bytes(holder.path, entry)


def as_stored(pack: Pack, name: str) -> NewObject | Encoded:
    """An object of a pack the way it lies there, for another pack."""
    entry = pack.entry(name)
    data = packs.read_bytes(pack.path, entry)
    if entry.base is None:
        return NewObject(entry.dtype, entry.shape, data, entry.kind)
    return Encoded(entry.dtype, entry.shape, entry.kind, entry.base, [data])
