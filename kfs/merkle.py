"""RFC 6962 Merkle tree hashing with O(log n) state.

Responsible for: leaf and node hashes (RFC 6962 section 2.1) and the root of a growing list. Refuses: knowing what a leaf is;
callers hash the stored bytes, never a re-encoding.
"""

from __future__ import annotations

from hashlib import sha256
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing_extensions import Buffer

EMPTY_ROOT = sha256(b"").digest()


def leaf_hash(data: Buffer) -> bytes:
    """SHA-256(0x00 || data), RFC 6962 section 2.1."""
    hasher = sha256(b"\x00")
    hasher.update(data)
    return hasher.digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """SHA-256(0x01 || left || right), RFC 6962 section 2.1."""
    return sha256(b"\x01" + left + right).digest()


class CompactRange:
    """The complete subtrees of the first `size` leaves, largest first: enough to append and to give the root."""

    __slots__ = ("_peaks", "size")

    def __init__(self) -> None:
        self.size = 0
        self._peaks: list[bytes] = []

    def append(self, leaf: bytes) -> None:
        """Add one leaf hash; amortised two hashes."""
        peaks, rest, node = self._peaks, self.size, leaf
        while rest & 1:
            node = sha256(b"\x01" + peaks.pop() + node).digest()
            rest >>= 1
        peaks.append(node)
        self.size += 1

    def root(self) -> bytes:
        """The tree hash MTH of all leaves so far; of none, SHA-256 of the empty string."""
        if not self._peaks:
            return EMPTY_ROOT
        root = self._peaks[-1]
        for peak in reversed(self._peaks[:-1]):
            root = node_hash(peak, root)
        return root
