"""The front door of the library: `boot()` starts a runtime, `connect()` speaks to one that runs.

    with recuros.boot("digits", run="runs/first") as runtime:
        runtime.wait_for("done")
        print(runtime.status()["scores"])

Responsible for: all launcher logic. The run directory and its lock, the supervisor's process, the pipe it reports on, and what is
left to say when it dies. Refuses: a second runtime in one run directory (E3-BUSY with the process that holds it), resuming
with other models, data or seed than the run directory was made with, starting anything from a manifest that does not pass its check.
Imports neither torch nor, unless it boots, pydantic.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import select
import socket
import struct
import sys
import time
from collections import deque
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final

import msgpack

from syscalls.client import Client
from syscalls.errors import RecurosError
from syscalls.rundir import make_socket_dir, resolve_run, socket_dir

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Sequence

    import torch

    from servers.manifest import Manifest
    from servers.watch.session import Watch

DEFAULT_APP: Final = "digits"
LOCK_FILE: Final = "boot.lock"
UP_TIMEOUT_S: Final = 60.0
START_TIMEOUT_S: Final = 300.0
"""From `up` until every server is ready; importing torch on a busy machine takes most of it."""
HALT_TIMEOUT_S: Final = 90.0
KILL_GRACE_S: Final = 5.0
UNFINISHED: Final = ("", "booting", "starting")
ORDER: Final = {"up": 0, "running": 1, "done": 2}

WATCH_MARKER: Final = "watch.json"

__all__ = ["Client", "RecurosError", "Runtime", "boot", "connect", "holder", "listens", "wait_gone", "watch"]


def connect(run: str | Path | None = None, *, timeout_s: float = 30.0) -> Client:
    """A client of the runtime in `run` (default: RECUROS_RUN, else ./.recuros); E3-DOWN when none listens there."""
    path = resolve_run(str(run) if run is not None else None)
    if not listens(path):
        raise RecurosError(
            "E3-DOWN",
            f"no runtime is running in {path}",
            hint="recuros boot --detach, or name the run directory with --run",
        )
    return Client(path, timeout_s=timeout_s)


def boot(
    app: str | None = None,
    run: str | Path | None = None,
    config: str | Path | None = None,
    detach: bool = False,
    *,
    until: str = "running",
) -> Runtime:
    """Start a runtime, or resume the one whose run directory this is, and return when it has come `until` "up" or "running".

    `app` names a packaged app, `config` a manifest file; with neither a run directory is booted from the manifest it keeps,
    and a new one from the default app. Detached, the runtime outlives this process; else it drains when this process goes.
    Errors: E2-* for the manifest, E3-BUSY, E3-BOOT and what the servers report.
    """
    from servers import manifest as manifests  # and so without pydantic

    path = resolve_run(str(run) if run is not None else None)
    if app is not None and config is not None:
        raise RecurosError("E2-USAGE", "an app's name and a manifest file were both given", hint="give one of the two")
    if (path / WATCH_MARKER).exists():
        raise RecurosError(
            "E2-USAGE",
            f"{path} holds what recuros.watch recorded of a script",
            hint="name another run directory with --run",
        )
    manifest = manifests.load(_manifest_path(path, app, config))
    _make_run_dir(path)
    lock_fd = _take_lock(path)
    try:
        _check_resume(path, manifest)
        (path / "manifest.toml").write_text(manifests.dump(manifest), encoding="utf-8")
        document = manifests.boot_document(manifest, path, make_socket_dir(path), detached=detach)
        runtime = Runtime(path, manifest.app.name, _spawn(path, lock_fd), detached=detach)
    finally:
        os.close(lock_fd)  # the supervisor holds its own descriptor of the same lock
    try:
        runtime._begin(document, until)
    except BaseException:
        runtime.kill()
        raise
    return runtime


def watch(
    model: torch.nn.Module,
    run: str | Path | None = None,
    *,
    name: str = "watch",
    optimizer: torch.optim.Optimizer | None = None,
    probes: Sequence[tuple[str, str]] | None = None,
    every: int = 50,
    window: int = 500,
) -> Watch:
    """Watch a training loop that stays as it is: verified probes at the model's hooks, snapshots and figures in a ledger.

        with recuros.watch(model, "runs/mine", optimizer=optimizer) as watcher:
            for batch in loader:
                ...                       # as before
                watcher.log(loss=loss)    # if you like

    With `optimizer`, its own hook counts steps; without, call `watcher.step()` after each. Every `window` steps the model is copied,
    stored and recorded; probes (pairs of hook and program; default: RMS of the blocks, norms of all gradients) fire every
    `every` steps.
    For a Hugging Face Trainer there is `recuros.WatchCallback`. Errors: E3-BUSY when something else writes this run
    directory, E4-HOOK, E8-*.
    """
    from servers.watch.session import Watch  # and so torch, which the caller has imported anyway

    path = resolve_run(str(run) if run is not None else None)
    return Watch(model, path, name=name, optimizer=optimizer, probes=probes, every=every, window=window)


def __getattr__(name: str) -> Any:
    """`recuros.WatchCallback` brings transformers with it, so it is loaded when it is named."""
    if name == "WatchCallback":
        from servers.watch.trainer import WatchCallback

        return WatchCallback
    raise AttributeError(f"module 'recuros' has no attribute {name!r}")


class Runtime:
    """A runtime that this process started. A context manager: leaving it drains a foreground runtime.

    `events` are read from the supervisor's pipe; `last` is the status map it gave with "halted", {} before.
    """

    def __init__(self, run: Path, app: str, process: subprocess.Popen[bytes], *, detached: bool) -> None:
        self.run = run
        self.app = app
        self.detached = detached
        self.pid = process.pid
        self.state = ""
        self.last: dict[str, Any] = {}
        self.ended = False
        self._process = process
        self._buffer = bytearray()
        self._queue: deque[dict[str, Any]] = deque()
        self._client: Client | None = None
        self._eof = False

    @property
    def client(self) -> Client:
        """The operator's session with this runtime; opened when first used."""
        if self._client is None:
            self._client = connect(self.run)
        return self._client

    def status(self) -> dict[str, Any]:
        """The status map; after the end the last one."""
        if self.ended:
            return self.last
        answer: dict[str, Any] = self.client.status()["status"]
        return answer

    def _repr_html_(self) -> str:
        """What a notebook shows; after the end, the last status."""
        from syscalls import html

        return html.status(self.status())

    def event(self, timeout_s: float) -> dict[str, Any] | None:
        """The supervisor's next event, or None after `timeout_s`.

        A "failed" event is raised as the error it carries, once the processes are gone; so is E3-GONE when the supervisor dies
        without a word.
        """
        deadline = time.monotonic() + timeout_s
        while not self._queue and not self._eof:
            left = deadline - time.monotonic()
            if not self._read(max(0.0, left)) and left <= 0:
                return None
        if not self._queue:
            return self._died()
        event = self._queue.popleft()
        if event.get("event") == "state":
            self.state = str(event.get("state", ""))
        elif event.get("event") == "failed":
            self._remember(event)
            self._close(KILL_GRACE_S)
            raise RecurosError.from_wire(event.get("error"))
        elif event.get("event") == "halted":
            self._remember(event)
            self._close(KILL_GRACE_S)
        return event

    def wait_for(self, state: str, timeout_s: float | None = None) -> dict[str, Any]:
        """Wait until the status says `state` ("done", "paused", ...) and return it; E124-TIMEOUT otherwise.

        A runtime that fails meanwhile raises its error; one that halts raises E3-GONE.
        """
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while True:
            try:
                status = self.status()
            except RecurosError as gone:
                if gone.code not in ("E3-DOWN", "E3-GONE"):
                    raise
                self.event(KILL_GRACE_S)  # raises what the supervisor says of it, if it says something
                raise
            if status.get("error"):
                raise RecurosError.from_wire(status["error"])
            if status.get("state") == state:
                return status
            if self.ended:
                raise RecurosError("E3-GONE", f"the runtime halted before it was {state!r}", hint="recuros report")
            if deadline is not None and time.monotonic() >= deadline:
                raise RecurosError(
                    "E124-TIMEOUT", f"the runtime was not {state!r} in {timeout_s:g} s; it is {status.get('state')!r}"
                )
            self.event(0.25)

    def halt(self, mode: str = "drain", timeout_s: float = HALT_TIMEOUT_S) -> dict[str, Any]:
        """Drain (or, with "now", roll the running window back), stop everything, and return the last status."""
        if not self.ended:
            with contextlib.suppress(BrokenPipeError):
                self.client.shutdown(mode=mode, reason="halt of the launcher")
            self.finish(timeout_s)
        return self.last

    def finish(self, timeout_s: float = HALT_TIMEOUT_S) -> dict[str, Any]:
        """Wait for "halted" after a shutdown was asked for; what does not end in time is killed, with E124-TIMEOUT."""
        deadline = time.monotonic() + timeout_s
        while not self.ended:
            left = deadline - time.monotonic()
            if left <= 0:
                self.kill()
                raise RecurosError(
                    "E124-TIMEOUT",
                    f"the runtime did not drain in {timeout_s:g} s and was killed; committed windows are safe",
                    hint="recuros boot resumes at the last committed window",
                )
            self.event(left)
        return self.last

    def kill(self) -> None:
        """End the supervisor at once; its death takes the kernel and every server with it."""
        if not self.ended:
            self._close(0.0)

    def detach(self) -> None:
        """Close this process's ends of a detached runtime and leave it running."""
        self._close_client()
        self._close_pipes()
        self.ended = True

    def __enter__(self) -> Runtime:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.ended:
            return
        if self.detached:
            self.detach()
            return
        try:
            self.halt("drain" if kind is None else "now")
        finally:
            self.kill()

    def _begin(self, document: dict[str, Any], until: str) -> None:
        data = msgpack.packb(document, use_bin_type=True)
        stdin = self._process.stdin
        if stdin is None:
            raise ValueError("the supervisor was started without a pipe")
        try:
            stdin.write(struct.pack("<Q", len(data)) + data)
            stdin.flush()
        except BrokenPipeError:
            self._died()
        self._await("up", UP_TIMEOUT_S)
        if ORDER[until] >= ORDER["running"] or self.detached:
            self._await("running", START_TIMEOUT_S)
        if self.detached:
            stdin.close()

    def _await(self, point: str, limit_s: float) -> None:
        deadline = time.monotonic() + limit_s
        while True:
            left = deadline - time.monotonic()
            event = self.event(max(0.0, left))
            if event is None:
                raise RecurosError(
                    "E124-TIMEOUT",
                    f"the runtime was not {point} in {limit_s:g} s",
                    hint=f"see {self.run / 'log'}; free CPU time",
                )
            if event.get("event") == "halted":
                raise RecurosError(
                    "E3-GONE", f"the runtime halted before it was {point}", hint=f"see {self.run / 'log'}"
                )
            if event.get("event") == "up" and point == "up":
                return
            if point == "running" and self.state not in UNFINISHED:
                return

    def _read(self, timeout_s: float) -> bool:
        """Take what is on the pipe into the queue; False when nothing came in time."""
        stdout = self._process.stdout
        if stdout is None or stdout.closed:
            self._eof = True
            return True
        if not select.select([stdout], [], [], timeout_s)[0]:
            return False
        chunk = os.read(stdout.fileno(), 65_536)
        self._eof = not chunk
        self._buffer += chunk
        while b"\n" in self._buffer:
            line, _, rest = bytes(self._buffer).partition(b"\n")
            self._buffer = bytearray(rest)
            try:
                event = json.loads(line)
            except ValueError:
                continue  # not ours: something below wrote on the pipe, and the log has the rest
            if isinstance(event, dict):
                self._queue.append(event)
        return True

    def _remember(self, event: dict[str, Any]) -> None:
        status = event.get("status")
        self.last = status if isinstance(status, dict) else {}

    def _died(self) -> dict[str, Any] | None:
        if self.ended:
            return None
        self._close(KILL_GRACE_S)
        status = self._process.returncode
        raise RecurosError(
            "E3-GONE",
            f"the supervisor (pid {self.pid}) ended with status {status} and said nothing; its log ends with: {self._log_tail()}",
            hint="recuros boot resumes at the last committed window",
            details={"status": status},
        )

    def _log_tail(self) -> str:
        try:
            lines = (self.run / "log" / "supervisor.log").read_text(encoding="utf-8", errors="replace").split("\n")
        except OSError:
            return "(no log)"
        return " | ".join([line.strip() for line in lines if line.strip()][-3:]) or "(empty)"

    def _close(self, grace_s: float) -> None:
        """Reap the supervisor, killing it when it outlives `grace_s`."""
        import subprocess

        self.ended = True
        self._close_client()
        try:
            self._process.wait(grace_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._close_pipes()

    def _close_client(self) -> None:
        if self._client is not None:
            self._client.close()
            self._client = None

    def _close_pipes(self) -> None:
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()


def holder(run: Path) -> int | None:
    """The process that holds the run directory, 0 when it has not said which, None when nobody does."""
    try:
        fd = os.open(run / LOCK_FILE, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            text = os.pread(fd, 32, 0).decode("ascii", "replace").strip()
            return int(text) if text.isdigit() else 0
        return None
    finally:
        os.close(fd)


def wait_gone(run: Path, timeout_s: float) -> None:
    """Wait until nobody holds the run directory; E124-TIMEOUT names who still does."""
    deadline = time.monotonic() + timeout_s
    while (pid := holder(run)) is not None:
        if time.monotonic() >= deadline:
            raise RecurosError(
                "E124-TIMEOUT",
                f"process {pid} still holds {run} after {timeout_s:g} s",
                hint="recuros halt --now, or a longer --timeout",
            )
        time.sleep(0.05)


def listens(run: Path) -> bool:
    """Whether a runtime accepts operators: the socket file of one that was killed stays behind and refuses."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(str(socket_dir(run) / "operator.sock"))
        except OSError:
            return False
    return True


def _manifest_path(run: Path, app: str | None, config: str | Path | None) -> Path:
    from servers import manifest as manifests

    if config is not None:
        return Path(config)
    kept = run / "manifest.toml"
    if app is None and kept.is_file():
        return kept
    return manifests.app_path(app or DEFAULT_APP)


def _make_run_dir(run: Path) -> None:
    try:
        run.mkdir(mode=0o700, parents=True, exist_ok=True)
        for name in ("store", "keys", "log"):
            (run / name).mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise RecurosError(
            "E2-USAGE", f"run directory {run} cannot be made: {error.strerror}", hint="name another one with --run"
        ) from error


def _take_lock(run: Path) -> int:
    fd = os.open(run / LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    for pause_s in (0.02, 0.05, 0.0):
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(pause_s)  # whoever looks who holds the directory has the lock for a moment
        else:
            _write_pid(fd, os.getpid())
            return fd
    text = os.pread(fd, 32, 0).decode("ascii", "replace").strip()
    os.close(fd)
    raise RecurosError(
        "E3-BUSY",
        f"process {text or 'unknown'} holds run directory {run}",
        hint="recuros halt, or another run directory with --run",
        details={"pid": int(text) if text.isdigit() else 0},
    )


def _write_pid(fd: int, pid: int) -> None:
    os.ftruncate(fd, 0)
    os.pwrite(fd, f"{pid}\n".encode("ascii"), 0)


def _spawn(run: Path, lock_fd: int) -> subprocess.Popen[bytes]:
    import subprocess  # a client that only connects does without it

    with open(run / "log" / "supervisor.log", "ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "kernel.supervisor"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            start_new_session=True,
            pass_fds=(lock_fd,),
            env={**os.environ, "RECUROS_LOCK_FD": str(lock_fd)},
        )
    _write_pid(lock_fd, process.pid)
    return process


def _check_resume(run: Path, manifest: Manifest) -> None:
    """Committed windows belong to the models, data and seed they were made with."""
    from servers import manifest as manifests

    kept = run / "manifest.toml"
    if not kept.is_file() or not _has_commits(run):
        return
    before, now = manifests.identity(manifests.load(kept)), manifests.identity(manifest)
    for key, value in now.items():
        if before[key] != value:
            raise RecurosError(
                "E2-MANIFEST",
                f"{run} holds committed windows made with another {key}: {before[key]!r:.120}, now {value!r:.120}",
                hint="boot it without -c to resume it, or name a new run directory with --run",
            )


def _has_commits(run: Path) -> bool:
    from kfs.records import RecordKind
    from kfs.store import Store

    if not (run / "store" / "FORMAT").is_file():
        return False
    with Store.open_reader(run / "store") as store:
        return any(record.kind is RecordKind.WINDOW_COMMIT for record in store.records())
