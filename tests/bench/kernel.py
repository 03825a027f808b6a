"""What the kernel costs: against raw pyzmq, Ray and torch.multiprocessing; what its scheduler decides, and how fast.

Cases of a row take turns, round by round; a ratio is of the two of one round, the spread that of the rounds. The runtime is a real
one (supervisor, kernel, archivist) with small servers, of which one measures its own syscalls and pages; raw pyzmq is a ROUTER that
echoes to a DEALER in another process, over the same transport with frames of the same size, measured twice in each round (A/A).

    make bench PART=kernel [COUNT=rounds]        python -m tests.bench.kernel --quick (a smoke run: sizes that say nothing)
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import os
import random
import select
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgpack
import psutil
import torch
import zmq
from torch import multiprocessing as torch_mp

from kernel.sched import FairClass, Reservation, admit
from kfs.records import RecordKind
from kfs.store import Store
from syscalls import abi, wire
from tests.bench import _peers
from tests.bench._rows import ROOT, Rows

sys.path.insert(0, str(ROOT / "tests" / "live"))

from harness import Live, document

ROUNDS: Final = 15
SEED: Final = 42
MB: Final = 1 << 20
OUTSTANDING: Final = 64
DIRECT_OUTSTANDING: Final = 64
"""A mailbox's credit in messages, by default."""
PATIENCE_S: Final = 120.0
RAW: Final = "raw pyzmq (ROUTER echo, ipc)"
RAY: Final = "Ray actor call"
ABSENT: Final = "peer not installed"


@dataclass(frozen=True)
class Scale:
    """How large: round trips of a measurement, hand-offs, simulated jobs, live windows."""

    calls: int = 500
    handoffs: int = 20
    jobs: int = 1_000_000
    windows: int = 1_000
    decisions: int = 20_000


QUICK: Final = Scale(calls=50, handoffs=3, jobs=20_000, windows=12, decisions=2_000)


def ratios(over: list[float], under: list[float]) -> list[float]:
    """Round by round."""
    return [a / b for a, b in zip(over, under, strict=True)]


def in_turns(cases: dict[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Seconds that each case says of itself, in each round; who comes first changes from round to round."""
    found: dict[str, list[float]] = {name: [] for name in cases}
    order = list(cases)
    for case in cases.values():
        case()  # once to warm up
    for number in range(rounds):
        turn = number % len(order)
        for name in [*order[turn:], *order[:turn]]:
            found[name].append(cases[name]())
    return found


# --- the runtime and its peers --------------------------------------------------------------------------------------------------


class Runtime:
    """A live runtime whose plan is over; one of its servers measures on command: gpu by itself, or observer its calls of gpu."""

    def __init__(self, folder: Path, measures: str = "gpu") -> None:
        doc = document(folder / "run", windows=1)
        stanza = next(s for s in doc["servers"] if s["name"] == measures)
        stanza["entry"] = f"tests.bench._kernel_server_{measures}"
        if measures == "observer":
            stanza |= {"calls": ["dataset", "gpu"], "direct": ["gpu"]}
            stanza["config"] = {**stanza["config"], "direct": ["gpu"]}
        self.live = Live(folder / "run", doc)
        self.live.up()
        self.live.until(lambda: self.live.status()["state"] == "done", "the plan is done")
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.socket.connect(str(folder / "run" / "bench.sock"))
        self.socket.settimeout(PATIENCE_S)

    def ask(self, *command: Any) -> float:
        """Seconds of what the server was told to do."""
        self.socket.send(msgpack.packb(command))
        seconds: float = msgpack.unpackb(self.socket.recv(4096))
        return seconds

    def close(self) -> None:
        """Take it down."""
        self.socket.close()
        self.live.clean()


def _echo(endpoint: str) -> None:
    router = zmq.Context().socket(zmq.ROUTER)
    router.bind(endpoint)
    while True:
        parts = router.recv_multipart()
        if parts[-1] == b"stop":
            return
        router.send_multipart(parts)


class Raw:
    """The same frames over the same transport, with nothing in between."""

    def __init__(self, folder: Path) -> None:
        endpoint = f"ipc://{folder / 'raw.sock'}"
        self.process = multiprocessing.get_context("spawn").Process(target=_echo, args=(endpoint,))
        self.process.start()
        self.socket: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.DEALER)
        self.socket.connect(endpoint)
        self.frame = wire.encode(wire.Call(1_000, abi.SYSCALL_BY_NAME["page_list"].nr, 1, []))

    def calls(self, n: int) -> float:
        """Seconds of n round trips."""
        began = time.perf_counter()
        for _ in range(n):
            self.socket.send(self.frame)
            self.socket.recv()
        return time.perf_counter() - began

    def close(self) -> None:
        """End the other process."""
        self.socket.send(b"stop")
        self.process.join(PATIENCE_S)
        self.socket.close(0)


class Ray:
    """Ray in its own environment, driven line by line."""

    def __init__(self, python: Path) -> None:
        script = Path(__file__).with_name("_ray_peer.py")
        quiet = {**os.environ, "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0", "RAY_USAGE_STATS_ENABLED": "0"}
        self.process = subprocess.Popen(
            [str(python), str(script)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=quiet,
        )
        assert self.process.stdout is not None
        if self._line() != "ready":
            raise OSError("Ray did not start")

    def _line(self) -> str:
        assert self.process.stdout is not None
        if not select.select([self.process.stdout], [], [], PATIENCE_S)[0]:
            raise OSError(f"Ray said nothing for {PATIENCE_S:g} s")
        return self.process.stdout.readline().strip()

    def ask(self, command: str) -> float:
        """Seconds of a command."""
        assert self.process.stdin is not None
        self.process.stdin.write(command + "\n")
        self.process.stdin.flush()
        return float(self._line())

    def close(self) -> None:
        """End it."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(30)
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()


@contextlib.contextmanager
def ray() -> Iterator[Ray | None]:
    """Ray, or None where it is not installed or does not start."""
    python = _peers.ray()
    try:
        peer = Ray(python) if python else None
    except OSError as error:
        print(f"peer: {error}", flush=True)
        peer = None
    try:
        yield peer
    finally:
        if peer is not None:
            peer.close()


# --- messages -------------------------------------------------------------------------------------------------------------------


def messages(rows: Rows, scale: Scale, rounds: int, folder: Path) -> None:
    """Round trips and throughput."""
    n = scale.calls
    runtime, calling, raw = Runtime(folder / "one"), Runtime(folder / "two", "observer"), Raw(folder)
    try:
        with ray() as peer:
            cases = {
                "raw": lambda: raw.calls(n),
                "brokered": lambda: runtime.ask("syscall", n),
                "again": lambda: raw.calls(n),
                "direct": lambda: calling.ask("direct", n),
                "direct window": lambda: calling.ask("direct window", n, DIRECT_OUTSTANDING),
                "relayed": lambda: calling.ask("relayed", n),
                "window": lambda: runtime.ask("window", n, OUTSTANDING),
            }
            if peer is not None:
                cases["ray"] = lambda: peer.ask(f"call {n}")
                cases["ray window"] = lambda: peer.ask(f"window {n} {OUTSTANDING}")
            found = in_turns(cases, rounds)
        _message_rows(rows, found, n)
        rows.add(
            "kernel process resident memory",
            psutil.Process(runtime.live.status()["pid"]).memory_info().rss / 1e6,
            "<= 40",
            unit="MB",
            note="after the round trips of this run",
        )
    finally:
        raw.close()
        calling.close()
        runtime.close()


def _message_rows(rows: Rows, found: dict[str, list[float]], n: int) -> None:
    rows.add("A/A: raw pyzmq round trip / the same again", ratios(found["again"], found["raw"]), peer=RAW)
    rows.add("raw pyzmq round trip", [s / n * 1e6 for s in found["raw"]], unit="us", peer=RAW)
    rows.add("brokered syscall round trip", [s / n * 1e6 for s in found["brokered"]], unit="us")
    rows.add(
        "brokered syscall round trip / raw pyzmq",
        ratios(found["brokered"], found["raw"]),
        "<= 3.0",
        peer=RAW,
        note="page_list, from a supervised server: decoded, attested, checked, answered; stretch target 2.5",
    )
    rows.add("direct channel round trip", [s / n * 1e6 for s in found["direct"]], unit="us")
    rows.add(
        "direct channel round trip / raw pyzmq",
        ratios(found["direct"], found["raw"]),
        "<= 1.3",
        peer=RAW,
        note="gpu.telemetry, between two supervised servers: generation, method, credits and arguments checked, dispatched, answered",
    )
    rows.add(
        "call relayed by the kernel / direct channel",
        ratios(found["relayed"], found["direct"]),
        note="the same call of the same two servers",
    )
    rows.add("direct calls at window 64", [n / s for s in found["direct window"]], unit="/s")
    rows.add("brokered syscalls at window 64", [n / s for s in found["window"]], unit="/s")
    note = f"{OUTSTANDING} under way at a time"
    if "ray" in found:
        rows.add("Ray actor call / direct channel", ratios(found["ray"], found["direct"]), ">= 10", peer=RAY)
        rows.add(
            "throughput at window 64, direct / Ray",
            ratios(found["ray window"], found["direct window"]),
            ">= 10",
            peer=RAY,
            note=note,
        )
        rows.add("Ray actor call / brokered syscall", ratios(found["ray"], found["brokered"]), ">= 5", peer=RAY)
        rows.add(
            "throughput at window 64, brokered / Ray",
            ratios(found["ray window"], found["window"]),
            ">= 4",
            peer=RAY,
            note=note,
        )
    else:
        rows.add("Ray actor call / direct channel", ABSENT, peer=RAY)
        rows.add("throughput at window 64, direct / Ray", ABSENT, peer=RAY, note=note)
        rows.add("Ray actor call / brokered syscall", ABSENT, peer=RAY)
        rows.add("throughput at window 64, brokered / Ray", ABSENT, peer=RAY, note=note)


# --- pages ----------------------------------------------------------------------------------------------------------------------


def _receive(inbox: Any, outbox: Any) -> None:
    while (tensor := inbox.get()) is not None:
        outbox.put(int(tensor[0]) + int(tensor[-1]))
        del tensor


class TorchQueue:
    """torch.multiprocessing: a tensor through a queue to another process, and word back that its ends were read."""

    def __init__(self) -> None:
        context = torch_mp.get_context("spawn")
        self.there, self.back = context.Queue(), context.Queue()
        self.process = context.Process(target=_receive, args=(self.there, self.back))
        self.process.start()

    def handoffs(self, n: int, size: int, *, shared: bool) -> float:
        """Seconds of n hand-offs of a tensor that lies in shared memory already, or, as a training loop has it, does not yet."""
        total = 0.0
        for _ in range(n):
            tensor = torch.full((size,), 7, dtype=torch.uint8)
            if shared:
                tensor.share_memory_()
            began = time.perf_counter()
            self.there.put(tensor)
            assert self.back.get(timeout=PATIENCE_S) == 14
            total += time.perf_counter() - began
        return total

    def close(self) -> None:
        """End the other process."""
        self.there.put(None)
        self.process.join(PATIENCE_S)


def pages(rows: Rows, scale: Scale, rounds: int, folder: Path) -> None:
    """Large tensors change hands."""
    n = scale.handoffs
    runtime, queue = Runtime(folder), TorchQueue()
    try:
        found = in_turns(
            {
                "slab": lambda: runtime.ask("slab", n, 64 * MB),
                "shared": lambda: queue.handoffs(n, 64 * MB, shared=True),
                "torch": lambda: queue.handoffs(n, 64 * MB, shared=False),
                "again": lambda: runtime.ask("slab", n, 64 * MB),
                "small": lambda: runtime.ask("slab", n, MB),
            },
            rounds,
        )
    finally:
        queue.close()
        runtime.close()
    rows.add("A/A: slab 64 MB / the same again", ratios(found["again"], found["slab"]))
    rows.add("slab 64 MB, offered and mapped through the kernel", [s / n * 1e6 for s in found["slab"]], unit="us")
    peer = "torch.multiprocessing.Queue"
    rows.add(
        "64 MB tensor hand-off, torch.multiprocessing / slab in place",
        ratios(found["shared"], found["slab"]),
        ">= 5",
        peer=peer,
        note="both are in shared memory already. Slab: offered to the kernel and mapped again, its ends read; torch: through a queue to"
        " another process, and word back that its ends were read",
    )
    rows.add(
        "64 MB tensor hand-off, torch.multiprocessing from private memory / slab in place",
        ratios(found["torch"], found["slab"]),
        peer=peer,
        note="what a training loop has: the queue copies the tensor into shared memory first",
    )
    rows.add("slab cost 64 MB / 1 MB", ratios(found["slab"], found["small"]), "<= 1.1")


# --- decisions ------------------------------------------------------------------------------------------------------------------


def decision_s(tasks: int, decisions: int) -> float:
    """Seconds of a decision of the fair class with so many servers waiting: pick, run, charge, queue again."""
    rng = random.Random(SEED)
    fair = FairClass({f"s{i}": rng.randint(1, 10) for i in range(tasks)}, 1, 1_000_000)
    for i in range(tasks):
        fair.enqueue(f"s{i}", i)
    began = time.perf_counter()
    for _ in range(decisions):
        picked = fair.pick()
        assert picked is not None
        name, job = picked
        fair.finish(name, 500_000)
        fair.enqueue(name, job)
    return (time.perf_counter() - began) / decisions


def reservations(count: int, usage: float, rng: random.Random) -> list[Reservation]:
    """Tasks with deadlines below their periods and micro-steps, at a total usage."""
    shares = [rng.expovariate(1) for _ in range(count)]
    tasks = []
    for i, share in enumerate(shares):
        period = int(10 ** rng.uniform(7, 9))
        budget = max(1, int(period * usage * share / sum(shares)))
        tasks.append(
            Reservation(f"t{i}", budget, rng.randint(max(budget, period * 9 // 10), period), period, budget // 4)
        )
    return tasks


def decisions(rows: Rows, scale: Scale, rounds: int, folder: Path) -> None:
    """The scheduler by itself."""
    found = in_turns(
        {
            "10": lambda: decision_s(10, scale.decisions),
            "10,000": lambda: decision_s(10_000, scale.decisions),
            "again": lambda: decision_s(10, scale.decisions),
        },
        rounds,
    )
    rows.add("A/A: decision with 10 tasks / the same again", ratios(found["again"], found["10"]))
    rows.add("scheduler decision, 10 tasks", [s * 1e6 for s in found["10"]], unit="us")
    rows.add("scheduler decision, 10 -> 10,000 tasks", ratios(found["10,000"], found["10"]), "<= 10")
    for usage, name in ((0.6, "sets of U = 0.6"), (0.9, "sets of U = 0.9"), (0.94, "sets of U = 0.94")):
        sets = [reservations(256, usage, random.Random(SEED + number)) for number in range(rounds)]
        taken, admitted = [], 0
        for tasks in sets:
            began = time.perf_counter()
            admitted += admit(tasks)[0]
            taken.append((time.perf_counter() - began) * 1e3)
        rows.add(
            f"admission at 256 tasks, {name}", taken, "<= 20", unit="ms", note=f"{admitted} of {len(sets)} admitted"
        )


def jobs(rows: Rows, scale: Scale, rounds: int, folder: Path) -> None:
    """Simulated jobs of admitted sets."""
    from tests.campaign import _edf

    result = _edf.run(count=scale.jobs, seed=SEED)
    what = f"{result.jobs:,} jobs of {result.sets} sets, {result.full_sets} of U = 1"
    rows.add("deadline misses of admitted sets, simulated", float(result.misses), "== 0", note=result.found or what)
    rows.add(
        "deadline misses of the same sets admitted without B(t)",
        float(result.control_misses),
        "> 0",
        note=f"the control: {result.control_jobs:,} jobs, {result.control_sets_that_missed} of {result.control_sets} sets missed",
    )


# --- live windows ---------------------------------------------------------------------------------------------------------------


def windows(rows: Rows, scale: Scale, rounds: int, folder: Path) -> None:
    """A learner that uses its budget, at U = 0.9."""
    doc = document(folder / "run", windows=scale.windows)
    doc["window"] = {"steps": 1, "budget_ms": 180, "period_ms": 200, "deadline_ms": 200}
    next(s for s in doc["servers"] if s["name"] == "learner")["entry"] = "tests.bench._kernel_server_learner"
    live = Live(folder / "run", doc)
    try:
        live.up()
        live.until(lambda: live.status()["state"] == "done", "the plan is done", 60.0 + scale.windows * 1.0)
        counts = live.halt()["windows"]
        with Store.open_reader(live.run / "store") as store:
            commits = [r for r in store.records() if r.kind is RecordKind.WINDOW_COMMIT]
    finally:
        live.clean()
    budget_ns = 180_000_000
    use = statistics.fmean(r.args["metrics"]["used_ns"] for r in commits) / budget_ns * 100
    missed = counts["granted"] - counts["committed"]
    note = f"{counts['granted']} windows granted, budget 180 ms, period and deadline 200 ms"
    rows.add("deadline misses live at U = 0.9", missed / counts["granted"] * 100, "<= 0.1", unit="%", note=note)
    rows.add("mean use of the budget in those windows", use, ">= 70", unit="%")
    rows.add("rollbacks == misses in those windows", counts["rolled_back"] == missed, "== True", note=str(counts))


PARTS: Final[dict[str, Callable[[Rows, Scale, int, Path], None]]] = {
    "messages": messages,
    "pages": pages,
    "decisions": decisions,
    "jobs": jobs,
    "windows": windows,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=ROUNDS, help="rounds")
    parser.add_argument("--seconds", type=float, help="not used: rounds are what is counted")
    parser.add_argument("--quick", action="store_true", help="a smoke run; its rows go to the terminal only")
    parser.add_argument("--only", default="", choices=["", *PARTS], help="one part; its rows go to the terminal only")
    options = parser.parse_args()
    scale = QUICK if options.quick else Scale()
    rounds = 3 if options.quick else options.count
    context = {"seeds": [SEED], "load_before": round(os.getloadavg()[0], 2)}
    rows = Rows("kernel", f"make bench PART=kernel COUNT={rounds}", context)
    for name, part in PARTS.items():
        if options.only in ("", name):
            with tempfile.TemporaryDirectory(prefix="recuros-bench-") as folder:
                part(rows, scale, rounds, Path(folder))
    if not options.quick and not options.only:
        rows.write()


if __name__ == "__main__":
    main()
