"""A snapshot that went to the archivist directly: the learner's word may overtake the archivist's, and is worth nothing without it."""

from __future__ import annotations

import pytest
from world import MS, S, World, digest, document

from kernel import channels
from kernel.events import Received
from kernel.window import WindowState
from syscalls import abi, wire

LEARNER = "learner"
CALL = 900_000


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    """A window runs, and the kernel believes that a channel stands."""
    monkeypatch.setattr(channels, "between", lambda *_: True)
    world = World(1, document(windows=(3,)))
    world.boot()
    running = lambda: any(w.state is WindowState.RUNNING for w in world.state.windows.values())  # noqa: E731
    assert world.run(lambda: world.state is not None and running(), 10 * S)
    return world


def say(world: World, who: str, name: str, number: int, **columns: object) -> None:
    row = abi.SYSCALL_BY_NAME[name]
    route = world.processes[who].route
    world.step(Received(who, route, wire.Call(number, row.nr, 1, row.bind(columns)), 1, 100))


def staged(world: World, snapshot: str) -> int:
    assert world.state is not None
    window = min(world.state.windows)
    say(
        world, LEARNER, "window_staged", CALL, window=window, snapshot=snapshot, metrics={"loss": 1.0}, maps={}, trace=0
    )
    return window


def test_a_stage_that_overtook_the_archivists_word_waits_for_it(world: World) -> None:
    snapshot = digest("directly")
    world.disk.objects.add(snapshot)
    window = staged(world, snapshot)
    assert world.state is not None
    assert world.state.windows[window].state is WindowState.RUNNING
    say(world, "archivist", "stage_done", 0, snapshot=digest("another"))
    assert world.state.windows[window].state is WindowState.RUNNING
    say(world, "archivist", "stage_done", 0, snapshot=snapshot)
    assert world.state.windows[window].state is WindowState.STAGED
    assert world.state.staged_waits is None


def test_a_learner_that_claims_what_nobody_stored_misses_its_deadline(world: World) -> None:
    window = staged(world, digest("a lie"))
    assert world.state is not None
    for liar in (LEARNER, "dataset"):
        say(world, liar, "stage_done", 0, snapshot=digest("a lie"))
    assert world.state.windows[window].state is WindowState.RUNNING
    left_ns = world.state.windows[window].deadline_ns - world.now_ns
    world.processes[LEARNER].hung = True
    world.run(lambda: world.state.windows[window].state is not WindowState.RUNNING, left_ns + 10 * MS)
    assert world.state.windows[window].state is WindowState.MISSED
    assert world.state.staged_waits is None
