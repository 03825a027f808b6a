"""Every write of the store, by what it promises.

Responsible for: create-exclusive, temp-then-publish, atomic replace, append + fdatasync, directory sync; undoing what a full
disk cut short. All system calls that change the disk go through one object, so a test can fail each of them in turn.
Refuses: any further write after a barrier failed. A failed fsync may have dropped the dirty pages while marking them clean,
so a retry that "succeeds" proves nothing (Rebello et al., "Can Applications Recover from fsync Failures?", ATC 2020): the
store is poisoned until it is opened again.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from kfs.layout import TEMP_PREFIX
from kfs.objects import byte_view
from syscalls.errors import RecurosError

if TYPE_CHECKING:
    from typing_extensions import Buffer

_NO_SPACE: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_BUFFERS_PER_CALL_MAX: Final = 512  # Linux's IOV_MAX is 1,024
_CHUNK_BYTES: Final = 4 << 20
_SYNC_BYTES: Final = 4 << 20  # of a temporary file that is written in steps
_WRITEBACK_BYTES: Final = 8 << 20
_SYNC_FILE_RANGE_WRITE: Final = 2
_WAIT_S: Final = 0.002
_FLAGS: Final = os.O_CLOEXEC | os.O_NOFOLLOW


class Files:
    """The write side of one open store. `calls` is the module `os`, or a stand-in that fails where a test wants it to."""

    def __init__(self, calls: Any = os) -> None:
        self._os = calls
        self.poison: RecurosError | None = None

    def check(self) -> None:
        """Raise the error that poisoned the store, if one did."""
        if self.poison is not None:
            raise self.poison

    def make_folder(self, path: Path, mode: int = 0o755) -> None:
        """Create a folder and those above it, durably; an existing one is fine, and its name is taken to be durable."""
        self.check()
        if path.is_dir():
            return
        self.make_folder(path.parent)
        self._guard(path, lambda: self._os.mkdir(path, mode))
        self.sync_folder(path.parent)

    def sure_folder(self, path: Path, mode: int = 0o755) -> None:
        """`make_folder`, and the name of a folder that is there already, made by who was killed before syncing it, becomes durable too."""
        if path.is_dir():
            self.check()
            self.sync_folder(path.parent)
        else:
            self.make_folder(path, mode)

    def write_temp(self, folder: Path, buffers: Sequence[Buffer], mode: int = 0o644) -> Path:
        """Write a new temporary file and fsync it; on any failure it is removed again."""
        self.check()
        path = folder / f"{TEMP_PREFIX}{os.urandom(8).hex()}"
        fd = self._guard(path, lambda: self._os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _FLAGS, mode))
        try:
            self._guard(path, lambda: self._write_all(fd, buffers, 0))
            self.barrier(path, lambda: self._os.fsync(fd))
        except BaseException:
            self.discard(path)
            raise
        finally:
            os.close(fd)
        return path

    def publish(self, temp: Path, final: Path) -> None:
        """Rename a synced temporary file over its final name and make the name durable."""
        self.check()
        try:
            self._guard(final, lambda: self._os.rename(temp, final))
        except BaseException:
            self.discard(temp)
            raise
        self.sync_folder(final.parent)

    def replace(self, path: Path, data: bytes, mode: int = 0o644) -> None:
        """Atomic replace: after a crash the file holds the old bytes or the new ones, whole."""
        self.publish(self.write_temp(path.parent, [data], mode), path)

    def create(self, path: Path, data: bytes, mode: int = 0o644) -> None:
        """Create-exclusive, durably: E9-INTEGRITY when the file exists. Readers never see it half written."""
        self.check()
        temp = self.write_temp(path.parent, [data], mode)
        try:
            self._guard(path, lambda: self._os.link(temp, path))
        except FileExistsError as e:
            raise RecurosError("E9-INTEGRITY", f"{path} exists already and is never overwritten") from e
        finally:
            self.discard(temp)
        self.sync_folder(path.parent)

    def sync_folder(self, folder: Path) -> None:
        """Make the names in a folder durable."""
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            self.barrier(folder, lambda: self._os.fsync(fd))
        finally:
            os.close(fd)

    def derive(self, temp_folder: Path, path: Path, data: bytes) -> None:
        """Publish a file that can be made again from others: readers see it whole, but no barrier makes it outlive a power cut.

        `temp_folder` is on the same file system; folders on the way to `path` are made.
        """
        self.check()
        self._make_folders(path.parent)
        temp = temp_folder / f"{TEMP_PREFIX}{os.urandom(8).hex()}"
        fd = self._guard(temp, lambda: self._os.open(temp, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _FLAGS, 0o644))
        try:
            self._guard(temp, lambda: self._write_all(fd, [data], 0))
            self._guard(path, lambda: self._os.rename(temp, path))
        except BaseException:
            self.discard(temp)
            raise
        finally:
            os.close(fd)

    def _make_folders(self, folder: Path) -> None:
        if not folder.is_dir():
            self._make_folders(folder.parent)
            self._guard(folder, lambda: self._os.mkdir(folder, 0o755))

    def drop_folder(self, folder: Path) -> None:
        """Remove a folder of derived files; one that is already gone, or holds what cannot be removed, is left."""
        try:
            names = os.listdir(folder)
        except FileNotFoundError:
            return
        for name in names:
            self.discard(folder / name)
        try:
            self._os.rmdir(folder)
        except OSError as e:
            if e.errno not in _NO_SPACE and e.errno not in (errno.EIO, errno.ENOTEMPTY):
                raise

    def move(self, path: Path, final: Path) -> None:
        """Give a file its name in another folder, durably, and then take the old one: after a crash it has one of them, or both."""
        self.check()
        with contextlib.suppress(
            FileExistsError
        ):  # a move that a crash cut short; the names of packs tell their content
            self._guard(final, lambda: self._os.link(path, final))
        self.sync_folder(final.parent)
        self._guard(path, lambda: self._os.unlink(path))
        self.sync_folder(path.parent)

    def remove(self, path: Path) -> None:
        """Unlink a file; unlike `discard` an error is one. The caller syncs the folder once for all that it removed."""
        self.check()
        self._guard(path, lambda: self._os.unlink(path))

    def discard(self, path: Path) -> None:
        """Remove a file that nothing refers to; one that is already gone is fine."""
        try:
            self._os.unlink(path)
        except FileNotFoundError:
            return
        except OSError as e:
            # A leftover temporary file is a crash state that the next open cleans; it must not hide the first error.
            if e.errno not in _NO_SPACE and e.errno != errno.EIO:
                raise

    def barrier(self, path: Path, call: Callable[[], Any]) -> None:
        """Run a sync call; a failure poisons the store for good."""
        self.check()
        try:
            call()
        except OSError as e:
            code = "E9-NOSPACE" if e.errno in _NO_SPACE else "E9-POISONED"
            self.poison = RecurosError(
                code,
                f"syncing {path} failed: {e.strerror}; the store takes no more writes",
                hint="free space or check the disk, then open the store again: recuros kfs verify",
            )
            raise self.poison from e

    def _guard(self, path: Path, call: Callable[[], Any]) -> Any:
        """Run a call that writes; a full disk becomes E9-NOSPACE, an I/O error poisons, anything else passes through."""
        try:
            return call()
        except OSError as e:
            if e.errno in _NO_SPACE:
                raise RecurosError(
                    "E9-NOSPACE",
                    f"no space to write {path}: {e.strerror}; everything acknowledged is intact",
                    hint="free space on that file system, then try again",
                ) from e
            if e.errno == errno.EIO:
                self.poison = RecurosError(
                    "E9-POISONED",
                    f"writing {path} failed: {e.strerror}; the store takes no more writes",
                    hint="check the disk",
                )
                raise self.poison from e
            raise

    def _write_all(self, fd: int, buffers: Sequence[Buffer], offset: int) -> int:
        """Write every buffer from `offset` on, however many calls it takes; returns the end offset."""
        views = [view for view in map(byte_view, buffers) if view.nbytes]
        if len(views) == 1 and views[0].nbytes < _WRITEBACK_BYTES:  # a frame of the ledger, on the path of every append
            written = self._os.pwritev(fd, views, offset)
            offset += written
            views = [views[0][written:]] if written < views[0].nbytes else []
        while views:
            chunk: list[memoryview] = []
            room = _WRITEBACK_BYTES
            for view in views[:_BUFFERS_PER_CALL_MAX]:
                chunk.append(view[:room])
                room -= chunk[-1].nbytes
                if not room:
                    break
            written = self._os.pwritev(fd, chunk, offset)
            if not room:
                _begin_writeback(fd, offset, written)
            offset += written
            done = 0
            while done < len(views) and written >= views[done].nbytes:
                written -= views[done].nbytes
                done += 1
            del views[:done]
            if written:
                views[0] = views[0][written:]
        return offset


@functools.cache
def _sync_file_range() -> Callable[..., int] | None:
    """The C library's, where it has one."""
    import ctypes  # only who writes much needs it

    call = getattr(ctypes.CDLL(None), "sync_file_range", None)
    if call is not None:
        call.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)
    return call


def _begin_writeback(fd: int, offset: int, size_bytes: int) -> None:
    """Let the disk begin with these bytes while the next ones are prepared. A hint: nothing rests on it, the sync comes later."""
    call = _sync_file_range()
    if call is not None:
        call(fd, offset, size_bytes, _SYNC_FILE_RANGE_WRITE)


class AppendFile:
    """A file that only grows: each `append` is one write at the known end and one fdatasync."""

    def __init__(self, files: Files, path: Path, end: int, doubtful: int | None = None) -> None:
        """Open `path`, cut it to `end` bytes if it is longer, and sync it: what is in it counts as durable from here on.

        The bytes from `doubtful` on (default: none) are written again first. If a sync of them failed in an earlier process, they
        may be in memory only, in pages that count as clean: a sync alone would then not write them and report success.
        """
        self._files = files
        self._path = path
        self._fd = os.open(path, os.O_WRONLY | _FLAGS)
        self.end = end
        try:
            if os.fstat(self._fd).st_size > end:
                files._guard(path, lambda: files._os.ftruncate(self._fd, end))
            if doubtful is not None:
                self._write_again(doubtful)
            files.barrier(path, lambda: files._os.fsync(self._fd))
        except BaseException:
            os.close(self._fd)
            raise

    def _write_again(self, start: int) -> None:
        with self._path.open("rb") as source:
            source.seek(start)
            while start < self.end and (chunk := source.read(min(_CHUNK_BYTES, self.end - start))):
                write = functools.partial(self._files._write_all, self._fd, [chunk], start)
                start = self._files._guard(self._path, write)

    def append(self, buffers: Sequence[Buffer]) -> None:
        """Write and fdatasync. When the write fails the file is cut back, so no torn bytes stay behind it."""
        files = self._files
        files.check()
        try:
            end = files._guard(self._path, lambda: files._write_all(self._fd, buffers, self.end))
        except BaseException:
            try:
                files._os.ftruncate(self._fd, self.end)
            except OSError as e:
                files.poison = RecurosError("E9-POISONED", f"cutting {self._path} back failed: {e.strerror}")
            raise
        files.barrier(self._path, lambda: files._os.fdatasync(self._fd))
        self.end = end

    def close(self) -> None:
        """Close the descriptor; nothing is pending."""
        os.close(self._fd)


class TempFile:
    """A temporary file that is written and synced in pieces, for whoever must not stay away long; then published or discarded."""

    def __init__(self, files: Files, folder: Path) -> None:
        files.check()
        self._files = files
        self.path = folder / f"{TEMP_PREFIX}{os.urandom(8).hex()}"
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | _FLAGS
        self._fd = files._guard(self.path, lambda: files._os.open(self.path, flags, 0o644))
        self._end = 0
        self._unsynced_bytes = 0
        self._syncing: threading.Thread | None = None
        self._failure: BaseException | None = None

    def write(self, data: Buffer) -> Iterator[None]:
        """Write at the end; syncs what has gathered, in steps: a sync of everything at the end would take as long as the whole file."""
        start = self._end
        self._end = self._files._guard(self.path, lambda: self._files._write_all(self._fd, [data], start))
        self._unsynced_bytes += self._end - start
        yield
        if self._unsynced_bytes >= _SYNC_BYTES:
            yield from self.sync()

    def sync(self) -> Iterator[None]:
        """Sync all that was written. A slow disk keeps a thread waiting, not the caller, who gets a step every few milliseconds."""
        self._unsynced_bytes = 0
        self._syncing = threading.Thread(target=self._sync, daemon=True)
        self._syncing.start()
        while self._syncing.is_alive():
            self._syncing.join(_WAIT_S)
            yield
        if self._failure is not None:
            raise self._failure
        self._files.check()

    def _sync(self) -> None:
        try:
            self._files.barrier(self.path, lambda: self._files._os.fsync(self._fd))
        except BaseException as e:  # noqa: BLE001 - whatever it is, it is the caller's: what was not synced must not be published
            self._failure = e

    def publish(self, final: Path) -> None:
        """Give the file, all of which is synced, its name, and make the name durable."""
        assert not self._unsynced_bytes, f"{self.path} is published before its last sync"
        self._close()
        self._files.publish(self.path, final)

    def discard(self) -> None:
        """Remove it; a file that was published stays."""
        self._close()
        self._files.discard(self.path)

    def _close(self) -> None:
        if self._syncing is not None:
            self._syncing.join()  # its descriptor must not become another file's
            self._syncing = None
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
