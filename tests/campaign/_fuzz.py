"""Decoder fuzzing: whatever the bytes are, a decoder answers or refuses with a typed error, in memory bounded by its input.

Inputs are valid samples with bits flipped, pieces cut, doubled and spliced, and length fields that promise 4 GiB, 100 GB or 2^63 bytes;
plus nests of brackets. `tracemalloc` measures each decode; the address space is limited as well, for what allocates behind its back.
"""

from __future__ import annotations

import contextlib
import json
import random
import resource
import shutil
import struct
import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import msgpack

from kfs import delta, plans, records, snapshot
from kfs.checkpoint import PublicKey, Signer, read_highest, verify_note
from kfs.files import Files
from kfs.formatfile import read_format
from kfs.index import Index
from kfs.ledger import LedgerReader
from kfs.pack import read_header
from kfs.proofs import ProofDocument
from kfs.prover import Prover
from kfs.records import RecordKind
from kfs.store import Store
from kfs.tiles import TileId, parse_path, read_tile
from syscalls.errors import RecurosError
from tests.campaign._power import scratch
from tests.unit.kfs_support import args_of, commit, miss, snapshot_of

FIXED_BYTES: Final = 8 << 20
PER_INPUT_BYTE: Final = 64
SPACE_BYTES: Final = 2 << 30
HUGE: Final = (100 * 10**9, (1 << 63) - 1, (1 << 64) - 1, 1 << 32, (1 << 32) - 1, (1 << 31) - 1, 100_000_000)
_NESTS: Final = (
    b"\x91" * 5_000,
    b"\x81\xa1a" * 3_000,
    b"[" * 20_000,
    b'{"a":' * 8_000,
    b"\xdd\xff\xff\xff\xff",
    b"\xc6\xff\xff\xff\xff",
)


@dataclass
class Target:
    """A decoder and valid inputs for it."""

    name: str
    decode: Callable[[bytes], Any]
    samples: list[bytes]


@dataclass
class Bench:
    """A store to take samples from, and a file to put inputs into."""

    root: Path = field(default_factory=scratch)

    def __post_init__(self) -> None:
        with Store.open_writer(self.root / "store") as store:
            root, _ = store.put_snapshot(*snapshot_of(1, 2, 3, 4, 5))
            store.append([commit(1, result=root), *(miss(n) for n in range(20))])
            self.format = store.format
            head = store.checkpoint()
            document = Prover(store).document(head.size - 1).to_json()
        self.document = json.dumps(document).encode()
        self.input = self.root / "input"
        layout = store.layout
        self.layout = layout
        self.samples = {path: path.read_bytes() for path in self.root.rglob("*") if path.is_file()}

    def on_file(self, decode: Callable[[Path], Any]) -> Callable[[bytes], Any]:
        """A decoder of files as one of bytes."""

        def run(data: bytes) -> Any:
            self.input.write_bytes(data)
            return decode(self.input)

        return run

    def close(self) -> None:
        """Remove it."""
        shutil.rmtree(self.root)

    def targets(self) -> list[Target]:
        """Every decoder of bytes that come from a disk."""
        layout, form = self.layout, self.format
        every = [records.Record(actor="kernel", kind=k, args=args_of(k), t_mono=1) for k in RecordKind]
        nodes = [msgpack.packb([1, level, {"a": "b3:" + "0" * 64, "b": "b3:" + "1" * 64}]) for level in snapshot.LEVELS]
        packs = [data for path, data in self.samples.items() if path.parent == layout.packs]
        payload = b"".join(delta.encode_blocks(memoryview(random.Random(1).randbytes(64) * 64), 4))
        ids = ["b3:" + "0" * 64] * 3
        return [
            Target("record", records.decode, [records.encode(record) for record in every]),
            Target("ledger/records", self.on_file(_ledger), [self.samples[layout.records]]),
            Target("pack header", self.on_file(_pack), packs),
            Target("checkpoint", lambda data: verify_note(data, form.key), [self.samples[layout.checkpoint]]),
            Target(
                "public key", lambda data: PublicKey.parse(data.decode("utf-8", "replace")), [str(form.key).encode()]
            ),
            Target("ID.signed", self.on_file(read_highest), [self.samples[layout.signed(form.store_id)]]),
            Target("ID.key", self.on_file(self._key), [self.samples[layout.signing_key(form.store_id)]]),
            Target("FORMAT", self.on_file(read_format), [self.samples[layout.format]]),
            *(
                Target(f"snapshot node, {level}", _node(level), [node])
                for level, node in zip(snapshot.LEVELS, nodes, strict=True)
            ),
            Target("tile path", lambda data: parse_path(data.decode("latin-1")), [b"0/x001/x234/067", b"1/000.p/7"]),
            Target("tile", self._tile, [bytes(32 * 21)]),
            Target("list of a plan", plans.decode_list, [plans.encode_list(ids, [0.5, 1.0, 2.0])]),
            Target("compacted payload", lambda data: delta.decode(memoryview(data), 4_096, 4), [payload]),
            Target(
                "compacted payload of 100 GB", lambda data: delta.decode(memoryview(data), 100 * 10**9, 4), [payload]
            ),
            Target("proof document", ProofDocument.parse, [self.document]),
            Target("index.sqlite", self.on_file(self._index), self._indexes()),
        ]

    def _key(self, path: Path) -> None:
        path.chmod(0o600)
        Signer(Files(), path, self.layout.signed(self.format.store_id))

    def _tile(self, data: bytes) -> bytes:
        tile = TileId(0, 0, 21)
        path = self.root / "tile" / tile.path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        return read_tile(self.root / "tile", tile)

    def _indexes(self) -> list[bytes]:
        path = self.root / "made.sqlite"
        Index(path, self.format.store_id, write=True).close()
        return [path.read_bytes()]

    def _index(self, path: Path) -> None:
        index = Index(path, self.format.store_id, write=False)
        index.digests()
        index.find(["b3:" + "0" * 64])
        index.close()


def _ledger(path: Path) -> None:
    ledger = LedgerReader(path)
    try:
        for _ in ledger.records():
            pass
        ledger.root()
    finally:
        ledger.close()


def _pack(path: Path) -> None:
    pack = read_header(path)
    for name in pack.header:
        with contextlib.suppress(RecurosError):
            pack.entry(name)


def _node(level: str) -> Callable[[bytes], Any]:
    return lambda data: snapshot.decode_node(data, level)


def mutated(sample: bytes, dice: random.Random) -> bytes:
    """A sample after one to four changes."""
    data = bytearray(sample)
    for _ in range(dice.randint(1, 4)):
        at = dice.randrange(len(data) + 1)
        match dice.randrange(9):
            case 0 if data:
                data[min(at, len(data) - 1)] ^= 1 << dice.randrange(8)
            case 1:
                del data[at : at + dice.randrange(1, 40)]
            case 2:
                data[at:at] = dice.randbytes(dice.randrange(1, 40))
            case 3:
                start = dice.randrange(len(data) + 1)
                data[at:at] = data[start : start + dice.randrange(1, 400)]
            case 4:
                number, size = dice.choice(HUGE), dice.choice((4, 8))
                data[at : at + size] = (number % (1 << 8 * size)).to_bytes(size, dice.choice(("little", "big")))
            case 5:
                data[at : at + dice.randrange(12)] = str(dice.choice(HUGE)).encode()
            case 6:
                data = data[:at]
            case 7:
                data[at:at] = dice.choice(_NESTS)
            case _:
                data[at:at] = dice.choice((b"\xc0", b"\xff", b"\0", b"null", b"-1", b"1e999", b"\xed\xa0\x80", b"NaN"))
    return bytes(data)


def fuzz(count: int, seed: int) -> Iterator[tuple[int, str]]:
    """Decode `count` inputs, one target after the other."""
    bench = Bench()
    dice = random.Random(seed)
    try:
        with limited():
            targets = bench.targets()
            for target in targets:
                for sample in target.samples:
                    target.decode(sample) if target.name != "compacted payload of 100 GB" else None
            for number in range(count):
                target = targets[number % len(targets)]
                data = mutated(dice.choice(target.samples), dice)
                found = tried(target, data)
                yield number + 1, f"{target.name}, {data[:200].hex()} ({len(data)} bytes): {found}" if found else ""
            for name, data in promises_of_100_gb(bench):
                found = tried(next(t for t in targets if t.name == name), data)
                yield count, f"{name}, a length of 100 GB: {found}" if found else ""
    finally:
        bench.close()


def promises_of_100_gb(bench: Bench) -> Iterator[tuple[str, bytes]]:
    """The places where a format states a length, with 100 GB in it."""
    big = 100 * 10**9
    pack = next(data for path, data in bench.samples.items() if path.parent == bench.layout.packs)
    yield "pack header", big.to_bytes(8, "little") + pack[8:]
    yield "ledger/records", bench.samples[bench.layout.records][:20] + b"\xff\xff\xff\xff" + b"\0" * 4_000
    yield "record", b"\xdd" + struct.pack(">I", 0xFFFFFFFF) + b"\0" * 100
    yield "record", b"\xdc\0\x11" + b"\xc6" + struct.pack(">I", 0xFFFFFFFF)
    yield "snapshot node, root", b"\x93\x01\xa4root\xdf\xff\xff\xff\xff"
    yield "compacted payload of 100 GB", b"\x28\xb5\x2f\xfd\xe0" + big.to_bytes(8, "little") + b"\0" * 64


def tried(target: Target, data: bytes) -> str:
    """Decode; what is wrong with how it ended, or nothing."""
    tracemalloc.start()
    try:
        target.decode(data)
    except RecurosError:
        pass
    except Exception as e:  # noqa: BLE001 - any other exception is the finding
        return f"{type(e).__name__}: {e}"
    finally:
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    allowed = FIXED_BYTES + PER_INPUT_BYTE * len(data)
    return f"took {peak} bytes; {allowed} are allowed" if peak > allowed else ""


@contextlib.contextmanager
def limited() -> Iterator[None]:
    """At most SPACE_BYTES more of address space than the process has now."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    wanted = pages * resource.getpagesize() + SPACE_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (wanted if hard == resource.RLIM_INFINITY else min(wanted, hard), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
