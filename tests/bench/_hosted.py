"""Hosted runs as their own ledger tells them, and the same windows in the plain loop.

Responsible for: booting, pausing between windows and halting a runtime; times from ledger records (first window.grant to last
window.commit of a stretch, on the kernel's clock); driving the plain loop's process; comparing parameters byte by byte. Refuses:
figures of a run that failed.
"""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

import recuros
from kfs.records import Record, RecordKind
from kfs.store import Store
from servers import manifest as manifests
from servers.manifest_tables import Manifest

DONE_TIMEOUT_S = 900.0
IDLE_TIMEOUT_S = 120.0
POLL_S = 0.02
SETTINGS = ("temperature", "mix", "alpha", "weights")


@dataclass(frozen=True)
class Span:
    """A stretch of windows: steps, seconds from first grant to last commit, seconds between window ends, learner's CPU seconds."""

    steps: int
    seconds: float
    windows: list[float]
    cpu_seconds: float
    loss: float = 0.0

    @property
    def rate(self) -> float:
        """Steps per second."""
        return self.steps / self.seconds


def app(name: str) -> Manifest:
    """A packaged app's manifest, to be changed and booted."""
    return manifests.load(manifests.app_path(name))


class Ledger:
    """The records of a run directory: windows by number, counts by kind."""

    def __init__(self, run: Path) -> None:
        self.run = run
        self.records: list[Record] = []
        self.read()

    def read(self) -> None:
        """Take in what has been appended."""
        with Store.open_reader(self.run / "store") as store:
            self.records += store.records(len(self.records))
        self.grants = {r.args["window"]: r for r in self.records if r.kind is RecordKind.WINDOW_GRANT}
        self.commits = {r.args["window"]: r for r in self.records if r.kind is RecordKind.WINDOW_COMMIT}

    def of(self, kind: RecordKind) -> list[Record]:
        """All records of a kind."""
        return [r for r in self.records if r.kind is kind]

    def span(self, windows: list[int]) -> Span:
        """A stretch of committed windows."""
        commits = [self.commits[w] for w in windows]
        stamps = [self.grants[windows[0]].t_mono, *(c.t_mono for c in commits)]
        return Span(
            steps=sum(c.args["steps"] for c in commits),
            seconds=(stamps[-1] - stamps[0]) / 1e9,
            windows=[(b - a) / 1e9 for a, b in itertools.pairwise(stamps)],
            cpu_seconds=sum(c.args["metrics"]["used_ns"] for c in commits) / 1e9,
            loss=commits[-1].args["metrics"]["loss"],
        )

    def phase(self, index: int) -> list[int]:
        """The committed windows of a phase of the plan."""
        return [w for w, c in sorted(self.commits.items()) if c.args["phase"]["index"] == index]

    def settings(self, window: int) -> dict[str, Any]:
        """What an Observer's policy had set for a window."""
        policy = self.commits[window].args["resume"]["policy"]
        return {k: v for k, v in policy.items() if k in SETTINGS and v}


class Session:
    """A runtime in a run directory of its own, paused between stretches."""

    def __init__(self, manifest: Manifest, run: Path) -> None:
        self.manifest, self.run = manifest, run
        file = run.with_suffix(".toml")
        file.write_text(manifests.dump(manifest), encoding="utf-8")
        self.began = time.monotonic()
        self.runtime = recuros.boot(config=file, run=run)
        self.ledger: Ledger | None = None
        self.seen = 0

    def __enter__(self) -> Session:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.runtime.__exit__(kind, error, at)

    def stretch(self, seconds: float) -> list[int]:
        """Let windows run for about `seconds`, pause, and return the numbers of those that committed."""
        client = self.runtime.client
        client.interrupt(kind="resume", reason="bench")
        time.sleep(seconds)
        deadline = time.monotonic() + IDLE_TIMEOUT_S
        while self.runtime.status()["done_windows"] == self.seen and time.monotonic() < deadline:
            time.sleep(POLL_S)  # a machine with much else to do
        client.interrupt(kind="pause", reason="bench")
        status = self._idle()
        windows = list(range(self.seen + 1, status["done_windows"] + 1))
        if not windows:
            raise SystemExit(f"{self.run}: no window committed in {seconds} s: {status['error']}")
        self.seen = windows[-1]
        self.read()
        return windows

    def first_pause(self) -> list[int]:
        """Pause a runtime that has just booted."""
        self.runtime.client.interrupt(kind="pause", reason="bench")
        self.seen = int(self._idle()["done_windows"])
        self.read()
        return list(range(1, self.seen + 1))

    def _idle(self) -> dict[str, Any]:
        deadline = time.monotonic() + IDLE_TIMEOUT_S
        while True:
            status = self.runtime.status()
            if status["error"] or time.monotonic() > deadline:
                raise SystemExit(f"{self.run}: not idle: {status['state']}, {status['error']}")
            counts = status["windows"]
            if counts["granted"] == counts["committed"] + counts["rolled_back"]:
                return status
            time.sleep(POLL_S)

    def read(self) -> Ledger:
        """The ledger as it is now."""
        if self.ledger is None:
            self.ledger = Ledger(self.run)
        else:
            self.ledger.read()
        return self.ledger

    def span(self, windows: list[int]) -> Span:
        """Figures of windows that were returned."""
        assert self.ledger is not None
        return self.ledger.span(windows)

    def finish(self) -> tuple[dict[str, Any], float]:
        """Wait for the end of the plan, halt, and return the last status with the seconds since the boot."""
        status = self.runtime.wait_for("done", DONE_TIMEOUT_S)
        self.runtime.halt()
        seconds = time.monotonic() - self.began
        if status["error"]:
            raise SystemExit(f"{self.run}: {status['error']}")
        self.read()
        return status, seconds


class Plain:
    """The plain loop's process: the same plan on the lane's core, with the settings that were in force in a hosted run."""

    def __init__(self, manifest: Manifest, folder: Path, *, loop: str = "flat", checkpoint: bool = True) -> None:
        document = manifests.boot_document(manifest, folder, folder, detached=False)
        config = document["servers"][0]["config"]
        self.folder = folder
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.bench._plain"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self._send(
            {
                "seed": config["seed"],
                "model": config["model"],
                "phases": document["phases"],
                "batch": config["data"]["batch"],
                "cpus": document["lane_cpus"],
                "loop": loop,
                "checkpoint": str(folder / f"plain-{id(self):x}.pt") if checkpoint else "",
            }
        )

    def __enter__(self) -> Plain:
        return self

    def __exit__(self, *_: object) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()

    def windows(self, ledger: Ledger, windows: list[int]) -> Span:
        """Run these windows of one phase as the hosted run did."""
        cursor = ledger.commits[windows[0]].args
        settings = [ledger.settings(w) for w in windows]
        with Store.open_reader(ledger.run / "store") as store:
            for given in settings:
                if weights := given.get("weights"):
                    given["weights"] = str(self.folder / f"{weights.replace(':', '-')}.npy")
                    np.save(given["weights"], np.frombuffer(store.get(weights).data, dtype="<f4"))
        first = cursor["step0"] // cursor["steps"]
        told = self._ask({"phase": cursor["phase"]["index"], "first": first, "settings": settings})
        return Span(**told)

    def differing(self, ledger: Ledger, window: int) -> tuple[int, list[str]]:
        """How many parameters a window's snapshot has, and the paths of those whose bytes are not the plain loop's."""
        path = self.folder / "plain.npz"
        self._ask({"save": str(path)})
        result = np.load(path)
        roles = ("teacher", "student", "projector", "ema")
        wrong, count = [], 0
        with Store.open_reader(ledger.run / "store") as store:
            leaves = store.snapshot(str(ledger.commits[window].result_snap))
            leaves = {p: i for p, i in leaves.items() if p.split("/")[0] in roles}
            for leaf_path, leaf in leaves.items():
                role, module, tensor = leaf_path.split("/")
                name = f"{role}/{tensor}" if module == "." else f"{role}/{module}.{tensor}"
                data = bytes(store.get(leaf).data)
                count += len(data) // 4
                if name not in result.files or result[name].astype("<f4").tobytes() != data:
                    wrong.append(leaf_path)
        if len(leaves) != len(result.files):
            wrong.append(f"{len(leaves)} tensors against {len(result.files)}")
        return count, wrong

    def _ask(self, command: dict[str, Any]) -> dict[str, Any]:
        self._send(command)
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"the plain loop ended with status {self.process.wait()}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _send(self, document: dict[str, Any]) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(document) + "\n")
        self.process.stdin.flush()
