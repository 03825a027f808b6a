"""What probes cost: one JSON line a row, each the median of interleaved rounds with its quartiles as the spread.

Rounds alternate between the cases, so that a drift of the machine falls on all of them; every row of a difference has an
A/A control, and a difference within the control's spread says "not resolved". Process CPU time, one thread.

    python tests/bench/probe_cost.py [--rounds N]
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable
from time import process_time_ns
from typing import Any

import torch
from torch import Tensor, nn

from probes import catalogue, library
from probes.hooks import Dispatcher
from probes.maps import Array
from probes.program import Context, Program
from servers.models.patch import PatchConfig, PatchTransformer

CALLS = 2_000


class Touch(Program):
    """The least program: takes the hook's tensor and adds one to a map."""

    name, every = "touch", 1

    def __init__(self) -> None:
        self.held = Array(1)
        self.maps = {"held": self.held}

    def fire(self, context: Context) -> None:
        context.tensor("output")
        self.held.add(0, 1.0)

    def summary(self) -> dict[str, Any]:
        return {}


class Identity(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x


def interleave(cases: dict[str, Callable[[], object]], rounds: int, calls: int) -> dict[str, list[float]]:
    """CPU nanoseconds per call of each case, one sample per round, the order rotated each round."""
    samples: dict[str, list[float]] = {name: [] for name in cases}
    order = list(cases)
    for name in order:
        cases[name]()
    for turn in range(rounds):
        for name in order[turn % len(order) :] + order[: turn % len(order)]:
            call = cases[name]
            started_ns = process_time_ns()
            for _ in range(calls):
                call()
            samples[name].append((process_time_ns() - started_ns) / calls)
    return samples


def emit(row: str, unit: str, values: list[float], target: float | None = None, **more: Any) -> None:
    low, middle, high = statistics.quantiles(values, n=4)
    met = None if target is None else middle <= target
    out = {"row": row, "unit": unit, "value": round(middle, 4), "target": target, "met": met}
    print(json.dumps({**out, "spread": [round(low, 4), round(high, 4)], "n": len(values), **more}), flush=True)


def fixed_costs(rounds: int) -> None:
    """An empty dispatcher and a firing of the least program, each over the same module without a hook."""
    x = torch.ones(4)
    bare, control, empty, idle, one = (nn.Sequential(Identity()) for _ in range(5))
    for module, program, due in ((empty, None, 0), (idle, Touch(), 1), (one, Touch(), 0)):
        dispatcher = Dispatcher(on_evict=lambda probe_id, reason: None)
        dispatcher.install("student", module)
        if program is not None:
            program.every = 1 + due
            dispatcher.attach(1, "on_forward:**", program)
        dispatcher.step(due)
    cases: dict[str, Callable[[], object]] = {}
    for name, module in (("bare", bare), ("a/a", control), ("empty", empty), ("not due", idle), ("one", one)):
        layer = module[0]
        cases[name] = lambda layer=layer: layer(x)
    samples = interleave(cases, rounds, CALLS)
    extra = {name: [a - b for a, b in zip(samples[name], samples["bare"], strict=True)] for name in cases}
    emit("A/A control of a bare call", "ns", extra["a/a"])
    emit("empty dispatcher, per firing", "ns", extra["empty"])
    emit("program attached but not due, per firing", "ns", extra["not due"])
    emit("one program firing, fixed cost", "us", [v / 1e3 for v in extra["one"]], target=5.0)


def builtin_costs(rounds: int) -> None:
    """A firing of each built-in at the reference shapes, against its declared cost."""
    torch.manual_seed(0)
    logits, other, labels = torch.randn(1024, 10), torch.randn(1024, 10), torch.randint(0, 10, (1024,))
    hidden = [(f"blocks.{i}", torch.randn(64, 16, 64), torch.randn(64, 16, 64)) for i in range(4)]
    probs = torch.softmax(torch.randn(64, 4, 16, 16), dim=-1)
    kd = {"student_logits": logits, "teacher_logits": other, "labels": labels, "hidden": hidden}
    shapes = {"rms": {"output": torch.randn(64, 16, 64)}, "gradnorm": {"grad": torch.randn(256, 256)}}
    cases = {}
    for name in catalogue.names():
        program, tensors = library.build(f"builtin:{name}"), shapes.get(name, kd)
        hook = catalogue.BUILTINS[name].hooks[0]
        cases[name] = lambda p=program, h=hook, t=tensors: p.fire(
            Context(h, "student/x", 0, t, lambda: (probs, "eager"))
        )
    with torch.no_grad():
        samples = interleave(cases, rounds, 20)
    for name, values in samples.items():
        declared_us = catalogue.BUILTINS[name].cost_ns / 1e3
        emit(f"builtin:{name}, per firing", "us", [v / 1e3 for v in values], target=declared_us, peer="declared cost")


def step_costs(rounds: int) -> None:
    """A distillation step of the small app with the dispatcher empty, and with every built-in at its own cadence."""

    def build(attached: bool, hosted: bool) -> Callable[[], object]:
        torch.manual_seed(0)
        teacher, student = PatchTransformer(PatchConfig()), PatchTransformer(PatchConfig(layers=2, width=24, heads=2))
        teacher.eval()
        optimizer = torch.optim.AdamW(student.parameters(), lr=1e-3)
        dispatcher = Dispatcher(on_evict=lambda probe_id, reason: print(reason))
        if hosted:
            dispatcher.install("student", student)
            dispatcher.install("teacher", teacher)
        hooks = {"on_forward": "on_forward:blocks.*", "on_attention": "on_attention", "on_grad": "on_grad"}
        for probe_id, builtin in enumerate(catalogue.BUILTINS.values() if attached else ()):
            hook = hooks.get(builtin.hooks[0], builtin.hooks[0])
            dispatcher.attach(probe_id, hook, library.build(f"builtin:{builtin.name}"))
        images, labels = torch.rand(64, 8, 8), torch.randint(0, 10, (64,))
        count = iter(range(1 << 60))

        def step() -> None:
            dispatcher.step(next(count))
            with torch.no_grad():
                t_logits, t_hidden, _ = teacher(images, need_hidden=True)
            s_logits, s_hidden, _ = student(images, need_hidden=True)
            pairs = [(f"blocks.{i}", s_hidden[i + 1], t_hidden[2 * i + 2]) for i in range(2)]
            if hosted:
                dispatcher.fire(
                    "on_kd_step", student_logits=s_logits, teacher_logits=t_logits, labels=labels, hidden=pairs
                )
            kl = nn.functional.kl_div(s_logits.log_softmax(-1), t_logits.softmax(-1), reduction="batchmean")
            optimizer.zero_grad()
            (nn.functional.cross_entropy(s_logits, labels) + kl).backward()
            optimizer.step()

        return step

    cases = {"plain": build(False, False), "a/a": build(False, False), "empty": build(False, True)}
    samples = interleave({**cases, "suite": build(True, True)}, rounds, 50)
    plain = samples["plain"]
    ratios = {name: [v / p for v, p in zip(values, plain, strict=True)] for name, values in samples.items()}
    low, _, high = statistics.quantiles(ratios["a/a"], n=4)
    emit("plain distillation step of the small app", "ms", [v / 1e6 for v in plain])
    emit("A/A control of that step", "ratio", ratios["a/a"])
    # A target is judged only where the margin is twice the control's spread; otherwise the row says "resolved": false.
    for name, row, target in (
        ("empty", "step with an empty dispatcher on every site / plain", None),
        ("suite", "step with all built-ins every 25 steps / plain", 1.05),
    ):
        margin = abs(statistics.median(ratios[name]) - 1)
        resolved = (high - low) <= margin / 2
        emit(row, "ratio", ratios[name], target=target if resolved else None, resolved=resolved)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=21)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    fixed_costs(rounds)
    builtin_costs(rounds)
    step_costs(rounds)


if __name__ == "__main__":
    main()
