"""Verify an exported student, a copied store, or a proof document, with nothing but this file.

    python standalone.py PATH [--key KEY|FILE] [--checkpoint FILE] [--json]

Needs Python 3.11, blake3 and cryptography, and imports nothing of the program that wrote the data. A store that was compacted
needs zstd as well: Python 3.14 has it, else the package zstandard. Exit status 0: all of it is true; 9: it is not, and each
finding is listed with its place; 2: wrong usage. KEY from elsewhere is what makes the signature mean something.

Responsible for: the signature, Merkle proofs or the whole Merkle tree, records, packs, objects, snapshots, and telling what was
collected under a recorded plan from what is missing. Refuses: trusting a length that it reads; nothing is allocated before the
bytes for it are there. The structures are described in docs/kfs-format.md.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import json
import math
import re
import struct
import sys
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from blake3 import blake3
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

ITEM_BYTES = dict.fromkeys(("BOOL", "U8", "I8", "F8_E5M2", "F8_E4M3", "F8_E8M0"), 1)
ITEM_BYTES |= dict.fromkeys(("I16", "U16", "F16", "BF16"), 2) | dict.fromkeys(("I32", "U32", "F32"), 4)
ITEM_BYTES |= dict.fromkeys(("I64", "U64", "F64", "C64"), 8)
OBJECT_ID = re.compile(r"b3:[0-9a-f]{64}\Z")
LEDGER_MAGIC = b"RKFS-LEDGER 1\n\0\0"
LIMIT_RECORD, LIMIT_FRAME, LIMIT_HEADER, LIMIT_TEXT = 1 << 16, 8 << 20, 100_000_000, 1 << 30
CHUNK, BLOCK = 8 << 20, 1 << 19
SEQ, KIND, PARENT, RESULT, ARGS, INPUTS = 1, 6, 8, 9, 10, 11  # places in a record
FAULTS = (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError, InvalidSignature)


class Bad(Exception):
    """Something is not what it should be; the text says what."""


class Report:
    """What was found."""

    def __init__(self) -> None:
        self.problems: list[dict[str, str]] = []
        self.counts: dict[str, Any] = {}
        self.notes: list[str] = []

    def add(self, what: str, where: str, detail: str) -> None:
        self.problems.append({"what": what, "where": where, "detail": detail})

    @contextmanager
    def part(self, what: str, where: str) -> Iterator[None]:
        """Whatever fails in here is a finding at this place, and the audit goes on."""
        try:
            yield
        except Bad as e:
            self.add(what, where, str(e))
        except FAULTS as e:
            self.add(what, where, f"malformed: {type(e).__name__}: {e}")


# --- signature and tree ----------------------------------------------------------------------------------------------


def unbase64(text: str) -> bytes:
    raw = base64.b64decode(text, validate=True)
    if base64.b64encode(raw).decode() != text:
        raise Bad("base64 is not canonical")
    return raw


def open_note(note: bytes, key: str) -> tuple[int, bytes]:
    """(size, root) of a checkpoint signed with `key`, NAME+KEYID+BASE64(01 || Ed25519 key), whose name is also the origin."""
    name, key_id, encoded = key.strip().split("+", 2)
    public = unbase64(encoded)
    digest = hashlib.sha256(name.encode() + b"\n" + public).digest()[:4]
    if len(public) != 33 or public[0] != 1 or digest.hex() != key_id:
        raise Bad(f"{key.strip():.100} is not an Ed25519 public key with its own key id")
    text, _, signature = note.decode().partition("\n\n")
    prefix = f"\u2014 {name} "
    raw = unbase64(signature[len(prefix) : -1]) if signature.startswith(prefix) and signature.endswith("\n") else b""
    if len(raw) != 68 or raw[:4] != digest:
        raise Bad(f"the checkpoint is not signed by {name}")
    try:
        Ed25519PublicKey.from_public_bytes(public[1:]).verify(raw[4:], f"{text}\n".encode())
    except InvalidSignature:
        raise Bad(f"the signature of {name} does not verify") from None
    origin, size, root = text.split("\n")
    if origin != name or not size.isdecimal() or len(unbase64(root)) != 32:
        raise Bad("the checkpoint is not origin, size and root")
    return int(size), unbase64(root)


def leaf_hash(data: bytes) -> bytes:
    return hashlib.sha256(b"\0" + data).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    return hashlib.sha256(b"\1" + left + right).digest()


def tree_root(leaves: list[bytes]) -> bytes:
    """RFC 6962 section 2.1."""
    while len(leaves) > 1:
        odd = leaves[-1:] if len(leaves) % 2 else []
        leaves = [node_hash(leaves[i], leaves[i + 1]) for i in range(0, len(leaves) - 1, 2)] + odd
    return leaves[0] if leaves else hashlib.sha256(b"").digest()


def climb(index: int, last: int, roots: list[bytes], path: list[str]) -> list[bytes]:
    """RFC 9162 sections 2.1.3.2 and 2.1.4.2: a sibling on the left goes under each root, one on the right under the last only."""
    for text in path:
        if not last or not re.fullmatch("[0-9a-f]{64}", text):
            raise Bad("the proof is too long, or holds something that is not a hash")
        item = bytes.fromhex(text)
        if index & 1 or index == last:
            roots = [node_hash(item, root) for root in roots]
            while index and not index & 1:
                index, last = index >> 1, last >> 1
        else:
            roots[-1] = node_hash(roots[-1], item)
        index, last = index >> 1, last >> 1
    if last:
        raise Bad("the proof is too short")
    return roots


def check_inclusion(data: bytes, seq: int, head: tuple[int, bytes], path: list[str]) -> None:
    if not 0 <= seq < head[0] or climb(seq, head[0] - 1, [leaf_hash(data)], path) != [head[1]]:
        raise Bad(f"record {seq} is not under the signed root of {head[0]} records")


def check_consistency(old: tuple[int, bytes], new: tuple[int, bytes], path: list[str]) -> None:
    if old[0] > new[0] or (old[0] == new[0] and old != new):
        raise Bad(f"the tree of {new[0]} records did not grow from the one of {old[0]}")
    if old[0] in (0, new[0]):
        return
    path = [old[1].hex(), *path] if old[0].bit_count() == 1 else path
    low = (old[0] & -old[0]).bit_length() - 1
    start = bytes.fromhex(path[0])
    if climb((old[0] - 1) >> low, (new[0] - 1) >> low, [start, start], path[1:]) != [old[1], new[1]]:
        raise Bad(f"the first {old[0]} of {new[0]} records are not those that were signed before")


# --- records ---------------------------------------------------------------------------------------------------------

NUMBERS = dict(zip(range(0xCA, 0xD4), (f">{code}" for code in "fdBHIQbhiq"), strict=True))
SIZED = {0xC4: (1, "bin"), 0xC5: (2, "bin"), 0xC6: (4, "bin"), 0xD9: (1, "str"), 0xDA: (2, "str"), 0xDB: (4, "str")}
SIZED |= {0xDC: (2, "array"), 0xDD: (4, "array"), 0xDE: (2, "map"), 0xDF: (4, "map")}


def unpack(data: bytes) -> Any:
    """The msgpack that records and snapshots use: no extension types, map keys are different texts, at most 16 deep."""
    value, at = unpack_from(data, 0, 0)
    if at != len(data):
        raise Bad(f"{len(data) - at} bytes follow the msgpack value")
    return value


def unpack_from(data: bytes, at: int, depth: int) -> tuple[Any, int]:
    code, at = data[at], at + 1
    if code <= 0x7F or code >= 0xE0:
        return (code if code <= 0x7F else code - 256), at
    if code in (0xC0, 0xC2, 0xC3):
        return {0xC0: None, 0xC2: False, 0xC3: True}[code], at
    if code in NUMBERS:
        size = struct.calcsize(NUMBERS[code])
        return struct.unpack(NUMBERS[code], data[at : at + size])[0], at + size
    if code <= 0xBF:
        kind = "map" if code <= 0x8F else "array" if code <= 0x9F else "str"
        count = code & (0x1F if kind == "str" else 0x0F)
    else:
        width, kind = SIZED[code]
        count, at = int.from_bytes(data[at : at + width], "big"), at + width
    if depth > 16 or count > len(data) - at:
        raise Bad(f"msgpack {kind} of {count} at depth {depth}, with {len(data) - at} bytes left")
    if kind in ("bin", "str"):
        raw = data[at : at + count]
        return (raw.decode() if kind == "str" else raw), at + count
    items = []
    for _ in range(count if kind == "array" else 2 * count):
        item, at = unpack_from(data, at, depth + 1)
        items.append(item)
    if kind == "array":
        return items, at
    if not all(isinstance(name, str) for name in items[::2]):
        raise Bad("a map has a key that is not text")
    return unique(list(zip(items[::2], items[1::2], strict=True))), at


def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(dict(pairs)) != len(pairs):
        raise Bad("a map repeats a name")
    return dict(pairs)


def decode_record(data: bytes, seq: int) -> list[Any]:
    row = unpack(data)
    if not isinstance(row, list) or len(row) != 17 or row[0] != 1 or row[SEQ] != seq or not isinstance(row[ARGS], dict):
        raise Bad(f"this is not record {seq} in version 1")
    if not all(name is None or OBJECT_ID.match(name) for name in (row[PARENT], row[RESULT], *row[INPUTS])):
        raise Bad(f"record {seq} names something that is not an object id")
    return row


def read_frames(path: Path) -> Iterator[bytes]:
    """The records of a ledger file; Bad at the first byte that is not a valid frame."""
    seq, size = 0, path.stat().st_size
    with path.open("rb") as file:
        if file.read(16) != LEDGER_MAGIC:
            raise Bad("byte 0: the file does not begin as a ledger")
        while (start := file.tell()) < size:
            head = file.read(24).ljust(24, b"\0")
            magic, length, first, count, crc = struct.unpack("<4sIQII", head)
            payload = file.read(min(length, LIMIT_FRAME, size))
            found, at = list[bytes](), 0
            while at < len(payload) and len(found) < count:
                end = at + 4 + int.from_bytes(payload[at : at + 4], "little")
                found.append(payload[at + 4 : end])
                at = end
            fits = (magic, first, len(found), at, len(payload)) == (b"KFSF", seq, count, length, length) and count > 0
            if not fits or zlib.crc32(payload, zlib.crc32(head[:20])) != crc or max(map(len, found)) > LIMIT_RECORD:
                raise Bad(f"byte {start}: no valid frame of record {seq} begins here")
            yield from found
            seq += count


# --- packs and objects -----------------------------------------------------------------------------------------------


class Objects:
    """The objects of a folder of packs: where each lies, and whether its bytes are those that its id says."""

    def __init__(self, folder: Path, report: Report) -> None:
        self.places: dict[str, tuple[Path, int, int, str, tuple[int, ...], str | None]] = {}
        self.good: set[str] = set()
        for path in sorted(folder.iterdir()):
            if not path.name.startswith(".tmp-"):
                with report.part("pack", f"{folder.name}/{path.name}"):
                    self.read_header(path)
        for path in sorted({place[0] for place in self.places.values()}):
            with report.part("pack", f"{folder.name}/{path.name}"):
                if (digest := file_digest(path)) != path.name[:64]:
                    raise Bad(f"the file hashes to {digest}")
        for name, (path, at, length, dtype, shape, _) in self.places.items():
            with report.part("object", f"{folder.name}/{path.name}@{at}"):
                hasher = blake3(b"recuros kfs object 1\n" + " ".join([dtype, *map(str, shape)]).encode() + b"\n")
                for chunk in self.chunks(name):
                    hasher.update(chunk)
                if f"b3:{hasher.hexdigest()}" != name:
                    raise Bad(f"these {length} bytes are not object {name}")
                self.good.add(name)

    def read_header(self, path: Path) -> None:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if not re.fullmatch(r"[0-9a-f]{64}\.safetensors", path.name) or length > min(LIMIT_HEADER, size - 8):
                raise Bad(f"not a pack: a header of {length} bytes in a file of {size}")
            header = json.loads(file.read(length), object_pairs_hook=unique)
        metadata = header.pop("__metadata__")
        encoded = {"1": "{}", "2": metadata.get("kfs.encoded")}[metadata["kfs.pack"]]
        rows, at = json.loads(encoded, object_pairs_hook=unique), 8 + length
        for name, row in header.items():
            dtype, shape, base = rows.get(name, (row["dtype"], row["shape"], None))
            start, end = (8 + length + offset for offset in row["data_offsets"])
            if start != at or not start <= end <= size or not OBJECT_ID.match(name) or dtype not in ITEM_BYTES:
                raise Bad(f"entry {name:.80} is malformed")
            if len(shape) > 32 or not all(type(n) is int and n >= 0 for n in shape):
                raise Bad(f"entry {name} has shape {shape!r:.80}")
            self.places[name], at = (path, start, end - start, dtype, tuple(shape), base), end
        if at != size:
            raise Bad(f"objects end at byte {at} of {size}")

    def chunks(self, name: str) -> Iterator[bytes]:
        """The bytes of an object: as many as its shape says, or Bad."""
        path, at, length, dtype, shape, base = self.places[name]
        left = ITEM_BYTES[dtype] * math.prod(shape)
        if base is not None:
            yield from self.decoded(name, left)
        elif left != length:
            raise Bad(f"object {name} takes {left} bytes and has {length}")
        else:
            with path.open("rb") as file:
                file.seek(at)
                while left and (chunk := file.read(min(CHUNK, left))):
                    left -= len(chunk)
                    yield chunk

    def decoded(self, name: str, total: int) -> Iterator[bytes]:
        """The bytes of a compacted object: blocks of zstd over byte planes, XORed with the object `base` if there is one."""
        path, at, length, dtype, shape, base = self.places[name]
        source: Iterator[bytes] = iter(())  # the base's bytes, block by block
        if base:
            if self.places.get(base, (0,) * 6)[3:] != (dtype, shape, None):
                raise Bad(f"object {name} is encoded against {base}, which is not here as plain bytes")
            whole = b"".join(self.chunks(base))
            source = iter([whole[i : i + BLOCK] for i in range(0, total, BLOCK)])
        with path.open("rb") as file:
            file.seek(at)
            for start in range(0, total, BLOCK):
                size, width = min(BLOCK, total - start), ITEM_BYTES[dtype]
                planes = unzstd(file.read(min(int.from_bytes(file.read(4), "little"), length)), size)
                block = bytearray(size)
                for i in range(width):
                    block[i::width] = planes[i * size // width : (i + 1) * size // width]
                mask = int.from_bytes(next(source, b""), "little")
                yield (int.from_bytes(block, "little") ^ mask).to_bytes(size, "little")
            if file.tell() != at + length:
                raise Bad(f"object {name} does not end where its last block does")

    def blob(self, name: str) -> bytes:
        if name not in self.good:
            raise Bad("its bytes are damaged" if name in self.places else "it is not here")
        return b"".join(self.chunks(name))

    def missing(self, name: str, depth: int, roles: list[str] | None = None) -> Iterator[tuple[str, str]]:
        """What a snapshot (depth 0), one of its nodes, or an object (depth 3) lacks: (id, why)."""
        try:
            if depth == 3:
                if name not in self.good:
                    self.blob(name)
                return
            version, level, entries = unpack(self.blob(name))
            if version != 1 or level != ("root", "role", "module")[depth]:
                raise Bad("it is not a snapshot's node")
            for key, child in entries.items():
                if depth or roles is None or key in roles:
                    yield from self.missing(child, depth + 1)
        except Bad as e:
            yield name, str(e)
        except FAULTS:
            yield name, "it is not a snapshot's node"


def unzstd(frame: bytes, size: int) -> bytes:
    zstd: Any
    try:
        from compression import zstd  # type: ignore[import-not-found, no-redef]  # Python 3.14
    except ImportError:
        try:
            import zstandard as zstd
        except ImportError:
            raise Bad("compacted, so not checked: this Python has no zstd; pip install zstandard") from None
    try:
        if hasattr(zstd, "frame_content_size"):  # the package: it allocates what the frame says, so that comes first
            fits = zstd.frame_content_size(frame) == size
            data = zstd.ZstdDecompressor().decompress(frame, max_output_size=size) if fits else b""
        else:
            data = zstd.ZstdDecompressor().decompress(frame, size + 1)
    except zstd.ZstdError as e:
        raise Bad(f"a compacted block is damaged: {e}") from e
    if len(data) != size:
        raise Bad("a compacted block has another size than the object")
    return bytes(data)


def file_digest(path: Path) -> str:
    hasher = blake3()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            hasher.update(chunk)
    return hasher.hexdigest()


def read_text(path: Path) -> bytes:
    if path.stat().st_size > LIMIT_TEXT:
        raise Bad(f"{path.name} is larger than anything that belongs here")
    return path.read_bytes()


# --- what can be verified --------------------------------------------------------------------------------------------


def pick_key(own: str, key: str | None, report: Report) -> str:
    if key is None:
        report.notes.append(
            "only the key that came with the data was used: whoever wrote the data can have made that key"
        )
    elif key.strip() != own.strip():
        report.add("key", "key", f"the data names {own.strip():.120}; the key given is {key.strip():.120}")
    return (own if key is None else key).strip()


def verify_store(root: Path, report: Report, key: str | None, anchor: bytes | None) -> None:
    """A copy of store/: records, root, signature, tiles, packs, objects, and everything that a record names."""
    heads: list[tuple[str, int, bytes]] = []
    used = key or ""
    with report.part("format", "FORMAT"):
        text = read_text(root / "FORMAT")
        form = json.loads(text, object_pairs_hook=unique)
        used = pick_key(form["key"], key, report)
        if json.dumps(form).encode() + b"\n" != text or not form["key"].startswith(f"recuros.kfs/{form['store']}+"):
            raise Bad("it is not in its canonical form")
        if (form["format"], form["major"], form["minor"]) != ("recuros-kfs", 1, 1):
            raise Bad(f"store format {form['major']!r:.20}.{form['minor']!r:.20}; this program reads 1.1")
    with report.part("checkpoint", "checkpoint"):
        heads.append(("checkpoint", *open_note(read_text(root / "checkpoint"), used)))
    if anchor is not None:
        with report.part("anchor", "the checkpoint given"):
            heads.append(("the checkpoint given", *open_note(anchor, used)))
    leaves: list[bytes] = []
    named: dict[str, tuple[int, bool]] = {}
    plans: list[tuple[int, list[Any]]] = []
    with report.part("ledger", "ledger/records"):
        for seq, data in enumerate(read_frames(root / "ledger" / "records")):
            leaves.append(leaf_hash(data))
            with report.part("record", f"ledger/records: record {seq}"):
                row = decode_record(data, seq)
                result = None if row[KIND] == "window.rollback" else row[RESULT]
                for name in filter(None, (result, *row[INPUTS])):
                    named[name] = (seq, name == result or named.get(name, (0, False))[1])
                if row[KIND] == "gc.plan":
                    plans.append((seq, row))
    for where, size, signed in heads:
        if size > len(leaves):
            report.add("ledger", "ledger/records", f"{len(leaves)} valid records; {where} covers {size}")
        elif tree_root(leaves[:size]) != signed:
            report.add("root", where, f"the first {size} records do not hash to its root")
    check_tiles(root / "tile", leaves, heads[0][1] if heads else 0, report)
    objects = Objects(root / "packs", report)
    collected = check_named(named, plans, objects, report)
    report.counts = {"records": len(leaves), "signed": heads[0][1] if heads else 0}
    report.counts |= {"objects": len(objects.good), "collected": collected}


def check_named(named: dict[str, tuple[int, bool]], plans: list[Any], objects: Objects, report: Report) -> int:
    """What the last record to name a thing promises is here, unless a later plan gave it up. Returns how much was given up."""
    planned: dict[str, int] = {}
    for seq, row in plans:
        with report.part("record", f"ledger/records: record {seq}"):
            ids = row[ARGS]["ids"] or (unpack(objects.blob(row[INPUTS][0]))[1] if row[INPUTS] else [])
            planned |= dict.fromkeys(ids, seq)
    collected = 0
    for name, (seq, is_snapshot) in named.items():
        absent = list(objects.missing(name, 0 if is_snapshot else 3))
        gone = planned.get(name, -1) > seq
        if absent and gone:
            collected += 1
            report.notes.append(f"{name}, named by record {seq}: collected under plan {planned[name]}")
        for lost, why in absent:
            if not gone or lost in objects.places:
                report.add("snapshot" if is_snapshot else "input", lost, f"named by record {seq}: {why}")
    return collected


def check_tiles(folder: Path, leaves: list[bytes], size: int, report: Report) -> None:
    """Every hash tile against the records; if there are tiles, those of the signed size are."""
    levels, widest = [leaves], dict[tuple[int, int], int]()
    while len(levels[-1]) >= 256:
        levels.append([tree_root(levels[-1][i : i + 256]) for i in range(0, len(levels[-1]) - 255, 256)])
    names = [path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*")) if not path.is_dir()]
    for name in [name for name in names if not name.startswith(".tmp-")]:
        with report.part("tile", f"tile/{name}"):
            found = re.fullmatch(r"([0-9]{1,2})/((?:x[0-9]{3}/)*[0-9]{3})(?:\.p/([0-9]{1,3}))?", name)
            if found is None:
                raise Bad("this is not the path of a tile")
            level, index, width = int(found[1]), int(re.sub("[x/]", "", found[2])), int(found[3] or 256)
            right = levels[level][index * 256 : index * 256 + width] if level < len(levels) else []
            if len(right) != width or read_text(folder / name) != b"".join(right):
                raise Bad("its hashes are not those of the records")
            widest[level, index] = max(width, widest.get((level, index), 0))
    for level in range(len(levels) if names else 0):
        for start in range(0, size >> 8 * level, 256):
            if widest.get((level, start // 256), 0) < min(256, (size >> 8 * level) - start):
                report.add("tile", f"tile/{level}", f"tile {start // 256} of this level is missing")


def verify_export(root: Path, report: Report, key: str | None, anchor: bytes | None) -> None:
    """A directory of `kfs export`: one snapshot, the records that made it, and their proofs."""
    text = read_text(root / "MANIFEST.json")
    manifest = json.loads(text, object_pairs_hook=unique)
    present = {p.relative_to(root).as_posix() for p in root.rglob("*") if not p.is_dir()} - {"MANIFEST.json"}
    for name in sorted(present | manifest["files"].keys()):
        with report.part("file", name):
            if name not in present or name not in manifest["files"]:
                raise Bad("is missing" if name not in present else "is not in the manifest")
            if manifest["files"][name] != file_digest(root / name):
                raise Bad("its bytes are not those that the manifest names")
    head = (0, b"")
    with report.part("checkpoint", "checkpoint"):
        own = read_text(root / "key").decode()
        head = open_note(read_text(root / "checkpoint"), pick_key(own, key, report))
        if anchor is not None and open_note(anchor, key or own) != head:
            raise Bad("the checkpoint given is another one, and an export holds proofs for its own only")
    rows: dict[int, list[Any]] = {}
    for number, line in enumerate(read_text(root / "records.jsonl").splitlines() if head[0] else []):
        with report.part("record", f"records.jsonl line {number + 1}"):
            entry = json.loads(line, object_pairs_hook=unique)
            data = unbase64(entry["record"])
            check_inclusion(data, entry["seq"], head, entry["inclusion"])
            rows[entry["seq"]] = decode_record(data, entry["seq"])
    chain = check_chain(rows, manifest["snapshot"], report)
    objects = Objects(root / "objects", report)
    for lost, why in objects.missing(manifest["snapshot"], 0, manifest["roles"]):
        report.add("snapshot", lost, why)
    with report.part("manifest", "MANIFEST.json"):
        entries = unpack(objects.blob(manifest["snapshot"]))[2]
        if manifest["roles"] != sorted(role for role, node in entries.items() if node in objects.places):
            raise Bad("roles are not those whose objects are here")
    said = {"schema": "recuros.kfs.export/v1", "snapshot": manifest["snapshot"], "roles": manifest["roles"]}
    said |= {"size": head[0], "root": head[1].hex(), "windows": chain, "records": sorted(rows)}
    said |= {"objects": len(objects.places), "files": manifest["files"]}
    if not report.problems and json.dumps(said, indent=1).encode() + b"\n" != text:
        report.add("manifest", "MANIFEST.json", "it does not say what the other files say")
    report.counts = {"snapshot": manifest["snapshot"], "windows": len(chain), "records": len(rows)}
    report.counts |= {"objects": len(objects.good), "signed": head[0]}
    start = rows[chain[0]][PARENT] if chain else None
    report.notes.append(
        f"{len(chain)} committed windows lead from {start} to the snapshot; what the data held is not here"
    )


def check_chain(rows: dict[int, list[Any]], snapshot: str, report: Report) -> list[int]:
    """The commits that lead to the snapshot, oldest first: each begins at the result of the one before it."""
    commits = [seq for seq in sorted(rows, reverse=True) if rows[seq][KIND] == "window.commit"]
    boots = {row[ARGS].get("boot") for row in rows.values() if row[KIND] == "boot"}
    chain: list[int] = []
    for seq in commits:
        args, wanted = rows[seq][ARGS], rows[chain[-1]][PARENT] if chain else snapshot
        with report.part("chain", f"record {seq}"):
            if rows[seq][RESULT] != wanted:
                raise Bad(f"this window does not result in {wanted}")
            chain.append(seq)
            if args["boot"] not in boots or args["grant_seq"] not in rows:
                raise Bad("its boot or its grant is not here")
            grant = rows[args["grant_seq"]]
            if grant[KIND] != "window.grant" or grant[ARGS]["window"] != args["window"]:
                raise Bad(f"record {args['grant_seq']} is not its grant")
            policy = grant[ARGS]["policy_seq"]
            if policy is not None and policy >= 0 and rows.get(policy, [""] * 17)[KIND] != "policy":
                raise Bad(f"its policy, record {policy}, is not here")
    if not chain:
        report.add("chain", "records.jsonl", f"no record commits {snapshot}")
    return chain[::-1]


def verify_proof(path: Path, report: Report, key: str | None, anchor: bytes | None) -> None:
    """A document of `kfs prove`: one record under its checkpoint, and perhaps the growth from an earlier checkpoint."""
    doc = json.loads(read_text(path), object_pairs_hook=unique)
    used, data, seq = pick_key(doc["key"], key, report), unbase64(doc["record"]), doc["seq"]
    heads = [open_note(doc["checkpoint"].encode(), used)]
    check_inclusion(data, seq, heads[0], doc["inclusion"])
    decode_record(data, seq)
    if doc["leaf"] != leaf_hash(data).hex() or doc["schema"] != "recuros.kfs.prove/v1":
        raise Bad("leaf or schema is not that of the record")
    if doc["from"] is not None:
        heads.append(open_note(doc["from"]["checkpoint"].encode(), used))
        check_consistency(heads[1], heads[0], doc["from"]["consistency"])
    if anchor is not None and open_note(anchor, used) not in heads:
        raise Bad("the checkpoint given is neither the document's own nor the one that it grew from")
    report.counts = {"record": seq, "signed": heads[0][0], "root": heads[0][1].hex()}


def main() -> int:
    parser = argparse.ArgumentParser(description="Verify an exported student, a copied store or a proof document.")
    parser.add_argument("path", type=Path, help="the directory of an export or of a store, or the file of a proof")
    parser.add_argument("--key", help="the public key, or a file that holds it, from elsewhere")
    parser.add_argument("--checkpoint", type=Path, help="a checkpoint that was kept elsewhere")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    options = parser.parse_args()
    kinds = {"MANIFEST.json": ("export", verify_export), "FORMAT": ("store", verify_store), "": ("proof", verify_proof)}
    name = next((name for name in kinds if (options.path / name).is_file()), None)
    if name is None:
        parser.error(f"{options.path} is neither an export, nor a store, nor a file")
    try:
        anchor = options.checkpoint.read_bytes() if options.checkpoint else None
        key = Path(options.key).read_text() if options.key and Path(options.key).is_file() else options.key
    except OSError as e:
        parser.error(str(e))
    report, (what, verify) = Report(), kinds[name]
    with report.part(what, name or options.path.name):
        verify(options.path, report, key, anchor)
    doc = {"ok": not report.problems, "what": what, **report.counts, "problems": report.problems, "notes": report.notes}
    if options.json:
        print(json.dumps(doc))
    else:
        print("ok" if doc["ok"] else "DAMAGED", what, *(f"{key}={value}" for key, value in report.counts.items()))
        print("".join(f"  {row['what']} {row['where']}: {row['detail']}\n" for row in report.problems), end="")
        print("".join(f"  note: {note}\n" for note in report.notes), end="")
    return 0 if doc["ok"] else 9


if __name__ == "__main__":
    sys.exit(main())
