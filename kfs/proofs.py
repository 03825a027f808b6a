"""Inclusion and consistency proofs of RFC 6962 (sections 2.1.1 and 2.1.2), verified as in RFC 9162 (2.1.3.2 and 2.1.4.2).

Responsible for: making proofs from tree nodes, verifying them, and the proof document that carries everything a verifier needs.
Refuses: a bare size and root. Whoever asks for a proof or checks one holds a `VerifiedCheckpoint`; with a size that an attacker
chose, a proof for another tree would pass. Every refusal is E9-INTEGRITY and names what differs.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from kfs.checkpoint import PublicKey, VerifiedCheckpoint
from kfs.merkle import EMPTY_ROOT, leaf_hash, node_hash
from kfs.tiles import HASH_BYTES, LEVELS_MAX, WIDTH
from syscalls import limits
from syscalls.errors import RecurosError

if TYPE_CHECKING:
    from kfs.tiles import Nodes

SCHEMA: Final = "recuros.kfs.prove/v1"
PATH_HASHES_MAX: Final = 2 * LEVELS_MAX * WIDTH.bit_length()
DOCUMENT_BYTES_MAX: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class InclusionProof:
    """That record `index` is in the tree of the first `size` records: the sibling hashes from the leaf up."""

    index: int
    size: int
    path: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class ConsistencyProof:
    """That the first `old_size` records of the tree of `new_size` are those of the older tree."""

    old_size: int
    new_size: int
    path: tuple[bytes, ...]


def prove_inclusion(nodes: Nodes, checkpoint: VerifiedCheckpoint, index: int) -> InclusionProof:
    """Prove that record `index` is under `checkpoint`; E4-NOENT when it lies beyond it. `nodes` are of that tree or a longer one."""
    if not 0 <= index < checkpoint.size:
        raise RecurosError(
            "E4-NOENT",
            f"record {index} is not under the checkpoint, which covers {checkpoint.size} records",
            hint="records are signed within a second while the archivist runs, and when it halts",
        )
    path: list[bytes] = []
    start, end = 0, checkpoint.size
    while end - start > 1:
        middle = start + _split(end - start)
        if index < middle:
            path.append(_subtree(nodes, middle, end))
            end = middle
        else:
            path.append(_subtree(nodes, start, middle))
            start = middle
    return InclusionProof(index, checkpoint.size, tuple(reversed(path)))


def prove_consistency(nodes: Nodes, old: VerifiedCheckpoint, new: VerifiedCheckpoint) -> ConsistencyProof:
    """Prove that `old` is a prefix of `new`; E9-INTEGRITY when it cannot be one. `nodes` are of the new tree or a longer one."""
    _check_order(old, new)
    path: list[bytes] = []
    start, end, whole = 0, new.size, True
    if 0 < old.size < new.size:
        while old.size != end:
            middle = start + _split(end - start)
            if old.size <= middle:
                path.append(_subtree(nodes, middle, end))
                end = middle
            else:
                path.append(_subtree(nodes, start, middle))
                start, whole = middle, False
        if not whole:
            path.append(_subtree(nodes, start, end))
    return ConsistencyProof(old.size, new.size, tuple(reversed(path)))


def _split(count: int) -> int:
    """The largest power of two below `count` (at least 2): where RFC 6962 splits a list."""
    return 1 << (count - 1).bit_length() - 1


def _subtree(nodes: Nodes, start: int, end: int) -> bytes:
    """MTH of leaves start .. end - 1, where a power of two no smaller than their number divides `start`."""
    parts = []
    while start < end:
        height = (end - start).bit_length() - 1
        parts.append(nodes.node(height, start >> height))
        start += 1 << height
    root = parts.pop()
    while parts:
        root = node_hash(parts.pop(), root)
    return root


def verify_inclusion(checkpoint: VerifiedCheckpoint, record: bytes, proof: InclusionProof) -> None:
    """Check that `record` (its stored bytes) is record `proof.index` under `checkpoint`; E9-INTEGRITY says what differs."""
    index, size = proof.index, checkpoint.size
    if proof.size != size:
        raise _refuse(f"the inclusion proof is of a tree of {proof.size} records; the checkpoint covers {size}")
    if not 0 <= index < size:
        raise _refuse(f"the inclusion proof is of record {index}; the checkpoint covers {size} records")
    _check_path(proof.path, _inclusion_length(index, size), f"the inclusion proof of record {index}")
    found, last = leaf_hash(record), size - 1
    for sibling in proof.path:
        if index & 1 or index == last:
            found = node_hash(sibling, found)
            while not index & 1 and index:
                index, last = index >> 1, last >> 1
        else:
            found = node_hash(found, sibling)
        index, last = index >> 1, last >> 1
    if found != checkpoint.root:
        raise _refuse(
            f"record {proof.index} hashes with its proof to root {found.hex()}; the root of the {size} signed records is "
            f"{checkpoint.root.hex()}: record or proof was changed"
        )


def _inclusion_length(index: int, size: int) -> int:
    """How many siblings lie on the way up from a leaf: below the split from the last leaf all of them, above it one a set bit."""
    inner = (index ^ (size - 1)).bit_length()
    return inner + (index >> inner).bit_count()


def verify_consistency(old: VerifiedCheckpoint, new: VerifiedCheckpoint, proof: ConsistencyProof) -> None:
    """Check that the tree of `old` is a prefix of the tree of `new`; E9-INTEGRITY says what differs."""
    _check_order(old, new)
    if (proof.old_size, proof.new_size) != (old.size, new.size):
        raise _refuse(
            f"the consistency proof is of sizes {proof.old_size} and {proof.new_size}; "
            f"the checkpoints cover {old.size} and {new.size} records"
        )
    what = f"the consistency proof from {old.size} to {new.size} records"
    if old.size in (0, new.size):
        _check_path(proof.path, 0, what)
        return
    _check_path(proof.path, _consistency_length(old.size, new.size), what)
    path = list(proof.path)
    if old.size & (old.size - 1) == 0:
        path.insert(0, old.root)
    first, last = old.size - 1, new.size - 1
    while first & 1:
        first, last = first >> 1, last >> 1
    old_root = new_root = path[0]
    for sibling in path[1:]:
        if first & 1 or first == last:
            old_root, new_root = node_hash(sibling, old_root), node_hash(sibling, new_root)
            while not first & 1 and first:
                first, last = first >> 1, last >> 1
        else:
            new_root = node_hash(new_root, sibling)
        first, last = first >> 1, last >> 1
    for name, found, head in (("older", old_root, old), ("newer", new_root, new)):
        if found != head.root:
            raise _refuse(
                f"{what} gives the {name} tree root {found.hex()}; the signed one of {head.size} records is {head.root.hex()}"
            )


def _consistency_length(old_size: int, new_size: int) -> int:
    """The inclusion path of the old tree's last complete subtree, and that subtree itself unless it is the whole old tree."""
    low = (old_size & -old_size).bit_length() - 1
    whole = old_size & (old_size - 1) == 0
    return _inclusion_length((old_size - 1) >> low, ((new_size - 1) >> low) + 1) + (0 if whole else 1)


def _check_order(old: VerifiedCheckpoint, new: VerifiedCheckpoint) -> None:
    if old.key != new.key:
        raise _refuse(f"the checkpoints are of two logs: {old.origin} and {new.origin}")
    if old.size > new.size:
        raise _refuse(
            f"{old.size} records were signed before; this checkpoint covers {new.size}: the log was cut, or the two are swapped"
        )
    if old.size == new.size and old.root != new.root:
        raise _refuse(
            f"two different trees of {old.size} records are signed: roots {old.root.hex()} and {new.root.hex()}"
        )
    for head in (old, new):
        if head.size == 0 and head.root != EMPTY_ROOT:
            raise _refuse(f"the signed root of no records is {head.root.hex()}; it can only be {EMPTY_ROOT.hex()}")


def _check_path(path: Sequence[bytes], wanted: int, what: str) -> None:
    if len(path) != wanted:
        raise _refuse(f"{what} has {len(path)} hashes; it takes {wanted}")
    for at, item in enumerate(path):
        if len(item) != HASH_BYTES:
            raise _refuse(f"{what}: hash {at} has {len(item)} bytes")


def _refuse(message: str) -> RecurosError:
    return RecurosError("E9-INTEGRITY", message)


# --- the document ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ProofDocument:
    """One record, the checkpoint it is under, and the proofs; `old` is an earlier checkpoint that the log has grown from."""

    key: PublicKey
    checkpoint: bytes
    record: bytes
    inclusion: InclusionProof
    old: bytes | None = None
    consistency: ConsistencyProof | None = None

    def to_json(self) -> dict[str, Any]:
        """As JSON data: hashes in hex, the record in base64, checkpoints as text."""
        doc: dict[str, Any] = {
            "schema": SCHEMA,
            "key": str(self.key),
            "checkpoint": self.checkpoint.decode(),
            "seq": self.inclusion.index,
            "record": base64.b64encode(self.record).decode(),
            "leaf": leaf_hash(self.record).hex(),
            "inclusion": [item.hex() for item in self.inclusion.path],
            "from": None,
        }
        if self.old is not None and self.consistency is not None:
            path = [item.hex() for item in self.consistency.path]
            doc["from"] = {"checkpoint": self.old.decode(), "consistency": path}
        return doc

    @classmethod
    def parse(cls, data: bytes) -> ProofDocument:
        """Read a document, checking its form only; E9-INTEGRITY when it is not one. What it claims, `verify` checks."""
        if len(data) > DOCUMENT_BYTES_MAX:
            raise _refuse(f"a proof document of {len(data)} bytes; the limit is {DOCUMENT_BYTES_MAX}")
        try:
            doc = json.loads(data)
            if doc["schema"] != SCHEMA:
                raise ValueError(f"schema {doc['schema']!r:.60}")
            key, note = PublicKey.parse(doc["key"]), doc["checkpoint"].encode()
            record = base64.b64decode(doc["record"], validate=True)
            size, seq = VerifiedCheckpoint(note, key).size, doc["seq"]
            if type(seq) is not int or len(record) > limits.RECORD_BYTES_MAX:
                raise ValueError("seq or record")
            if doc["leaf"] != leaf_hash(record).hex():
                raise ValueError("leaf is not the hash of the record")
            inclusion = InclusionProof(seq, size, _hashes(doc["inclusion"]))
            if doc["from"] is None:
                return cls(key, note, record, inclusion)
            old = doc["from"]["checkpoint"].encode()
            old_size = VerifiedCheckpoint(old, key).size
            consistency = ConsistencyProof(old_size, size, _hashes(doc["from"]["consistency"]))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError, binascii.Error) as e:
            raise _refuse(f"this is not a proof document: {type(e).__name__}: {e}") from e
        return cls(key, note, record, inclusion, old, consistency)

    def verify(self, key: PublicKey) -> VerifiedCheckpoint:
        """Check everything that it claims with a key from elsewhere; the checkpoint it proves the record under."""
        if key != self.key:
            raise _refuse(f"the document was made with key {self.key}, not with {key}")
        checkpoint = VerifiedCheckpoint(self.checkpoint, key)
        verify_inclusion(checkpoint, self.record, self.inclusion)
        if self.old is not None and self.consistency is not None:
            verify_consistency(VerifiedCheckpoint(self.old, key), checkpoint, self.consistency)
        return checkpoint


def _hashes(rows: Any) -> tuple[bytes, ...]:
    if not isinstance(rows, list) or len(rows) > PATH_HASHES_MAX:
        raise ValueError("a proof is a list of hashes")
    found = tuple(bytes.fromhex(row) for row in rows)
    if any(item.hex() != row for item, row in zip(found, rows, strict=True)):
        raise ValueError("a hash is not lower-case hex")
    return found
