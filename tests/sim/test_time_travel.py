"""The state folded from the ledger against the kernel's own: during a history, after it, and as the next boot would resume."""

from __future__ import annotations

import random
from collections.abc import Iterable
from typing import Any

import histories
import msgpack
import pytest
from world import MS, Faults, S, World, document

from kernel import config, lifecycle
from kernel.state import State
from kfs import at
from kfs.records import Record, RecordKind, decode
from syscalls.errors import RecurosError


class Log:
    """A list of records as a source."""

    def __init__(self, log: list[Record]) -> None:
        self._log = log

    @property
    def size(self) -> int:
        return len(self._log)

    def records(self, start: int = 0, stop: int | None = None) -> Iterable[Record]:
        return self._log[start:stop]


def relevant(policies: dict[int, Any], window: int) -> dict[int, Any]:
    """The policy in force at a window and those after it; older ones can never be in force again."""
    oldest = max([k for k in policies if k <= window], default=0)
    return {k: v for k, v in policies.items() if k >= oldest}


def log_of(seed: int) -> list[Record]:
    """The ledger of one whole history. Its outcome keeps only the bytes, laid end to end."""
    unpacker = msgpack.Unpacker(strict_map_key=False)
    unpacker.feed(histories.run(seed).ledger)
    return [decode(msgpack.packb(row, use_bin_type=True)) for row in unpacker]


def carried(s: State) -> dict[str, Any]:
    """What a boot takes over, of the kernel's state."""
    return {
        "snapshot": s.committed,
        "window": s.committed_window,
        "kd": s.kd,
        "gate": s.gate,
        "directives": s.directives,
        "policies": relevant(
            {k: {n: x for n, x in v.items() if n != "seq"} for k, v in s.policies.items()}, s.committed_window + 1
        ),
        "scores": s.scores,
        "reference": s.reference,
    }


def folded(s: at.State) -> dict[str, Any]:
    return {
        "snapshot": s.snapshot,
        "window": s.window,
        "kd": s.kd,
        "gate": s.gate,
        "directives": [["kd", d[1]] if d[0] == "kd" else d for d in s.directives],
        "policies": relevant({k: p.learner_map() for k, p in s.policies.items()}, s.window + 1),
        "scores": s.scores,
        "reference": s.reference,
    }


def live(s: State) -> dict[str, Any]:
    """What lives in processes or lasts for a boot."""
    return {
        "counts": s.counts,
        "policy": s.policy,
        "probes": {p.id: p.prog for p in s.probes.values()},
        "windows": sorted(s.windows),
        "paused": s.paused,
        "budget": s.reservation.budget_ns,
        "servers": {x.name: x.incarnation for x in s.servers.values() if x.pid and x.state != "dead"},
    }


def folded_live(s: at.State) -> dict[str, Any]:
    return {
        "counts": s.counts,
        "policy": s.policy,
        "probes": {number: p["prog"] for number, p in s.probes.items()},
        "windows": sorted(s.windows),
        "paused": s.paused,
        "budget": s.schedule["budget_ns"],
        "servers": {name: v["incarnation"] for name, v in s.servers.items() if v["state"] == "up"},
    }


def settled(world: World) -> bool:
    """Everything that the kernel did is in the ledger, and everything in the ledger has had its effect."""
    s = world.state
    return s is not None and s.phase == "running" and not s.outbox.records and s.in_flight is None


@pytest.mark.parametrize("seed", range(20))
def test_the_ledger_tells_what_the_kernel_holds(seed: int) -> None:
    rng = random.Random(seed)
    faults = Faults(late=0.1, loss=0.02, kill=0.5, bad_policy=0.05, until_ns=20 * S) if seed % 2 else Faults()
    world = World(seed, document(windows=(2, 12, 4)), faults=faults)
    world.boot()
    world.run(lambda: world.state is not None and world.state.phase == "running", 10 * S)
    world.hello()
    histories._operate(world, rng)
    looks = 0
    for _ in range(25):
        world.run(lambda: False, rng.randrange(20, 400) * MS)
        if world.run(lambda: settled(world), 5 * S):
            assert world.state is not None
            found = at.state_at(Log(world.disk.log), -1)
            assert folded(found) == carried(world.state), f"seed {seed}, record {found.seq}"
            assert folded_live(found) == live(world.state), f"seed {seed}, record {found.seq}"
            looks += 1
    assert looks


@pytest.mark.parametrize("seed", range(12))
def test_the_state_of_any_prefix_is_what_a_boot_on_it_resumes(seed: int) -> None:
    """The kernel's own resume on a ledger cut off anywhere, and the fold of the same prefix."""
    log = log_of(seed)
    parsed = config.parse(document())
    first = next((r.seq for r in log if r.kind is RecordKind.WINDOW_COMMIT), len(log))
    for end in range(first, len(log)):
        last = max(r.seq for r in log[: end + 1] if r.kind is RecordKind.WINDOW_COMMIT)
        s = State(parsed, "b" * 16, 1, {})
        lifecycle.resume(s, log[last], log[last + 1 : end + 1])
        found = at.state_at(Log(log), end)
        assert at.state_at(Log(log[: end + 1]), -1) == found
        expected, got = carried(s), folded(found)
        # A grant takes directives and drops old policies; a boot on that prefix never saw the window.
        if any(r.kind in (RecordKind.WINDOW_GRANT, RecordKind.WINDOW_ROLLBACK) for r in log[last + 1 : end + 1]):
            for unseen in ("directives", "policies"):
                expected.pop(unseen)
                got.pop(unseen)
        assert got == expected, f"seed {seed}, record {end}"


def test_numbers_from_the_end_and_outside() -> None:
    log = log_of(3)
    assert at.state_at(Log(log), -1).seq == len(log) - 1
    assert at.state_at(Log(log), 0).seq == 0
    for outside in (len(log), -len(log) - 1):
        with pytest.raises(RecurosError, match="no record"):
            at.state_at(Log(log), outside)


def test_a_time_means_the_longest_history_that_ends_by_then() -> None:
    log = log_of(3)
    assert at.seq_at(Log(log), log[-1].t_wall) == len(log) - 1
    assert at.seq_at(Log(log), log[5].t_wall) >= 5
    with pytest.raises(RecurosError, match="later than that time"):
        at.seq_at(Log(log), 0)
