"""Compiled probe programs in the store: object code of kind `cache`, found by what it was made from.

Responsible for: `get` and `put` by key (64 hexadecimal digits, see `probes.jit_host.cache_key`), over objects that begin with
their key. Putting waits until `flush`, which the learner calls between windows. Refuses: nothing that is not there; a cache may
lose everything, and what is damaged counts as not there.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from kfs.store import Store
from syscalls.errors import RecurosError
from syscalls.pages import pack_arrays
from syscalls.serve import Kernel

KIND: Final = "cache"
MAGIC: Final = b"recuros object code\n"
KEY_BYTES: Final = 32
OBJECTS_MAX: Final = 1_024
"""Objects looked at when the index is made; more are not found, and compiled again."""


class ObjectCode:
    """Implements the compiler's cache over the archivist and a reader of the store."""

    def __init__(self, kernel: Kernel, reader: Callable[[], Store]) -> None:
        self._kernel = kernel
        self._reader = reader
        self._ids: dict[str, str] | None = None
        self._fresh: dict[str, bytes] = {}

    def get(self, key: str) -> bytes | None:
        """The object code made for this key, or None."""
        if key in self._fresh:
            return self._fresh[key]
        if self._ids is None:
            self._ids = dict(self._stored())
        name = self._ids.get(key)
        return None if name is None else self._read(name)[1]

    def put(self, key: str, data: bytes) -> None:
        """Keep it for later; it is stored by the next `flush`."""
        self._fresh[key] = data

    def flush(self) -> None:
        """Store what was put. A store that is full or away costs a later compilation, nothing else."""
        if not self._fresh:
            return
        rows = []
        for key, data in self._fresh.items():
            whole = MAGIC + bytes.fromhex(key) + data
            rows.append((key, "U8", (len(whole),), whole))
        page = pack_arrays(rows)
        handle = 0
        try:
            handle = self._kernel.offer(page)
            self._kernel.call("archivist.put", objects=[[KIND, key] for key in self._fresh], page=handle)
        except RecurosError as error:
            if error.code not in ("E9-NOSPACE", "E75-AGAIN", "E75-FULL", "E3-GONE", "E124-TIMEOUT"):
                raise
        finally:
            page.close()
            if handle:
                self._kernel.release(handle)
        if self._ids is not None:
            self._ids = None  # looked up again, by id
        self._fresh.clear()

    def _stored(self) -> list[tuple[str, str]]:
        store = self._reader()
        found = []
        for name, _ in list(store.objects(KIND))[:OBJECTS_MAX]:
            key, _ = self._read(name)
            if key:
                found.append((key, name))
        return found

    def _read(self, name: str) -> tuple[str, bytes | None]:
        try:
            data = bytes(self._reader().get(name).data)
        except RecurosError:
            return "", None
        if not data.startswith(MAGIC) or len(data) < len(MAGIC) + KEY_BYTES:
            return "", None
        at = len(MAGIC) + KEY_BYTES
        return data[len(MAGIC) : at].hex(), data[at:]
