"""kill -9: a writer process dies at any moment; its successor finds every record and object that was acknowledged.

One process imports the store once and forks a writer for each life, so that thousands of kills take minutes. A writer puts a snapshot
and appends its commit, as the archivist does, tells the number and the snapshot over a pipe when it has them, signs when signing is due,
and compacts in slices. The campaign waits for a random number of these lines, a random moment more, and kills. A writer that ends by
itself is a violation, and so is one line that the store does not keep.
"""

from __future__ import annotations

import os
import random
import select
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from kfs.store import Store
from kfs.verify import verify
from tests.campaign._power import scratch

LIVES_PER_STORE: Final = 25
_ROOT: Final = Path(__file__).resolve().parents[2]

# Reads "STORE SEED" lines; answers "PID", then what the writer tells, then "END STATUS" after it was reaped.
_FOUNDRY: Final = """
import os, random, sys
from kfs.compactor import Compactor
from kfs.objects import blob
from kfs.store import Store
from tests.unit.kfs_support import commit, miss, snapshot_of

def live(store_dir, seed):
    dice = random.Random(seed)
    with Store.open_writer(store_dir) as store:
        window = store.size
        compactor = Compactor(store, block=4, hot=2)
        while True:
            refs, new = snapshot_of(*(dice.randrange(50) for _ in range(2)), window)
            root, _ = store.put_snapshot(refs, new, extras=[blob(dice.randbytes(dice.choice((10, 5_000, 300_000))), "report")])
            (seq,) = store.append([commit(window, boot=seed, t_mono=window, result=root)])
            os.write(1, f"{seq} {root}\\n".encode())
            batch = [miss(dice.randrange(1 << 40)) for _ in range(dice.choice((0, 0, 1, 20)))]
            if batch:
                os.write(1, f"{store.append(batch)[-1]} -\\n".encode())
            if store.checkpoint_due() or dice.random() < 0.2:
                head = store.checkpoint()
                os.write(1, f"{head.size} {head.root.hex()} signed\\n".encode())
            compactor.step()
            window += 1

for line in sys.stdin:
    store_dir, seed = line.split()
    pid = os.fork()
    if pid == 0:
        try:
            live(store_dir, seed)
        except BaseException as error:
            os.write(2, f"{type(error).__name__}: {error}\\n".encode())
        os._exit(1)
    os.write(1, f"{pid}\\n".encode())
    _, status = os.waitpid(pid, 0)
    os.write(1, f"END {status}\\n".encode())
"""


@dataclass
class Foundry:
    """The process that forks writers, and what they tell."""

    told: list[str] = field(default_factory=list)

    def __enter__(self) -> Foundry:
        self._process = subprocess.Popen(
            [sys.executable, "-c", _FOUNDRY],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=_ROOT,
            bufsize=0,
        )
        self._rest = b""
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._process.kill()
        self._process.communicate()

    def life(self, store_dir: Path, seed: str, dice: random.Random) -> tuple[list[str], int]:
        """One writer from fork to kill: the lines it told, and its wait status."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{store_dir} {seed}\n".encode())
        pid = int(self._line())
        told: list[str] = []
        wanted = dice.choice((0, 0, 1, 2, 5, 12))
        while len(told) < wanted:
            told.append(self._line())
            if told[-1].startswith("END"):
                break
        else:
            self._more(dice.random() * (0.012 if wanted == 0 else 0.003))
            os.kill(pid, signal.SIGKILL)
        while not told or not told[-1].startswith("END"):
            told.append(self._line())
        return told[:-1], int(told[-1].split()[1])

    def error(self) -> str:
        """What the last writer said before it ended by itself."""
        assert self._process.stderr is not None
        return os.read(self._process.stderr.fileno(), 4_096).decode().strip()

    def _line(self) -> str:
        while b"\n" not in self._rest:
            self._read(None)
        line, _, self._rest = self._rest.partition(b"\n")
        return line.decode()

    def _more(self, seconds: float) -> None:
        """Let the writer run on for a moment, or until it tells something."""
        self._read(seconds)

    def _read(self, seconds: float | None) -> None:
        assert self._process.stdout is not None
        ready, _, _ = select.select([self._process.stdout], [], [], seconds)
        if ready:
            data = os.read(self._process.stdout.fileno(), 65_536)
            if not data:
                raise AssertionError("the forking process is gone")
            self._rest += data


@dataclass
class Told:
    """What the writers of one store acknowledged."""

    records: dict[int, str] = field(default_factory=dict)
    signed: dict[int, str] = field(default_factory=dict)

    def take(self, line: str) -> str:
        """One line; says what is wrong with it, or nothing."""
        words = line.split()
        if words[-1] == "signed":
            size, root = int(words[0]), words[1]
            if self.signed.setdefault(size, root) != root:
                return f"two trees of {size} records were signed"
            return ""
        seq = int(words[0])
        if seq in self.records:
            return f"record {seq} was acknowledged twice"
        self.records[seq] = words[1]
        return ""

    def lost(self, store_dir: Path) -> str:
        """What the store does not keep of it, or nothing."""
        with Store.open_writer(store_dir) as store:
            for seq, root in self.records.items():
                if seq >= store.size:
                    return f"record {seq} is lost: the ledger holds {store.size}"
                record = store.record(seq)
                if root not in ("-", record.result_snap):
                    return f"record {seq} is another one"
                if root != "-":
                    for leaf in store.snapshot(root).values():
                        store.get(leaf)
        with Store.open_reader(store_dir) as reader:
            for size, root in sorted(self.signed.items()):
                if reader._ledger.grow_tree(size).root().hex() != root:
                    return f"the signature over {size} records is over another tree"
        report = verify(store_dir)
        return "" if report.ok else f"verify: {report.problems[0]}"


def kills(count: int, seed: int) -> Iterator[tuple[int, str]]:
    """Kill `count` writers; (lives so far, violation or nothing) for each life."""
    dice = random.Random(seed)
    root = scratch()
    told, store_dir = Told(), root / "0" / "store"
    try:
        with Foundry() as foundry:
            for life in range(count):
                lines, status = foundry.life(store_dir, f"{seed}.{life}", dice)
                found = next((what for line in lines if (what := told.take(line))), "")
                if os.WIFEXITED(status):
                    found = found or f"the writer ended by itself: {foundry.error()}"
                if not found and (life % LIVES_PER_STORE == LIVES_PER_STORE - 1 or life == count - 1):
                    found = told.lost(store_dir)
                    shutil.rmtree(store_dir.parent)
                    told, store_dir = Told(), root / str(life + 1) / "store"
                yield life + 1, f"seed {seed}, life {life}: {found}" if found else ""
    finally:
        shutil.rmtree(root)
