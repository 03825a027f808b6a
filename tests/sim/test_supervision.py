"""Deaths and silences: restart policies, their limit and backoff, heartbeats, the hung learner, a boot that fails closed."""

from __future__ import annotations

from typing import Any

import pytest
from invariants import check_end, check_ledger
from world import MS, S, World, digest, document

from kernel.events import Effect, Spawn
from kernel.state import Turn
from kernel.status import status
from kfs.records import RecordKind
from syscalls import limits


class Watched(World):
    """A world that notes when the kernel asks for processes."""

    def __init__(self, *args: Any, **options: Any) -> None:
        self.spawned: list[tuple[int, str]] = []
        super().__init__(*args, **options)

    def _perform(self, effect: Effect) -> None:
        if isinstance(effect, Spawn):
            self.spawned.append((self.now_ns, effect.name))
        super()._perform(effect)


def running(*, policy: str = "always", name: str = "gpu") -> Watched:
    """A detached runtime that is up; one server has another restart policy."""
    doc = document(detached=True)
    next(s for s in doc["servers"] if s["name"] == name)["restart"] = policy
    world = Watched(1, doc)
    world.boot()
    assert world.run(lambda: world.state is not None and world.state.phase == "running", 10 * S)
    return world


def ready(world: World, name: str) -> bool:
    s = world.state
    assert s is not None
    return s.servers[name].state == "ready"


def kill(world: Watched, name: str) -> int:
    """Kill a server and wait until it is back; returns the nanoseconds between its death and the next one's birth, -1: none came."""
    s = world.state
    assert s is not None
    incarnation = s.servers[name].incarnation
    world.end(world.processes[name], -9)
    assert world.run(lambda: s.servers[name].state == "dead", S)
    died_ns, before = world.now_ns, len(world.spawned)
    back = world.run(lambda: s.servers[name].incarnation > incarnation and ready(world, name), 30 * S)
    return world.spawned[before][0] - died_ns if back else -1


@pytest.mark.parametrize("policy", ["always", "snapshot"])
def test_restarts_back_off_and_end_at_their_limit_with_the_reason(policy: str) -> None:
    world = running(policy=policy)
    waits = [kill(world, "gpu") for _ in range(limits.RESTARTS_MAX)]
    assert [round(wait / 1e9, 3) for wait in waits] == [0, 0.5, 1, 2, 4]
    assert world.exit is None
    assert kill(world, "gpu") == -1
    assert world.exit == 1
    failed = next(r for r in world.reports if r.get("event") == "failed")
    assert "gpu died 6 times in a minute" in failed["error"][1]
    check_end(world, drained=False)


def test_deaths_that_are_far_apart_never_reach_the_limit() -> None:
    world = running()
    for _ in range(2 * limits.RESTARTS_MAX):
        assert kill(world, "gpu") >= 0
        world.run(lambda: False, limits.RESTART_WINDOW_NS // (limits.RESTARTS_MAX - 1))
    assert world.exit is None


def test_the_limit_of_one_server_is_not_that_of_another() -> None:
    world = running()
    for _ in range(limits.RESTARTS_MAX):
        assert kill(world, "gpu") >= 0
    assert kill(world, "dataset") == 0


@pytest.mark.parametrize("name", ["gpu", "dataset", "learner", "observer", "archivist"])
def test_a_server_that_must_not_be_restarted_takes_the_runtime_down_with_its_reason(name: str) -> None:
    world = running(policy="never", name=name)
    assert kill(world, name) == -1
    assert world.run(lambda: world.exit is not None, 10 * S)
    assert world.exit == 1
    failed = next(r for r in world.reports if r.get("event") == "failed")
    assert f"{name} died 1 times in a minute: exited with status -9" in failed["error"][1]
    assert not [p for p in world.processes.values() if p.alive], "an orphan"


@pytest.mark.parametrize("name", ["gpu", "dataset", "observer", "archivist"])
def test_a_server_that_falls_silent_is_killed_and_replaced(name: str) -> None:
    world = running()
    s = world.state
    assert s is not None
    hung, incarnation = world.processes[name], s.servers[name].incarnation
    hung.hung = True
    silent_from = world.now_ns
    assert world.run(lambda: s.servers[name].incarnation > incarnation and ready(world, name), 120 * S)
    assert not hung.alive
    assert world.now_ns - silent_from < 3 * limits.HEARTBEAT_TIMEOUT_NS + 10 * limits.HEARTBEAT_PERIOD_NS
    committed = s.committed_window
    assert world.run(lambda: s.committed_window > committed + 2, 60 * S), "windows go on"


def test_a_hung_learner_is_caught_by_its_deadline_and_its_successor_starts_from_the_base() -> None:
    world = running()
    s = world.state
    assert s is not None
    assert world.run(lambda: s.committed_window > 2 and any(w.state == "running" for w in s.windows.values()), 60 * S)
    world.processes["learner"].hung = True
    window = next(w for w in s.windows.values() if w.state == "running")
    hung_at = window.deadline_ns
    assert world.run(lambda: not world.processes["learner"].alive, 60 * S)
    assert world.now_ns - hung_at < limits.ABORT_GRACE_NS + 100 * MS, "no heartbeat was waited for"
    assert world.run(lambda: s.committed_window >= window.id, 60 * S)
    log = [r for r in world.disk.log if r.args.get("window") == window.id]
    kinds = [r.kind for r in log if r.kind.value.startswith("window.")]
    assert kinds[:3] == [RecordKind.WINDOW_GRANT, RecordKind.WINDOW_MISS, RecordKind.WINDOW_ROLLBACK]
    rollback = next(r for r in log if r.kind is RecordKind.WINDOW_ROLLBACK)
    assert rollback.args["exact"]
    assert rollback.args["restored"] == window.base
    check_ledger(world.disk, built=digest("built"))


def test_a_server_that_never_says_hello_fails_the_boot_with_the_reason() -> None:
    world = Watched(1, document())
    world.boot()
    assert world.run(lambda: "dataset" in world.processes, 10 * S)
    world.processes["dataset"].hung = True
    world.processes["dataset"].run = lambda *_: None  # type: ignore[method-assign]
    assert world.run(lambda: world.exit is not None, 10 * limits.HELLO_TIMEOUT_NS)
    assert world.exit == 1
    failed = next(r for r in world.reports if r.get("event") == "failed")
    reason = f"dataset was not ready after {limits.HELLO_TIMEOUT_NS // S} s: it never said hello"
    assert failed["error"][:2] == ["E3-BOOT", reason]
    assert world.dumped == ["dataset"], "and its log says what it was doing"


def test_a_learner_that_is_shown_as_ready_takes_a_probe() -> None:
    """It is shown as restoring until it has proved its base; from the first moment that says ready, an attach is served."""
    doc = document(windows=(2, 30))
    world = Watched(3, doc)
    world.boot()
    s = lambda: world.state  # noqa: E731
    assert world.run(lambda: s() is not None and s().committed_window >= 4, 60 * S)
    world.hello()
    incarnation = s().servers["learner"].incarnation
    world.end(world.processes["learner"], -9)
    shown: list[str] = []

    def back() -> bool:
        row = next(x for x in status(Turn(s(), world.now_ns))["servers"] if x["name"] == "learner")
        if row["incarnation"] > incarnation:
            shown.append(row["state"])
        return bool(shown) and shown[-1] == "ready"

    assert world.run(back, 30 * S)
    assert "restoring" in shown
    call = world.operator("rl_attach_probe", hook="on_kd_step", prog="builtin:entropy")
    assert world.run(lambda: ("operator:7.1", call) in world.answers, 10 * S)
    assert world.answers["operator:7.1", call].ok, world.answers["operator:7.1", call].payload
