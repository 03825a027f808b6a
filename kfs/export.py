"""One snapshot with everything that proves where it came from, in a directory that needs no store.

Responsible for: which records made a snapshot, and the files of an export: objects, records, proofs, checkpoint, key and the
verifier. The directory appears whole or not at all. Refuses: a target that holds something, a snapshot whose record is not signed
yet, objects that do not match their ids.
"""

from __future__ import annotations

import base64
import errno
import json
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from blake3 import blake3

from kfs import pack as packs
from kfs import snapshot, standalone
from kfs.objects import NewObject
from kfs.prover import Prover
from kfs.records import Record, RecordKind
from kfs.store import Store
from kfs.tell import Tell, counted, silent
from syscalls.errors import RecurosError

SCHEMA: Final = "recuros.kfs.export/v1"
# Decisions that change what later windows do; those up to the snapshot's own window belong to its history.
_DECISIONS: Final = frozenset(
    {
        RecordKind.SWAP,
        RecordKind.RESTORE,
        RecordKind.GENERATION,
        RecordKind.KD_SET,
        RecordKind.GATE_SET,
        RecordKind.PRUNE,
        RecordKind.CALIBRATE,
    }
)
_README: Final = """\
Snapshot {snapshot}
of {origin}

Verify it with Python 3.11 or newer and the packages blake3 and cryptography:

    python verify.py .
    python verify.py . --key KEY

KEY is the public key of the store as you got it from somebody you trust; the file "key" here came with the data.

objects/        the snapshot: a safetensors file named by its BLAKE3; tensors are named by their content's hash
records.jsonl   the ledger's records that made it, each with its inclusion proof
checkpoint      the signed tree head that the proofs lead to
key             the public key
MANIFEST.json   what is here
"""


@dataclass(frozen=True, slots=True)
class Lineage:
    """`windows`: records that committed the snapshot and its ancestors, oldest first. `records`: those and what they rest on."""

    windows: list[int]
    records: list[int]


def lineage(store: Store, wanted: str) -> Lineage:
    """The records that made a snapshot: its window.commit, those of its ancestors, their grants and policies, and the decisions.

    Walks `parent_snap` back as far as records go. E4-NOENT when no window committed it.
    """
    commits: dict[str, list[Record]] = {}
    others: list[Record] = []
    grants: dict[int, Record] = {}
    for record in store.records():
        if record.kind is RecordKind.WINDOW_COMMIT and record.result_snap is not None:
            commits.setdefault(record.result_snap, []).append(record)
        elif record.kind is RecordKind.WINDOW_GRANT:
            grants[record.seq] = record
        elif record.kind in _DECISIONS or record.kind in (RecordKind.BOOT, RecordKind.SNAPSHOT, RecordKind.EVALUATE):
            others.append(record)
    chain: list[Record] = []
    result: str | None = wanted
    before = store.size
    while result is not None:
        made = next((record for record in reversed(commits.get(result, [])) if record.seq < before), None)
        if made is None:
            break
        chain.append(made)
        result, before = made.parent_snap, made.seq
    if not chain:
        raise RecurosError(
            "E4-NOENT",
            f"no window committed {wanted}",
            hint=f"recuros kfs log --snapshot {wanted[:12]}; recuros kfs ls",
        )
    found = {record.seq for record in chain}
    for record in chain:
        grant = grants.get(record.args["grant_seq"])
        if grant is not None:
            found.add(grant.seq)
            policy = grant.args["policy_seq"]
            if policy is not None and policy >= 0:
                found.add(policy)
    found.update(_relevant(others, chain, wanted))
    return Lineage([record.seq for record in reversed(chain)], sorted(found))


def _relevant(others: Iterable[Record], chain: Sequence[Record], wanted: str) -> set[int]:
    boots = {record.args["boot"] for record in chain}
    last = chain[0]
    found = set()
    for record in others:
        if record.kind is RecordKind.BOOT:
            take = record.args["boot"] in boots
        elif record.kind in _DECISIONS:
            take = record.seq < last.seq or record.result_snap == wanted
        else:
            take = wanted in (record.result_snap, record.parent_snap)
        if take:
            found.add(record.seq)
    return found


def export(
    store: Store, wanted: str, target: Path, roles: Sequence[str] = (), *, dry_run: bool = False, tell: Tell = silent
) -> tuple[dict[str, Any], list[str]]:
    """Write the snapshot `wanted` (its id) to `target`, which must not exist or be empty: the manifest as JSON data, and notes.

    `roles` limits the objects to those roles of the snapshot; all by default. E2-USAGE for a target or a role that will not do.
    `dry_run` does everything but write.
    """
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise RecurosError("E2-USAGE", f"{target} exists and is not an empty directory", hint="name a new directory")
    prover = Prover(store)
    made = lineage(store, wanted)
    signed = prover.checkpoint.size
    if made.windows[-1] >= signed:
        raise RecurosError(
            "E75-AGAIN",
            f"record {made.windows[-1]}, which commits {wanted}, is not signed yet: the checkpoint covers {signed} records",
            hint="try again in a second; a halt signs everything",
        )
    made = Lineage(made.windows, [seq for seq in made.records if seq < signed])
    taken, objects = _objects(store, wanted, roles, tell)
    buffers = packs.encode(objects)
    digest = packs.digest_of(buffers)
    files: dict[str, Sequence[Any]] = {
        "README.txt": [_README.format(snapshot=wanted, origin=prover.checkpoint.origin).encode()],
        "checkpoint": [prover.checkpoint.note],
        "key": [f"{prover.checkpoint.key}\n".encode()],
        f"objects/{digest}.safetensors": buffers,
        "records.jsonl": [
            _line(store, prover, seq) for seq in counted(made.records, "proofs", len(made.records), tell)
        ],
        "verify.py": [Path(standalone.__file__).read_bytes()],
    }
    manifest = {
        "schema": SCHEMA,
        "snapshot": wanted,
        "roles": taken,
        "size": signed,
        "root": prover.checkpoint.root.hex(),
        "windows": made.windows,
        "records": made.records,
        "objects": len(objects),
        "files": {name: _digest(pieces) for name, pieces in sorted(files.items())},
    }
    files["MANIFEST.json"] = [json.dumps(manifest, indent=1).encode() + b"\n"]
    if not dry_run:
        _write(target, files, tell)
    return manifest, prover.notes


def _objects(store: Store, wanted: str, roles: Sequence[str], tell: Tell) -> tuple[list[str], dict[str, NewObject]]:
    """The roles taken, and every node and leaf under them; ids are checked as they are read."""
    objects: dict[str, NewObject] = {}

    def take(name: str) -> memoryview:
        if name not in objects:
            found = store.get(name)
            objects[name] = NewObject(found.dtype, found.shape, found.data, found.kind)
            tell("objects", len(objects), 0)
        return memoryview(objects[name].data)

    entries = snapshot.decode_node(take(wanted), snapshot.LEVELS[0])
    unknown = sorted(set(roles) - entries.keys())
    if unknown:
        raise RecurosError(
            "E2-USAGE", f"the snapshot has no role {unknown[0]!r:.80}", hint=f"one of {', '.join(sorted(entries))}"
        )
    wanted_nodes = {entries[role] for role in roles or entries}
    taken = sorted(role for role, node in entries.items() if node in wanted_nodes)  # equal roles share their nodes
    for role in taken:
        for module in snapshot.decode_node(take(entries[role]), snapshot.LEVELS[1]).values():
            for leaf in snapshot.decode_node(take(module), snapshot.LEVELS[2]).values():
                take(leaf)
    return taken, objects


def _line(store: Store, prover: Prover, seq: int) -> bytes:
    path = [item.hex() for item in prover.inclusion(seq).path]
    row = {"seq": seq, "record": base64.b64encode(store.record_bytes(seq)).decode(), "inclusion": path}
    return json.dumps(row).encode() + b"\n"


def _digest(pieces: Iterable[Any]) -> str:
    hasher = blake3()
    for piece in pieces:
        hasher.update(piece)
    return hasher.hexdigest()


def _write(target: Path, files: Mapping[str, Sequence[Any]], tell: Tell) -> None:
    """All files under a temporary name beside the target, then one rename."""
    temp = target.absolute().with_name(f".{target.name}.{os.urandom(6).hex()}.tmp")
    try:
        (temp / "objects").mkdir(parents=True)
        for name, pieces in counted(files.items(), "files written", len(files), tell):
            with (temp / name).open("xb") as file:
                file.writelines(pieces)
                file.flush()
                os.fsync(file.fileno())
        temp.rename(target)
    except OSError as e:
        full = e.errno in (errno.ENOSPC, errno.EDQUOT)
        raise RecurosError(
            "E9-NOSPACE" if full else "E2-USAGE",
            f"{target} cannot be written: {e.strerror}; nothing is left of it",
            hint="free space there" if full else "name a directory that can be made",
        ) from e
    finally:
        shutil.rmtree(temp, ignore_errors=True)
