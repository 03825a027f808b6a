"""A live runtime under random kills, hangs and floods, for as long as it is told to.

Supervisor, kernel, archivist, sockets and the store are the real ones, the other servers boot at once (tests/live/fakes). Servers are
killed or stopped, fewer at a time than their restart limit allows, also while a flood of calls is under way; kernel, supervisor and
launcher die too, some in the middle of a boot, and the next boot goes on in the same run directory. In some boots the learner stages over
a direct channel, and the observer floods the device server. Operators flood with calls and with garbage. Judged after each boot: every
window that an operator was told is committed is in the ledger, in one chain; each miss has its rollback; every call of a flood was
answered or refused; the ledger verifies; no process, socket directory or shared memory is left.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import psutil
import zmq

from kernel.replay import replay
from kfs.records import RecordKind
from kfs.store import Store
from kfs.verify import verify
from syscalls import abi, limits
from syscalls.errors import RecurosError

ROOT: Final = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests" / "live"))

from harness import Live, document  # noqa: E402 - where the harness lies is known only now

SERVERS: Final = ("archivist", "gpu", "dataset", "learner", "observer")
KILLS_A_MINUTE: Final = limits.RESTARTS_MAX - 2
FLOOD_CALLS: Final = 2_000
SERVER_FLOOD: Final = 5_000
EARLY: Final = 0.15
"""The part of the boots whose kernel or supervisor dies before they are up."""
HANG_OTHERS: Final = 0.1
"""The part of the hangs that only a heartbeat finds out, which takes half a minute."""
GONE_S: Final = 20.0
OPEN_MAX: Final = 2
"""Windows that may be open when a boot is cut off."""
BOOT_S: Final = (5.0, 60.0)
SHM: Final = Path("/dev/shm")
Trials = Iterator[tuple[int, str]]


class Soak:
    """One run directory through many boots."""

    def __init__(self, folder: Path, seed: int, details: dict[str, Any]) -> None:
        self.run = folder / "run"
        self.rng = random.Random(seed)
        self.told = 0  # the last window that anybody was told is committed
        self.did: Counter[str] = Counter()
        self.kills: dict[str, deque[float]] = {name: deque() for name in SERVERS}
        self.details = details

    def boot(self, until: float) -> Iterator[str]:
        """One boot, and what is wrong with it."""
        doc = document(self.run)
        doc["window"] = {"steps": 1, "budget_ms": 1_500, "period_ms": 3_000, "deadline_ms": 3_000}
        servers = {stanza["name"]: stanza for stanza in doc["servers"]}
        if self.rng.random() < 0.5:
            self.did["boot: direct channel"] += 1
            servers["learner"] |= {"direct": ["archivist"]}
            servers["learner"]["config"] = {**servers["learner"]["config"], "direct": ["archivist"]}
        flood = self.run / "flood.json"
        flood.unlink(missing_ok=True)
        if self.rng.random() < 0.3:
            self.did["boot: flood of a server"] += 1
            servers["observer"] |= {"calls": ["dataset", "gpu"]}
            servers["observer"]["config"] = {**servers["observer"]["config"], "flood": SERVER_FLOOD}
        for kills in self.kills.values():
            kills.clear()
        runtime = Live(self.run, doc)
        try:
            if self.rng.random() < EARLY:
                self.die_early(runtime)
                yield ""
                return
            runtime.up()
            if runtime.status()["done_windows"] < self.told:
                yield f"booted at window {runtime.status()['done_windows']}, {self.told} was committed"
            end = min(until, time.monotonic() + self.rng.uniform(*BOOT_S))
            while time.monotonic() < end:
                self.act(runtime)
                yield ""
            self.end(runtime)
            if flood.exists() and sum(told := json.loads(flood.read_text()).values()) != SERVER_FLOOD:
                yield f"of {SERVER_FLOOD} calls of a flood {sum(told)} were answered or refused"
            yield ""
        except (AssertionError, RecurosError) as error:
            yield f"{type(error).__name__}: {error}"[:3_000]
        finally:
            runtime.clean()
            if left := strays(runtime.sockets):
                yield f"processes are left: {left}"

    def die_early(self, runtime: Live) -> None:
        """Kernel or supervisor die at some moment of a boot: everybody goes with them."""
        who = self.rng.choice(("kernel", "supervisor"))
        until = time.monotonic() + self.rng.uniform(0.0, 1.5)
        up = lambda: next((e["pid"] for e in runtime.events if e["event"] == "up"), 0)  # noqa: E731
        if who == "kernel":
            runtime.until(up, "the kernel is up")
        while time.monotonic() < until:
            runtime.listen(until - time.monotonic())
        os.kill(up() if who == "kernel" else runtime.supervisor.pid, signal.SIGKILL)
        runtime.ended()
        self.did[f"early end: {who}"] += 1

    def act(self, runtime: Live) -> None:
        """Do something bad, and see that windows go on."""
        actions: tuple[Callable[[Live], str], ...] = (
            self.kill,
            self.kill,
            self.kill,
            self.hang,
            self.flood,
            self.flood_and_kill,
            self.garbage,
        )
        if did := self.rng.choice(actions)(runtime):
            self.did[did] += 1
        runtime.goes_on(1)
        runtime.watch()
        self.told = max(self.told, runtime.status()["done_windows"])

    def _victim(self, names: tuple[str, ...]) -> str:
        now = time.monotonic()
        for kills in self.kills.values():
            while kills and kills[0] < now - limits.RESTART_WINDOW_NS / 1e9:
                kills.popleft()
        free = [name for name in names if len(self.kills[name]) < KILLS_A_MINUTE]
        if not free:
            return ""
        victim = self.rng.choice(free)
        self.kills[victim].append(now)
        return victim

    def _struck(self, runtime: Live, names: tuple[str, ...], number: signal.Signals) -> str:
        victim = self._victim(names)
        if not victim:
            return ""  # everybody has been struck often enough; windows go on meanwhile
        pid = runtime.server(victim)["pid"]
        os.kill(pid, number)
        back = lambda: (s := runtime.server(victim))["pid"] != pid and s["state"] == "ready"  # noqa: E731
        runtime.until(back, f"{victim} is back", 120.0)
        return f"{number.name} {victim}"

    def kill(self, runtime: Live) -> str:
        """SIGKILL of a server."""
        return self._struck(runtime, SERVERS, signal.SIGKILL)

    def hang(self, runtime: Live) -> str:
        """SIGSTOP: nothing but a timer can find out; the learner is caught by its window's deadline, others by their silence."""
        others = self.rng.random() < HANG_OTHERS
        return self._struck(runtime, SERVERS if others else ("learner",), signal.SIGSTOP)

    def flood(self, runtime: Live) -> str:
        """More calls than anybody answers at once; each is answered, or refused, once."""
        self._answered(runtime, self._calls(runtime))
        return "flood"

    def flood_and_kill(self, runtime: Live) -> str:
        """A server dies while the calls are under way."""
        sent = self._calls(runtime)
        did = self.kill(runtime)
        self._answered(runtime, sent)
        return f"flood, {did}" if did else "flood"

    def _calls(self, runtime: Live) -> list[int]:
        nr = abi.SYSCALL_BY_NAME["page_list"].nr
        return [runtime.client._send_call(nr, 1, []) for _ in range(FLOOD_CALLS)]

    def _answered(self, runtime: Live, sent: list[int]) -> None:
        for call in sent:
            try:
                runtime.client._await(call, "page_list", 60.0)
            except RecurosError as error:
                if error.code == "E124-TIMEOUT":
                    raise AssertionError(f"a call of a flood was never answered: {error}") from error

    def garbage(self, runtime: Live) -> str:
        """Frames of no form from a process that is nobody."""
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        for name in ("operator.sock", "server.sock"):
            sock = context.socket(zmq.DEALER)
            sock.setsockopt(zmq.LINGER, 100)
            sock.connect(f"ipc://{runtime.sockets / name}")
            for _ in range(50):
                sock.send(self.rng.randbytes(self.rng.randrange(1, 2_000)))
            sock.close()
        context.term()
        return "garbage"

    def end(self, runtime: Live) -> None:
        """Halt it, or kill what holds it together."""
        how = self.rng.choice(("halt", "halt", "kernel", "supervisor", "launcher"))
        self.did[f"end: {how}"] += 1
        runtime.watch()
        self.told = max(self.told, runtime.status()["done_windows"])
        if how == "halt":
            runtime.halt()
        else:
            kernel = runtime.status()["pid"]
            runtime.close_client()
            if how == "launcher":
                assert runtime.supervisor.stdin is not None
                runtime.supervisor.stdin.close()
            else:
                os.kill(kernel if how == "kernel" else runtime.supervisor.pid, signal.SIGKILL)
            runtime.ended()
        if how != "supervisor":  # nobody is left to remove them then; the next boot takes them over
            assert not runtime.sockets.exists(), f"{runtime.sockets} is left"

    def judge(self) -> Iterator[str]:
        """What the ledger says about all boots so far."""
        verify(self.run / "store")
        with Store.open_reader(self.run / "store") as store:
            records = list(store.records())
        commits = [r for r in records if r.kind is RecordKind.WINDOW_COMMIT]
        numbers = [r.args["window"] for r in commits]
        if numbers != list(range(1, len(numbers) + 1)):
            yield f"committed windows are not 1 to {len(numbers)}: {[n for i, n in enumerate(numbers, 1) if n != i][:5]}"
        if len(numbers) < self.told:
            yield f"window {self.told} was committed, the ledger ends at {len(numbers)}"
        if [r.parent_snap for r in commits[1:]] != [r.result_snap for r in commits[:-1]]:
            yield "the commits are not a chain"
        misses = rollbacks = 0
        for schedule in replay(records):
            missed = sum(d.what == "window.miss" for d in schedule.decisions)
            rolled = sum(d.what == "window.rollback" for d in schedule.decisions)
            misses, rollbacks = misses + missed, rollbacks + rolled
            if schedule.whole and (missed != rolled or schedule.open_windows):
                yield f"boot {schedule.boot}: {missed} misses, {rolled} rollbacks, open {schedule.open_windows}"
            elif not 0 <= missed - rolled <= OPEN_MAX:
                yield f"boot {schedule.boot}, which was cut off: {missed} misses, {rolled} rollbacks"
        self.details |= {"windows": len(numbers), "misses": misses, "rollbacks": rollbacks, "did": dict(self.did)}


def strays(sockets: Path) -> list[int]:
    """Processes of a runtime that was taken down, known by the sockets that they were started for; they are given time to end."""
    mark = f"RECUROS_SOCKETS={sockets}\0".encode()
    deadline = time.monotonic() + GONE_S
    while found := [pid for pid in psutil.pids() if mark in _environment(pid)]:
        if time.monotonic() > deadline:
            return found
        time.sleep(0.05)
    return []


def _environment(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/environ").read_bytes() + b"\0"
    except OSError:
        return b""  # it has gone, or it is somebody else's


def shared_memory() -> set[str]:
    """What lies in /dev/shm and no living process has open."""
    held = set()
    for link in Path("/proc").glob("[0-9]*/fd/*"):
        try:
            held.add(os.readlink(link))
        except OSError:
            continue  # a process that ended, or somebody else's
    return {path.name for path in SHM.iterdir() if str(path) not in held}


def soak(length_s: float, seed: int, details: dict[str, Any]) -> Trials:
    """Boot after boot until the time is over; counts what was done to the runtime."""
    until = time.monotonic() + length_s
    before = shared_memory()
    done = boots = 0
    with tempfile.TemporaryDirectory(prefix="recuros-soak-") as folder:
        soaked = Soak(Path(folder), seed, details)
        while time.monotonic() < until or not boots:
            boots += 1
            try:
                for violation in soaked.boot(until):
                    done += 1
                    yield done, violation and f"seed {seed}, boot {boots}: {violation}"
            except AssertionError as error:  # what is left after a boot was taken down
                yield done, f"seed {seed}, boot {boots}: {error}"
            try:
                for violation in soaked.judge():
                    yield done, f"seed {seed}, after boot {boots}: {violation}"
            except RecurosError as error:
                yield done, f"seed {seed}, after boot {boots}: {error}"
            details["boots"] = boots
    if left := shared_memory() - before:
        yield done, f"left in {SHM}: {sorted(left)[:5]}"
