"""Tampering: a bit flipped anywhere, a record forged with valid checksums, files swapped, deleted and put back.

Everything that is done to a store must be found by `verify`, and named: the file, and where the bytes belong to a record or to an object,
that one. `tamper` yields one line for each thing that was not. A flip in a file that holds no evidence (the lock, the disposable
index) must instead change nothing that anybody reads.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

import kfs.store
from kfs import records
from kfs.ledger import MAGIC, LedgerReader, frame
from kfs.objects import blob
from kfs.pack import read_header
from kfs.store import Store
from kfs.tiles import tiles_of
from kfs.verify import Problem, verify
from syscalls.errors import RecurosError
from tests.campaign._power import scratch
from tests.unit.kfs_support import commit, miss, snapshot_of, tensor

# Files that prove nothing and that nobody believes.
NO_EVIDENCE: Final = ("LOCK", "index.sqlite")
_FRAME_HEAD: Final = 24


@dataclass
class Victim:
    """A closed store with several frames, packs, signatures and tiles; `fresh` puts it back as it was."""

    root: Path = field(default_factory=scratch)

    def __post_init__(self) -> None:
        self.older = (0, b"")
        with Store.open_writer(self.store) as store:
            for window in range(4):
                root, _ = store.put_snapshot(*snapshot_of(window, window + 1, 9))
                (evidence,) = store.put([blob(f"evidence {window}".encode() * 40, "cal")])
                store.append([commit(window, t_mono=window, result=root)])
                store.append([miss(10 * window + n, input_ids=(evidence,)) for n in range(3)])
                if window % 2:
                    # A genuine note that is smaller than the last one.
                    size = store.checkpoint().size
                    self.older = (size, store.layout.checkpoint.read_bytes()) if window == 1 else self.older
            store.put([tensor(77, 3_000)])
        self.files = {path: path.read_bytes() for path in sorted(self.root.rglob("*")) if path.is_file()}
        report = verify(self.store)
        assert report.ok, report.problems
        ledger = LedgerReader(self.store / "ledger" / "records")
        self.places = [(ledger.location(seq), len(ledger.record(seq))) for seq in range(ledger.size)]
        self.stored = [ledger.record(seq) for seq in range(ledger.size)]
        ledger.close()

    @property
    def store(self) -> Path:
        """Its directory."""
        return self.root / "store"

    def fresh(self) -> None:
        """Everything as it was."""
        present = {path for path in self.root.rglob("*") if path.is_file()}
        for path in present - self.files.keys():
            path.unlink()
        for path, data in self.files.items():
            if path not in present or path.read_bytes() != data:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.unlink(missing_ok=True)
                path.write_bytes(data)
                path.chmod(0o600)

    def name(self, path: Path) -> str:
        """As `verify` names it."""
        return str(path.relative_to(self.root if path.parent.name == "keys" else self.store))

    def close(self) -> None:
        """Remove it."""
        shutil.rmtree(self.root)

    def record_at(self, position: int) -> int:
        """The record whose bytes, or length, or frame's header lie at a byte of the record file; -1 for the magic."""
        if position < len(MAGIC):
            return -1
        return next(seq for seq, (start, length) in enumerate(self.places) if position < start + length)

    def frame_of(self, seq: int) -> range:
        """The records of the frame that holds a record."""
        starts = [
            first
            for first, (start, _) in enumerate(self.places)
            if first == 0 or start != sum(self.places[first - 1]) + 4
        ]
        first = max(start for start in starts if start <= seq)
        return range(first, min([start for start in starts if start > seq], default=len(self.places)))

    def object_at(self, path: Path, position: int) -> str:
        """The object whose bytes lie at a byte of a pack; empty in the header."""
        pack = read_header(path)
        for name in pack.header:
            entry = pack.entry(name)
            if entry.offset <= position < entry.offset + entry.length:
                return name
        return ""


# --- flips ---------------------------------------------------------------------------------------------------------------


def flips(victim: Victim, count: int, seed: int) -> Iterator[tuple[int, str]]:
    """Flip `count` bits, each in a fresh store: every file gets its share, every byte of a small one its turn."""
    dice = random.Random(seed)
    # A place is drawn by file first, so that a large file does not take all the flips.
    paths = [path for path in victim.files if victim.files[path]]
    for number in range(count):
        path = paths[number % len(paths)]
        position, bit = dice.randrange(len(victim.files[path])), dice.randrange(8)
        found = flip(victim, path, position, bit)
        yield number + 1, f"{victim.name(path)}, byte {position}, bit {bit}: {found}" if found else ""


def flip(victim: Victim, path: Path, position: int, bit: int) -> str:
    """Flip one bit, and back; says what the audit failed to say."""
    good = victim.files[path]
    expected = victim.object_at(path, position) if path.parent.name == "packs" else ""
    bad = bytearray(good)
    bad[position] ^= 1 << bit
    path.write_bytes(bad)
    try:
        if path.name.startswith(NO_EVIDENCE):
            return _harmless(victim)
        if path.suffix == ".key":
            return _refused_to_write(victim)
        return _missed(victim, path, position, expected, verify(victim.store).problems)
    finally:
        path.write_bytes(good)


def _missed(victim: Victim, path: Path, position: int, expected: str, problems: list[Problem]) -> str:
    name = victim.name(path)
    here = [p for p in problems if p.where.partition("@")[0] == name]
    if path.parent.name == "keys":
        # A size that is well formed contradicts the checkpoint and the records; which of them is wrong, nothing signed tells.
        here = [p for p in problems if name in f"{p.where} {p.detail}"]
    if not here:
        return f"not found; the audit says {problems[:2]}"
    if path.name == "records":
        seq = victim.record_at(position)
        told = " ".join(p.detail for p in here)
        near = range(0, 1) if seq < 0 else victim.frame_of(seq)
        if not any(f"record {n}" in told for n in near) and seq >= 0:
            return f"record {seq} is not named: {told}"
    if expected and not any(expected in p.detail for p in here):
        return f"object {expected} is not named: {here[0]}"
    return ""


def _harmless(victim: Victim) -> str:
    report = verify(victim.store)
    with Store.open_reader(victim.store) as store:
        for record in store.records():
            for name in records.references(record):
                store.get(name)
    return "" if report.ok else f"a file that proves nothing makes the audit fail: {report.problems[0]}"


def _refused_to_write(victim: Victim) -> str:
    """A copy without keys verifies, so verify does not look at the key; the writer does."""
    try:
        Store.open_writer(victim.store).close()
    except RecurosError:
        return ""
    return "a writer took the key"


# --- forgeries --------------------------------------------------------------------------------------------------------------


def forged(victim: Victim, seq: int, dice: random.Random) -> tuple[bytes, str]:
    """Another record in the place of record `seq`, well formed, and what was changed."""
    record = records.decode(victim.stored[seq])
    roll = dice.randrange(5)
    if roll == 0:
        changed, what = replace(record, actor="operator:forger"), "actor"
    elif roll == 1:
        changed, what = (
            replace(record, t_wall=record.t_wall + dice.choice((-1, 1)) * dice.randrange(1, 10**12)),
            "t_wall",
        )
    elif roll == 2:
        changed, what = replace(record, args=record.args | {"window": dice.randrange(1 << 40)}), "args"
    elif roll == 3:
        changed, what = replace(record, generation=record.generation + 1), "generation"
    else:
        changed, what = miss(dice.randrange(1 << 40), seq=seq, t_wall=record.t_wall), "everything"
    return records.encode(changed), what


def forgeries(victim: Victim, count: int, seed: int) -> Iterator[tuple[int, str]]:
    """Replace one record by another whose frame checks; the audit must name the record."""
    dice = random.Random(seed)
    path = victim.store / "ledger" / "records"
    frames = list(dict.fromkeys(victim.frame_of(n) for n in range(len(victim.stored))))
    for number in range(count):
        seq = dice.randrange(len(victim.stored))
        fake, what = forged(victim, seq, dice)
        stored = [fake if n == seq else data for n, data in enumerate(victim.stored)]
        path.write_bytes(MAGIC + b"".join(frame(f.start, [stored[n] for n in f]) for f in frames))
        problems = verify(victim.store).problems
        path.write_bytes(victim.files[path])
        told = " ".join(f"{p.where} {p.detail}" for p in problems)
        if not problems:
            yield number + 1, f"forged {what} of record {seq}: not found"
        elif f"record {seq} " not in told and f"record {seq}:" not in told:
            yield number + 1, f"forged {what} of record {seq}: not named: {told[:300]}"
        else:
            yield number + 1, ""


# --- whole files ----------------------------------------------------------------------------------------------------------


def _swap_packs(victim: Victim) -> str:
    first, second, *_ = sorted((victim.store / "packs").iterdir())
    a, b = first.read_bytes(), second.read_bytes()
    first.write_bytes(b)
    second.write_bytes(a)
    return _both_named(victim, first, second)


def _both_named(victim: Victim, *paths: Path) -> str:
    named = {p.where.partition("@")[0] for p in verify(victim.store).problems}
    missing = {victim.name(path) for path in paths} - named
    return f"not named: {sorted(missing)}" if missing else ""


def _delete_pack(victim: Victim) -> str:
    with Store.open_reader(victim.store) as store:
        name = records.references(store.record(0))[0]
        path, _ = store.entry(name)
    path.unlink()
    details = [f"{p.where} {p.detail}" for p in verify(victim.store).problems]
    return "" if any(name in d and "record 0" in d for d in details) else f"not named: {details[:2]}"


def _delete_tiles(victim: Victim) -> str:
    # Partial tiles of earlier sizes lie there too; nothing needs them.
    for tile in tiles_of(len(victim.stored)):
        path = victim.store / "tile" / tile.path
        path.unlink()
        found = _both_named(victim, path)
        if found:
            return found
        victim.fresh()
    return ""


def _put_an_older_checkpoint_back(victim: Victim) -> str:
    """Genuine, signed, and smaller than what is signed: with the ledger whole, and with the ledger cut to fit it."""
    for cut in (False, True):
        victim.fresh()
        size, note = victim.older
        (victim.store / "checkpoint").write_bytes(note)
        if cut:
            start, _ = victim.places[size]
            path = victim.store / "ledger" / "records"
            path.write_bytes(path.read_bytes()[: start - 4 - _FRAME_HEAD])
        if verify(victim.store).ok:
            return f"not found, ledger {'cut' if cut else 'whole'}"
        if cut:
            try:
                Store.open_writer(victim.store).close()
            except RecurosError:
                continue
            return "a writer took it"
    return ""


def _replay_frame(victim: Victim) -> str:
    path = victim.store / "ledger" / "records"
    data = path.read_bytes()
    last = victim.frame_of(len(victim.places) - 1)
    start = victim.places[last.start][0] - 4 - _FRAME_HEAD
    path.write_bytes(data + data[start:])
    return "" if not verify(victim.store).ok else "not found"


def _foreign_pack(victim: Victim) -> str:
    """A sound pack under the name of another."""
    other = scratch()
    try:
        with Store.open_writer(other / "store") as store:
            store.put([blob(b"foreign", "report")])
        (foreign,) = (other / "store" / "packs").iterdir()
        target = sorted((victim.store / "packs").iterdir())[0]
        shutil.copy(foreign, target)
        return _both_named(victim, target)
    finally:
        shutil.rmtree(other)


def _foreign_checkpoint(victim: Victim) -> str:
    """Signed, by another store's key."""
    other = scratch()
    try:
        with Store.open_writer(other / "store") as store:
            store.append([miss(n) for n in range(len(victim.stored))])
        shutil.copy(other / "store" / "checkpoint", victim.store / "checkpoint")
        return _both_named(victim, victim.store / "checkpoint")
    finally:
        shutil.rmtree(other)


def _foreign_key(victim: Victim) -> str:
    """FORMAT, checkpoint and key of another store over this one's records: everything verifies but the tree."""
    other = scratch()
    try:
        with Store.open_writer(other / "store") as store:
            store.append([miss(n) for n in range(len(victim.stored))])
        for name in ("FORMAT", "checkpoint"):
            shutil.copy(other / "store" / name, victim.store / name)
        return "" if not verify(victim.store).ok else "not found"
    finally:
        shutil.rmtree(other)


def _another_version(victim: Victim) -> str:
    path = victim.store / "FORMAT"
    for old, new in ((b'"major": 1', b'"major": 2'), (b'"major": 1', b'"major": 0'), (b"recuros-kfs", b"another-kfs")):
        path.write_bytes(victim.files[path].replace(old, new))
        if not any(p.where == "FORMAT" for p in verify(victim.store).problems):
            return f"{new.decode()}: not named"
        for attempt in (Store.open_reader, Store.open_writer):
            try:
                attempt(victim.store).close()
            except RecurosError as e:
                if b"major" in new and e.code != "E9-VERSION":
                    return f"{new.decode()}: {e.code}"
            else:
                return f"{new.decode()}: opened"
    return ""


def _cut_and_grow(victim: Victim) -> str:
    for path, good in victim.files.items():
        if path.name.startswith(NO_EVIDENCE) or path.suffix == ".key":
            continue
        for bad in (good[:-1], good[: len(good) // 2], b"", good + b"\0", good + good):
            if bad == good:
                continue
            path.write_bytes(bad)
            found = _both_named(victim, path)
            path.write_bytes(good)
            if found:
                return f"{len(good)} bytes made {len(bad)}: {found}"
    return ""


class _Clock:
    """The module `time`, but the wall clock reads what it is set to."""

    def __init__(self) -> None:
        self.now_ns = 1_800_000_000_000_000_000

    def time_ns(self) -> int:
        """Nanoseconds since 1970."""
        return self.now_ns

    def __getattr__(self, name: str) -> object:
        import time

        return getattr(time, name)


def _clock_jumps(_: Victim) -> str:
    """A wall clock that goes back, far ahead and stands still loses nothing, confuses nobody about what was sent, and is told."""
    root, clock, real = scratch(), _Clock(), kfs.store.time
    kfs.store.time = clock  # type: ignore[assignment]
    try:
        sent = []
        for jump in (0, -3_600, 10**7, -(10**7), 0, -(10**8)):
            clock.now_ns += jump * 10**9
            with Store.open_writer(root / "store") as store:
                for draft, seq in sent[-3:]:
                    if store.append([draft]) != [seq]:
                        return f"after a jump of {jump} s record {seq} was stored again"
                drafts = [miss(len(sent) + n) for n in range(2)]
                sent += zip(drafts, store.append(drafts), strict=True)
        report = verify(root / "store")
        if not report.ok:
            return f"the audit fails: {report.problems[0]}"
        told = getattr(report, "notes", [])
        return "" if sum("clock" in note for note in told) == 3 else f"the audit does not tell: {told}"
    finally:
        kfs.store.time = real
        shutil.rmtree(root)


WHOLE_FILES: Final[dict[str, Callable[[Victim], str]]] = {
    "two packs swapped": _swap_packs,
    "a pack deleted": _delete_pack,
    "a sound pack under another's name": _foreign_pack,
    "each tile deleted": _delete_tiles,
    "a smaller signed tree put back": _put_an_older_checkpoint_back,
    "the checkpoint of another store": _foreign_checkpoint,
    "FORMAT and checkpoint of another store": _foreign_key,
    "the last frame a second time": _replay_frame,
    "a directory from another version": _another_version,
    "every file cut short and lengthened": _cut_and_grow,
    "a clock that jumps": _clock_jumps,
}


def whole_files(victim: Victim) -> Iterator[tuple[int, str]]:
    """Each of the above, in a fresh store."""
    for number, (name, attempt) in enumerate(WHOLE_FILES.items()):
        found = attempt(victim)
        victim.fresh()
        yield number + 1, f"{name}: {found}" if found else ""
