"""The maps of one program in one buffer: its layout, the single writer, and a reader that does not stop the writer.

Responsible for: where each map lies (`layout`), every map operation of the instruction set with its exact meaning (`Cells`,
which the interpreter calls and the compiler imitates bit for bit), and `read`, which takes a consistent copy of each map out of a
page that the learner is writing. Standard library and msgpack only: the shell, the kernel's side and the Observer read with it.
Refuses: growth; a buffer whose header, descriptor or offsets are not what `layout` would have made (E9-INTEGRITY).

    buffer  = header 64 bytes | descriptor (msgpack) | control blocks, 64 bytes a map | cells, 64-byte aligned   (little-endian)
    header  = "OBMC" | version u16 | maps u16 | total bytes u64 | descriptor bytes u32 | 0 ...
    control = sequence u64 | drops u64 | nans u64 | used u64 | taken u64 | 0 ...

`sequence` is a seqlock: the writer makes it odd when a firing begins that may write the map and even when it has ended, so a reader
that sees the same even number before and after its copy holds the state between two firings. `used` is, by kind: rows of a per-site
array in use, keys of a hash, entries ever put into a ring; `taken`: entries ever taken out of a ring.

A hash has twice as many slots as keys, rounded up to a power of two. Key k goes into the first free slot of the HASH_PROBES slots
from mix(k) on, in order and round the end, where mix is the finaliser of splitmix64 (Steele, Lea and Flood 2014). A key that finds
none of them free is a counted drop as one that finds the hash full. Cells never hold a NaN: a write of one is counted instead, and
so is an addition that would make one (inf - inf); only a ring keeps it, as the quiet NaN, and counts it too.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import msgpack

from probes import isa
from probes.isa import HIST_LOG2_BINS, HIST_LOG2_LOW, SITES_MAX, MapKind, MapSpec
from syscalls.errors import RecurosError

MAGIC: Final = b"OBMC"
VERSION: Final = 1
HEADER_BYTES: Final = 64
CONTROL_BYTES: Final = 64
HASH_PROBES: Final = 64
READ_TRIES: Final = 64
SITE_CHARS_MAX: Final = 256
BUFFER_BYTES_MAX: Final = 1 << 30
MASK64: Final = (1 << 64) - 1
_HEADER: Final = struct.Struct("<4sHHQI")
_CONTROL: Final = struct.Struct("<5Q")
_BITS: Final = struct.Struct("<d")
_INT: Final = struct.Struct("<q")
# Words of a control block.
SEQUENCE, DROPS, NANS, USED, TAKEN = range(5)
# Bins before the counting ones: log2 has NaN and <= 0; linear has NaN and below, and above after the last.
BINS_BEFORE: Final = 2
_EXPONENT_HIGH: Final = HIST_LOG2_LOW + HIST_LOG2_BINS - 1


@dataclass(frozen=True, slots=True)
class Place:
    """Where one map lies. `control`, `cells`: byte offsets; `words`: 8-byte words of cells; `slots`: of a hash, else 0.

    Array: doubles, row after row. Hash: `slots` keys, `slots` doubles, then a byte per slot that is 1 where it is taken.
    Histograms: doubles. Ring: entries of (step, site, tag) as integers and a double. `scale`: bins per unit of a linear histogram.
    """

    spec: MapSpec
    control: int
    cells: int
    words: int
    slots: int
    scale: float


@dataclass(frozen=True, slots=True)
class Layout:
    """Every map's place, the descriptor that readers go by, and the size of the buffer in bytes."""

    places: tuple[Place, ...]
    descriptor: bytes
    total: int


def _words(spec: MapSpec) -> tuple[int, int]:
    """8-byte words of a map's cells and its hash slots."""
    if spec.kind is not MapKind.HASH:
        return spec.cells_total, 0
    slots = max(2, 1 << (2 * spec.size - 1).bit_length())
    return 2 * slots + (slots + 7) // 8, slots


def layout(maps: tuple[MapSpec, ...], program: str = "", sites: Sequence[str] = ()) -> Layout:
    """The layout of a program's maps: a pure function of its arguments.

    `program`: its digest, `sites`: names of the rows of per-site maps in order; both are for readers only.
    """
    rows = [[m.name, m.kind.value, m.size, m.per_site, m.low, m.high, m.label, list(m.fields)] for m in maps]
    names = [site[:SITE_CHARS_MAX] for site in sites[:SITES_MAX]]
    descriptor: bytes = msgpack.packb({"program": program, "maps": rows, "sites": names})
    at = _aligned(HEADER_BYTES + len(descriptor))
    cells_at = at + CONTROL_BYTES * len(maps)
    places = []
    for number, spec in enumerate(maps):
        words, slots = _words(spec)
        scale = spec.size / (spec.high - spec.low) if spec.kind is MapKind.LINEAR else 0.0
        places.append(Place(spec, at + CONTROL_BYTES * number, cells_at, words, slots, scale))
        cells_at = _aligned(cells_at + 8 * words)
    return Layout(tuple(places), descriptor, cells_at)


def _aligned(n: int) -> int:
    return (n + 63) & ~63


def mix(key: int) -> int:
    """Where a key's probing begins: splitmix64's finaliser of its two's complement."""
    z = (key + 0x9E3779B97F4A7C15) & MASK64
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK64
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK64
    return z ^ (z >> 31)


def log2_bin(value: float) -> int:
    """Cell of a log2 histogram: 0 for NaN, 1 for <= 0, then one for each clamped floor(log2 value)."""
    if value != value:  # noqa: PLR0124 - a NaN
        return 0
    if value <= 0.0:
        return 1
    exponent: int = (_INT.unpack(_BITS.pack(value))[0] >> 52) - 1023
    return BINS_BEFORE + min(max(exponent, HIST_LOG2_LOW), _EXPONENT_HIGH) - HIST_LOG2_LOW


def linear_bin(value: float, place: Place) -> int:
    """Cell of a linear histogram: 0 for NaN, 1 below, then the bins, then one for above."""
    spec = place.spec
    if value != value:  # noqa: PLR0124 - a NaN
        return 0
    if value < spec.low:
        return 1
    if value >= spec.high:
        return BINS_BEFORE + spec.size
    position = (value - spec.low) * place.scale
    if not position < spec.size:  # rounding just under `high`, or an infinite scale; 0 times that is a NaN
        return BINS_BEFORE + (0 if position != position else spec.size - 1)  # noqa: PLR0124
    return BINS_BEFORE + int(position)


class Cells:
    """All maps of one program in `buffer`, which is zeroed and laid out anew; this object is its single writer.

    `buffer`: writable, at least `layout(...).total` bytes; a bytearray is made when it is None. Map numbers are the program's.
    Keys of arrays must be in [0, size) (IndexError otherwise); a site of SITES_MAX or more is a counted drop.
    """

    def __init__(
        self, maps: tuple[MapSpec, ...], buffer: Any = None, *, program: str = "", sites: Sequence[str] = ()
    ) -> None:
        self.layout = layout(maps, program, sites)
        self.maps = maps
        total = self.layout.total
        held = memoryview(bytearray(total) if buffer is None else buffer).cast("B")
        if held.readonly or len(held) < total:
            raise RecurosError(
                "E2-LIMIT", f"maps of {total} bytes do not go into a buffer of {len(held)} writable bytes"
            )
        self.buffer = held[:total]
        self.buffer[:] = bytes(total)
        descriptor = self.layout.descriptor
        _HEADER.pack_into(self.buffer, 0, MAGIC, VERSION, len(maps), total, len(descriptor))
        self.buffer[HEADER_BYTES : HEADER_BYTES + len(descriptor)] = descriptor
        self._f = self.buffer.cast("d")
        self._q = self.buffer.cast("q")
        self._control = tuple(place.control // 8 for place in self.layout.places)
        self._base = tuple(place.cells // 8 for place in self.layout.places)

    def close(self) -> None:
        """Let go of the buffer, so that a page under it can be unmapped."""
        for view in (self._f, self._q, self.buffer):
            view.release()

    def begin(self, numbers: Iterable[int]) -> None:
        """A firing that may write these maps begins: readers wait for its end."""
        for number in numbers:
            self._q[self._control[number]] |= 1

    def end(self, numbers: Iterable[int]) -> None:
        """The firing has ended."""
        for number in numbers:
            at = self._control[number]
            self._q[at] = (self._q[at] | 1) + 1

    def counter(self, number: int, word: int) -> int:
        """One word of a map's control block, such as DROPS."""
        return self._q[self._control[number] + word]

    def drop(self, number: int, count: int = 1) -> None:
        """Count writes that found no room."""
        self._q[self._control[number] + DROPS] += count

    def count_nans(self, number: int, count: int) -> None:
        """Count values that were not folded in because they were no number."""
        self._q[self._control[number] + NANS] += count

    def get(self, number: int, key: int, site: int) -> float:
        """MGET."""
        index = self._find(number, key, site, insert=False)
        return 0.0 if index < 0 else self._f[index]

    def set(self, number: int, key: int, value: float, site: int) -> None:
        """MSET."""
        if value != value:  # noqa: PLR0124 - a NaN
            self._nan(number)
            return
        index = self._find(number, key, site, insert=True)
        if index >= 0:
            self._f[index] = value

    def add(self, number: int, key: int, value: float, site: int) -> None:
        """MADD, and MINC with 1."""
        if value != value:  # noqa: PLR0124 - a NaN
            self._nan(number)
            return
        index = self._find(number, key, site, insert=True)
        if index >= 0:
            total = self._f[index] + value
            if total != total:  # noqa: PLR0124 - inf - inf
                self._nan(number)
            else:
                self._f[index] = total

    def raise_to(self, number: int, key: int, value: float, site: int) -> None:
        """MMAX; +0 is larger than -0."""
        if value != value:  # noqa: PLR0124 - a NaN
            self._nan(number)
            return
        index = self._find(number, key, site, insert=True)
        if index >= 0:
            old = self._f[index]
            if value > old or (value == old and math.copysign(1.0, value) > math.copysign(1.0, old)):
                self._f[index] = value

    def hist(self, number: int, value: float, site: int) -> None:
        """MHIST."""
        place = self.layout.places[number]
        bin_ = log2_bin(value) if place.spec.kind is MapKind.LOG2 else linear_bin(value, place)
        if value != value:  # noqa: PLR0124 - a NaN
            self._nan(number)
        row = self.row(number, site) if place.spec.per_site else self._base[number]
        if row >= 0:
            self._f[row + bin_] += 1.0

    def emit(self, number: int, tag: int, value: float, step: int, site: int) -> None:
        """EMIT."""
        control, size = self._control[number], self.maps[number].size
        put = self._q[control + USED]
        if put - self._q[control + TAKEN] >= size:
            self._q[control + DROPS] += 1
            return
        if value != value:  # noqa: PLR0124 - a NaN
            self._nan(number)
            value = math.nan
        at = self._base[number] + 4 * (put % size)
        self._q[at], self._q[at + 1], self._q[at + 2] = step, site, tag
        self._f[at + 3] = value
        self._q[control + USED] = put + 1

    def put_row(self, number: int, values: Sequence[float], site: int) -> None:
        """Overwrite a per-site array's row, as an asynchronous helper's figures land; each NaN is counted and not stored."""
        self.begin((number,))
        try:
            for key, value in enumerate(values[: self.maps[number].size]):
                self.set(number, key, float(value), site)
        finally:
            self.end((number,))

    def take(self, number: int) -> list[tuple[int, int, int, float]]:
        """Take every entry (step, site, tag, value) out of a ring, oldest first, and so make room."""
        control, size = self._control[number], self.maps[number].size
        put, taken = self._q[control + USED], self._q[control + TAKEN]
        entries = []
        for n in range(taken, put):
            at = self._base[number] + 4 * (n % size)
            entries.append((self._q[at], self._q[at + 1], self._q[at + 2], self._f[at + 3]))
        self.begin((number,))
        self._q[control + TAKEN] = put
        self.end((number,))
        return entries

    def restore(self, number: int, document: dict[str, Any]) -> None:
        """Put back what `document` (a map's part of `read`) holds; E2-LIMIT when it describes another map."""
        spec = self.maps[number]
        self.begin((number,))
        try:
            _Restore(self, number, spec).load(document)
        except (KeyError, TypeError, ValueError, IndexError) as e:
            raise RecurosError(
                "E2-LIMIT", f"cannot restore map {spec.name}: its document lacks or misstates {e}"
            ) from e
        finally:
            self.end((number,))

    def _nan(self, number: int) -> None:
        self._q[self._control[number] + NANS] += 1

    def row(self, number: int, site: int) -> int:
        """Word index of a per-site map's row, which is in use from now on; -1 with a counted drop when there is none."""
        control = self._control[number]
        if site >= SITES_MAX:
            self._q[control + DROPS] += 1
            return -1
        if self._q[control + USED] <= site:
            self._q[control + USED] = site + 1
        return self._base[number] + site * self.maps[number].cells

    def _find(self, number: int, key: int, site: int, *, insert: bool) -> int:
        """Word index of a key's double, or -1: not there, or with `insert` a counted drop."""
        spec = self.maps[number]
        if spec.kind is MapKind.HASH:
            return self._slot(number, key, insert)
        if not 0 <= key < spec.size:
            raise IndexError(f"key {key} of map {spec.name}, which has {spec.size} cells")
        if not spec.per_site:
            return self._base[number] + key
        if not insert:
            return self._base[number] + site * spec.size + key if site < SITES_MAX else -1
        row = self.row(number, site)
        return row if row < 0 else row + key

    def _slot(self, number: int, key: int, insert: bool) -> int:
        place = self.layout.places[number]
        keys, values = self._base[number], self._base[number] + place.slots
        taken, at = place.cells + 16 * place.slots, mix(key)
        control = self._control[number]
        for n in range(HASH_PROBES):
            slot = (at + n) & (place.slots - 1)
            if not self.buffer[taken + slot]:
                if not insert:
                    return -1
                if self._q[control + USED] >= place.spec.size:
                    break
                self.buffer[taken + slot] = 1
                self._q[keys + slot] = key
                self._q[control + USED] += 1
                return values + slot
            if self._q[keys + slot] == key:
                return values + slot
        if insert:
            self._q[control + DROPS] += 1
        return -1


class _Restore:
    """Writes one map's document back through the writer's own operations."""

    def __init__(self, cells: Cells, number: int, spec: MapSpec) -> None:
        self.cells, self.number, self.spec = cells, number, spec
        self.place = cells.layout.places[number]

    def load(self, document: dict[str, Any]) -> None:
        kind = document.get("kind")
        if kind != self.spec.kind.value or document.get("size") != self.spec.size:
            raise ValueError(f"kind {kind!r} of size {document.get('size')!r}")
        cells, place = self.cells, self.place
        cells.buffer[place.cells : place.cells + 8 * place.words] = bytes(8 * place.words)
        cells.buffer[place.control + 8 : place.control + CONTROL_BYTES] = bytes(CONTROL_BYTES - 8)
        match self.spec.kind:
            case MapKind.HASH:
                for key, value in document["items"]:
                    cells.set(self.number, int(key), float(value), 0)
            case MapKind.RING:
                for step, site, tag, value in document["entries"]:
                    cells.emit(self.number, int(tag), float(value), int(step), int(site))
            case _:
                self._rows(document)
        control = cells._control[self.number]
        cells._q[control + DROPS], cells._q[control + NANS] = int(document["drops"]), int(document["nans"])

    def _rows(self, document: dict[str, Any]) -> None:
        rows = document["rows"] if self.spec.per_site else [document]
        if len(rows) > SITES_MAX:
            raise ValueError(f"{len(rows)} rows")
        for site, row in enumerate(rows):
            values = _values_of(self.spec, row)
            base = self.cells.row(self.number, site) if self.spec.per_site else self.cells._base[self.number]
            for key, value in enumerate(values):
                if value != value:  # noqa: PLR0124 - a NaN
                    raise ValueError("a NaN")
                self.cells._f[base + key] = value


def read(buffer: Any) -> dict[str, Any]:
    """Every map in a buffer that a `Cells` laid out, JSON-able, while it may be writing.

    {"program", "sites": names, "maps": {name: {"kind", "size", "per_site", "label", "fields", "drops", "nans", "torn", ...}}};
    `torn`: no quiet moment was found in READ_TRIES tries, so the figures may mix two firings. Further, by kind: array "values";
    log2 "nan", "nonpositive", "low" (exponent of the first bin), "counts"; linear "nan", "below", "above", "low", "high", "counts"
    (per site: "rows", a list of such); hash "items" [[key, value]] by key; ring "entries" [[step, site, tag, value]] oldest first,
    "written", "taken". Infinities are the texts "inf" and "-inf". E9-INTEGRITY when the buffer is not laid out so.
    """
    whole = memoryview(buffer).cast("B")
    held = _parse(whole)
    documents = {place.spec.name: _read_map(whole, place) for place in held.places}
    header = msgpack.unpackb(held.descriptor)
    return {"program": header["program"], "sites": header["sites"], "maps": documents}


def document_of(cells: Cells, number: int) -> dict[str, Any]:
    """One map's part of `read`, for its own writer."""
    return _read_map(cells.buffer, cells.layout.places[number])


def _parse(whole: memoryview) -> Layout:
    """The layout of a buffer, recomputed from its descriptor and compared with its header."""
    try:
        magic, version, count, total, length = _HEADER.unpack_from(whole)
        if magic != MAGIC or version != VERSION or count > isa.MAPS_MAX or total > min(len(whole), BUFFER_BYTES_MAX):
            raise ValueError(f"a header of {magic!r} version {version}, {count} maps, {total} of {len(whole)} bytes")
        header = msgpack.unpackb(bytes(whole[HEADER_BYTES : HEADER_BYTES + length]))
        maps = isa._maps(header["maps"])
        held = layout(maps, header["program"], header["sites"])
    except (struct.error, ValueError, TypeError, KeyError, RecurosError, msgpack.UnpackException) as e:
        raise RecurosError("E9-INTEGRITY", f"not a buffer of probe maps: {e}") from e
    if (held.total, len(maps)) != (total, count) or len(held.descriptor) != length:
        raise RecurosError("E9-INTEGRITY", f"a buffer of {len(maps)} probe maps takes {held.total} bytes, not {total}")
    return held


def _read_map(whole: memoryview, place: Place) -> dict[str, Any]:
    end = place.cells + 8 * place.words
    for _ in range(READ_TRIES):
        before = _CONTROL.unpack_from(whole, place.control)
        data = bytes(whole[place.cells : end])
        control = _CONTROL.unpack_from(whole, place.control)
        if before == control and not control[SEQUENCE] & 1:
            torn = False
            break
    else:
        torn = True
    return _document(place, control, data, torn)


def _document(place: Place, control: Sequence[int], data: bytes, torn: bool) -> dict[str, Any]:
    spec = place.spec
    document = {
        "kind": spec.kind.value,
        "size": spec.size,
        "per_site": spec.per_site,
        "label": spec.label,
        "fields": list(spec.fields),
        "drops": control[DROPS],
        "nans": control[NANS],
        "torn": torn,
    }
    words = memoryview(data)
    if spec.kind is MapKind.HASH:
        keys, values = words[: 8 * place.slots].cast("q"), words[8 * place.slots : 16 * place.slots].cast("d")
        taken = data[16 * place.slots :]
        return document | {"items": sorted([keys[i], _plain(values[i])] for i in range(place.slots) if taken[i])}
    doubles = words.cast("d")
    if spec.kind is MapKind.RING:
        return document | _ring(words.cast("q"), doubles, spec.size, control)
    if not spec.per_site:
        return document | _row_document(spec, doubles)
    rows = min(control[USED], SITES_MAX)
    width = spec.cells
    return document | {"rows": [_row_document(spec, doubles[i * width : (i + 1) * width]) for i in range(rows)]}


def _ring(ints: memoryview, doubles: memoryview[float], size: int, control: Sequence[int]) -> dict[str, Any]:
    put, taken = control[USED], control[TAKEN]
    entries = []
    for n in range(max(taken, put - size), put):
        at = 4 * (n % size)
        entries.append([ints[at], ints[at + 1], ints[at + 2], _plain(doubles[at + 3])])
    return {"entries": entries, "written": put, "taken": taken}


def _row_document(spec: MapSpec, row: memoryview[float]) -> dict[str, Any]:
    values = row.tolist()
    match spec.kind:
        case MapKind.LOG2:
            counts = values[BINS_BEFORE:]
            return {"nan": values[0], "nonpositive": values[1], "low": HIST_LOG2_LOW, "counts": counts}
        case MapKind.LINEAR:
            ends = {"nan": values[0], "below": values[1], "above": values[-1], "low": spec.low, "high": spec.high}
            return ends | {"counts": values[BINS_BEFORE:-1]}
        case _:
            return {"values": [_plain(value) for value in values]}


def _values_of(spec: MapSpec, row: dict[str, Any]) -> list[float]:
    """Inverse of `_row_document`."""
    match spec.kind:
        case MapKind.LOG2:
            values = [row["nan"], row["nonpositive"], *row["counts"]]
        case MapKind.LINEAR:
            values = [row["nan"], row["below"], *row["counts"], row["above"]]
        case _:
            values = row["values"]
    if len(values) != spec.cells:
        raise ValueError(f"{len(values)} cells")
    return [float(value) for value in values]


def _plain(value: float) -> float | str:
    return value if math.isfinite(value) else str(value)
