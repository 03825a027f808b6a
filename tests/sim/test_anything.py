"""Whatever a peer says, well typed or not, the kernel answers it, and nobody else notices."""

from __future__ import annotations

import itertools
import random
from typing import Any

import pytest
from invariants import check_ledger
from world import MS, S, World, digest, document

from kernel.events import PageOffered, PageWanted, Received
from syscalls import abi, wire
from syscalls.errors import RecurosError

NAMES = (
    "",
    "observer",
    "learner",
    "drain",
    "pause",
    "temperature",
    "ema",
    "test",
    "on_kd_step",
    "builtin:rms",
    "x" * 70_000,
)
IDS = itertools.count(1_000_000)
KEYS = (
    "budget_ms",
    "period_ms",
    "sparsity",
    "drop_low",
    "mask",
    "map",
    "summary",
    "cka",
    "base",
    "temperature",
    "evidence",
)


def value(rng: random.Random, depth: int = 0) -> Any:
    """Any plain value."""
    kind = rng.randrange(8 if depth < 3 else 6)
    if kind == 0:
        return rng.choice((0, 1, -1, 2, 7, 1 << 40, (1 << 63) - 1, -(1 << 63)))
    if kind == 1:
        return rng.choice((0.0, -1.0, 0.5, 2.0, 1e308, float("inf"), float("nan")))
    if kind in (2, 3):
        return rng.choice(NAMES)
    if kind == 4:
        return rng.choice((True, False, None, b"", b"\0" * 9))
    if kind == 5:
        return digest(rng.random())
    if kind == 6:
        return [value(rng, depth + 1) for _ in range(rng.randrange(4))]
    return {rng.choice(KEYS): value(rng, depth + 1) for _ in range(rng.randrange(4))}


def fitting(rng: random.Random, kind: str) -> Any:
    """A value that mostly fits a column."""
    if rng.random() < 0.1:
        return value(rng)
    match kind:
        case "int" | "page":
            return rng.choice((0, 1, 2, 3, 5, 8, 1000, 1 << 40, (1 << 63) - 1, -1))
        case "float":
            return rng.choice((-1.0, 0.5, 2.0, float("nan"), float("inf")))
        case "str":
            return rng.choice((*NAMES, digest(1), digest("built")))
        case "bytes":
            return b"bytes"
        case "bool":
            return rng.random() < 0.5
        case "list":
            return [value(rng) for _ in range(rng.randrange(4))]
        case "map":
            return {rng.choice(KEYS): value(rng) for _ in range(rng.randrange(4))}
        case _:
            return value(rng)


def talk(world: World, rng: random.Random, who: str, leave_out: frozenset[str]) -> None:
    """One message of one principal."""
    route = world.processes[who].route if who in world.processes else who.encode()
    if rng.random() < 0.1:
        frame: wire.Frame = wire.Reply(
            rng.randrange(200), rng.random() < 0.5, [value(rng) for _ in range(rng.randrange(3))]
        )
    else:
        row = rng.choice([r for r in abi.SYSCALLS if r.name not in leave_out])
        args = [fitting(rng, a.kind) for a in row.args]
        if rng.random() < 0.05:
            args = args[:-1] if args else [1]
        frame = wire.Call(next(IDS), row.nr if rng.random() < 0.98 else 9_999, rng.choice((1, 1, 1, 2, 3)), args)
    try:
        frame = wire.decode(wire.encode(frame))
    except RecurosError:
        return  # does not pass the wire at all
    world.asked[who, frame.id] = repr(frame)[:300]
    world.step(Received(who, route, frame, world.now_ns, 100))


@pytest.mark.parametrize("seed", range(6))
def test_no_operator_can_make_the_kernel_raise_or_the_plan_fail(seed: int) -> None:
    rng = random.Random(seed)
    world = World(seed, document(windows=(2, 4, 2)))
    world.boot()
    world.run(lambda: world.state is not None and world.state.phase == "running", 10 * S)
    world.hello()
    quiet = frozenset({"shutdown", "interrupt", "rl_schedule", "fault"})
    for _ in range(400):
        talk(world, rng, "operator:7.1", quiet)
        world.run(lambda: False, rng.randrange(8) * MS)
    assert world.run(lambda: world.state is not None and world.state.phase == "done", 60 * S)
    assert world.state is not None
    assert world.state.error is None, world.state.error
    assert len(check_ledger(world.disk, built=digest("built"), policies=False)) == 8


@pytest.mark.parametrize("seed", range(6))
def test_no_operator_can_make_the_kernel_raise_by_stopping_it(seed: int) -> None:
    rng = random.Random(seed)
    world = World(seed, document())
    world.boot()
    world.run(lambda: world.state is not None and world.state.phase == "running", 10 * S)
    world.hello()
    for _ in range(300):
        talk(world, rng, "operator:7.1", frozenset())
        world.run(lambda: False, rng.randrange(8) * MS)
    world.signal()
    assert world.run(lambda: world.exit is not None, 60 * S)


@pytest.mark.parametrize("who", ["observer", "learner", "dataset", "gpu", "archivist"])
def test_no_server_can_make_the_kernel_raise(who: str) -> None:
    for seed in range(3):
        rng = random.Random(f"{who}{seed}")
        world = World(seed, document(direct=True))
        world.boot()
        world.run(lambda w=world: w.state is not None and w.state.phase == "running", 10 * S)
        for _ in range(300):
            if who not in world.processes or world.exit is not None:
                break
            talk(world, rng, who, frozenset())
            if rng.random() < 0.05:
                world.step(PageWanted(who, -1, rng.randrange(-2, 50)))  # answered to nobody: the process has not asked
            if rng.random() < 0.05:
                world.pages[world.next_page] = "anything"
                world.next_page += 1
                world.step(PageOffered(who, -1, world.next_page - 1, 64, end=rng.random() < 0.5))
            world.run(lambda: False, rng.randrange(4) * MS)
        world.signal()
        assert world.run(lambda w=world: w.exit is not None, 90 * S), f"{who}, seed {seed}"


def test_an_observer_that_says_anything_does_not_stop_the_windows() -> None:
    rng = random.Random(5)
    world = World(5, document(windows=(2, 4)))
    world.boot()
    world.run(lambda: world.state is not None and world.state.phase == "running", 10 * S)
    for _ in range(500):
        talk(world, rng, "observer", frozenset({"fault"}))
        world.run(lambda: False, rng.randrange(8) * MS)
    assert world.run(lambda: world.state is not None and world.state.phase == "done", 120 * S)
    check_ledger(world.disk, built=digest("built"), policies=False)
