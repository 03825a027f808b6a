"""A real runtime of small servers.

Supervisor, kernel, archivist, sockets and processes are the real ones; learner, dataset, gpu and observer are fakes that
boot at once.

Responsible for: starting it, waiting for what it says, and leaving nothing behind: no process, no socket directory,
whatever a test did to it.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgpack

from syscalls.client import Client
from syscalls.rundir import socket_dir

ROOT = Path(__file__).resolve().parents[2]
FAKES = Path(__file__).resolve().parent / "fakes"
PATIENCE_S = 180.0
OPERATOR = ["steer", "interrupt", "attach-probe", "sched-control", "read-trace", "grant", "revoke"]


def document(run: Path, *, hostile: bool = False, windows: int = 1_000_000) -> dict[str, Any]:
    """The boot document of a plan that goes on for as long as the test does."""
    common = {"run": str(run), "store": str(run / "store"), "app": "live", "seed": 1, "hostile": hostile}
    stanzas = (
        ("archivist", "servers.archivist", "fair", 0, ["kfs-append"], []),
        ("gpu", "fake_gpu", "fair", 0, ["device"], []),
        ("dataset", "fake_dataset", "fair", 1, ["map", "kfs-read"], []),
        ("learner", "fake_learner", "edf", 2, ["map", "exec", "write-params", "kfs-append", "kfs-read"], ["archivist"]),
        ("observer", "fake_observer", "fair", 3, ["read-trace", "submit-policy", "kfs-read"], ["dataset"]),
    )
    keys = ("name", "entry", "class", "rank", "rights", "calls")
    servers = [{**dict(zip(keys, s, strict=True)), "restart": "always", "weight": 1, "config": common} for s in stanzas]
    return {
        "abi": [1, 0],
        "run": str(run),
        "sockets": "",
        "app": "live",
        "seed": 1,
        "deterministic": True,
        "detached": False,
        "window": {"steps": 1, "budget_ms": 9_000, "period_ms": 20_000, "deadline_ms": 20_000},
        "phases": [{"name": "only", "train": "student", "windows": windows, "steps": 1, "end": ""}],
        "probes": [],
        "policy": {},
        "eval_every": 0,
        "operator_rights": OPERATOR,
        "servers": servers,
        "lane_cpus": [],
        "background_cpus": [],
    }


class Live:
    """One supervisor and everything below it."""

    def __init__(self, run: Path, doc: dict[str, Any]) -> None:
        self.run = run
        for name in ("log", "store", "keys"):
            (run / name).mkdir(parents=True, exist_ok=True)
        self.sockets = socket_dir(run)
        self.buffer = b""
        self.events: list[dict[str, Any]] = []
        with (run / "log" / "supervisor.log").open("ab") as log:
            self.supervisor = subprocess.Popen(
                [sys.executable, "-P", "-m", "kernel.supervisor"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,
                env={**os.environ, "PYTHONPATH": f"{ROOT}:{FAKES}"},
            )
        data = msgpack.packb(doc)
        assert self.supervisor.stdin is not None
        self.supervisor.stdin.write(len(data).to_bytes(8, "little") + data)
        self.supervisor.stdin.flush()
        self.pidfds: dict[int, int] = {self.supervisor.pid: os.pidfd_open(self.supervisor.pid)}
        self._client: Client | None = None

    def up(self) -> None:
        """Wait until every server is ready."""
        self.until(lambda: {"event": "state", "state": "running"} in self.events, "running")
        self.watch()

    # --- waiting ---------------------------------------------------------------------------------------------------------

    def listen(self, timeout_s: float) -> bool:
        """Take what the supervisor says, waiting for the first byte; False at its end."""
        assert self.supervisor.stdout is not None
        fd = self.supervisor.stdout.fileno()
        if not select.select([fd], [], [], timeout_s)[0]:
            return True
        data = os.read(fd, 1 << 16)
        self.buffer += data
        *lines, self.buffer = self.buffer.split(b"\n")
        self.events += [json.loads(line) for line in lines]
        return bool(data)

    def until(self, holds: Callable[[], Any], what: str, timeout_s: float = PATIENCE_S) -> Any:
        """Wait until something holds; looks again whenever the supervisor speaks, and every few milliseconds."""
        deadline = time.monotonic() + timeout_s
        while not (found := holds()):
            assert time.monotonic() < deadline, f"not in {timeout_s:g} s: {what}; {self.events[-3:]}{self.logs()}"
            if not self.listen(0.01) and not holds():
                raise AssertionError(f"the supervisor ended before: {what}; {self.events[-3:]}{self.logs()}")
        return found

    def ended(self, timeout_s: float = PATIENCE_S) -> list[dict[str, Any]]:
        """Wait for the supervisor's end and for that of every process it ever had; returns its events."""
        deadline = time.monotonic() + timeout_s
        while self.listen(max(0.0, deadline - time.monotonic())):
            assert time.monotonic() < deadline, f"the supervisor goes on; {self.events[-3:]}{self.logs()}"
        self.supervisor.wait(max(1.0, deadline - time.monotonic()))
        left = self.left(deadline)
        assert not left, f"left behind: {left}"
        return self.events

    def left(self, deadline: float) -> list[int]:
        """Pids of this runtime that have not ended by then."""
        left = []
        for pid, pidfd in self.pidfds.items():
            if not select.select([pidfd], [], [], max(0.0, deadline - time.monotonic()))[0]:
                left.append(pid)
        return left

    def logs(self) -> str:
        return "".join(
            f"\n--- {p.name}\n{p.read_text()[-1500:]}" for p in sorted((self.run / "log").iterdir()) if p.stat().st_size
        )

    # --- looking -----------------------------------------------------------------------------------------------------------

    @property
    def client(self) -> Client:
        if self._client is None:
            self._client = Client(self.run)
        return self._client

    def status(self) -> dict[str, Any]:
        status: dict[str, Any] = self.client.status()["status"]
        return status

    def server(self, name: str) -> dict[str, Any]:
        return next(s for s in self.status()["servers"] if s["name"] == name)

    def watch(self) -> None:
        """Hold a pidfd of everybody who lives now, so that nobody can end, or live on, unseen."""
        status = self.status()
        for pid in (status["pid"], *(s["pid"] for s in status["servers"])):
            if pid and pid not in self.pidfds:
                with contextlib.suppress(ProcessLookupError):
                    self.pidfds[pid] = os.pidfd_open(pid)

    def goes_on(self, windows: int = 3) -> None:
        """Windows are committed from here on."""
        goal = self.status()["done_windows"] + windows
        self.until(lambda: self.status()["done_windows"] >= goal, f"{windows} more windows")

    def refused(self, kind: str) -> int:
        return int(self.status()["refused"].get(kind, 0))

    # --- ending ------------------------------------------------------------------------------------------------------------

    def halt(self) -> dict[str, Any]:
        """Drain; returns the last status."""
        self.watch()
        self.client.shutdown(reason="the test is over")
        self.close_client()
        last = self.ended()[-1]
        assert last["event"] == "halted", last
        status: dict[str, Any] = last["status"]
        return status

    def close_client(self) -> None:
        if self._client is not None:
            self._client.close()
            self._client = None

    def clean(self) -> None:
        """Whatever the test did: no process and no socket directory stays."""
        self.close_client()
        if self.supervisor.poll() is None:
            self.supervisor.send_signal(signal.SIGKILL)
        self.supervisor.wait(PATIENCE_S)
        left = self.left(time.monotonic() + PATIENCE_S)
        for stream in (self.supervisor.stdin, self.supervisor.stdout):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()
        for pidfd in self.pidfds.values():
            os.close(pidfd)
        shutil.rmtree(self.sockets, ignore_errors=True)
        assert not left, f"left behind: {left}"


@contextlib.contextmanager
def live(run: Path, **options: Any) -> Iterator[Live]:
    """A running runtime; taken down whatever happens."""
    runtime = Live(run, document(run, **options))
    try:
        runtime.up()
        yield runtime
    finally:
        runtime.clean()
