"""Pages: sealed memfd slabs that move between processes as file descriptors.

The writer creates a memfd, maps it, then seals it against shrinking, growing and *future* writable mappings: the
writer keeps the mapping it has, and every mapping made from the descriptor afterwards is read-only by the MMU.
Descriptors travel over a side Unix socket by SCM_RIGHTS; the kernel checks the seals and relays them, and never maps
one.

Also here: the one layout for named arrays inside a page. Refuses: pages over the limit, descriptors without the seals,
headers that point outside their page.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import socket
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, Final

import msgpack

from syscalls import limits, wire
from syscalls.errors import RecurosError

F_ADD_SEALS: Final = 1033
F_GET_SEALS: Final = 1034
F_SEAL_SHRINK: Final = 0x2
F_SEAL_GROW: Final = 0x4
F_SEAL_FUTURE_WRITE: Final = 0x10  # absent from fcntl in Python 3.11
SEALS: Final = F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_FUTURE_WRITE
ALIGN: Final = 64
ITEM_BYTES: Final = {"BOOL": 1, "U8": 1, "I8": 1, "F8_E5M2": 1, "F8_E4M3": 1, "I16": 2, "U16": 2, "F16": 2, "BF16": 2} | {
    "I32": 4, "U32": 4, "F32": 4, "I64": 8, "U64": 8, "F64": 8
}  # fmt: skip
OFFER: Final = 1
MAP: Final = 2
MAP_FOR: Final = 3
"""An operator's MAP: the page socket knows its process, and this names which of the process's sessions holds the handle."""

OFFER_FOR: Final = 5
"""An operator's OFFER, of a page for the named session of its process."""
OFFER_END: Final = 4
"""One end of a pair of connected sockets, for a direct channel; mapped by its handle, as pages are."""

ANSWER_S: Final = 30
"""How long a peer waits for the kernel on the page socket."""
Buffer = bytes | bytearray | memoryview | mmap.mmap


class WritePage:
    """A page while its writer fills it. `view` is writable; `fd` is what travels."""

    def __init__(self, size: int, name: str = "page") -> None:
        if not 0 < size <= limits.PAGE_BYTES_MAX:
            raise RecurosError("E2-LIMIT", f"page of {size} bytes; the limit is {limits.PAGE_BYTES_MAX}")
        self.size = size
        self.fd = os.memfd_create(f"recuros-{name}", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(self.fd, size)
        self._map = mmap.mmap(self.fd, size, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
        fcntl.fcntl(self.fd, F_ADD_SEALS, SEALS)
        self.view = memoryview(self._map)

    def close(self) -> None:
        """Drop mapping and descriptor; readers keep theirs. Views taken from `view` must be gone."""
        self.view.release()
        self._map.close()
        self.close_descriptor()

    def close_descriptor(self) -> None:
        """Keep the mapping only: a page that was offered and is written on lives as long as something refers to `view`."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


class ReadPage:
    """A read-only mapping of somebody's page. A write through it faults this process and no other."""

    def __init__(self, fd: int, size: int, handle: int = 0) -> None:
        self.handle = handle
        self.size = size
        try:
            self._map = mmap.mmap(fd, size, mmap.MAP_SHARED, mmap.PROT_READ)
        finally:
            os.close(fd)
        self.view = memoryview(self._map)

    def close(self) -> None:
        """Unmap; if arrays still point into the page the mapping lives until they are gone."""
        self.view.release()
        try:
            self._map.close()
        except BufferError:
            return  # an array still refers to the mapping; it is unmapped together with the last of them


def check_seals(fd: int) -> int:
    """Size of a page offered by a peer; E2-WIRE unless it is a memfd with all three seals and a legal size."""
    try:
        seals = fcntl.fcntl(fd, F_GET_SEALS)
    except OSError as e:
        raise RecurosError("E2-WIRE", f"offered descriptor is not a memfd: {e.strerror}") from e
    size = os.fstat(fd).st_size
    if seals & SEALS != SEALS:
        raise RecurosError("E2-WIRE", f"offered page lacks seals: has {seals:#x}, needs {SEALS:#x}")
    if not 0 < size <= limits.PAGE_BYTES_MAX:
        raise RecurosError("E2-LIMIT", f"page of {size} bytes; the limit is {limits.PAGE_BYTES_MAX}")
    return size


class PageSocket:
    """A peer's end of the side socket: offer a page and get a handle, map a handle and get a descriptor.

    A server is known by its process. An operator names its `principal`.
    """

    def __init__(self, path: Path, principal: str = "") -> None:
        self._principal = principal
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
        # A socket that waits in `connect` itself: one with a Python timeout gives up at once where the queue of connections is full.
        self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", ANSWER_S, 0))
        try:
            self._sock.connect(str(path))
        except BlockingIOError as e:
            self._sock.close()
            raise RecurosError("E124-TIMEOUT", f"the kernel took no connection at {path} in {ANSWER_S} s") from e
        self._sock.settimeout(ANSWER_S)

    def offer(self, page: WritePage) -> int:
        """Register the page with the kernel; the handle is the caller's own."""
        offer = [OFFER_FOR, page.size, self._principal] if self._principal else [OFFER, page.size]
        socket.send_fds(self._sock, [msgpack.packb(offer)], [page.fd])
        handle, _ = self._answer(want_fd=False)
        return handle

    def offer_end(self, fd: int) -> int:
        """Register one end of a pair of sockets that this process made."""
        socket.send_fds(self._sock, [msgpack.packb([OFFER_END, 0])], [fd])
        handle, _ = self._answer(want_fd=False)
        return handle

    def map_end(self, handle: int) -> int:
        """The descriptor of an end that the kernel gave this principal a handle for."""
        self._sock.send(msgpack.packb([MAP, handle]))
        _, fd = self._answer(want_fd=True)
        return fd

    def map(self, handle: int) -> ReadPage:
        """Map a page that the kernel gave this principal a handle for."""
        wish = [MAP_FOR, handle, self._principal] if self._principal else [MAP, handle]
        self._sock.send(msgpack.packb(wish))
        size, fd = self._answer(want_fd=True)
        return ReadPage(fd, size, handle)

    def _answer(self, *, want_fd: bool) -> tuple[int, int]:
        try:
            data, fds, _, _ = socket.recv_fds(self._sock, 4096, 1)
        except TimeoutError as e:
            raise RecurosError("E124-TIMEOUT", f"the kernel did not answer on the page socket in {ANSWER_S} s") from e
        if not data:
            raise RecurosError("E3-GONE", "the kernel closed the page socket")
        ok, value = wire.unpack(data)
        if not ok:
            raise RecurosError.from_wire(value)
        if want_fd and len(fds) != 1:
            raise RecurosError("E2-WIRE", "the kernel sent no descriptor for the page")
        return int(value), fds[0] if fds else -1

    def close(self) -> None:
        """Close the socket; pages already mapped stay mapped."""
        self._sock.close()


@dataclass(frozen=True, slots=True)
class Array:
    """A named array in a page: safetensors dtype name, shape, and its bytes (little-endian, C order)."""

    dtype: str
    shape: tuple[int, ...]
    data: memoryview


def pack_arrays(
    arrays: Iterable[tuple[str, str, tuple[int, ...], Buffer]], meta: Mapping[str, Any] | None = None
) -> WritePage:
    """Write `(name, dtype, shape, data)` rows and a small `meta` map into a fresh page.

    Layout: 8 bytes little-endian header length, msgpack header [meta, [[name, dtype, shape, offset, nbytes], ...]], then
    the arrays, each aligned to 64 bytes from the start of the page.
    """
    rows = [(n, d, s, memoryview(b).cast("B")) for n, d, s, b in arrays]
    # Offsets are relative to the end of the header, so that the header's own length does not depend on them.
    index: list[list[Any]] = []
    at = 0
    for name, dtype, shape, data in rows:
        index.append([name, dtype, list(shape), at, data.nbytes])
        at += -(-data.nbytes // ALIGN) * ALIGN
    header = msgpack.packb([dict(meta or {}), index], use_bin_type=True)
    base = -(-(8 + len(header)) // ALIGN) * ALIGN
    page = WritePage(base + max(at, 1), "arrays")
    page.view[:8] = len(header).to_bytes(8, "little")
    page.view[8 : 8 + len(header)] = header
    for (_, _, _, data), (_, _, _, offset, nbytes) in zip(rows, index, strict=True):
        page.view[base + offset : base + offset + nbytes] = data
    return page


def unpack_arrays(view: memoryview) -> tuple[dict[str, Array], dict[str, Any]]:
    """Inverse of `pack_arrays`; the arrays are views into the page, no copy is made. Bad headers are E2-WIRE."""
    if len(view) < 8:
        raise RecurosError("E2-WIRE", f"page of {len(view)} bytes holds no header")
    length = int.from_bytes(view[:8], "little")
    if length > len(view) - 8:
        raise RecurosError("E2-WIRE", f"page header of {length} bytes does not fit a page of {len(view)}")
    decoded = wire.unpack(bytes(view[8 : 8 + length]))
    if not (isinstance(decoded, list) and len(decoded) == 2 and isinstance(decoded[0], dict)) or not isinstance(
        decoded[1], list
    ):
        raise RecurosError("E2-WIRE", "page header does not have the shape [meta, index]")
    base = -(-(8 + length) // ALIGN) * ALIGN
    arrays: dict[str, Array] = {}
    for row in decoded[1]:
        match row:
            case [str(name), str(dtype), list(shape), int(offset), int(nbytes)] if _is_shape(shape):
                if not 0 <= offset <= offset + nbytes <= len(view) - base:
                    raise RecurosError("E2-WIRE", f"array {name!r:.80} points outside its page")
                if prod(shape) * ITEM_BYTES.get(dtype, -1) != nbytes:
                    raise RecurosError(
                        "E2-WIRE", f"array {name!r:.80}: {nbytes} bytes are not {dtype:.20} {shape!r:.80}"
                    )
                arrays[name] = Array(dtype, tuple(shape), view[base + offset : base + offset + nbytes])
            case _:
                raise RecurosError(
                    "E2-WIRE", f"page header row {row!r:.120} is not [name, dtype, shape, offset, nbytes]"
                )
    return arrays, decoded[0]


def _is_shape(shape: list[Any]) -> bool:
    return all(type(size) is int and size >= 0 for size in shape)
