"""Hash tiles: the ledger's Merkle tree as C2SP tlog-tiles files of height 8.

Responsible for: the paths and the bytes of tiles, publishing the ones that a new checkpoint needs, finding and mending what is
missing, stale or damaged, and answering tree nodes from tiles. Refuses: being trusted. A tile is derived from the ledger and no
barrier protects it: opening a store compares every tile with the records and makes the wrong ones again.

    tile/<L>/<N>            256 hashes of level L: MTH of the records (256 n + i) 256^L up to (256 n + i + 1) 256^L
    tile/<L>/<N>.p/<W>      the first W of them, 0 < W < 256, for each size that was signed; gone once the full tile is there

N is written in groups of three digits, all but the last with an x before it: 1234067 is x001/x234/067. Entry bundles
(tile/entries) are not made: ledger/records holds the entries.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol

from kfs.layout import TEMP_PREFIX
from syscalls.errors import RecurosError

if TYPE_CHECKING:
    from kfs.files import Files

HEIGHT: Final = 8
WIDTH: Final = 1 << HEIGHT
HASH_BYTES: Final = 32
TILE_BYTES: Final = WIDTH * HASH_BYTES
LEVELS_MAX: Final = 8  # a tree of 2^64 leaves
# What may lie where a tile needs a folder: a level, a group of three digits, the folder of a tile's partial ones.
_FOLDER = re.compile(r"[0-9]{1,2}(?:/x[0-9]{3})*(?:/[0-9]{3}\.p)?\Z")
_PATH = re.compile(r"(0|[1-9][0-9]?)/((?:x[0-9]{3}/){0,6})([0-9]{3})(?:\.p/([1-9][0-9]{0,2}))?\Z")


@dataclass(frozen=True, slots=True)
class TileId:
    """A tile: its level, its index in the level, and how many hashes it holds (256: full)."""

    level: int
    index: int
    width: int = WIDTH

    @property
    def full(self) -> bool:
        """Whether it holds all the hashes that it ever will."""
        return self.width == WIDTH

    @property
    def path(self) -> str:
        """Its file, below `tile/`."""
        return f"{self.stem}" if self.full else f"{self.stem}.p/{self.width}"

    @property
    def stem(self) -> str:
        """The file of the full tile."""
        text = f"{self.index % 1000:03d}"
        rest = self.index // 1000
        while rest:
            text = f"x{rest % 1000:03d}/{text}"
            rest //= 1000
        return f"{self.level}/{text}"


def parse_path(text: str) -> TileId | None:
    """Inverse of `TileId.path`; None for anything that is not the one spelling of a tile's path."""
    found = _PATH.match(text)
    if found is None:
        return None
    level, groups, last, width = found.groups()
    tile = TileId(int(level), int(groups.replace("x", "").replace("/", "") + last), int(width or WIDTH))
    return tile if tile.path == text and tile.width <= WIDTH else None


def tiles_of(size: int) -> Iterator[TileId]:
    """Every tile of a tree of `size` leaves: level by level, the partial one of each level last."""
    return changed_tiles(0, size)


def changed_tiles(before: int, after: int) -> Iterator[TileId]:
    """The tiles of a tree of `after` leaves that a tree of `before` leaves did not have."""
    level = 0
    while after >> (HEIGHT * level):
        old, new = before >> (HEIGHT * level), after >> (HEIGHT * level)
        if new != old:
            for index in range(old // WIDTH, new // WIDTH):
                yield TileId(level, index)
            if new % WIDTH:
                yield TileId(level, new // WIDTH, new % WIDTH)
        level += 1


def fold(hashes: bytes | bytearray) -> bytes:
    """The parents of consecutive pairs of hashes; an odd last one has none yet."""
    end = len(hashes) - len(hashes) % (2 * HASH_BYTES)
    return b"".join([sha256(b"\x01" + hashes[at : at + 64]).digest() for at in range(0, end, 2 * HASH_BYTES)])


def tile_root(tile: bytes | bytearray) -> bytes:
    """The hash of a full tile, which is one hash of the level above."""
    while len(tile) > HASH_BYTES:
        tile = fold(tile)
    return bytes(tile)


class Levels:
    """The hashes of every tile level in memory, over a list of leaf hashes that may grow."""

    def __init__(self, leaves: bytes | bytearray) -> None:
        """`leaves`: concatenated leaf hashes; the caller may append to it."""
        self._leaves = leaves
        self._above: list[bytearray] = []

    def level(self, number: int) -> bytes | bytearray:
        """All hashes of a level, from as many leaves as there are now."""
        below: bytes | bytearray = self._leaves
        for above in range(number):
            if above == len(self._above):
                self._above.append(bytearray())
            hashes = self._above[above]
            for index in range(len(hashes) // HASH_BYTES, len(below) // TILE_BYTES):
                hashes += tile_root(below[index * TILE_BYTES : (index + 1) * TILE_BYTES])
            below = hashes
        return below

    def tile(self, tile: TileId) -> bytes:
        """The bytes of a tile; E4-NOENT when there are too few leaves for it."""
        start = tile.index * TILE_BYTES
        data = bytes(self.level(tile.level)[start : start + tile.width * HASH_BYTES])
        if len(data) != tile.width * HASH_BYTES:
            raise RecurosError("E4-NOENT", f"a tree of {len(self._leaves) // HASH_BYTES} has no tile/{tile.path}")
        return data


class Nodes(Protocol):
    """Where hashes of complete subtrees come from."""

    def node(self, height: int, index: int) -> bytes:
        """The hash of the leaves index * 2^height up to (index + 1) * 2^height."""


class TileNodes:
    """Tree nodes from tiles. What was read and hashed stays in memory: 16 KiB for each tile that was used."""

    def __init__(self, read: Callable[[TileId], bytes], size: int) -> None:
        """`read` returns the bytes of a tile of the tree of `size` leaves."""
        self._read = read
        self.size = size
        self._tiles: dict[tuple[int, int], list[bytes]] = {}

    def node(self, height: int, index: int) -> bytes:
        """The hash of a complete subtree."""
        level, inner = divmod(height, HEIGHT)
        tile, at = divmod(index, WIDTH >> inner)
        rows = self._tiles.get((level, tile))
        if rows is None:
            rows = self._load(level, tile)
        return rows[inner][at * HASH_BYTES : (at + 1) * HASH_BYTES]

    def _load(self, level: int, index: int) -> list[bytes]:
        width = min(WIDTH, (self.size >> (HEIGHT * level)) - index * WIDTH)
        rows = [self._read(TileId(level, index, width))]
        for _ in range(HEIGHT - 1):
            rows.append(fold(rows[-1]))
        self._tiles[level, index] = rows
        return rows

    def warm(self) -> None:
        """Read every tile now."""
        for tile in tiles_of(self.size):
            if (tile.level, tile.index) not in self._tiles:
                self._load(tile.level, tile.index)


def read_tile(folder: Path, tile: TileId) -> bytes:
    """A tile of the folder `tile/`: its file, or the start of a wider one. E9-INTEGRITY when there is none of a right length."""
    wider = [tile.path, tile.stem]
    if not tile.full:
        wider += [
            f"{tile.stem}.p/{width}" for width in _partial_widths(folder / f"{tile.stem}.p") if width > tile.width
        ]
    for path in wider:
        try:
            data = (folder / path).read_bytes()
        except FileNotFoundError:
            continue
        except OSError as e:
            raise RecurosError("E9-INTEGRITY", f"tile/{path} cannot be read: {e.strerror}") from e
        found = parse_path(path)
        if found is None or len(data) != found.width * HASH_BYTES:
            raise RecurosError("E9-INTEGRITY", f"tile/{path} has {len(data)} bytes", hint="recuros kfs fsck --repair")
        return data[: tile.width * HASH_BYTES]
    raise RecurosError("E9-INTEGRITY", f"tile/{tile.path} is missing", hint="recuros kfs fsck --repair")


def _partial_widths(folder: Path) -> list[int]:
    try:
        return sorted(int(name) for name in os.listdir(folder) if name.isdecimal())
    except OSError:
        return []


@dataclass(frozen=True, slots=True)
class Finding:
    """What is wrong with the tile folder: `path` below the store, and why. `mendable`: `rebuild` puts it right."""

    path: str
    why: str
    mendable: bool = True


def read_all(folder: Path) -> dict[str, bytes | str]:
    """Every file below `tile/` but unfinished ones: path -> bytes, or why it cannot be read."""
    found: dict[str, bytes | str] = {}
    todo = [""]
    while todo:
        prefix = todo.pop()
        try:
            with os.scandir(folder / prefix) as listing:
                entries = sorted(listing, key=lambda entry: entry.name)
        except FileNotFoundError:
            continue  # a live writer removes the partial tiles of one that is full
        except OSError as e:
            found[prefix.rstrip("/")] = f"cannot be read: {e.strerror}"
            continue
        for entry in entries:
            path = prefix + entry.name
            if entry.name.startswith(TEMP_PREFIX) and not prefix:
                continue
            if entry.is_dir(follow_symlinks=False):
                if parse_path(path) is None:
                    todo.append(f"{path}/")
                else:
                    found[path] = "is a folder"
                continue
            data = _read_file(folder / path)
            if data is not None:
                found[path] = data
    return found


def _read_file(path: Path) -> bytes | str | None:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        try:
            return os.read(fd, TILE_BYTES + 1)
        finally:
            os.close(fd)
    except FileNotFoundError:
        return None
    except OSError as e:
        return f"cannot be read: {e.strerror}"


def check(folder: Path, leaves: bytes | bytearray, size: int) -> list[Finding]:
    """What is wrong below `tile/`: `leaves` are the hashes of all records there are, of which the first `size` are signed."""
    return compare(folder, read_all(folder), leaves, size)


def compare(folder: Path, found: dict[str, bytes | str], leaves: bytes | bytearray, size: int) -> list[Finding]:
    """As `check`, for files that were read before the leaves were: beside a live writer that order finds no false fault."""
    levels = Levels(leaves)
    findings = []
    good: dict[tuple[int, int], int] = {}
    for path, data in found.items():
        why, mendable = _fault(path, data, levels)
        if why:
            findings.append(Finding(f"tile/{path}", why, mendable))
        elif (tile := parse_path(path)) is not None:
            key = tile.level, tile.index
            good[key] = max(good.get(key, 0), tile.width)
    for tile in tiles_of(size):
        if good.get((tile.level, tile.index), 0) < tile.width and tile.path not in found:
            # It may have been replaced by the full one since the folder was listed.
            why, _ = _fault(tile.stem, _read_file(folder / tile.stem) or "is missing", levels)
            if why:
                findings.append(Finding(f"tile/{tile.path}", f"is missing; {size} records are signed"))
    return findings


def _fault(path: str, data: bytes | str, levels: Levels) -> tuple[str, bool]:
    """Why these bytes are not that tile (empty: they are), and whether making it again is what helps."""
    tile = parse_path(path)
    if tile is None:
        return "is not the path of a tile", isinstance(data, bytes) and _FOLDER.match(path) is not None
    if isinstance(data, str):
        return data, data != "is a folder"
    if tile.level >= LEVELS_MAX:
        return "is of more records than the ledger holds", True
    if len(data) != tile.width * HASH_BYTES:
        return f"has {len(data)} bytes instead of {tile.width * HASH_BYTES}", True
    try:
        right = levels.tile(tile)
    except RecurosError:
        return "is of more records than the ledger holds", True
    if data != right:
        at = next((i for i in range(tile.width) if data[i * 32 : i * 32 + 32] != right[i * 32 : i * 32 + 32]), 0)
        first = (tile.index * WIDTH + at) << (HEIGHT * tile.level)
        return f"hash {at} is not that of the records from {first} on", True
    return "", True


class TileWriter:
    """The writer's side: mends the folder once, then publishes what each new checkpoint needs."""

    def __init__(self, folder: Path, files: Files, leaves: bytearray, signed_size: int) -> None:
        """`leaves`: the ledger's leaf hashes, which grow as records are appended."""
        self._folder = folder
        self._files = files
        self._leaves = leaves
        self._levels = Levels(leaves)
        self._published = signed_size
        self._checked = False

    def mend(self) -> list[str]:
        """Compare every tile with the ledger and make the wrong ones again; what was done, in words."""
        findings = rebuild(self._folder, self._leaves, self._published, self._files)
        self._checked = True
        mended = [finding for finding in findings if finding.mendable]
        notes = [f"{finding.path} {finding.why}; it was left alone" for finding in findings if not finding.mendable]
        if mended:
            notes.append(f"made hash tiles again, {len(mended)} found wrong: {mended[0].path} {mended[0].why}")
        return notes

    def publish(self, size: int) -> None:
        """Write the tiles of a tree of `size` records, all of them durable, that are not there yet."""
        if not self._checked:
            self.mend()
        for tile in changed_tiles(self._published, size):
            write_tile(self._folder, tile, self._levels.tile(tile), self._files)
        self._published = size


def write_tile(folder: Path, tile: TileId, data: bytes, files: Files) -> None:
    """Put one tile in its place; a full one takes the place of its partial ones."""
    try:
        files.derive(folder, folder / tile.path, data)
        if tile.full:
            files.drop_folder(folder / f"{tile.stem}.p")
    except OSError as e:
        raise RecurosError(
            "E9-INTEGRITY",
            f"tile/{tile.path} cannot be written: {e.strerror}",
            hint="remove what is in its place; tiles are made again from the ledger",
        ) from e


def rebuild(folder: Path, leaves: bytes | bytearray, size: int, files: Files) -> list[Finding]:
    """Mend what `check` finds, and return it: wrong and stale tiles go, those of the signed `size` are made from the leaves.

    What is not mendable (a name that no tile has) is left alone.
    """
    files.check()
    findings = check(folder, leaves, size)
    mendable = [finding for finding in findings if finding.mendable]
    for finding in mendable:
        files.discard(folder.parent / finding.path)
    if mendable:
        levels = Levels(leaves)
        present = read_all(folder)
        for tile in tiles_of(size):
            if tile.path not in present and (tile.full or tile.stem not in present):
                write_tile(folder, tile, levels.tile(tile), files)
    return findings
