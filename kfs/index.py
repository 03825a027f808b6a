"""`index.sqlite`: which pack holds which object, so that opening a store with thousands of packs reads no header.

Responsible for: a hint, and nothing more. Whoever uses it reads the header of the pack that it names and believes that; what it does not
know is looked for in the headers. So a missing, damaged, older or foreign index costs time and is never wrong. Refuses: being evidence;
an index that cannot be used is made anew by the next writer, and readers (which may lack the permission) do without.

    meta(name TEXT PRIMARY KEY, value TEXT)             store = the store's id
    pack(n INTEGER PRIMARY KEY, digest BLOB UNIQUE)     packs that are indexed whole; an n is never used twice
    object(id BLOB PRIMARY KEY, pack INTEGER)           the 32 bytes of an object id -> pack.n; rows of a pack that left are dead
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

from kfs.ids import ALGORITHM, ID_LENGTH
from kfs.pack import Pack

VERSION: Final = 1  # PRAGMA user_version
_TABLES: Final = """
CREATE TABLE meta(name TEXT PRIMARY KEY, value TEXT);
CREATE TABLE pack(n INTEGER PRIMARY KEY AUTOINCREMENT, digest BLOB UNIQUE NOT NULL);
CREATE TABLE object(id BLOB PRIMARY KEY, pack INTEGER NOT NULL) WITHOUT ROWID;
"""
_BUSY_S: Final = 0.05
_PREFIX: Final = len(ALGORITHM) + 1
_IDS_PER_QUERY_MAX: Final = 500


class Index:
    """An open index. `failed` says why it is of no use any more; it then knows nothing."""

    def __init__(self, path: Path, store_id: str, *, write: bool) -> None:
        """Open it; a writer makes it when it is not there. Never raises for what is wrong with the file: see `failed`."""
        self.path = path
        self.failed = ""
        self._store_id = store_id
        self._db: sqlite3.Connection | None = None
        try:
            if write and not path.exists():
                self._create()
            self._db = self._connect("rw" if write else "ro")
            self._check()
        except (sqlite3.Error, OSError, ValueError) as e:  # ValueError: an error message that is not UTF-8
            self._fail(str(e))

    def _connect(self, mode: str) -> sqlite3.Connection:
        address = f"{self.path.absolute().as_uri()}?mode={mode}"
        db = sqlite3.connect(address, uri=True, timeout=_BUSY_S, isolation_level=None)
        # Nothing waits for the disk: after a power cut the file may be anything, and is then of no use, which is all that can happen.
        db.execute("PRAGMA synchronous=OFF")
        return db

    def _create(self) -> None:
        db = self._connect("rwc")
        try:
            db.execute("BEGIN")
            for statement in _TABLES.strip().splitlines():
                db.execute(statement)
            db.execute("INSERT INTO meta VALUES ('store', ?)", (self._store_id,))
            db.execute(f"PRAGMA user_version={VERSION}")
            db.execute("COMMIT")
        finally:
            db.close()

    def _check(self) -> None:
        assert self._db is not None
        (version,) = self._db.execute("PRAGMA user_version").fetchone()
        if version != VERSION:
            raise sqlite3.DatabaseError(f"it is of version {version}; this program uses {VERSION}")
        row = self._db.execute("SELECT value FROM meta WHERE name='store'").fetchone()
        if row != (self._store_id,):
            raise sqlite3.DatabaseError("it belongs to another store")

    def _fail(self, why: str) -> None:
        self.failed = why or "it cannot be used"
        self.close()

    def close(self) -> None:
        """Close the file."""
        if self._db is not None:
            self._db.close()
            self._db = None

    def _rows(self, query: str, values: Sequence[bytes | int] = ()) -> list[tuple[bytes, ...]]:
        if self._db is None:
            return []
        try:
            return self._db.execute(query, values).fetchall()
        except (sqlite3.Error, ValueError) as e:
            self._fail(str(e))
            return []

    def digests(self) -> set[str]:
        """The packs that are indexed."""
        return {digest.hex() for (digest,) in self._rows("SELECT digest FROM pack") if isinstance(digest, bytes)}

    def find(self, ids: Iterable[str]) -> dict[str, str]:
        """Where objects may lie: id -> digest of a pack; those it does not know are left out."""
        wanted = [bytes.fromhex(name[_PREFIX:]) for name in ids if len(name) == ID_LENGTH]
        found: dict[str, str] = {}
        for start in range(0, len(wanted), _IDS_PER_QUERY_MAX):
            part = wanted[start : start + _IDS_PER_QUERY_MAX]
            marks = ",".join("?" * len(part))
            query = f"SELECT id, digest FROM object JOIN pack ON pack = n WHERE id IN ({marks})"
            found |= {f"{ALGORITHM}:{key.hex()}": digest.hex() for key, digest in self._rows(query, part)}
        return found

    def beginning_with(self, prefix: str) -> list[str]:
        """Ids that begin with `prefix`, which has an `ALGORITHM:`."""
        digits = prefix[_PREFIX:]
        low, high = bytes.fromhex(digits.ljust(64, "0")), bytes.fromhex(digits.ljust(64, "f"))
        return [
            f"{ALGORITHM}:{row[0].hex()}"
            for row in self._rows("SELECT id FROM object WHERE id BETWEEN ? AND ?", (low, high))
        ]

    def update(self, add: Iterable[Pack], drop: Iterable[str] = ()) -> bool:
        """Index packs and forget others, all or nothing; False when the file cannot be written now (a reader is in it)."""
        if self._db is None:
            return False
        db = self._db
        try:
            db.execute("BEGIN IMMEDIATE")
            for digest in drop:
                db.execute("DELETE FROM pack WHERE digest = ?", (bytes.fromhex(digest),))
            for pack in add:
                (n,) = db.execute(
                    "INSERT INTO pack(digest) VALUES (?) RETURNING n", (bytes.fromhex(pack.digest),)
                ).fetchone()
                rows = [(bytes.fromhex(name[_PREFIX:]), n) for name in pack.header if len(name) == ID_LENGTH]
                db.executemany("INSERT OR REPLACE INTO object VALUES (?, ?)", rows)
            db.execute("COMMIT")
        except sqlite3.OperationalError as e:
            if db.in_transaction:
                db.execute("ROLLBACK")
            if "locked" not in str(e):
                self._fail(str(e))
            return False
        except (sqlite3.Error, ValueError) as e:
            self._fail(str(e))
            return False
        return True


def remove(path: Path) -> None:
    """Delete an index, and the journal of an interrupted write with it."""
    for name in (path, path.with_name(path.name + "-journal")):
        name.unlink(missing_ok=True)
