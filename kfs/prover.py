"""Proofs out of a store: which checkpoint they are under, and the tree nodes that they are made of.

Responsible for: the newest signed checkpoint, nodes from the hash tiles, and proofs that were verified before anyone gets them.
Refuses: a checkpoint behind what was signed already, and a wrong proof out of damaged tiles: those are named, and the proof is made
from the records instead.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from kfs.checkpoint import VerifiedCheckpoint, read_highest
from kfs.proofs import (
    ConsistencyProof,
    InclusionProof,
    ProofDocument,
    prove_consistency,
    prove_inclusion,
    verify_consistency,
    verify_inclusion,
)
from kfs.tiles import Levels, Nodes, TileNodes, read_tile
from kfs.verify import settled_checkpoint
from syscalls.errors import RecurosError

if TYPE_CHECKING:
    from kfs.store import Store

Made = TypeVar("Made", InclusionProof, ConsistencyProof)


class Prover:
    """Makes proofs under the newest checkpoint of a store that is open for reading. `notes` says what had to be worked around."""

    def __init__(self, store: Store) -> None:
        """E9-INTEGRITY when the checkpoint does not verify, or covers fewer records than were signed."""
        self._store = store
        signed = store.layout.signed(store.format.store_id)
        highest = read_highest(signed).size if signed.exists() else 0
        self.checkpoint = settled_checkpoint(store.layout, store.format, highest)
        if self.checkpoint.size < highest:
            raise RecurosError(
                "E9-INTEGRITY",
                f"the checkpoint covers {self.checkpoint.size} records; {highest} are signed: an older one was put back, or a crash "
                "came between the two",
                hint="a boot signs again what a crash left; recuros kfs verify lists what is wrong",
            )
        folder = store.layout.tile
        self._nodes = TileNodes(lambda tile: read_tile(folder, tile), self.checkpoint.size)
        self._from_tiles = True
        self.notes: list[str] = []

    def warm(self) -> None:
        """Read and hash every tile now, so that each proof takes as long as any other: for whoever needs many."""
        self._nodes.warm()

    def inclusion(self, seq: int) -> InclusionProof:
        """Prove that record `seq` is under the checkpoint; E4-NOENT when it is not signed, or not there."""
        record = self._store.record_bytes(seq)

        def make(nodes: Nodes) -> InclusionProof:
            proof = prove_inclusion(nodes, self.checkpoint, seq)
            verify_inclusion(self.checkpoint, record, proof)
            return proof

        return self._made(make)

    def consistency(self, old: VerifiedCheckpoint) -> ConsistencyProof:
        """Prove that the log grew from `old`; E9-INTEGRITY when it did not."""

        def make(nodes: Nodes) -> ConsistencyProof:
            proof = prove_consistency(nodes, old, self.checkpoint)
            verify_consistency(old, self.checkpoint, proof)
            return proof

        return self._made(make)

    def document(self, seq: int, old: VerifiedCheckpoint | None = None) -> ProofDocument:
        """One record with all that a verifier needs."""
        inclusion = self.inclusion(seq)
        consistency = None if old is None else self.consistency(old)
        note = None if old is None else old.note
        record = self._store.record_bytes(seq)
        return ProofDocument(self.checkpoint.key, self.checkpoint.note, record, inclusion, note, consistency)

    def _made(self, make: Callable[[Nodes], Made]) -> Made:
        """From the tiles; from the records when that fails, and what the tiles lack is noted. A true fault fails both ways."""
        try:
            return make(self._nodes)
        except RecurosError as e:
            if e.code != "E9-INTEGRITY" or not self._from_tiles:
                raise
            leaves = self._store.leaf_hashes(self.checkpoint.size)
            if len(leaves) < 32 * self.checkpoint.size:
                raise
            nodes = TileNodes(Levels(leaves).tile, self.checkpoint.size)
            made = make(nodes)
            self._nodes, self._from_tiles = nodes, False
            self.notes.append(f"the hash tiles are of no use ({e.message}); proofs are made from the records")
            return made
