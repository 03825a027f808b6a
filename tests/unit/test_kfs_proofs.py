"""Proofs against the published vectors, against RFC 6962's own recursion, and against an independent implementation."""

from __future__ import annotations

import copy
import dataclasses
import json
import pickle
from pathlib import Path

import pymerkle
import pytest
from kfs_support import miss

from kfs.checkpoint import PublicKey, Signer, TreeHead, VerifiedCheckpoint, body
from kfs.files import Files
from kfs.merkle import EMPTY_ROOT, CompactRange, leaf_hash, node_hash
from kfs.proofs import (
    ConsistencyProof,
    InclusionProof,
    ProofDocument,
    prove_consistency,
    prove_inclusion,
    verify_consistency,
    verify_inclusion,
)
from kfs.prover import Prover
from kfs.store import Store
from kfs.tiles import Levels, TileNodes
from syscalls.errors import RecurosError

# The reference tree of the Certificate Transparency project (cpp/merkletree/merkle_tree_test.cc); its indices count from 1.
INPUTS = [
    bytes.fromhex(text)
    for text in ("", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f")
]
ROOTS = [
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
]
A = "96a296d224f285c67bee93c30f8a309157f0daa35dc5b87e410b78630a09cfc7"
B = "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e"
C = "6b47aaf29ee3c2af9af889bc1fb9254dabd31177f16232dd6aab035ca39bf6e4"
D = "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b"
E = "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0"
F = "0ebc5d3437fbe2db158b9f126a1d118e308181031d0a949f8dededebc558ef6a"
INCLUSION = [  # leaf (from 1), size, path
    (1, 1, []),
    (1, 8, [A, B, C]),
    (6, 8, [D, E, ROOTS[3]]),
    (3, 3, [ROOTS[1]]),
    (2, 5, [ROOTS[0], B, D]),
]
CONSISTENCY = [(1, 1, []), (1, 8, [A, B, C]), (6, 8, [F, E, ROOTS[3]]), (2, 5, [B, D])]


class Log:
    """A log of `data` that signed every size, and its nodes."""

    def __init__(self, folder: Path, data: list[bytes], name: str = "example.org/log") -> None:
        self.data = data
        self.leaves = bytearray(b"".join(map(leaf_hash, data)))
        signer = Signer.create(Files(), folder / f"{name[-3:]}.key", folder / f"{name[-3:]}.signed", name)
        self.key = signer.public
        tree = CompactRange()
        self.signed = [VerifiedCheckpoint(signer.sign(TreeHead(0, EMPTY_ROOT)), signer.public)]
        for item in data:
            tree.append(leaf_hash(item))
            self.signed.append(VerifiedCheckpoint(signer.sign(TreeHead(tree.size, tree.root())), signer.public))
        self.nodes = TileNodes(Levels(self.leaves).tile, len(data))


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Log:
    return Log(tmp_path_factory.mktemp("keys"), INPUTS)


def hexes(path: tuple[bytes, ...]) -> list[str]:
    return [item.hex() for item in path]


def test_the_published_roots(reference: Log) -> None:
    assert [head.root.hex() for head in reference.signed[1:]] == ROOTS


@pytest.mark.parametrize(("leaf", "size", "path"), INCLUSION)
def test_the_published_inclusion_proofs(reference: Log, leaf: int, size: int, path: list[str]) -> None:
    proof = prove_inclusion(reference.nodes, reference.signed[size], leaf - 1)
    assert hexes(proof.path) == path
    verify_inclusion(reference.signed[size], INPUTS[leaf - 1], proof)


@pytest.mark.parametrize(("old", "new", "path"), CONSISTENCY)
def test_the_published_consistency_proofs(reference: Log, old: int, new: int, path: list[str]) -> None:
    proof = prove_consistency(reference.nodes, reference.signed[old], reference.signed[new])
    assert hexes(proof.path) == path
    verify_consistency(reference.signed[old], reference.signed[new], proof)


# --- every pair ------------------------------------------------------------------------------------------------------


def tree_hash(leaves: list[bytes]) -> bytes:
    """MTH of RFC 6962 section 2.1, word for word."""
    if len(leaves) == 1:
        return leaves[0]
    k = 1 << (len(leaves) - 1).bit_length() - 1
    return node_hash(tree_hash(leaves[:k]), tree_hash(leaves[k:]))


def audit_path(m: int, leaves: list[bytes]) -> list[bytes]:
    """PATH of section 2.1.1."""
    if len(leaves) == 1:
        return []
    k = 1 << (len(leaves) - 1).bit_length() - 1
    if m < k:
        return [*audit_path(m, leaves[:k]), tree_hash(leaves[k:])]
    return [*audit_path(m - k, leaves[k:]), tree_hash(leaves[:k])]


def sub_proof(m: int, leaves: list[bytes], whole: bool) -> list[bytes]:
    """SUBPROOF of section 2.1.2."""
    if m == len(leaves):
        return [] if whole else [tree_hash(leaves)]
    k = 1 << (len(leaves) - 1).bit_length() - 1
    if m <= k:
        return [*sub_proof(m, leaves[:k], whole), tree_hash(leaves[k:])]
    return [*sub_proof(m - k, leaves[k:], False), tree_hash(leaves[:k])]


def test_every_proof_up_to_forty_records_is_that_of_the_rfc(tmp_path: Path) -> None:
    log = Log(tmp_path, [b"%d" % i for i in range(40)])
    leaves = [leaf_hash(item) for item in log.data]
    for size in range(1, 41):
        for index in range(size):
            assert list(prove_inclusion(log.nodes, log.signed[size], index).path) == audit_path(index, leaves[:size])
        for old in range(1, size + 1):
            found = prove_consistency(log.nodes, log.signed[old], log.signed[size])
            assert list(found.path) == sub_proof(old, leaves[:size], True)


def check_all_pairs(folder: Path, size_max: int) -> int:
    """Every (index, size) and every (old, new) against an implementation that knows nothing of this one; how many pairs."""
    log = Log(folder, [b"%d" % i for i in range(size_max)])
    oracle = pymerkle.InmemoryTree(algorithm="sha256")
    for item in log.data:
        oracle.append_entry(item)
    pairs = 0
    for size in range(1, size_max + 1):
        head = log.signed[size]
        assert oracle.get_root(size) == head.root
        for index in range(size):
            proof = prove_inclusion(log.nodes, head, index)
            theirs = oracle.prove_inclusion(index + 1, size)
            assert list(proof.path) == theirs.path[1:]
            verify_inclusion(head, log.data[index], proof)
            pymerkle.verify_inclusion(leaf_hash(log.data[index]), head.root, theirs, index=index + 1, size=size)
        for old in range(size + 1):
            verify_consistency(log.signed[old], head, prove_consistency(log.nodes, log.signed[old], head))
            if old:
                theirs = oracle.prove_consistency(old, size)
                pymerkle.verify_consistency(log.signed[old].root, head.root, theirs, prior_size=old, later_size=size)
        pairs += 2 * size + 1
    return pairs


def test_every_pair_up_to_130_records_agrees_with_an_independent_implementation(tmp_path: Path) -> None:
    assert check_all_pairs(tmp_path, 130) == 17_160


@pytest.mark.slow
@pytest.mark.timeout(1_800)
def test_every_pair_up_to_1024_records_agrees_with_an_independent_implementation(tmp_path: Path) -> None:
    assert check_all_pairs(tmp_path, 1_024) == 1_050_624


def test_nodes_of_a_longer_tree_prove_shorter_checkpoints_across_tiles(tmp_path: Path) -> None:
    log = Log(tmp_path, [b"%d" % i for i in range(600)])
    for size in (255, 256, 257, 511, 512, 513, 600):
        for index in (0, 1, 254, 255, 256, 400, 512, 599):
            if index < size:
                verify_inclusion(log.signed[size], log.data[index], prove_inclusion(log.nodes, log.signed[size], index))
        for old in (1, 255, 256, 257, 400, size):
            if old <= size:
                proof = prove_consistency(log.nodes, log.signed[old], log.signed[size])
                verify_consistency(log.signed[old], log.signed[size], proof)


# --- refusals --------------------------------------------------------------------------------------------------------


def refused(call: object, *args: object) -> str:
    assert callable(call)
    with pytest.raises(RecurosError) as caught:
        call(*args)
    assert caught.value.code == "E9-INTEGRITY"
    return caught.value.message


@pytest.mark.parametrize("size", [1, 2, 7, 8, 13])
def test_a_tampered_inclusion_proof_is_refused_and_what_differs_is_named(tmp_path: Path, size: int) -> None:
    log = Log(tmp_path, [b"%d" % i for i in range(16)])
    head = log.signed[size]
    for index in range(size):
        data, proof = log.data[index], prove_inclusion(log.nodes, head, index)
        path = proof.path
        assert f"record {index} hashes" in refused(verify_inclusion, head, data + b"x", proof)
        for at in range(len(path)):
            bad = (*path[:at], bytes(32), *path[at + 1 :])
            assert "record or proof was changed" in refused(
                verify_inclusion, head, data, InclusionProof(index, size, bad)
            )
            bad = (*path[:at], path[at][:31], *path[at + 1 :])
            assert f"hash {at} has 31 bytes" in refused(verify_inclusion, head, data, InclusionProof(index, size, bad))
        for bad in ((*path, bytes(32)), (bytes(32), *path), *([path[:-1]] if path else [])):
            found = refused(verify_inclusion, head, data, InclusionProof(index, size, bad))
            assert f"has {len(bad)} hashes; it takes {len(path)}" in found
        for wrong in {index - 1, index + 1, index ^ 2, -1, size} - {index}:
            refused(verify_inclusion, head, data, InclusionProof(wrong, size, path))
        assert f"of a tree of {size} records; the checkpoint covers {size + 1}" in refused(
            verify_inclusion, log.signed[size + 1], data, proof
        )
        refused(verify_inclusion, head, data, InclusionProof(index, size + 1, path))


@pytest.mark.parametrize(("old", "new"), [(1, 2), (1, 8), (2, 5), (3, 7), (4, 8), (6, 8), (7, 13)])
def test_a_tampered_consistency_proof_is_refused_and_what_differs_is_named(tmp_path: Path, old: int, new: int) -> None:
    log = Log(tmp_path, [b"%d" % i for i in range(16)])
    a, b = log.signed[old], log.signed[new]
    path = prove_consistency(log.nodes, a, b).path
    for at in range(len(path)):
        bad = (*path[:at], bytes(32), *path[at + 1 :])
        assert "the signed one of" in refused(verify_consistency, a, b, ConsistencyProof(old, new, bad))
    for bad in ((), (*path, path[-1]), (path[0], *path), path[:-1]):
        assert f"it takes {len(path)}" in refused(verify_consistency, a, b, ConsistencyProof(old, new, bad))
    for sizes in ((old + 1, new), (old, new + 1), (new, old)):
        assert "is of sizes" in refused(verify_consistency, a, b, ConsistencyProof(*sizes, path))
    refused(verify_consistency, log.signed[old + 1], b, ConsistencyProof(old + 1, new, path))
    assert "the log was cut, or the two are swapped" in refused(
        verify_consistency, b, a, ConsistencyProof(new, old, path)
    )
    assert "the log was cut" in refused(prove_consistency, log.nodes, b, a)


def test_two_trees_of_one_size_and_two_logs_are_told_apart(tmp_path: Path) -> None:
    log = Log(tmp_path, [b"%d" % i for i in range(9)])
    (tmp_path / "log.key").rename(tmp_path / "kept")
    signer_text = (tmp_path / "kept").read_text()
    (tmp_path / "fork.key").write_text(signer_text)
    (tmp_path / "fork.key").chmod(0o600)
    (tmp_path / "fork.signed").write_text(f"0 {EMPTY_ROOT.hex()}\n")
    fork = Signer(Files(), tmp_path / "fork.key", tmp_path / "fork.signed")
    other = VerifiedCheckpoint(fork.sign(TreeHead(5, bytes(32))), fork.public)
    found = refused(prove_consistency, log.nodes, other, log.signed[5])
    assert "two different trees of 5 records are signed" in found
    # An honest proof for the fork's size does not make the fork a prefix.
    proof = prove_consistency(log.nodes, log.signed[5], log.signed[9])
    assert "the older tree root" in refused(verify_consistency, other, log.signed[9], proof)
    foreign = Log(tmp_path, [b"a"], "example.org/two")
    assert "two logs" in refused(verify_consistency, foreign.signed[1], log.signed[9], proof)


def test_the_signed_root_of_no_records_can_only_be_one(tmp_path: Path) -> None:
    log = Log(tmp_path, [b"a"])
    (tmp_path / "two.key").write_text((tmp_path / "log.key").read_text())
    (tmp_path / "two.key").chmod(0o600)
    (tmp_path / "two.signed").write_text(f"0 {bytes(32).hex()}\n")
    odd = Signer(Files(), tmp_path / "two.key", tmp_path / "two.signed")
    empty = VerifiedCheckpoint(odd.sign(TreeHead(0, bytes(32))), odd.public)
    assert "the signed root of no records" in refused(prove_consistency, log.nodes, empty, log.signed[1])


def test_a_verified_checkpoint_comes_from_a_signature_and_from_nothing_else(reference: Log, tmp_path: Path) -> None:
    good = reference.signed[8]
    with pytest.raises(TypeError):
        VerifiedCheckpoint(TreeHead(8, good.root), reference.key)  # type: ignore[arg-type]
    for name in ("size", "root", "_head"):
        with pytest.raises(AttributeError):
            setattr(good, name, 9)
    for again in (copy.copy(good), copy.deepcopy(good), pickle.loads(pickle.dumps(good))):  # noqa: S301 - its own bytes
        assert (again.size, again.root, again.key) == (8, good.root, good.key)
    refused(VerifiedCheckpoint, good.note.replace(b"\n8\n", b"\n9\n"), reference.key)
    refused(VerifiedCheckpoint, good.note, Log(tmp_path, [], "example.org/two").key)
    refused(VerifiedCheckpoint, good.note, dataclasses.replace(reference.key, name="example.org/other"))
    for garbage in (b"", b"\n\n", b"\xff" * 50, b"x" * 10_000, body("example.org/log", good.head).encode()):
        refused(VerifiedCheckpoint, garbage, reference.key)


def test_a_record_beyond_the_checkpoint_has_no_proof(reference: Log) -> None:
    for index in (-1, 5, 100):
        with pytest.raises(RecurosError) as caught:
            prove_inclusion(reference.nodes, reference.signed[5], index)
        assert caught.value.code == "E4-NOENT"


# --- out of a store --------------------------------------------------------------------------------------------------


def make_store(run: Path, size: int) -> bytes:
    """A store of `size` records; the checkpoint over the first half."""
    with Store.open_writer(run / "store") as store:
        store.append([miss(i) for i in range(size // 2)])
        store.checkpoint()
        old = store.layout.checkpoint.read_bytes()
        store.append([miss(i) for i in range(size // 2, size)])
    return old


def test_a_document_carries_all_that_its_verifier_needs(tmp_path: Path) -> None:
    old = make_store(tmp_path, 600)
    with Store.open_reader(tmp_path / "store") as store:
        prover = Prover(store)
        document = prover.document(417, VerifiedCheckpoint(old, store.format.key))
        assert prover.notes == []
        data = json.dumps(document.to_json()).encode()
        again = ProofDocument.parse(data)
        assert again == document
        assert again.verify(store.format.key).size == 600
        assert again.record == store.record_bytes(417)


def test_every_changed_character_of_a_document_is_found(tmp_path: Path) -> None:
    old = make_store(tmp_path, 12)
    with Store.open_reader(tmp_path / "store") as store:
        key = store.format.key
        data = json.dumps(Prover(store).document(7, VerifiedCheckpoint(old, key)).to_json()).encode()
    for position in range(len(data)):
        bad = bytearray(data)
        bad[position] ^= 1 << position % 7
        if json_equal(bytes(bad), data):
            continue  # a space that became another kind of white space
        with pytest.raises(RecurosError) as caught:
            ProofDocument.parse(bytes(bad)).verify(key)
        assert caught.value.code == "E9-INTEGRITY"


def json_equal(one: bytes, two: bytes) -> bool:
    try:
        return bool(json.loads(one) == json.loads(two))
    except ValueError:
        return False


@pytest.mark.parametrize("garbage", [b"", b"{}", b"[]", b"null", b"[" * 100_000, b"\xff", b"x" * (2 << 20)])
def test_garbage_is_not_a_proof_document(garbage: bytes) -> None:
    refused(ProofDocument.parse, garbage)


def test_a_document_made_with_another_key_is_refused(tmp_path: Path) -> None:
    make_store(tmp_path, 4)
    with Store.open_reader(tmp_path / "store") as store:
        document = Prover(store).document(1)
    assert "was made with key" in refused(document.verify, PublicKey("recuros.kfs/x", bytes(32)))


def test_damaged_tiles_are_said_and_the_proof_comes_from_the_records(tmp_path: Path) -> None:
    make_store(tmp_path, 300)
    path = tmp_path / "store/tile/0/000"
    path.write_bytes(path.read_bytes()[:-32] + bytes(32))
    with Store.open_reader(tmp_path / "store") as store:
        prover = Prover(store)
        verify_inclusion(prover.checkpoint, store.record_bytes(254), prover.inclusion(254))
        assert "are of no use" in prover.notes[0]
    path.unlink()
    with Store.open_reader(tmp_path / "store") as store:
        prover = Prover(store)
        verify_inclusion(prover.checkpoint, store.record_bytes(254), prover.inclusion(254))
        assert "tile/0/000 is missing" in prover.notes[0]


def test_a_checkpoint_that_was_put_back_is_refused(tmp_path: Path) -> None:
    old = make_store(tmp_path, 10)
    (tmp_path / "store/checkpoint").write_bytes(old)
    with Store.open_reader(tmp_path / "store") as store:
        assert "the checkpoint covers 5 records; 10 are signed" in refused(Prover, store)


def test_a_store_whose_records_are_not_the_signed_ones_proves_nothing(tmp_path: Path) -> None:
    make_store(tmp_path, 10)
    other = tmp_path / "other"
    make_store(other, 10)
    (tmp_path / "store/ledger/records").write_bytes((other / "store/ledger/records").read_bytes())
    with Store.open_reader(tmp_path / "store") as store:
        assert "record 3 hashes" in refused(Prover(store).inclusion, 3)
