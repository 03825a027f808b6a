"""A store as an fsspec filesystem: `kfs://RUN!/snapshots/last/student/head/weight`.

Responsible for: reading snapshots, records and objects through everything that speaks fsspec (pandas, dask, `fsspec.open`), every
byte checked against its id. Refuses: writing (EROFS); guessing: what the store does not hold is FileNotFoundError, what does not
match its digest is an OSError with EIO.

    kfs://PATH!/snapshots/REF/role/module/tensor     the bytes of a tensor; REF as everywhere: an id, a name, w12, last
    kfs://PATH!/records/SEQ                          the stored bytes of a record: what its leaf hash covers
    kfs://PATH!/objects/ID                           the bytes of an object

PATH is a run directory or the store inside it. The part before `!` may be left out when the filesystem was made with `store=`.
"""

from __future__ import annotations

import errno
import io
import os
from pathlib import Path
from typing import Any, Final

from fsspec.spec import AbstractFileSystem

from kfs import records, refs
from kfs.records import RecordKind
from kfs.store import Store
from syscalls.errors import RecurosError

TOP: Final = ("objects", "records", "snapshots")
SEPARATOR: Final = "!"


class KnowledgeFileSystem(AbstractFileSystem):  # type: ignore[misc]  # fsspec carries no types
    """Read-only; one instance a store. `refresh()` is called by every listing, so that a live writer's work is seen."""

    protocol = "kfs"
    root_marker = ""
    cachable = False  # a store grows, and its file descriptors belong to whoever opened it

    def __init__(self, store: str | os.PathLike[str] = "", **options: Any) -> None:
        super().__init__(**options)
        if not str(store):
            raise ValueError(
                f"kfs: no store is named; use kfs://PATH{SEPARATOR}/... or KnowledgeFileSystem(store=PATH)"
            )
        path = Path(store).expanduser()
        with _errors(str(path)):
            self._store = Store.open_reader(path if (path / "FORMAT").exists() else path / "store")

    @classmethod
    def _strip_protocol(cls, path: Any) -> Any:
        """The path inside the store: no protocol, no store, no slash at either end."""
        if isinstance(path, list):
            return [cls._strip_protocol(item) for item in path]
        text = os.fspath(path).removeprefix("kfs://")
        _, separator, inside = text.rpartition(SEPARATOR)
        return (inside if separator else text).strip("/")

    @staticmethod
    def _get_kwargs_from_urls(path: str) -> dict[str, Any]:
        store, separator, _ = path.removeprefix("kfs://").rpartition(SEPARATOR)
        return {"store": store} if separator else {}

    def close(self) -> None:
        """Close the store."""
        self._store.close()

    # --- looking -------------------------------------------------------------------------------------------------------

    def info(self, path: str, **options: Any) -> dict[str, Any]:
        """`name`, `size`, `type`; files also say their `id`, `dtype`, `shape` and `kind`, or what record they are."""
        inside = self._strip_protocol(path)
        with _errors(inside):
            parts = inside.split("/") if inside else []
            if not parts or (len(parts) == 1 and parts[0] in TOP):
                return _folder(inside)
            match parts:
                case ["records", text]:
                    return self._record(inside, _number(text))
                case ["objects", text]:
                    return self._object(inside, self._store.resolve(text))
                case ["snapshots", *rest]:
                    return self._in_snapshot(inside, rest)
        raise FileNotFoundError(errno.ENOENT, "kfs: no such path", inside)

    def ls(self, path: str, detail: bool = True, **options: Any) -> list[Any]:
        """The entries of a folder, or the file itself."""
        inside = self._strip_protocol(path)
        with _errors(inside):
            self._store.refresh()
            found = self._list(inside)
        return found if detail else [entry["name"] for entry in found]

    def _list(self, inside: str) -> list[dict[str, Any]]:
        match inside.split("/") if inside else []:
            case []:
                return [_folder(name) for name in TOP]
            case ["records"]:
                return [self._record(f"records/{seq}", seq) for seq in range(self._store.size)]
            case ["objects"]:
                return [self._object(f"objects/{name}", name) for name, _ in self._store.objects()]
            case ["snapshots"]:
                return [_folder(f"snapshots/{name}") for name in self._snapshots()]
            case ["snapshots", *rest]:
                entry = self._in_snapshot(inside, rest)
                return self._children(inside, rest) if entry["type"] == "directory" else [entry]
        return [self.info(inside)]

    def _snapshots(self) -> list[str]:
        """Every committed snapshot by id, and every name that was given to one."""
        committed = {
            r.result_snap
            for r in self._store.records()
            if r.kind is RecordKind.WINDOW_COMMIT and r.result_snap is not None
        }
        return [*sorted(committed), *sorted(refs.names(self._store))]

    def _leaves(self, ref: str) -> dict[str, str]:
        return self._store.snapshot(refs.resolve(self._store, ref))

    def _in_snapshot(self, inside: str, rest: list[str]) -> dict[str, Any]:
        leaves = self._leaves(rest[0])
        path = "/".join(rest[1:])
        if path in leaves:
            return self._object(inside, leaves[path])
        if not path or any(leaf.startswith(f"{path}/") for leaf in leaves):
            return _folder(inside)
        raise FileNotFoundError(errno.ENOENT, "kfs: the snapshot has no such path", inside)

    def _children(self, inside: str, rest: list[str]) -> list[dict[str, Any]]:
        prefix = "".join(f"{part}/" for part in rest[1:])
        found: dict[str, dict[str, Any]] = {}
        for path, ref in sorted(self._leaves(rest[0]).items()):
            if path.startswith(prefix):
                name, slash, _ = path[len(prefix) :].partition("/")
                here = f"{inside}/{name}"
                if here not in found:
                    found[here] = _folder(here) if slash else self._object(here, ref)
        return list(found.values())

    def _record(self, name: str, seq: int) -> dict[str, Any]:
        data = self._store.record_bytes(seq)
        record = records.decode(data)
        return {
            "name": name,
            "size": len(data),
            "type": "file",
            "seq": record.seq,
            "kind": record.kind.value,
            "mtime": record.t_wall / 1e9,
        }

    def _object(self, name: str, ref: str) -> dict[str, Any]:
        _, entry = self._store.entry(ref)
        return {
            "name": name,
            "size": entry.length,
            "type": "file",
            "id": ref,
            "dtype": entry.dtype,
            "shape": list(entry.shape),
            "kind": entry.kind,
        }

    # --- reading -------------------------------------------------------------------------------------------------------

    def _open(self, path: str, mode: str = "rb", **options: Any) -> io.BytesIO:
        """The verified bytes as a file."""
        if mode != "rb":
            raise OSError(errno.EROFS, "kfs: a store is read-only here; the archivist is its one writer", path)
        return io.BytesIO(self.cat_file(path))

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **options: Any) -> bytes:
        """The verified bytes, or a slice of them."""
        inside = self._strip_protocol(path)
        found = self.info(inside)
        if found["type"] == "directory":
            raise IsADirectoryError(errno.EISDIR, "kfs: is a folder", inside)
        with _errors(inside):
            data = self._store.record_bytes(found["seq"]) if "seq" in found else self._store.get(found["id"]).data
        return bytes(data[start:end])

    def ukey(self, path: str) -> str:
        """Content never changes under an id."""
        found = self.info(path)
        return str(found.get("id") or found["name"])

    def modified(self, path: str) -> Any:
        """When the archivist stamped a record; objects have no time."""
        from datetime import UTC, datetime

        found = self.info(path)
        if "mtime" not in found:
            raise NotImplementedError("kfs: only records have a time")
        return datetime.fromtimestamp(found["mtime"], UTC)


class _errors:  # noqa: N801 - used as a statement: `with _errors(path):`
    """Typed errors of the store as the errors of a filesystem."""

    def __init__(self, path: str) -> None:
        self._path = path

    def __enter__(self) -> None:
        return

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if not isinstance(error, RecurosError):
            return
        if error.code.startswith(("E4-", "E2-USAGE", "E75-")):
            raise FileNotFoundError(errno.ENOENT, f"kfs: {error.message}", self._path) from error
        raise OSError(errno.EIO, f"kfs: {error.message}", self._path) from error


def _folder(name: str) -> dict[str, Any]:
    return {"name": name, "size": 0, "type": "directory"}


def _number(text: str) -> int:
    if not text.isdecimal():
        raise RecurosError("E4-NOENT", f"no record is called {text!r:.40}; records are numbered from 0")
    return int(text)
