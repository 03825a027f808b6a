"""A disk that loses power: what a page cache and a journal may leave of a sequence of system calls.

`Recorder` stands in for the module `os` in `kfs.files.Files`. Every call that changes the disk runs for real, on a real folder
that plays the page cache, and is written to a log; so is what the store acknowledged in between. `Disk` replays a log and says
what may be on the platter when the power goes after any of its entries:

- each 512-byte sector that was written but not synced holds any of its versions since the last sync, on its own;
- the size of a file is any that it had since, or any sector boundary below what was written;
- each name of a folder that was not synced leads to any inode that it led to since, or to none, on its own: syncing a
  file does not make its name durable, and names reach the disk in any order;
- a sync that failed leaves its sectors in doubt for ever: the kernel marks them clean, and a later sync that "succeeds" does not
  write them (Rebello et al., "Can Applications Recover from fsync Failures?", ATC 2020), unless they are written again.

This is harsher than any file system that journals; a store that stands it needs none of their favours.
"""

from __future__ import annotations

import os
import random
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TypeVar

SECTOR: Final = 512
OLDEST: Final = -1.0
T = TypeVar("T")
# Everything a store may do to a disk. Other names of `os` pass through; those in REFUSED are not modelled.
CHANGING: Final = frozenset(
    {"open", "mkdir", "pwritev", "fsync", "fdatasync", "rename", "replace", "link", "unlink", "rmdir", "ftruncate"}
)
REFUSED: Final = frozenset(
    {"write", "writev", "pwrite", "truncate", "symlink", "sendfile", "copy_file_range", "renames"}
)


class Killed(BaseException):
    """The process was killed at this call: nothing of it runs any more, and the page cache stays."""


@dataclass(frozen=True, slots=True)
class Op:
    """One entry of a log. `site` tells the call apart from others: what was synced, and the functions that asked for it."""

    what: str  # create mkdir write truncate sync syncdir failed-sync rename link unlink | ack open
    inode: int = -1
    folder: int = -1
    name: str = ""
    to_folder: int = -1
    to_name: str = ""
    offset: int = 0
    data: bytes = b""
    site: str = ""
    ack: Any = None


class Recorder:
    """The module `os` for one writer's `Files`: runs and logs; kills or fails a chosen call.

    `kill_at` and `fail_at` count changing calls from 1 on; a call that fails raises `fail_with`, a write after half of it.
    With `fail_on` all later ones fail too, but for unlinking.
    `kill_at_folder_sync` counts down at each sync of a folder: there, names are in the page cache and not on the disk.
    """

    def __init__(self, root: Path) -> None:
        """`root` exists, and so does its name on the disk."""
        self.log: list[Op] = []
        self.count = 0
        self.kill_at = 0
        self.kill_at_folder_sync = 0
        self.fail_at = 0
        self.fail_with = 0
        self.fail_on = False
        self._root = root
        self._inodes: dict[int, int] = {root.stat().st_ino: 0}  # real number -> number in the log
        self._next = 1
        self._dead = False

    def acknowledge(self, what: Any) -> None:
        """The caller was told that this is done."""
        self.log.append(Op("ack", ack=what))

    def revive(self) -> None:
        """The next process begins; kills and failures are off until they are set again."""
        self._dead, self.kill_at, self.kill_at_folder_sync, self.fail_at = False, 0, 0, 0
        self.log.append(Op("open"))

    def restore(self, state: dict[str, bytes | None]) -> None:
        """Begin with what a crash left (see `Disk.crash`), all of it durable."""
        for path, data in state.items():
            full = self._root / path
            if data is None:
                self.mkdir(full, 0o700 if full.name == "keys" else 0o755)
                self.log.append(Op("syncdir", self._of_folder(full)))
                continue
            fd = self.open(full, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            try:
                self.pwritev(fd, [data], 0)
                self.log.append(Op("sync", self._of_fd(fd)))
            finally:
                os.close(fd)
            self.log.append(Op("syncdir", self._of_folder(full)))

    def __getattr__(self, name: str) -> Any:
        assert name not in REFUSED, f"the model of the disk lacks os.{name}"
        real = getattr(os, name)
        if name not in CHANGING:
            return real

        def call(*args: Any, **options: Any) -> Any:
            if name == "open" and not args[1] & os.O_CREAT:
                return real(*args, **options)
            self.count += 1
            if self._dead or self.count == self.kill_at:
                self._dead = True
                raise Killed
            return getattr(self, f"_{name}")(*args, **options)

        return call

    def _fails(self) -> OSError | None:
        chosen = self.count == self.fail_at or (self.fail_on and 0 < self.fail_at < self.count)
        return OSError(self.fail_with, os.strerror(self.fail_with)) if chosen else None

    def _known(self, stat: os.stat_result) -> int:
        """The number of an inode; one that was there before the recording began gets one now."""
        found = self._inodes.get(stat.st_ino)
        return self._new(stat) if found is None else found

    def _of_fd(self, fd: int) -> int:
        return self._known(os.fstat(fd))

    def _of_folder(self, path: Path | str) -> int:
        return self._known(os.stat(Path(path).parent))

    def _new(self, stat: os.stat_result) -> int:
        number = self._inodes[stat.st_ino] = self._next
        self._next += 1
        return number

    def _open(self, path: Path, flags: int, mode: int = 0o777) -> int:
        if error := self._fails():
            raise error
        existed = os.path.lexists(path)
        fd = os.open(path, flags, mode)
        if not existed:
            self.log.append(Op("create", self._new(os.fstat(fd)), self._of_folder(path), Path(path).name))
        return fd

    def _mkdir(self, path: Path, mode: int = 0o777) -> None:
        if error := self._fails():
            raise error
        os.mkdir(path, mode)
        self.log.append(Op("mkdir", self._new(os.stat(path)), self._of_folder(path), Path(path).name))

    def _pwritev(self, fd: int, buffers: Any, offset: int) -> int:
        data = b"".join(bytes(buffer) for buffer in buffers)
        error = self._fails()
        if error is not None:
            data = data[: len(data) // 2]
        os.pwrite(fd, data, offset)
        self.log.append(Op("write", self._of_fd(fd), offset=offset, data=data))
        if error is not None:
            raise error
        return len(data)

    def _sync(self, fd: int) -> None:
        inode = self._of_fd(fd)
        path = Path(os.readlink(f"/proc/self/fd/{fd}"))
        folder = path.is_dir()
        if folder and self.kill_at_folder_sync:
            self.kill_at_folder_sync -= 1
            if not self.kill_at_folder_sync:
                self._dead = True
                raise Killed
        error = self._fails()
        what = "syncdir" if folder else "sync"
        if error is not None:
            what = "failed-sync"
        self.log.append(Op(what, inode, site=f"{self.thing(path)}: {_callers()}"))
        if error is not None:
            raise error

    _fsync = _sync
    _fdatasync = _sync

    def thing(self, path: Path) -> str:
        """What a path of the store is, for people and for telling barriers apart."""
        inside = path.relative_to(self._root)
        parts = ["*" if part.startswith(".tmp-") else part for part in inside.parts]
        if parts and parts[-1] not in ("*",) and len(parts[-1]) > 31:
            parts[-1] = "ID" + path.suffix
        return "/".join(parts) or "."

    def _rename(self, old: Path, new: Path) -> None:
        if error := self._fails():
            raise error
        op = Op(
            "rename",
            folder=self._of_folder(old),
            name=Path(old).name,
            to_folder=self._of_folder(new),
            to_name=Path(new).name,
            site=self.thing(Path(new)),
        )
        os.rename(old, new)
        self.log.append(op)

    _replace = _rename

    def _link(self, old: Path, new: Path) -> None:
        if error := self._fails():
            raise error
        os.link(old, new)
        inode = self._known(os.stat(new))
        self.log.append(
            Op("link", inode, to_folder=self._of_folder(new), to_name=Path(new).name, site=self.thing(Path(new)))
        )

    def _unlink(self, path: Path) -> None:
        if (error := self._fails()) and self.count == self.fail_at:
            raise error
        folder = self._of_folder(path)
        os.unlink(path)
        self.log.append(Op("unlink", folder=folder, name=Path(path).name))

    def _rmdir(self, path: Path) -> None:
        if error := self._fails():
            raise error
        folder = self._of_folder(path)
        os.rmdir(path)
        self.log.append(Op("unlink", folder=folder, name=Path(path).name))

    def _ftruncate(self, fd: int, size: int) -> None:
        if error := self._fails():
            raise error
        os.ftruncate(fd, size)
        self.log.append(Op("truncate", self._of_fd(fd), offset=size))


def _callers() -> str:
    """The store's functions that led here, innermost first, without those that only pass a call on."""
    names: list[str] = []
    frame = sys._getframe(2)
    while frame is not None and len(names) < 4:
        code = frame.f_code
        if f"{os.sep}kfs{os.sep}" in code.co_filename and "tests" not in Path(code.co_filename).parts:
            name = code.co_qualname.split(".<locals>")[0] if sys.version_info >= (3, 11) else code.co_name
            if name not in ("Files.barrier", "Files._guard") and (not names or names[-1] != name):
                names.append(name)
        frame = frame.f_back
    return " < ".join(names)


def _padded(data: bytearray, at: int) -> bytes:
    return bytes(data[at : at + SECTOR]).ljust(SECTOR, b"\0")


def pick(states: Sequence[T], dice: random.Random, keep: float) -> T:
    """The newest state with probability `keep`, otherwise any; `OLDEST` means the one that is surely on the disk."""
    if keep == OLDEST:
        return states[0]
    return states[-1] if dice.random() < keep else dice.choice(states)


@dataclass(slots=True)
class Inode:
    """A file or a folder: what is surely on the disk, what may be there, and what the next sync will put there."""

    is_folder: bool = False
    # Files. `versions` of a sector begin with the one on the disk; `sizes` with the size on the disk.
    disk: bytearray = field(default_factory=bytearray)
    cache: bytearray = field(default_factory=bytearray)
    versions: dict[int, list[bytes]] = field(default_factory=dict)
    dirty: set[int] = field(default_factory=set)
    sizes: list[int] = field(default_factory=lambda: [0])
    # Folders.
    names: dict[str, int | None] = field(default_factory=dict)
    pending: dict[str, list[int | None]] = field(default_factory=dict)
    frozen: bytes | None = None

    def write(self, offset: int, data: bytes) -> None:
        """Into the cache; each sector touched gets a new version."""
        end = offset + len(data)
        if end > len(self.cache):
            self.cache.extend(bytes(end - len(self.cache)))
        self.cache[offset:end] = data
        self._touch(range(offset // SECTOR, (end + SECTOR - 1) // SECTOR))
        self._resize(len(self.cache))

    def truncate(self, size: int) -> None:
        """Cut or extend; bytes past the end read as zero from then on."""
        if size < len(self.cache):
            del self.cache[size:]
        else:
            self.cache.extend(bytes(size - len(self.cache)))
        self._touch([size // SECTOR])
        self._resize(size)

    def _touch(self, sectors: Iterable[int]) -> None:
        for sector in sectors:
            at = sector * SECTOR
            versions = self.versions.setdefault(sector, [_padded(self.disk, at)])
            version = _padded(self.cache, at)
            if version != versions[-1]:
                versions.append(version)
            self.dirty.add(sector)
        self.frozen = None

    def _resize(self, size: int) -> None:
        if size != self.sizes[-1]:
            self.sizes.append(size)
        self.frozen = None

    def sync(self) -> None:
        """What is dirty is on the disk; what an earlier failed sync left in doubt stays in doubt."""
        self.frozen = None
        if len(self.cache) < len(self.disk):
            del self.disk[len(self.cache) :]
        self.disk.extend(bytes(len(self.cache) - len(self.disk)))
        for sector in self.dirty:
            at = sector * SECTOR
            self.disk[at : at + SECTOR] = self.cache[at : at + SECTOR]
            del self.versions[sector]
        self.dirty.clear()
        self.sizes = [len(self.cache)]

    def fail_sync(self) -> None:
        """Nothing is known to be on the disk, and nothing will be written again."""
        self.dirty.clear()

    def survives(self, dice: random.Random, keep: float) -> bytes:
        """What is in this file after the power went; each thing in doubt is its newest state with probability `keep`."""
        if not self.versions and len(self.sizes) == 1:
            if self.frozen is None:
                self.frozen = bytes(self.disk)
            return self.frozen
        size = pick(self.sizes if keep in (OLDEST, 1.0) else self._possible_sizes(), dice, keep)
        data = bytearray(self.disk[:size]) + bytes(max(0, size - len(self.disk)))
        for sector, versions in self.versions.items():
            at = sector * SECTOR
            if at < size:
                data[at : min(at + SECTOR, size)] = pick(versions, dice, keep)[: size - at]
        return bytes(data)

    def _possible_sizes(self) -> list[int]:
        low, high = min(self.sizes), max(self.sizes)
        inner = range(low - low % SECTOR + SECTOR, high, max(SECTOR, (high - low) // 64 // SECTOR * SECTOR))
        return [self.sizes[0], *inner, *self.sizes[1:]]


class Disk:
    """The state of a disk while a log is replayed onto it."""

    def __init__(self) -> None:
        self.inodes: dict[int, Inode] = {0: Inode(is_folder=True)}

    def apply(self, op: Op) -> None:
        """One entry of a log; acknowledgements change nothing."""
        match op.what:
            case "create" | "mkdir":
                self.inodes[op.inode] = Inode(is_folder=op.what == "mkdir")
                self._name(op.folder, op.name, op.inode)
            case "write":
                self.inodes[op.inode].write(op.offset, op.data)
            case "truncate":
                self.inodes[op.inode].truncate(op.offset)
            case "sync":
                self.inodes[op.inode].sync()
            case "syncdir":
                self.inodes[op.inode].pending.clear()
            case "failed-sync":
                self.inodes[op.inode].fail_sync()
            case "rename":
                self._name(op.to_folder, op.to_name, self.inodes[op.folder].names[op.name])
                self._name(op.folder, op.name, None)
            case "link":
                self._name(op.to_folder, op.to_name, op.inode)
            case "unlink":
                self._name(op.folder, op.name, None)

    def _name(self, folder: int, name: str, inode: int | None) -> None:
        found = self.inodes[folder]
        found.pending.setdefault(name, [found.names.get(name)]).append(inode)
        found.names[name] = inode

    def in_doubt(self, number: int) -> bool:
        """Whether a sync of this inode would change anything."""
        inode = self.inodes[number]
        return bool(inode.dirty or inode.pending or len(inode.sizes) > 1)

    def crash(self, dice: random.Random, keep_data: float, keep_names: float) -> dict[str, bytes | None]:
        """What a machine finds after the power went: path -> bytes of a file, None for a folder.

        The probabilities are those of `pick`, for each sector and for each name.
        """
        found: dict[str, bytes | None] = {}
        held: dict[int, bytes] = {}  # an inode with two names has one content

        def walk(number: int, prefix: str) -> None:
            inode = self.inodes[number]
            for name, newest in inode.names.items():
                states = inode.pending.get(name)
                target = newest if states is None else pick(states, dice, keep_names)
                if target is None:
                    continue
                if self.inodes[target].is_folder:
                    found[prefix + name] = None
                    walk(target, f"{prefix}{name}/")
                else:
                    if target not in held:
                        held[target] = self.inodes[target].survives(dice, keep_data)
                    found[prefix + name] = held[target]

        walk(0, "")
        return found


# For data and names: nothing in doubt survives; the names do and the data do not; the other way round; everything; mixtures.
STYLES: Final = (
    (OLDEST, OLDEST),
    (OLDEST, 1.0),
    (1.0, OLDEST),
    (1.0, 1.0),
    (0.0, 0.0),
    (0.5, 0.5),
    (0.5, 1.0),
    (0.9, 0.9),
    (0.0, 0.9),
)


class Shelf:
    """Puts states on a real file system: files with the same bytes are links to one file, but for those that grow in place."""

    def __init__(self, folder: Path, in_place: Callable[[str], bool]) -> None:
        self._folder = folder
        self._in_place = in_place
        self._kept: dict[bytes, str] = {}
        (folder / "shelf").mkdir()

    def lay_out(self, state: dict[str, bytes | None], target: Path) -> None:
        """Make `target` hold that state."""
        target.mkdir()
        for path, data in state.items():
            full = f"{target}/{path}"
            if data is None:
                os.mkdir(full, 0o700 if path == "keys" else 0o755)
            elif self._in_place(path):
                Path(full).write_bytes(data)
            else:
                os.link(self._shelved(data), full)

    def _shelved(self, data: bytes) -> str:
        found = self._kept.get(data)
        if found is None:
            if len(self._kept) >= 4_096:
                for name in self._kept.values():
                    os.unlink(name)
                self._kept.clear()
            found = self._kept[data] = f"{self._folder}/shelf/{len(self._kept)}"
            Path(found).write_bytes(data)
            os.chmod(found, 0o600)
        return found
