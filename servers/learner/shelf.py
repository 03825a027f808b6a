"""Teacher outputs in the store: objects of kind `cache`, found by what they were made from.

Responsible for: chunks of a table as one object each, MAGIC, key and a page of arrays; storing through the archivist between windows and
reading back. Refuses: nothing that is not there; a cache may lose everything, and what is damaged counts as not there.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import torch

from kfs.store import Store
from servers.learner.state import DTYPES, byte_view, tensor_of
from servers.learner.teacher_cache import Parts
from syscalls.errors import RecurosError
from syscalls.pages import pack_arrays, unpack_arrays
from syscalls.serve import Kernel

KIND: Final = "cache"
MAGIC: Final = b"recuros teacher outputs\n"
HEAD_BYTES: Final = 64
"""MAGIC and 32 bytes of key, padded so that arrays stay aligned."""
CHUNK_BYTES_MAX: Final = 64 << 20
TRANSIENT: Final = ("E9-NOSPACE", "E75-AGAIN", "E75-FULL", "E3-GONE", "E124-TIMEOUT")


class Shelf:
    """The learner's side of the store."""

    def __init__(self, kernel: Kernel, reader: Callable[[], Store]) -> None:
        self._kernel = kernel
        self._reader = reader

    def load(self, key: str) -> list[Parts]:
        """Every chunk stored for this table."""
        try:
            store = self._reader()
        except RecurosError:
            return []  # nothing was ever stored
        head = MAGIC + bytes.fromhex(key)
        found = []
        for name, _ in list(store.objects(KIND)):
            try:
                data = store.get(name).data
                if data.nbytes > HEAD_BYTES and bytes(data[: len(head)]) == head:
                    arrays, _ = unpack_arrays(data[HEAD_BYTES:])
                    found.append({column: tensor_of(array) for column, array in arrays.items()})
            except RecurosError:
                continue
        return found

    def keep(self, key: str, parts: Parts) -> None:
        """Store a chunk. A store that is full or away costs forward passes later, nothing else."""
        rows = max(1, CHUNK_BYTES_MAX // max(1, sum(p.element_size() * p[0].numel() for p in parts.values())))
        for start in range(0, len(parts["ids"]), rows):
            self._put(key, {name: values[start : start + rows].contiguous() for name, values in parts.items()})

    def _put(self, key: str, parts: Parts) -> None:
        columns = [(n, DTYPES[t.dtype], tuple(t.shape), byte_view(t)) for n, t in parts.items()]
        inner = pack_arrays(columns)
        try:
            whole = torch.zeros(HEAD_BYTES + inner.size, dtype=torch.uint8)
            view = byte_view(whole)
            head = MAGIC + bytes.fromhex(key)
            view[: len(head)] = head
            view[HEAD_BYTES:] = inner.view
        finally:
            inner.close()
        page = pack_arrays([(key, "U8", (len(whole),), view)])
        handle = 0
        try:
            handle = self._kernel.offer(page)
            self._kernel.call("archivist.put", objects=[[KIND, key]], page=handle)
        except RecurosError as error:
            if error.code not in TRANSIENT:
                raise
        finally:
            page.close()
            if handle:
                self._kernel.release(handle)
