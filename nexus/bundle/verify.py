"""Checks a bundle's files against its manifest: in full, in parallel, or by the stamp of an earlier full check.

A stamp lies in the user's cache, not in the bundle, so that nobody brings one along. It holds the bundle's id and what the file system says
of each file (device, inode, size, mtime, ctime). A file that was written since has another ctime, which no ordinary call sets back.

Responsible for: naming every file that is missing, altered or unlisted. Refuses: touching a gated file (not even its size is looked at)
unless it is told that the gate is open.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from nexus.bundle import format as form
from syscalls.errors import RecurosError

STAMP_SCHEMA: Final = "nexus-stamp/1"
CHUNK: Final = 1 << 20
SETTLED_NS: Final = 50_000_000
PROBLEMS_MAX: Final = 100


@dataclass
class Verdict:
    """What a check found. `how`: "full" or "stamp"; `skipped`: gated files that nobody looked at."""

    bundle_id: str
    how: str
    files: int = 0
    bytes: int = 0
    problems: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """No problem."""
        return not self.problems

    def raise_if_bad(self, bundle: Path) -> None:
        """E9-INTEGRITY that names every bad file."""
        if self.problems:
            more = f" and {len(self.problems) - 5} more" if len(self.problems) > 5 else ""
            raise RecurosError(
                "E9-INTEGRITY",
                f"{bundle}: {'; '.join(self.problems[:5])}{more}",
                hint="fetch the bundle again; nothing of it was used",
                details={"problems": self.problems[:PROBLEMS_MAX]},
            )


def verify(bundle: Path, manifest: form.Manifest, *, gate_open: bool = False, threads: int | None = None) -> Verdict:
    """Hash every file (but gated ones with the gate closed), and look for files that the manifest does not list."""
    paths, skipped = _wanted(manifest, gate_open)
    verdict = Verdict(manifest.bundle_id, "full", skipped=skipped)
    verdict.problems += unlisted(bundle, manifest)
    workers = threads or min(8, os.cpu_count() or 1)
    by_size = sorted(paths, key=lambda path: -manifest.files[path][1])
    with ThreadPoolExecutor(workers) as pool:
        for path, problem in zip(by_size, pool.map(lambda p: check_file(bundle, manifest, p), by_size), strict=True):
            verdict.files += 1
            verdict.bytes += manifest.files[path][1]
            if problem:
                verdict.problems.append(problem)
    verdict.problems.sort()
    return verdict


def check_file(bundle: Path, manifest: form.Manifest, path: str) -> str:
    """What is wrong with one listed file, "" if nothing is."""
    sha, size = manifest.files[path]
    try:
        handle = open_inside(bundle, path)
    except OSError as error:
        return f"{path} cannot be read ({error.strerror})"
    with os.fdopen(handle, "rb") as file:
        about = os.fstat(file.fileno())
        if not stat.S_ISREG(about.st_mode):
            return f"{path} is not a file"
        if about.st_size != size:
            return f"{path} has {about.st_size} bytes, not {size}"
        found = hashlib.sha256()
        buffer = bytearray(CHUNK)
        view = memoryview(buffer)
        while count := file.readinto(buffer):
            found.update(view[:count])
    return "" if found.hexdigest() == sha else f"{path} does not match its SHA-256"


def open_inside(bundle: Path, path: str) -> int:
    """A file's descriptor; a link that leads elsewhere is not followed."""
    return os.open(bundle / path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)


def unlisted(bundle: Path, manifest: form.Manifest) -> list[str]:
    """Files and links that the manifest does not list. Names only: no listed file is looked at."""
    found: list[str] = []
    known = {*manifest.files, form.MANIFEST}
    folders = {str(parent) for path in known for parent in Path(path).parents} - {"."}

    def walk(folder: Path, prefix: str) -> None:
        with os.scandir(folder) as entries:
            for entry in entries:
                path = prefix + entry.name
                if path in known or len(found) >= PROBLEMS_MAX:
                    continue
                if path not in folders:
                    found.append(f"{path} is not in the manifest")
                elif entry.is_symlink() or not entry.is_dir(follow_symlinks=False):
                    found.append(f"{path} is not a directory")
                else:
                    walk(Path(entry.path), path + "/")

    walk(bundle, "")
    return found


def _wanted(manifest: form.Manifest, gate_open: bool) -> tuple[list[str], list[str]]:
    closed = frozenset() if gate_open else manifest.gated_paths
    return [path for path in manifest.files if path not in closed], sorted(closed)


# Stamps


def stamp_dir() -> Path:
    """Where stamps lie: XDG_CACHE_HOME, else ~/.cache."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "recuros" / "nexus-stamps"


def stamp_path(bundle: Path) -> Path:
    """The stamp of the bundle at this place."""
    return stamp_dir() / f"{hashlib.sha256(os.fsencode(bundle.resolve())).hexdigest()[:32]}.json"


def stamp(bundle: Path, manifest: form.Manifest, check: Callable[[], Verdict] | None = None) -> Verdict:
    """Check in full (`check`, which raises, or `verify`), then remember that it was good.

    Gated files are left out: they are hashed whenever they are opened.
    """
    paths, _ = _wanted(manifest, False)
    _settle(bundle, paths)
    try:
        before = _facts(bundle, paths)
    except OSError:
        before = {}  # the check names what is missing
    verdict = verify(bundle, manifest) if check is None else check()
    verdict.raise_if_bad(bundle)
    if _facts(bundle, paths) != before:
        raise RecurosError("E75-AGAIN", f"{bundle} changed while it was checked", hint="verify it again")
    folder = stamp_dir()
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    target = stamp_path(bundle)
    part = target.with_suffix(f".{os.getpid()}")
    data = {"schema": STAMP_SCHEMA, "bundle": manifest.bundle_id, "files": before}
    handle = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(handle, "w") as file:
        json.dump(data, file)
    part.replace(target)
    return verdict


def by_stamp(bundle: Path, manifest: form.Manifest) -> Verdict | None:
    """A verdict without reading: None where there is no stamp that holds for the files as they are now."""
    paths, skipped = _wanted(manifest, False)
    target = stamp_path(bundle)
    try:
        about = target.lstat()
        if about.st_uid != os.getuid() or about.st_mode & 0o022 or not stat.S_ISREG(about.st_mode):
            return None
        data = json.loads(target.read_bytes())
        if data["schema"] != STAMP_SCHEMA or data["bundle"] != manifest.bundle_id:
            return None
        if data["files"] != _facts(bundle, paths):
            return None
    except (OSError, ValueError, KeyError, TypeError):
        return None
    total = sum(manifest.files[path][1] for path in paths)
    return Verdict(manifest.bundle_id, "stamp", len(paths), total, unlisted(bundle, manifest), skipped)


def _facts(bundle: Path, paths: Iterable[str]) -> dict[str, list[int]]:
    found = {}
    for path in paths:
        about = os.lstat(bundle / path)
        found[path] = [about.st_dev, about.st_ino, about.st_mode, about.st_size, about.st_mtime_ns, about.st_ctime_ns]
    return found


def _settle(bundle: Path, paths: Iterable[str]) -> None:
    """Wait until the newest change is older than the file system's clock can blur, so that a later write has another ctime."""
    try:
        newest = max((facts[-1] for facts in _facts(bundle, paths).values()), default=0)
    except OSError:
        return  # the check that follows names the file
    wait = newest + SETTLED_NS - time.time_ns()
    if 0 < wait <= SETTLED_NS:
        time.sleep(wait / 1e9)


def checked(bundle: Path, manifest: form.Manifest, *, full: bool = False) -> Verdict:
    """By the stamp where it holds, else in full; raises for a bad bundle."""
    verdict: Any = None if full else by_stamp(bundle, manifest)
    verdict = verdict or verify(bundle, manifest)
    verdict.raise_if_bad(bundle)
    found: Verdict = verdict
    return found
