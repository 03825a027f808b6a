"""What the store costs: against torch.save and safetensors with an fsync, restic, git and DVC, and a raw pwrite and fdatasync.

Cases of a row take turns, round by round, in one folder on one file system; a ratio is of the two of one round, the spread that
of the rounds. Files are read from the page cache on both sides. Every put stores bytes that are new to the store.

    make bench PART=kfs [COUNT=rounds]        python -m tests.bench.kfs --quick (a smoke run: sizes that say nothing)
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import statistics
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from kfs import pack as packs
from kfs.checkpoint import VerifiedCheckpoint
from kfs.files import Files
from kfs.group import GroupCommit
from kfs.objects import NewObject
from kfs.prover import Prover
from kfs.records import Record, RecordKind
from kfs.store import Store
from kfs.verify import verify
from tests.bench import _kfs_space, _peers
from tests.bench._rows import Rows

ROUNDS = 15
SEED = 42
MEASURED_S = 2.0


@dataclass(frozen=True)
class Scale:
    """How large: bytes of a snapshot, records of the ledger, appends of a round, snapshots of a space row."""

    snapshot_bytes: int = 118_000_000
    records: int = 200_000
    appends: int = 100
    writers: int = 32
    snapshots: int = 100
    proofs: int = 2_000


QUICK = Scale(snapshot_bytes=6_000_000, records=5_000, appends=20, snapshots=4, proofs=100)


def timed(call: Callable[[], object]) -> float:
    """Seconds of one call."""
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def in_turns(cases: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each case in each round; who comes first changes from round to round."""
    found: dict[str, list[float]] = {name: [] for name in cases}
    order = list(cases)
    for number in range(rounds):
        turn = number % len(order)
        for name in [*order[turn:], *order[:turn]]:
            found[name].append(timed(cases[name]))
    return found


def ratios(found: dict[str, list[float]], over: str, under: str) -> list[float]:
    """Round by round."""
    return [a / b for a, b in zip(found[over], found[under], strict=True)]


# --- snapshots ---------------------------------------------------------------------------------------------------------------


class Weights:
    """Tensors of a transformer's shapes, with new bytes when asked for."""

    def __init__(self, total_bytes: int) -> None:
        generator = torch.Generator().manual_seed(SEED)
        width = 512
        block = {"qkv": (3 * width, width), "out": (width, width), "up": (4 * width, width), "down": (width, 4 * width)}
        self.tensors: dict[str, Tensor] = {}
        left, layer = total_bytes // 4, 0
        while left > 0:
            for name, (rows, columns) in block.items():
                rows = min(rows, -(-left // columns))  # noqa: PLW2901 - the last one is cut
                if rows > 0:
                    self.tensors[f"blocks.{layer}.{name}"] = torch.randn(rows, columns, generator=generator)
                    left -= rows * columns
            layer += 1

    @property
    def nbytes(self) -> int:
        """Of all tensors."""
        return sum(tensor.nbytes for tensor in self.tensors.values())

    def change(self) -> None:
        """Every tensor has other bytes."""
        for tensor in self.tensors.values():
            tensor.add_(1e-3)

    def objects(self) -> list[NewObject]:
        """As the store takes them: no copies."""
        return [
            NewObject("F32", tuple(t.shape), memoryview(t.view(-1).view(torch.uint8).numpy()), "snapshot")
            for t in self.tensors.values()
        ]


def synced(path: Path, save: Callable[[str], object]) -> None:
    """Write a file and fsync it."""
    save(str(path))
    fd = os.open(path, os.O_RDONLY)
    os.fsync(fd)
    os.close(fd)


def snapshots(rows: Rows, scale: Scale, rounds: int, folder: Path) -> None:
    """put and get against the files that a training loop writes."""
    weights = Weights(scale.snapshot_bytes)
    saved, pickled = folder / "peer.safetensors", folder / "peer.pt"
    with Store.open_writer(folder / "store") as store:
        ids: list[str] = []

        def put() -> None:
            ids[:] = store.put(weights.objects())

        def put_new() -> None:
            before = set(store.layout.packs.iterdir())
            put()
            written.extend(set(store.layout.packs.iterdir()) - before)

        written: list[Path] = []
        cases: dict[str, Callable[[], object]] = {
            "put": put_new,
            "safetensors": lambda: synced(saved, lambda path: save_file(weights.tensors, path)),
            "torch": lambda: synced(pickled, lambda path: torch.save(weights.tensors, path)),
        }
        found: dict[str, list[float]] = {name: [] for name in (*cases, "unchanged")}
        for number in range(rounds):
            weights.change()
            order = list(cases)
            for name in [*order[number % 3 :], *order[: number % 3]]:
                found[name].append(timed(cases[name]))
            found["unchanged"].append(timed(put))
            # The peers' files are replaced; ours of earlier rounds make room likewise, between the measurements.
            for path in written[:-1]:
                path.unlink(missing_ok=True)
            del written[:-1]
        size = f"{weights.nbytes / 1e6:.0f} MB"
        peer = {"safetensors": "safetensors.torch.save_file + fsync", "torch": "torch.save + fsync"}
        rows.add(
            f"put {size} / safetensors + fsync", ratios(found, "put", "safetensors"), "<= 1.1", peer=peer["safetensors"]
        )
        rows.add(f"put {size} / torch.save + fsync", ratios(found, "put", "torch"), "<= 0.85", peer=peer["torch"])
        rows.add(
            f"unchanged put {size} / torch.save + fsync",
            ratios(found, "unchanged", "torch"),
            "<= 0.2",
            peer=peer["torch"],
        )
        rows.add(f"put {size}", found["put"], unit="s")
        commands(rows, scale, rounds, folder, weights, statistics.median(found["put"]))
        reads(rows, rounds, store, ids, saved, pickled)


def reads(rows: Rows, rounds: int, store: Store, ids: list[str], saved: Path, pickled: Path) -> None:
    """All tensors in, each touched once: verified against torch.load, mapped against safetensors."""

    def touched(data: memoryview) -> None:
        torch.frombuffer(data, dtype=torch.float32).sum()

    def verified() -> None:
        for name in ids:
            touched(store.get(name).data)

    def mapped() -> None:
        for name in ids:
            touched(packs.read_bytes(*store.entry(name)))

    def load_torch() -> None:
        for tensor in torch.load(pickled, weights_only=True).values():
            tensor.sum()

    def load_safetensors() -> None:
        for tensor in load_file(saved).values():
            tensor.sum()

    with no_warning_of_read_only_buffers():
        found = in_turns(
            {"verified": verified, "torch": load_torch, "mapped": mapped, "safetensors": load_safetensors}, rounds
        )
    rows.add("verified get / torch.load", ratios(found, "verified", "torch"), "<= 1.5", peer="torch.load, weights only")
    rows.add(
        "mmap get / safetensors",
        ratios(found, "mapped", "safetensors"),
        "<= 1.1",
        peer="safetensors.torch.load_file",
        note="bytes of the mapping, not verified; every tensor is summed on both sides",
    )


@contextlib.contextmanager
def no_warning_of_read_only_buffers() -> Iterator[None]:
    """torch warns once that a buffer is read-only; that it is, is the point."""
    import warnings

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*not writable.*")
        yield


# --- command lines ------------------------------------------------------------------------------------------------------------


def run(command: list[str], folder: Path, **variables: str) -> None:
    """A command that has to succeed."""
    environment = os.environ | {"HOME": str(folder), "DVC_NO_ANALYTICS": "1"} | variables
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {done.returncode}: {done.stderr[-500:]}")


def commands(rows: Rows, scale: Scale, rounds: int, folder: Path, weights: Weights, put_s: float) -> None:
    """The same bytes as a file, given to the command line of each peer; seconds of the command over seconds of put."""
    peers: dict[str, tuple[Path | None, Callable[[Path, Path], tuple[list[list[str]], list[list[str]]]]]] = {
        "restic backup": (_peers.restic(), _restic),
        "git add + commit": (_peers.git(), _git),
        "dvc add": (_peers.dvc(), _dvc),
    }
    for name, (program, make) in peers.items():
        label = f"{name} / put"
        if program is None:
            rows.add(label, "peer not installed", peer=name, note="it could not be set up on this machine")
            continue
        there = folder / name.split()[0]
        there.mkdir()
        prepare, measured = make(program, there)
        for command in prepare:
            run(command, there, RESTIC_PASSWORD="peer")
        taken = []
        for _ in range(max(2, min(5, rounds // 3))):
            weights.change()
            save_file(weights.tensors, str(there / "data.safetensors"))
            taken.append(timed(lambda: [run(c, there, RESTIC_PASSWORD="peer") for c in measured]) / put_s)  # noqa: B023
        version = subprocess.run(
            [program, "version" if "restic" in name else "--version"], capture_output=True, text=True, check=False
        )
        rows.add(
            label,
            taken,
            ">= 10",
            peer=f"{name.split()[0]} {version.stdout.strip().splitlines()[0]}",
            note="the whole command with its start, against the library's put inside a running program (median of its rounds)",
        )
        shutil.rmtree(there)


def _restic(program: Path, there: Path) -> tuple[list[list[str]], list[list[str]]]:
    base = [str(program), "--repo", str(there / "repo"), "--no-cache", "--quiet"]
    return [[*base, "init"]], [[*base, "backup", "data.safetensors"]]


def _git(program: Path, there: Path) -> tuple[list[list[str]], list[list[str]]]:
    git = [str(program), "-c", "user.name=peer", "-c", "user.email=peer@localhost", "-c", "commit.gpgsign=false"]
    return [[*git, "init", "-q"]], [[*git, "add", "data.safetensors"], [*git, "commit", "-q", "-m", "snapshot"]]


def _dvc(program: Path, there: Path) -> tuple[list[list[str]], list[list[str]]]:
    return [[str(program), "init", "--no-scm", "-q"]], [[str(program), "add", "-q", "data.safetensors"]]


# --- the ledger ---------------------------------------------------------------------------------------------------------------


def draft(number: int) -> Record:
    """A record of a window, with what a window has."""
    args: dict[str, Any] = {
        "window": number,
        "boot": "0123456789abcdef",
        "phase": "distil",
        "step0": 50 * number,
        "steps": 50,
        "deadline_ns": 10**12 + number,
        "budget_ns": 3 * 10**9,
        "policy_seq": None,
        "directives": [],
    }
    return Record("kernel", RecordKind.WINDOW_GRANT, args, 10**12 + number, cap_id=3)


def appends(rows: Rows, scale: Scale, rounds: int, folder: Path) -> None:
    """One writer: append against the least that is durable, a pwrite of as many bytes and an fdatasync, call by call in turns."""
    numbers = iter(range(10**9))
    found = []
    own, raw_us = [], []
    with Store.open_writer(folder / "appends" / "store") as store:
        raw = os.open(folder / "appends" / "raw", os.O_WRONLY | os.O_CREAT, 0o644)
        end = 0
        for _ in range(rounds):
            ours, theirs = [], []
            for _ in range(scale.appends):
                record = draft(next(numbers))
                before = store.layout.records.stat().st_size
                ours.append(timed(lambda: store.append([record])))  # noqa: B023
                data = os.urandom(store.layout.records.stat().st_size - before)
                theirs.append(timed(lambda: (os.pwrite(raw, data, end), os.fdatasync(raw))))  # noqa: B023
                end += len(data)
            found.append(statistics.median(ours) / statistics.median(theirs))
            own.append(statistics.median(ours) * 1e6)
            raw_us.append(statistics.median(theirs) * 1e6)
        os.close(raw)
    peer = "os.pwrite + os.fdatasync of as many bytes"
    rows.add(
        "library append p50 / raw pwrite + fdatasync",
        found,
        "<= 1.15",
        peer=peer,
        note=f"medians of {scale.appends} a round",
    )
    rows.add("library append p50", own, unit="us")
    rows.add("raw pwrite + fdatasync p50", raw_us, unit="us")
    rows.add(
        "library append, processor time without the sync",
        _append_cpu_us(folder),
        unit="us",
        note="os.fdatasync left out",
    )


def _append_cpu_us(folder: Path) -> list[float]:
    class NoSync:
        def __getattr__(self, name: str) -> Any:
            return (lambda fd: None) if name == "fdatasync" else getattr(os, name)

    found = []
    with Store.open_writer(folder / "unsynced" / "store", Files(NoSync())) as store:
        for number in range(5):
            drafts = [draft(1_000 * number + n) for n in range(1_000)]
            began = time.process_time()
            for record in drafts:
                store.append([record])
            found.append((time.process_time() - began) * 1e3)
    return found


def group_commit(rows: Rows, scale: Scale, rounds: int, folder: Path, seconds: float) -> None:
    """Many threads, each waiting for its record to be durable before it sends the next."""
    rates, shared, single = [], [], []
    for number in range(max(2, rounds // 3)):
        for writers in (scale.writers, 1):
            there = folder / f"group-{number}-{writers}" / "store"
            with GroupCommit(there) as group:
                count = _hammer(group, writers, seconds)
                if writers == 1:
                    single.append(count / seconds)
                else:
                    rates.append(count / seconds)
                    shared.append(count / group.commits)
            shutil.rmtree(there.parent)
    rows.add(
        f"durable appends/s, {scale.writers} writers", rates, ">= 15000", unit="/s", note="threads, one record a call"
    )
    rows.add(f"records that share a commit, {scale.writers} writers", shared)
    rows.add("durable appends/s, 1 writer", single, unit="/s")


def _hammer(group: GroupCommit, writers: int, seconds: float) -> int:
    stop = threading.Event()
    counts = [0] * writers
    drafts = [[draft(10_000_000 * writer + n) for n in range(int(6_000 * seconds))] for writer in range(writers)]

    def write(writer: int) -> None:
        for record in drafts[writer]:
            if stop.is_set():
                return
            group.append([record])
            counts[writer] += 1

    threads = [threading.Thread(target=write, args=(writer,)) for writer in range(writers)]
    for thread in threads:
        thread.start()
    stop.wait(seconds)
    done = sum(counts)
    stop.set()
    for thread in threads:
        thread.join()
    return done


def audits(rows: Rows, scale: Scale, rounds: int, folder: Path) -> None:
    """A ledger of many records: the audit, and proofs about it."""
    there = folder / "long" / "store"
    with Store.open_writer(there) as store:
        middle = b""
        for first in range(0, scale.records, 4_000):
            store.append([draft(n) for n in range(first, min(first + 4_000, scale.records))])
            if first >= scale.records // 2 and not middle:
                store.checkpoint()
                middle = store.layout.checkpoint.read_bytes()
        key = store.format.key
    fast, full = [], []
    for _ in range(max(2, rounds // 3)):
        fast.append(scale.records / timed(lambda: verify(there, fast=True)))
        full.append(scale.records / timed(lambda: verify(there)))
    rows.add(
        "audit of the ledger (verify --fast), entries/s",
        fast,
        ">= 100000",
        unit="/s",
        note="frames, leaves, tiles, root, signature",
    )
    rows.add("audit with every record decoded (verify), entries/s", full, unit="/s", note="no objects in this store")
    with Store.open_reader(there) as reader:
        prover = Prover(reader)
        prover.warm()
        old = VerifiedCheckpoint(middle, key)
        stride = max(1, scale.records // scale.proofs)
        inclusion = [timed(lambda: prover.inclusion(n)) * 1e6 for n in range(0, scale.records, stride)]  # noqa: B023
        consistency = [timed(lambda: prover.consistency(old)) * 1e6 for _ in range(scale.proofs)]
    size = f"N = {scale.records:,}"
    note = "made and verified, the record read; hashes in memory"
    rows.add(f"inclusion proof at {size}", inclusion, "<= 100", unit="us", note=note)
    rows.add(
        f"consistency proof at {size}", consistency, "<= 100", unit="us", note=f"from {old.size:,}; made and verified"
    )


# --- space ---------------------------------------------------------------------------------------------------------------------


def space(rows: Rows, scale: Scale) -> None:
    """100 snapshots of three kinds of training, stored over raw."""
    for case, (_, target) in _kfs_space.CASES.items():
        found = _kfs_space.measure(case, scale.snapshots)
        note = f"{found.raw_bytes / 1e6:.0f} MB raw, {found.first_bytes / found.raw_bytes:.3f} before compaction"
        rows.add(
            f"{scale.snapshots} snapshots stored/raw: {case}",
            found.ratio,
            str(target),
            note=note if found.verified else f"{note}; the store does NOT verify",
        )


PARTS: dict[str, Callable[[Rows, Scale, int, Path], None]] = {
    "snapshots": snapshots,
    "appends": appends,
    "group": lambda rows, scale, rounds, folder: group_commit(
        rows, scale, rounds, folder, 0.3 if scale is QUICK else MEASURED_S
    ),
    "audits": audits,
    "space": lambda rows, scale, rounds, folder: space(rows, scale),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=ROUNDS, help="rounds")
    parser.add_argument("--seconds", type=float, help="not used: rounds are what is counted")
    parser.add_argument("--quick", action="store_true", help="a smoke run; its rows go to the terminal only")
    parser.add_argument("--only", default="", choices=["", *PARTS], help="one part; its rows go to the terminal only")
    parser.add_argument("--folder", type=Path, help="where to write, instead of the system's temporary folder")
    options = parser.parse_args()
    scale = QUICK if options.quick else Scale()
    rounds = 3 if options.quick else options.count
    context = {"seeds": [SEED], "load_before": round(os.getloadavg()[0], 2)}
    rows = Rows("kfs", f"make bench PART=kfs COUNT={rounds}", context)
    for name, part in PARTS.items():
        if options.only in ("", name):
            with tempfile.TemporaryDirectory(prefix="recuros-bench-", dir=options.folder) as folder:
                part(rows, scale, rounds, Path(folder))
    if not options.quick and not options.only:
        rows.write()


if __name__ == "__main__":
    main()
