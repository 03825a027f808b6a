"""The supervisor: the only part of the kernel with processes.

Responsible for: starting the kernel and the servers as `python -m ...`, handing their pidfds to the kernel, reaping
everything (it is the subreaper), and leaving nothing behind whatever is killed: servers die with it by
PR_SET_PDEATHSIG, and it takes them down when the kernel dies. Holds the run directory's lock for its whole life.
Refuses: policy; the kernel decides what to start and what to kill.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import msgpack

from kernel import procs
from syscalls import harden, wire
from syscalls.errors import RecurosError
from syscalls.rundir import make_socket_dir

SOCKETS = ("server.sock", "operator.sock", "pages.sock")
DUMP_S = 0.3
"""How long a server that is killed because it does not answer has to write down what its threads do."""

NOT_STARTED = 127
"""What the kernel is told of a server whose process could not be made."""


class Supervisor:
    """One runtime's process tree."""

    def __init__(self, doc: dict[str, Any]) -> None:
        self.doc = doc
        self.run = Path(doc["run"])
        self.servers = {s["name"]: s for s in doc["servers"]}
        self.children: dict[int, tuple[str, int, subprocess.Popen[bytes]]] = {}
        self.doomed: dict[int, tuple[float, int]] = {}  # pid -> when it gets which signal, having had its last words
        self.launcher_listens = True
        self.failed = False
        self.directory = make_socket_dir(self.run)
        self.doc["sockets"] = str(self.directory)
        for name in SOCKETS:
            (self.directory / name).unlink(
                missing_ok=True
            )  # left by a runtime that was killed; the lock says it is dead
        self.control, kernel_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.kernel = self._start_kernel(kernel_end)

    def _environment(self) -> dict[str, str]:
        return {
            **os.environ,
            "RECUROS_SOCKETS": str(self.directory),
            "RECUROS_PARENT": str(os.getpid()),
            "PYTHONUNBUFFERED": "1",
        }

    def _start_kernel(self, end: socket.socket) -> subprocess.Popen[bytes]:
        with (self.run / "log" / "kernel.log").open("ab") as log:
            kernel = subprocess.Popen(
                [sys.executable, "-P", "-m", "kernel"],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                env={**self._environment(), "RECUROS_CONTROL": str(end.fileno())},
                pass_fds=(end.fileno(),),
            )
        end.close()
        assert kernel.stdin is not None
        kernel.stdin.write(msgpack.packb(self.doc))
        kernel.stdin.close()
        self._affinity(kernel.pid, self.doc.get("background_cpus", []))
        return kernel

    @staticmethod
    def _affinity(pid: int, cpus: list[int]) -> None:
        if cpus:
            try:
                os.sched_setaffinity(pid, cpus)
            except (OSError, ValueError) as e:
                print(f"affinity of pid {pid} to {cpus}: {e}", file=sys.stderr)  # noqa: T201 - the supervisor's log

    def loop(self) -> int:
        """Until the kernel has gone; returns the exit status."""
        wake_read, wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(wake_write)
        for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: None)
        poll = select.poll()
        poll.register(wake_read, select.POLLIN)
        poll.register(self.control, select.POLLIN)
        poll.register(0, select.POLLIN)
        while True:
            for fd, _ in poll.poll(self._until_next_kill_ms()):
                if fd == wake_read:
                    for received in os.read(wake_read, 512):
                        if received in (signal.SIGTERM, signal.SIGINT):
                            self.to_kernel(["drain", f"signal {signal.Signals(received).name}"])
                elif fd == 0:
                    if not os.read(0, 4096):
                        poll.unregister(0)
                        if not self.doc["detached"]:
                            self.to_kernel(["drain", "the launcher has gone"])
                else:
                    self.from_kernel()
            if self.reap():
                self.from_kernel()
                return self.finish()
            self._kill_doomed()

    def to_kernel(self, message: list[Any], fds: tuple[int, ...] = ()) -> bool:
        """Whether it was sent. A kernel that has gone is found out by `reap`."""
        try:
            socket.send_fds(self.control, [msgpack.packb(message)], fds)
        except OSError as e:
            print(f"to kernel: {message[:4]}: {e}", file=sys.stderr)  # noqa: T201 - the supervisor's log
            return False
        return True

    def from_kernel(self) -> None:
        """Orders and reports."""
        while True:
            try:
                data = self.control.recv(1 << 20, socket.MSG_DONTWAIT)
            except (BlockingIOError, ConnectionResetError):
                return
            if not data:
                return
            match msgpack.unpackb(data):
                case ["spawn", str(name), int(incarnation)]:
                    self.spawn(name, incarnation)
                case ["kill", str(name), int(incarnation), int(number), bool(dump)]:
                    for pid, (who, n, _) in self.children.items():
                        if (who, n) == (name, incarnation):
                            if dump:
                                self._last_words(pid, name, incarnation)
                                self.doomed[pid] = (time.monotonic() + DUMP_S, number)
                            else:
                                os.kill(pid, number)
                case ["nice", str(name), int(incarnation), int(value)]:
                    for pid, (who, n, _) in self.children.items():
                        if (who, n) == (name, incarnation):
                            self._renice(pid, value)
                case ["report", dict(event)]:
                    self.report(event)

    def _last_words(self, pid: int, name: str, incarnation: int) -> None:
        """What a server that is killed for its silence is doing: what the host knows, then what it can say itself, in its log."""
        with (self.run / "log" / f"{name}.log").open("a") as log:
            log.write(
                f"supervisor: {name} (pid {pid}, incarnation {incarnation}) does not answer and is killed: {procs.describe(pid)}\n"
            )
        os.kill(pid, harden.DUMP_SIGNAL)

    def _until_next_kill_ms(self) -> float | None:
        if not self.doomed:
            return None
        return max(0.0, min(at for at, _ in self.doomed.values()) - time.monotonic()) * 1000

    def _kill_doomed(self) -> None:
        for pid, (at, number) in list(self.doomed.items()):
            if pid not in self.children:
                del self.doomed[pid]
            elif time.monotonic() >= at:
                del self.doomed[pid]
                os.kill(pid, number)

    @staticmethod
    def _renice(pid: int, value: int) -> None:
        """Every thread of it. Without the privilege to go back up, a process stays nice until its next incarnation."""
        try:
            for task in Path(f"/proc/{pid}/task").iterdir():
                os.setpriority(os.PRIO_PROCESS, int(task.name), value)
        except OSError as e:
            print(f"nice {value} of pid {pid}: {e}", file=sys.stderr)  # noqa: T201 - the supervisor's log

    def spawn(self, name: str, incarnation: int) -> None:
        """Start one incarnation of a server; the kernel gets its pidfd, or word that it ended at once."""
        try:
            child = self._start(name)
        except OSError as e:
            print(f"spawn of {name}: {e}", file=sys.stderr)  # noqa: T201 - the supervisor's log
            self.to_kernel(["exited", name, incarnation, 0, NOT_STARTED])
            return
        self.children[child.pid] = (name, incarnation, child)
        cpus = self.doc.get("lane_cpus" if self.servers[name]["class"] == "edf" else "background_cpus", [])
        self._affinity(child.pid, cpus)
        pidfd = os.pidfd_open(child.pid)
        if not self.to_kernel(["spawned", name, incarnation, child.pid], (pidfd,)):
            child.kill()  # the kernel would never let it in
        os.close(pidfd)

    def _start(self, name: str) -> subprocess.Popen[bytes]:
        with (self.run / "log" / f"{name}.log").open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-P", "-m", self.servers[name]["entry"]],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self._environment(),
            )

    def reap(self) -> bool:
        """Collect every dead child, adopted ones too; True when the kernel is among them."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return self.kernel.returncode is not None
            if pid == 0:
                return self.kernel.returncode is not None
            code = os.waitstatus_to_exitcode(status)
            if pid == self.kernel.pid:
                self.kernel.returncode = code
            elif pid in self.children:
                name, incarnation, child = self.children.pop(pid)
                child.returncode = code
                self.to_kernel(["exited", name, incarnation, pid, code])

    def report(self, event: dict[str, Any]) -> None:
        """One JSON line to the launcher, if it still listens."""
        if event.get("event") == "failed":
            self.failed = True
            print(RecurosError.from_wire(event.get("error")), file=sys.stderr, flush=True)  # noqa: T201 - the supervisor's log
        if self.launcher_listens:
            try:
                os.write(1, (json.dumps(event) + "\n").encode())
            except OSError:
                self.launcher_listens = False

    @staticmethod
    def _end_orphans() -> None:
        """Whatever a server started has become this process's child: nothing of it may outlive the runtime."""
        while True:
            children = [
                int(pid)
                for task in Path("/proc/self/task").iterdir()
                for pid in (task / "children").read_text().split()
            ]
            if not children:
                return
            for pid in children:
                os.kill(pid, signal.SIGKILL)
            for pid in children:
                os.waitpid(pid, 0)

    def finish(self) -> int:
        """The kernel has gone: take everybody down, clean up, say how it ended."""
        for pid in self.children:
            os.kill(pid, signal.SIGKILL)
        for pid, (_, _, child) in list(self.children.items()):
            os.waitpid(pid, 0)
            child.returncode = -signal.SIGKILL
        self._end_orphans()
        for name in SOCKETS:
            (self.directory / name).unlink(missing_ok=True)
        try:
            self.directory.rmdir()
        except OSError as e:
            print(f"socket directory: {e}", file=sys.stderr)  # noqa: T201 - the supervisor's log
        status = self.kernel.returncode or 0
        if status != 0 and not self.failed:
            error = RecurosError(
                "E3-GONE",
                f"the kernel process ended with status {status}; every server was taken down with it",
                hint=f"see {self.run / 'log' / 'kernel.log'}; boot again, it resumes from the last commit",
            )
            self.report({"event": "failed", "error": error.to_wire()})
        return 1 if status else 0


def main() -> int:
    """Read the boot document, then supervise."""
    harden.prctl(harden.PR_SET_CHILD_SUBREAPER, 1)
    harden.prctl(harden.PR_SET_DUMPABLE, 0)  # a server of the same user may not read or trace it either
    size = int.from_bytes(_read(8), "little")
    doc = wire.unpack(_read(size))
    try:
        supervisor = Supervisor(doc)
    except RecurosError as error:
        os.write(1, (json.dumps({"event": "failed", "error": error.to_wire()}) + "\n").encode())
        return 1
    return supervisor.loop()


def _read(size: int) -> bytes:
    data = b""
    while len(data) < size:
        chunk = os.read(0, size - len(data))
        if not chunk:
            raise SystemExit("the launcher closed its pipe before the boot document was complete")
        data += chunk
    return data


if __name__ == "__main__":
    raise SystemExit(main())
