"""A hosted run of a manifest, as its own ledger tells it, and the same plan in the plain loop.

Responsible for: manifests of the bench's sizes, booting and halting a runtime, phase times from ledger records (first window.grant to
last window.commit, on the kernel's clock), and the comparison of final parameters byte by byte. Refuses: a run that did not
finish its plan.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

import recuros
from kfs.records import RecordKind
from kfs.store import Store
from servers import manifest as manifests
from servers.manifest_tables import Manifest

DONE_TIMEOUT_S = 900.0


@dataclass(frozen=True)
class Span:
    """A phase of a run: steps, seconds from the first grant to the last commit, seconds between window ends, CPU seconds."""

    steps: int
    seconds: float
    windows: list[float]
    cpu_seconds: float

    @property
    def rate(self) -> float:
        """Steps per second."""
        return self.steps / self.seconds


@dataclass
class Hosted:
    """What a finished run left behind."""

    run: Path
    status: dict[str, Any]
    seconds: float
    phases: dict[str, Span]
    settings: dict[int, dict[str, Any]]
    servers_cpu: dict[str, float]
    counts: dict[str, int]
    exact: list[bool] = field(default_factory=list)
    final: str = ""


def app(name: str) -> Manifest:
    """A packaged app's manifest, to be changed and booted."""
    return manifests.load(manifests.app_path(name))


def host(manifest: Manifest, run: Path) -> Hosted:
    """Boot the manifest in `run`, wait until its plan is done, halt, and read the ledger."""
    file = run.with_suffix(".toml")
    file.write_text(manifests.dump(manifest), encoding="utf-8")
    began = time.monotonic()
    with recuros.boot(config=file, run=run) as runtime:
        status = runtime.wait_for("done", DONE_TIMEOUT_S)
        runtime.halt()
    return read(run, status, time.monotonic() - began)


def read(run: Path, status: dict[str, Any], seconds: float) -> Hosted:
    """A run directory's ledger as figures."""
    grants: dict[int, int] = {}
    commits: list[tuple[str, int, int, dict[str, Any]]] = []
    settings: dict[int, dict[str, Any]] = {}
    counts: dict[str, int] = {}
    exact: list[bool] = []
    final = ""
    with Store.open_reader(run / "store") as store:
        for record in store.records():
            counts[record.kind] = counts.get(record.kind, 0) + 1
            if record.kind is RecordKind.WINDOW_GRANT:
                grants[record.args["window"]] = record.t_mono
            elif record.kind is RecordKind.WINDOW_COMMIT:
                window, final = record.args["window"], str(record.result_snap)
                row = (record.args["phase"]["name"], window, record.t_mono, record.args)
                commits.append(row)
                settings[window] = record.args["resume"]["policy"]
            elif record.kind is RecordKind.WINDOW_ROLLBACK:
                exact.append(bool(record.args["exact"]))
    if status.get("error"):
        raise SystemExit(f"{run}: {status['error']}")
    phases = {name: _span([c for c in commits if c[0] == name], grants) for name in dict.fromkeys(c[0] for c in commits)}
    cpu = {s["name"]: s["cpu_ns"] / 1e9 for s in status["servers"]} | {"kernel": status["kernel"]["cpu_ns"] / 1e9}
    return Hosted(run, status, seconds, phases, settings, cpu, counts, exact, final)


def _span(commits: list[tuple[str, int, int, dict[str, Any]]], grants: dict[int, int]) -> Span:
    stamps = [grants[commits[0][1]], *(t for _, _, t, _ in commits)]
    return Span(
        steps=sum(args["steps"] for *_, args in commits),
        seconds=(stamps[-1] - stamps[0]) / 1e9,
        windows=[(b - a) / 1e9 for a, b in zip(stamps, stamps[1:], strict=False)],
        cpu_seconds=sum(args["metrics"]["used_ns"] for *_, args in commits) / 1e9,
    )


def plain(
    manifest: Manifest, like: Hosted, folder: Path, *, loop: str = "flat", checkpoint: bool = True, keep: bool = False
) -> dict[str, Span]:
    """The same plan in the plain loop, on the lane's core, with the settings that were in force in the hosted run."""
    document = manifests.boot_document(manifest, like.run, folder, detached=False)
    config = document["servers"][0]["config"]
    weights = {str(s["weights"]) for s in like.settings.values() if s.get("weights")}
    files = {name: folder / f"weights-{i}.npy" for i, name in enumerate(sorted(weights))}
    with Store.open_reader(like.run / "store") as store:
        for name, file in files.items():
            np.save(file, np.frombuffer(store.get(name).data, dtype="<f4"))
    kept = ("temperature", "mix", "alpha", "weights")
    request = {
        "seed": config["seed"],
        "model": config["model"],
        "phases": document["phases"],
        "batch": config["data"]["batch"],
        "cpus": document["lane_cpus"],
        "settings": {w: {k: v for k, v in s.items() if k in kept and v} for w, s in like.settings.items()},
        "weights": {name: str(file) for name, file in files.items()},
        "loop": loop,
        "checkpoint": str(folder / "plain.pt") if checkpoint else "",
        "result": str(folder / "plain.npz") if keep else "",
    }
    command = [sys.executable, "-m", "tests.bench._plain"]
    done = subprocess.run(command, input=json.dumps(request), capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"the plain loop failed:\n{done.stderr}")
    told = json.loads(done.stdout)["phases"]
    steps = {p["name"]: p["windows"] * p["steps"] for p in document["phases"]}
    return {n: Span(steps[n], t["seconds"], t["windows"], t["cpu_seconds"]) for n, t in told.items()}


def differing(like: Hosted, folder: Path) -> tuple[int, list[str]]:
    """How many parameters were compared, and the paths whose bytes differ between the run's last snapshot and the plain loop."""
    result = np.load(folder / "plain.npz")
    roles = ("teacher", "student", "projector", "ema")
    wrong, count = [], 0
    with Store.open_reader(like.run / "store") as store:
        leaves = {p: i for p, i in store.snapshot(like.final).items() if p.split("/")[0] in roles}
        for path, leaf in leaves.items():
            role, module, tensor = path.split("/")
            name = f"{role}/{tensor}" if module == "." else f"{role}/{module}.{tensor}"
            data = bytes(store.get(leaf).data)
            count += len(data) // 4
            if name not in result.files or result[name].astype("<f4").tobytes() != data:
                wrong.append(path)
    if len(leaves) != len(result.files):
        wrong.append(f"{len(leaves)} tensors against {len(result.files)}")
    return count, wrong


def loadavg() -> float:
    """The machine's load over the last minute: above 1 before a run, somebody else is using it."""
    return os.getloadavg()[0]
