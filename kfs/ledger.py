"""The record file: frames of stamped records, each one durable unit.

Responsible for: framing, finding every record again, the Merkle tree over the stored bytes, and telling a write that a crash cut
short from damage. Refuses: rewriting anything; deciding what a record means.

    file    = magic "RKFS-LEDGER 1\\n" and two zero bytes, then frames
    frame   = "KFSF" | payload length u32 | seq of the first record u64 | record count u32 | CRC-32 u32 | payload
    payload = count times (length u32 | record bytes)

Integers are little-endian; the CRC (zlib's polynomial) covers the first twenty bytes of the frame and its payload. A batch is
one frame: a power cut can leave any subset of an unsynced write, and with one CRC over all of it, what is left is always an
invalid *final* frame and never an invalid one before a valid one.
"""

from __future__ import annotations

import os
import struct
import zlib
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from kfs.files import AppendFile, Files
from kfs.merkle import CompactRange, leaf_hash
from syscalls import limits
from syscalls.errors import RecurosError

MAGIC: Final = b"RKFS-LEDGER 1\n\0\0"
FRAME_MAGIC: Final = b"KFSF"
FRAME_RECORDS_MAX: Final = 4_096
FRAME_BYTES_MAX: Final = 8 << 20
_HEAD: Final = struct.Struct("<4sIQII")
_LENGTH: Final = struct.Struct("<I")
_CHUNK_BYTES: Final = 4 << 20


@dataclass(frozen=True, slots=True)
class Damage:
    """The first bytes that are not a valid frame. `valid_after`: a valid frame follows, so this is not a cut-off write."""

    offset: int
    seq: int
    reason: str
    valid_after: bool

    def error(self, why: str) -> RecurosError:
        """As the error that refuses the ledger."""
        return RecurosError(
            "E9-INTEGRITY",
            f"ledger/records is damaged at record {self.seq}, byte {self.offset}: {self.reason}; {why}",
            hint="recuros kfs verify lists everything that is wrong; restore the file from a copy",
            details={"seq": self.seq, "offset": self.offset},
        )


def frame(first_seq: int, records: Sequence[bytes]) -> bytes:
    """One frame of stamped record bytes."""
    payload = b"".join([part for data in records for part in (_LENGTH.pack(len(data)), data)])
    head = _HEAD.pack(FRAME_MAGIC, len(payload), first_seq, len(records), 0)[:20]
    return head + _LENGTH.pack(zlib.crc32(payload, zlib.crc32(head))) + payload


class LedgerReader:
    """The records of a ledger file, by sequence number. `refresh` picks up what a live writer has appended."""

    def __init__(self, path: Path) -> None:
        """Open and scan; E9-INTEGRITY when the file does not begin as a ledger. Damage further on is kept in `damage`."""
        self.path = path
        self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self._offsets = array("Q")  # of each record's bytes
        self._lengths = array("I")
        self._tree = CompactRange()
        self.leaves = bytearray()  # the leaf hash of every record that the tree covers
        self.end = len(MAGIC)
        self.damage: Damage | None = None
        if os.pread(self._fd, len(MAGIC), 0) != MAGIC:
            self.damage = Damage(0, 0, "the file does not begin with the ledger's magic", valid_after=False)
        else:
            self.refresh()

    @property
    def size(self) -> int:
        """How many records there are."""
        return len(self._offsets)

    def refresh(self) -> None:
        """Scan what has been appended since the last scan."""
        if self.end == len(MAGIC) and self.damage is not None and self.damage.offset == 0:
            return
        self.damage = None
        file_bytes = os.fstat(self._fd).st_size
        while self.end < file_bytes:
            chunk = os.pread(self._fd, _CHUNK_BYTES, self.end)
            if not self._scan(chunk, file_bytes):
                return

    def _scan(self, chunk: bytes, file_bytes: int) -> bool:
        """Take every whole frame in `chunk`, which starts at `end`; False when the scan has to stop at damage."""
        base, at = self.end, 0
        while at < len(chunk):
            if at and len(chunk) - at < _HEAD.size and base + len(chunk) < file_bytes:
                break  # the chunk ends inside a frame's header
            reason, length = _check_head(chunk[at : at + _HEAD.size], self.size, file_bytes - base - at)
            if not reason and at + _HEAD.size + length > len(chunk):
                if at:
                    break  # the next chunk begins with this frame
                chunk = os.pread(self._fd, _HEAD.size + length, base)
            records = [] if reason else _open_frame(memoryview(chunk)[at : at + _HEAD.size + length])
            if not records:
                reason = reason or "the frame's checksum does not match"
                self.damage = Damage(base + at, self.size, reason, self._valid_after(base + at, file_bytes))
                return False
            for start, size in records:
                self._offsets.append(base + at + start)
                self._lengths.append(size)
            at += _HEAD.size + length
            self.end = base + at
        return True

    def _valid_after(self, offset: int, file_bytes: int) -> bool:
        """Whether any valid frame with a later record begins after `offset`."""
        position = offset + 1
        while position < file_bytes:
            chunk = os.pread(self._fd, _CHUNK_BYTES, position)
            at = chunk.find(FRAME_MAGIC)
            while at >= 0:
                if self._frame_at(position + at, file_bytes):
                    return True
                at = chunk.find(FRAME_MAGIC, at + 1)
            if len(chunk) < len(FRAME_MAGIC):
                return False
            position += len(chunk) - len(FRAME_MAGIC) + 1
        return False

    def _frame_at(self, offset: int, file_bytes: int) -> bool:
        head = os.pread(self._fd, _HEAD.size, offset)
        if len(head) < _HEAD.size:
            return False
        _, length, first_seq, _, _ = _HEAD.unpack(head)
        reason, _ = _check_head(head, first_seq, file_bytes - offset)
        if reason or not self.size <= first_seq <= self.size + file_bytes:
            return False
        return bool(_open_frame(memoryview(os.pread(self._fd, _HEAD.size + length, offset))))

    def record(self, seq: int) -> bytes:
        """The stored bytes of one record; E4-NOENT outside the ledger."""
        if not 0 <= seq < self.size:
            raise RecurosError("E4-NOENT", f"no record {seq}; the ledger holds {self.size}", hint="recuros kfs log")
        data = os.pread(self._fd, self._lengths[seq], self._offsets[seq])
        if len(data) != self._lengths[seq]:
            raise RecurosError(
                "E9-INTEGRITY", f"ledger/records shrank: record {seq} at byte {self._offsets[seq]} is gone"
            )
        return data

    def records(self, start: int = 0, stop: int | None = None) -> Iterator[bytes]:
        """The stored bytes of records start .. stop - 1, read in large pieces."""
        stop = self.size if stop is None else min(stop, self.size)
        seq = max(start, 0)
        while seq < stop:
            base = self._offsets[seq]
            chunk = os.pread(self._fd, _CHUNK_BYTES, base)
            while seq < stop:
                at, size = self._offsets[seq] - base, self._lengths[seq]
                if at + size > len(chunk):
                    break
                yield chunk[at : at + size]
                seq += 1
            if seq < stop and self._offsets[seq] == base:
                yield self.record(seq)  # raises: the file is shorter than it was
                seq += 1

    def location(self, seq: int) -> int:
        """The byte offset of a record in the file."""
        return self._offsets[seq]

    def root(self) -> bytes:
        """The RFC 6962 root over all records."""
        return self.grow_tree(self.size).root()

    def grow_tree(self, size: int) -> CompactRange:
        """The tree after hashing records up to `size`; it never shrinks."""
        for data in self.records(self._tree.size, size):
            self._add_leaf(data)
        return self._tree

    def _add_leaf(self, record: bytes) -> None:
        leaf = leaf_hash(record)
        self.leaves += leaf
        self._tree.append(leaf)

    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)


class LedgerWriter(LedgerReader):
    """The one appender. Opening it repairs what a crash may leave and refuses what a crash cannot leave."""

    def __init__(self, path: Path, files: Files, signed_size: int) -> None:
        """Recover: cut off an invalid final frame past `signed_size` (see `notes`); refuse every other damage."""
        super().__init__(path)
        self.notes: list[str] = []
        self._unhashed: list[bytes] = []  # the last records, which the tree does not cover yet
        self._unhashed_bytes = 0
        damage = self.damage
        try:
            if damage is not None and (damage.offset < len(MAGIC) or damage.valid_after or damage.seq < signed_size):
                why = "valid frames follow it" if damage.valid_after else f"{signed_size} records are signed"
                raise damage.error(why)
            if self.size < signed_size:
                missing = Damage(self.end, self.size, "the file ends here", valid_after=False)
                raise missing.error(f"{signed_size} records are signed")
            if damage is not None:
                cut_bytes = os.fstat(self._fd).st_size - damage.offset
                self.notes.append(
                    f"cut an unfinished write of {cut_bytes} bytes off the ledger after record {damage.seq - 1}: {damage.reason}"
                )
            # What is signed was synced before it was signed. Of the records after it, nobody here knows whether a sync failed.
            in_frame = _HEAD.size + _LENGTH.size
            unsigned = self._offsets[signed_size] - in_frame if self.size > signed_size else None
            self._file = AppendFile(files, path, self.end, unsigned)
            self.damage = None
        except BaseException:
            os.close(self._fd)
            raise

    def append(self, records: Sequence[bytes]) -> None:
        """Append stamped records as one frame with one fdatasync; they are durable when this returns, or none of them is."""
        if not 0 < len(records) <= FRAME_RECORDS_MAX:
            raise RecurosError("E2-LIMIT", f"a batch of {len(records)} records; it must be 1 to {FRAME_RECORDS_MAX}")
        data = frame(self.size, records)
        if len(data) > FRAME_BYTES_MAX:
            raise RecurosError("E2-LIMIT", f"a batch of {len(data)} bytes; the limit is {FRAME_BYTES_MAX}")
        self._file.append([data])
        at = self.end + _HEAD.size
        for record in records:
            self._offsets.append(at + _LENGTH.size)
            self._lengths.append(len(record))
            at += _LENGTH.size + len(record)
        self.end = self._file.end
        # The tree is not needed to acknowledge: these bytes are hashed when somebody asks for the root.
        self._unhashed += records
        self._unhashed_bytes += len(data)
        if self._unhashed_bytes > _CHUNK_BYTES:
            self.grow_tree(self.size)

    def grow_tree(self, size: int) -> CompactRange:
        """As the reader's; what was appended here is hashed from memory."""
        if self._unhashed:
            super().grow_tree(self.size - len(self._unhashed))
            for record in self._unhashed:
                self._add_leaf(record)
            self._unhashed, self._unhashed_bytes = [], 0
        return super().grow_tree(size)

    def close(self) -> None:
        """Close both descriptors."""
        self._file.close()
        super().close()


def _check_head(head: bytes, seq: int, available_bytes: int) -> tuple[str, int]:
    """Why these bytes cannot head the frame of record `seq` (empty: they can), and the payload length."""
    if len(head) < _HEAD.size:
        return f"the frame is cut off after {len(head)} of its {_HEAD.size} header bytes", 0
    magic, length, first_seq, count, _ = _HEAD.unpack(head)
    if magic != FRAME_MAGIC:
        return "no frame begins here", 0
    if first_seq != seq:
        return f"the frame says record {first_seq}", 0
    if length > FRAME_BYTES_MAX or not 0 < count <= FRAME_RECORDS_MAX:
        return f"a frame of {count} records and {length} bytes is over its limits", 0
    if _HEAD.size + length > available_bytes:
        return f"the frame is cut off after {available_bytes} of its {_HEAD.size + length} bytes", 0
    return "", length


def _open_frame(data: memoryview) -> list[tuple[int, int]]:
    """(offset in the frame, length) of each record, or [] when the checksum or the lengths do not match."""
    _, _, _, count, crc = _HEAD.unpack(data[: _HEAD.size])
    payload = data[_HEAD.size :]
    if zlib.crc32(payload, zlib.crc32(data[:20])) != crc:
        return []
    records, at = [], 0
    for _ in range(count):
        if at + _LENGTH.size > len(payload):
            return []
        (size,) = _LENGTH.unpack_from(payload, at)
        at += _LENGTH.size
        if size > min(limits.RECORD_BYTES_MAX, len(payload) - at):
            return []
        records.append((_HEAD.size + at, size))
        at += size
    return records if at == len(payload) else []
