"""Golden bytes of what proves something: FORMAT, checkpoint, tile, proof document, export. A change here is a change of the format."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from kfs_support import args_of, key_of, miss, tensor

from kfs import pack as packs
from kfs import records, standalone
from kfs.checkpoint import Signer, TreeHead, VerifiedCheckpoint, _private_text
from kfs.export import export
from kfs.files import Files
from kfs.formatfile import Format, origin
from kfs.layout import Layout
from kfs.ledger import MAGIC, frame
from kfs.merkle import EMPTY_ROOT, CompactRange, leaf_hash
from kfs.objects import blob
from kfs.proofs import ProofDocument
from kfs.prover import Prover
from kfs.records import Record, RecordKind
from kfs.snapshot import build_tree
from kfs.store import Store

GOLDEN = Path(__file__).resolve().parent.parent / "golden" / "kfs"
STORE_ID = "000102030405060708090a0b0c0d0e0f"


def write_store(run: Path) -> tuple[str, bytes]:
    """A store whose every byte is fixed: one committed window. Its snapshot, and its checkpoint of seven records."""
    layout = Layout(run / "store")
    for folder in (*layout.folders(), layout.keys):
        folder.mkdir(parents=True)
    layout.signing_key(STORE_ID).write_bytes(_private_text(origin(STORE_ID), b"\x01" + bytes(range(32))))
    layout.signing_key(STORE_ID).chmod(0o600)
    layout.signed(STORE_ID).write_text(f"0 {EMPTY_ROOT.hex()}\n")
    signer = Signer(Files(), layout.signing_key(STORE_ID), layout.signed(STORE_ID))
    layout.format.write_bytes(Format(STORE_ID, signer.public).text())
    items = [tensor(1), tensor(2)]
    root, nodes = build_tree({f"student/layer.{i}/weight": key_of(item) for i, item in enumerate(items)})
    objects = {name: blob(data, "snapshot") for name, data in nodes.items()} | {key_of(item): item for item in items}
    buffers = packs.encode(objects)
    digest = packs.digest_of(buffers)
    layout.pack(digest).write_bytes(b"".join(map(bytes, buffers)))
    base = "b3:" + "5e" * 32
    grant = args_of(RecordKind.WINDOW_GRANT, window=1, boot="boot-1", policy_seq=None, directives=[])
    commit = args_of(RecordKind.WINDOW_COMMIT, window=1, boot="boot-1", grant_seq=1)
    drafts = [
        Record("kernel", RecordKind.BOOT, args_of(RecordKind.BOOT, boot="boot-1"), 1),
        Record("kernel", RecordKind.WINDOW_GRANT, grant, 2, parent_snap=base),
        Record("kernel", RecordKind.WINDOW_COMMIT, commit, 3, parent_snap=base, result_snap=root),
        *[miss(number) for number in range(4, 11)],
    ]
    stamped = [records.encode(draft.stamped(seq, 1_800_000_000_000_000_000)) for seq, draft in enumerate(drafts)]
    tree = CompactRange()
    for data in stamped[:7]:
        tree.append(leaf_hash(data))
    first = signer.sign(TreeHead(7, tree.root()))
    layout.checkpoint.write_bytes(first)
    layout.records.write_bytes(MAGIC + frame(0, stamped))
    Store.open_writer(layout.store).close()
    return root, first


def same(name: str, found: bytes) -> None:
    path = GOLDEN / name
    if os.environ.get("UPDATE_GOLDEN"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(found)
    assert path.read_bytes() == found, f"{name} differs: a change of the format; then run with UPDATE_GOLDEN=1"


def test_format_checkpoint_and_tile_are_the_golden_ones(tmp_path: Path) -> None:
    write_store(tmp_path)
    store = tmp_path / "store"
    same("FORMAT", (store / "FORMAT").read_bytes())
    same("checkpoint", (store / "checkpoint").read_bytes())
    same("tile-0-000.p-10", (store / "tile" / "0" / "000.p" / "10").read_bytes())
    same("keys.signed", (tmp_path / "keys" / f"{STORE_ID}.signed").read_bytes())


def test_the_proof_document_is_the_golden_one(tmp_path: Path) -> None:
    _, first = write_store(tmp_path)
    with Store.open_reader(tmp_path / "store") as store:
        document = Prover(store).document(2, VerifiedCheckpoint(first, store.format.key))
    same("proof.json", json.dumps(document.to_json(), indent=1).encode() + b"\n")


def test_the_export_is_the_golden_one(tmp_path: Path) -> None:
    root, _ = write_store(tmp_path)
    with Store.open_reader(tmp_path / "store") as store:
        export(store, root, tmp_path / "out")
    found = json.loads((tmp_path / "out" / "MANIFEST.json").read_text())
    assert found["files"]["verify.py"] == standalone.file_digest(Path(standalone.__file__))
    found["files"]["verify.py"] = "BLAKE3 of kfs/standalone.py"
    same("export-MANIFEST.json", json.dumps(found, indent=1).encode() + b"\n")
    for name in ("records.jsonl", "README.txt", "key"):
        same(f"export-{name}", (tmp_path / "out" / name).read_bytes())
    (objects,) = (tmp_path / "out" / "objects").iterdir()
    same("export-objects.safetensors", objects.read_bytes())


@pytest.mark.parametrize("key", [None, "FORMAT"])
def test_the_golden_proof_still_verifies(key: str | None) -> None:
    """What was proved once stays proved: by this program and by the verifier that stands alone."""
    public = json.loads((GOLDEN / "FORMAT").read_text())["key"]
    document = ProofDocument.parse((GOLDEN / "proof.json").read_bytes())
    assert document.verify(document.key).size == 10
    report = standalone.Report()
    standalone.verify_proof(
        GOLDEN / "proof.json", report, public if key else None, (GOLDEN / "checkpoint").read_bytes()
    )
    assert report.problems == []
