"""What the device server costs and gains: a replayed step against a dynamic one, probes beside replays, telemetry, and torch.compile.

On a host without a CUDA device the rows of the device say so and carry no figure; telemetry and torch.compile are measured on the CPU.
Cases of a row take turns, round by round.

    make bench PART=gpu [COUNT=rounds]        python -m tests.bench.gpu --quick (a smoke run: rounds that say nothing)
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from probes import library
from probes.hooks import Dispatcher
from servers.gpu.nvml import Nvml
from servers.gpu.server import SAMPLE_AGE_NS_MAX, GpuService
from servers.learner.engine import Engine
from tests.bench._rows import Rows

ROUNDS = 15
SEED = 42
STEPS = 50
SPEC: dict[str, Any] = {
    "teacher": {"kind": "patch", "layers": 4, "width": 64, "heads": 4},
    "student": {"kind": "patch", "layers": 2, "width": 20, "heads": 4},
    "optimizer": {"betas": [0.9, 0.98], "weight_decay": 0.05},
    "kd": {"temperature": 2.0, "alpha": 1.0, "mix": 0.9},
}
PHASE = {"name": "distil", "index": 0, "train": "student", "windows": 1000, "steps": 25, "lr": 8e-3}
DYNAMIC = "the same engine on the dynamic path"
EAGER = "the same step without torch.compile"
STARTER = ("builtin:cka", "builtin:ece")


def batch(size: int = 64) -> dict[str, Tensor]:
    """A batch of the digits app's shape; what is in it does not matter to the time."""
    generator = torch.Generator().manual_seed(SEED)
    return {
        "ids": torch.arange(size),
        "x": torch.rand(size, 8, 8, generator=generator),
        "labels": torch.randint(0, 10, (size,), generator=generator),
        "weight": torch.ones(size),
    }


def in_turns(cases: dict[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each case, round by round, in an order that alternates."""
    found: dict[str, list[float]] = {name: [] for name in cases}
    for number in range(rounds + 1):
        for name in list(cases)[:: 1 if number % 2 else -1]:
            seconds = cases[name]()
            if number:  # the first round warms up
                found[name].append(seconds)
    return found


def ratios(over: list[float], under: list[float]) -> list[float]:
    return [a / b for a, b in zip(over, under, strict=True)]


def engine(device: str, dispatcher: Dispatcher | None = None) -> Engine:
    made = Engine({**SPEC, "device": device}, SEED, dispatcher)
    made.begin(PHASE)
    return made


def stepping(made: Engine, steps: int) -> Callable[[], float]:
    data = batch()

    def run() -> float:
        started = time.perf_counter()
        for _ in range(steps):
            made.micro_step(data)
        if made.device.type == "cuda":
            torch.cuda.synchronize(made.device)
        return time.perf_counter() - started

    return run


def graphs(rows: Rows, rounds: int, steps: int) -> None:
    """Replayed steps, with and without the starter's probes."""
    names = ("dynamic step / replayed step", "replayed with the starter's probes / without")
    if not torch.cuda.is_available():
        for name, target in zip(names, (">= 1.5", "<= 1.05"), strict=True):
            rows.add(
                name,
                "not measured",
                target="",
                peer=DYNAMIC,
                note=f"no CUDA device; target {target}; run it where there is one",
            )
        return
    device = "cuda:0"
    dispatcher = Dispatcher(lambda probe, reason: print(f"probe {probe} was evicted: {reason}"))
    dynamic, replayed, probed = engine(device), engine(device), engine(device, dispatcher)
    replayed.capture_step(batch())
    probed.capture_step(batch())
    for number, name in enumerate(STARTER, 1):
        dispatcher.attach(number, "on_kd_step", library.build(name))
    cases = {"dynamic": dynamic, "replayed": replayed, "probed": probed}
    found = in_turns({name: stepping(made, steps) for name, made in cases.items()}, rounds)
    note = torch.cuda.get_device_name(device)
    rows.add(names[0], ratios(found["dynamic"], found["replayed"]), ">= 1.5", peer=DYNAMIC, note=note)
    rows.add(names[1], ratios(found["probed"], found["replayed"]), "<= 1.05", peer="itself", note=note)
    rows.add("dynamic step", [s / steps * 1e3 for s in found["dynamic"]], unit="ms", note=note)
    rows.add("replayed step", [s / steps * 1e3 for s in found["replayed"]], unit="ms", note=note)


def telemetry(rows: Rows, rounds: int) -> None:
    """CPU time of a sample; the kernel asks for one every two seconds."""
    now = [0]
    service = GpuService(Nvml(), cores=len(os.sched_getaffinity(0)), clock_ns=lambda: now[0])
    shares = []
    for _ in range(rounds):
        started = time.process_time()
        for _ in range(20):
            now[0] += 2 * SAMPLE_AGE_NS_MAX
            service.telemetry()
        shares.append((time.process_time() - started) / 20 / 2.0 * 100)
    rows.add("telemetry, share of a core at a sample every 2 s", shares, "<= 0.1", unit="%")
    service.drain()


def compiled(rows: Rows, rounds: int, steps: int) -> None:
    """Forward and backward of the student under torch.compile on this host, and what the first call costs."""
    model = engine("cpu").roles["student"].model.module
    data = batch()
    started = time.perf_counter()
    try:
        faster: Any = torch.compile(model)
        _forward_backward(faster, model, data, 1)
    except Exception as error:  # noqa: BLE001 - a compiler that is not there fails in many ways, and each is the row's figure
        rows.add(
            "eager step / compiled step, CPU",
            "not possible",
            peer=EAGER,
            note=f"{type(error).__name__}: {str(error)[:120]}",
        )
        return
    first = time.perf_counter() - started
    cases = {
        "eager": lambda: _forward_backward(model, model, data, steps),
        "compiled": lambda: _forward_backward(faster, model, data, steps),
    }
    found = in_turns(cases, rounds)
    rows.add(
        "eager step / compiled step, CPU, forward and backward", ratios(found["eager"], found["compiled"]), peer=EAGER
    )
    rows.add(
        "first compiled step, CPU",
        first,
        unit="s",
        note="once a process and shape; probes and hooks see nothing of a compiled step",
    )


def _forward_backward(call: Any, model: torch.nn.Module, data: dict[str, Tensor], steps: int) -> float:
    started = time.perf_counter()
    for _ in range(steps):
        logits = call(data["x"])
        logits = logits[0] if isinstance(logits, tuple) else logits
        torch.nn.functional.cross_entropy(logits, data["labels"]).backward()
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=ROUNDS, help="rounds")
    parser.add_argument("--seconds", type=float, help="not used: rounds are what is counted")
    parser.add_argument("--quick", action="store_true", help="a smoke run; its rows go to the terminal only")
    options = parser.parse_args()
    rounds, steps = (2, 5) if options.quick else (options.count, STEPS)
    torch.set_num_threads(1)
    context = {"seeds": [SEED], "load_before": round(os.getloadavg()[0], 2)}
    rows = Rows("gpu", f"make bench PART=gpu COUNT={rounds}", context)
    graphs(rows, rounds, steps)
    telemetry(rows, rounds)
    compiled(rows, rounds, steps)
    if not options.quick:
        rows.write()


if __name__ == "__main__":
    main()
