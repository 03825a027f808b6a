"""Which packs a store has, and which of them holds an object.

Responsible for: the folder of packs, headers as far as they are needed, and the index as a hint (see `kfs.index`). Refuses: to
take the index's word: an object is where the header of a pack says it is, and absent only when no header names it.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from typing import Final

from kfs import pack as packs
from kfs.index import Index, remove
from kfs.layout import Layout, pack_digest
from kfs.pack import Pack
from syscalls.errors import RecurosError

INDEX_PACKS_MIN: Final = 64
"""With fewer packs than this outside the index their headers are read as fast."""
INDEX_ROWS_MAX: Final = 4_000
"""Objects that one update of the index takes in: a few milliseconds."""


class Catalog:
    """The packs of one open store."""

    def __init__(self, layout: Layout, store_id: str, *, use_index: bool = True, write: bool = False) -> None:
        """List the packs; read the headers of those that the index does not know."""
        self._layout = layout
        self._store_id = store_id
        self._write = write
        self._read: dict[str, Pack] = {}  # packs whose header was read
        self._where: dict[str, Pack] = {}  # every object of those
        self._unread: set[str] = set()  # indexed packs whose header nobody needed so far
        self._stale: set[str] = set()  # indexed packs that are gone
        # Packs whose header cannot be read: name -> why. Their objects are absent; `kfs verify` reports them.
        self.damaged: dict[str, RecurosError] = {}
        self._index: Index | None = None
        self._indexed: set[str] = set()
        self._index_refused = False  # the file cannot be made; not tried again
        if use_index and layout.index.exists():
            self._open_index()
        self.refresh()

    def _open_index(self) -> None:
        self._index = Index(self._layout.index, self._store_id, write=self._write)
        self._indexed = self._index.digests()
        self._check_index()

    def _check_index(self) -> bool:
        """Whether there is an index that works; one that failed is forgotten, and headers take its place."""
        if self._index is not None and self._index.failed:
            self._index, self._indexed = None, set()
            self._stale.clear()
            self.read_all()
        return self._index is not None

    def close(self) -> None:
        """Close the index."""
        if self._index is not None:
            self._index.close()

    # --- packs -------------------------------------------------------------------------------------------------------

    def refresh(self) -> None:
        """See which packs have come and gone."""
        present: set[str] = set()
        for name in os.listdir(self._layout.packs):
            digest = pack_digest(name)
            if digest is not None:
                present.add(digest)
        for name in [name for name in self.damaged if name[:64] not in present]:
            del self.damaged[name]
        gone = (self._read.keys() | self._unread) - present
        fresh = present - self._read.keys() - self._unread
        self._unread |= fresh & self._indexed
        for digest in sorted(fresh - self._indexed):
            self._read_header(digest)
        if gone:
            self.drop(gone)
        self._stale = self._indexed - present

    def _read_header(self, digest: str) -> None:
        path = self._layout.pack(digest)
        if path.name in self.damaged:
            return
        try:
            self.add(packs.read_header(path))
        except FileNotFoundError:
            self._unread.discard(digest)  # moved to trash between the listing and now
        except RecurosError as e:
            self._unread.discard(digest)
            self.damaged[path.name] = e

    def read_all(self) -> None:
        """Read every header that was not read yet."""
        for digest in sorted(self._unread):
            self._read_header(digest)

    def packs(self) -> list[Pack]:
        """Every pack whose header can be read."""
        self.read_all()
        return list(self._read.values())

    def digests(self) -> set[str]:
        """The packs there are, without reading any header."""
        return self._read.keys() | self._unread

    def pack(self, digest: str) -> Pack | None:
        """One pack; None when it is not there or cannot be read."""
        if digest in self._unread:
            self._read_header(digest)
        return self._read.get(digest)

    def add(self, pack: Pack) -> None:
        """Take a pack in; of an object that lies in two packs the one added last is used."""
        self._unread.discard(pack.digest)
        self._read[pack.digest] = pack
        self._where.update(dict.fromkeys(pack.header, pack))

    def drop(self, digests: Iterable[str]) -> None:
        """Forget packs that left the folder; what other packs hold as well is found there from now on."""
        orphans: set[str] = set()
        for digest in digests:
            self._unread.discard(digest)
            gone = self._read.pop(digest, None)
            if gone is not None:
                orphans.update(name for name in gone.header if self._where.get(name) is gone)
            if digest in self._indexed:
                self._stale.add(digest)
        for name in orphans:
            del self._where[name]
        if orphans:
            for pack in self._read.values():
                self._where.update(dict.fromkeys(orphans & pack.header.keys(), pack))

    # --- objects -----------------------------------------------------------------------------------------------------

    def find(self, name: str) -> Pack | None:
        """The pack that holds an object, as far as headers that were read and the index say."""
        found = self._where.get(name)
        if found is None and self._unread:
            self._look_up([name])
            found = self._where.get(name)
        return found

    def find_surely(self, name: str) -> Pack | None:
        """As `find`, and None only when no header names the object."""
        found = self.find(name)
        if found is None:
            self.refresh()
            found = self.find(name)
        if found is None and self._unread:
            self.read_all()
            found = self._where.get(name)
        return found

    def known(self, names: Iterable[str]) -> set[str]:
        """Those of `names` that the store holds; one that the index hides is left out."""
        wanted = list(names)
        if self._unread:
            self._look_up([name for name in wanted if name not in self._where])
        return {name for name in wanted if name in self._where}

    def _look_up(self, names: list[str]) -> None:
        if self._index is None:
            return
        hints = self._index.find(names)
        if not self._check_index():
            return
        for digest in set(hints.values()):
            if digest in self._unread:
                self._read_header(digest)

    def beginning_with(self, prefix: str) -> list[str]:
        """Ids of objects that begin with `prefix`."""
        found = {name for name in self._where if name.startswith(prefix)}
        if self._index is not None and self._unread:
            found |= {name for name in self._index.beginning_with(prefix) if self.find(name) is not None}
            self._check_index()
        return sorted(found)

    def names(self) -> list[str]:
        """The ids of all objects, in order."""
        self.read_all()
        return sorted(self._where)

    # --- the index ---------------------------------------------------------------------------------------------------

    def index_due(self) -> bool:
        """Whether enough packs lie outside the index, or have left it, that bringing it up to date pays."""
        outside = len(self._read.keys() | self._unread) - len(self._indexed - self._stale)
        return not self._index_refused and outside + len(self._stale) >= INDEX_PACKS_MIN

    def update_index(self, rows_max: int = INDEX_ROWS_MAX) -> bool:
        """Bring the index up to date as far as `rows_max` objects go; whether there is more to do. Disk errors only end it."""
        if self._index is None:
            try:
                remove(self._layout.index)
                self._index = Index(self._layout.index, self._store_id, write=True)
            except OSError:
                self._index_refused = True
                return False
            self._indexed = set()
            if self._index.failed:
                self._index, self._index_refused = None, True
                return False
        todo: list[Pack] = []
        rows = 0
        for digest in sorted(self._read.keys() - self._indexed):
            if todo and rows + len(self._read[digest].header) > rows_max:
                break
            todo.append(self._read[digest])
            rows += len(self._read[digest].header)
        drop = set(self._stale)
        if not self._index.update(todo, drop):
            self._check_index()
            return False
        self._indexed = (self._indexed - drop) | {pack.digest for pack in todo}
        self._stale -= drop
        return bool(self._read.keys() - self._indexed)

    def rebuild_index(self) -> None:
        """Make the index anew from the headers, whole."""
        self.read_all()
        if self._index is not None:
            self._index.close()
        self._index, self._indexed, self._stale = None, set(), set()
        while self.update_index(1 << 20):
            pass

    @staticmethod
    def remove_index(layout: Layout) -> None:
        """Delete the index; it is never missed."""
        remove(layout.index)

    def index_problem(self) -> str:
        """What is wrong with the index, judged by every header; empty when it is right or there is none."""
        if not self._layout.index.exists():
            return ""
        index = Index(self._layout.index, self._store_id, write=False)
        try:
            indexed = index.digests()
            if index.failed:
                return index.failed
            self.read_all()
            if gone := indexed - self._read.keys():
                return f"it names {len(gone)} packs that are not there"
            for pack in self._read.values():
                if pack.digest in indexed and (lost := pack.header.keys() - index.find(pack.header).keys()):
                    return index.failed or f"it lacks {len(lost)} objects of pack {pack.digest}"
            return index.failed
        finally:
            index.close()

    def __iter__(self) -> Iterator[Pack]:
        return iter(self.packs())
