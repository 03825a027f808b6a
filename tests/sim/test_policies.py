"""What a policy asks for once (pruning, a swap, the end of a phase) happens at its window, once, whatever fails meanwhile."""

from __future__ import annotations

from typing import Any

import pytest
from invariants import check_ledger
from world import MS, Faults, S, World, digest, document

from kernel.policy import check_policy
from kfs import at
from kfs.records import Record, RecordKind
from syscalls.errors import RecurosError

ACTS: dict[int, dict[str, Any]] = {
    2: {"temperature": 3.0, "prune": 0.9},  # applies at 4
    3: {"temperature": 2.0, "prune": 0.3},  # applies at 5
    4: {"swap": "ema", "cka": 0.5},
    5: {"refused": "temperature 9 is outside 1..4", "evidence": {"kl": 0.5}},
    6: {"stop": 1, "temperature": 2.0},  # applies at 8, the last window but two of its phase
}


def history(seed: int, faults: dict[str, Any], *, cut: bool = False, drains: int = 0) -> list[Record]:
    world = World(seed, document(windows=(2, 8, 3)), faults=Faults(**faults, until_ns=6 * S))
    world.acts = ACTS
    for _ in range(drains + cut):
        world.boot()
        world.run(lambda: world.state is not None and world.state.committed_window >= 3, 30 * S)
        world.run(lambda: False, 400 * MS)
        if drains:
            world.signal()
            world.run(lambda: world.exit is not None, 60 * S)
        world.power_cut()
    world.boot()
    assert world.run(lambda: world.state is not None and world.state.phase in ("done", "failed"), 900 * S)
    assert world.state is not None
    assert world.state.phase == "done", world.state.error
    check_ledger(world.disk, built=digest("built"), policies=False)
    return list(world.disk.log)


def committed(log: list[Record]) -> list[tuple[Any, ...]]:
    """(window, phase, position, directives, generation) of each committed window."""
    grants: dict[int, Record] = {}
    rows = []
    for r in log:
        if r.kind is RecordKind.WINDOW_GRANT:
            grants[r.args["window"]] = r
        elif r.kind is RecordKind.WINDOW_COMMIT:
            grant = grants[r.args["window"]]
            asked = [(kind, *args.values()) for kind, args in grant.args["directives"]]
            generation = r.args["resume"]["generation"]
            rows.append((r.args["window"], r.args["phase"]["name"], r.args["step0"], asked, generation))
    return rows


EXPECTED = [
    (1, "phase0", 0, [], 0),
    (2, "phase0", 4, [], 0),
    (3, "phase1", 0, [], 0),
    (4, "phase1", 4, [("prune", "magnitude", 0.9)], 0),
    (5, "phase1", 8, [("prune", "magnitude", 0.3)], 0),
    (6, "phase1", 12, [("swap", "ema")], 1),
    (7, "phase1", 16, [], 1),
    (8, "phase2", 0, [("swap", "ema")], 2),  # phase1 was to have eight windows; its end is kept
    (9, "phase2", 4, [], 2),
    (10, "phase2", 8, [], 2),
]


@pytest.mark.parametrize(
    "faults",
    [{}, {"late": 0.2}, {"loss": 0.05}, {"kill": 1.0, "who": ("learner",)}, {"crash": 0.05, "who": ("dataset",)}],
    ids=str,
)
def test_each_is_done_once_at_its_window(faults: dict[str, Any]) -> None:
    for seed in range(3):
        log = history(seed, faults)
        assert committed(log) == EXPECTED, f"seed {seed}"
        asked = [r.kind for r in log if r.actor == "kernel:policy"]
        assert asked.count(RecordKind.PRUNE) >= 2
        assert asked.count(RecordKind.SWAP) >= 1
        refusals = [r for r in log if r.kind is RecordKind.POLICY and "refused" in r.args["settings"]]
        assert refusals, "the refusal is in the ledger"


def test_stopping_and_booting_again_changes_nothing() -> None:
    for seed in range(3):
        assert committed(history(seed, {}, drains=1)) == EXPECTED, f"seed {seed}"


def test_a_power_cut_asks_for_nothing_twice() -> None:
    for seed in range(6):
        rows = committed(history(seed, {}, cut=True))
        asked = [directive for *_, directives, _ in rows for directive in directives]
        planned = asked.count(("swap", "ema"))
        assert planned in (1, 2)  # the policies of two windows may be lost with the power, and that is recorded
        assert asked.count(("prune", "magnitude", 0.3)) <= 1


def to_the_end(world: World) -> None:
    world.boot()
    assert world.run(lambda: world.state is not None and world.state.phase in ("done", "failed"), 900 * S)


def test_a_hold_leaves_the_plans_swap_out_and_a_return_is_carried_once() -> None:
    world = World(1, document(windows=(2, 4, 3)))
    world.acts = {3: {"restore": digest("good")}, 5: {"hold": 1}}
    to_the_end(world)
    rows = committed(list(world.disk.log))
    assert [(window, asked) for window, _, _, asked, _ in rows if asked] == [(5, [("restore", digest("good"))])]
    assert [generation for *_, generation in rows] == [0] * 9  # the swap of phase1's end is left out
    (record,) = [r for r in world.disk.log if r.kind is RecordKind.RESTORE]
    assert (record.actor, record.args) == ("kernel:policy", {"snapshot": digest("good"), "window": 5})


def test_a_return_that_the_learner_refuses_is_dropped_with_a_record_and_not_asked_for_ever() -> None:
    world = World(1, document(windows=(2, 4, 3)))
    world.acts, world.refuses = {3: {"restore": digest("gone"), "temperature": 3.0}}, {"restore"}
    to_the_end(world)
    assert world.state is not None
    assert world.state.phase == "done", world.state.error
    log = list(world.disk.log)
    assert [r.args["window"] for r in log if r.kind is RecordKind.WINDOW_ROLLBACK] == [5]
    (fault,) = [r for r in log if r.kind is RecordKind.FAULT]
    assert fault.args["code"] == "E2-USAGE"
    assert "restore" in fault.args["message"]
    check_ledger(world.disk, built=digest("built"), policies=False)


def test_a_power_cut_after_a_granted_return_carries_it_once() -> None:
    for seed in range(3):
        world = World(seed, document(windows=(2, 4, 3)))
        world.acts = {3: {"restore": digest("good")}}
        world.boot()
        world.run(lambda log=world.disk.log: any(r.kind is RecordKind.RESTORE for r in log), 30 * S)
        world.power_cut()
        to_the_end(world)
        asked = [d for *_, directives, _ in committed(list(world.disk.log)) for d in directives]
        assert asked.count(("restore", digest("good"))) <= 1


def test_the_ledger_alone_gives_the_directives_that_wait() -> None:
    state = at.State()
    for r in history(1, {"late": 0.2, "loss": 0.05}):
        at.fold(state, r)
    assert state.directives == []
    assert {p["by"] for p in state.prunes} == {"kernel:policy"}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": 9}, r"temperature = 9 is outside \[1, 4\]"),
        ({"mix": float("nan")}, "mix = nan is outside"),
        ({"prune": 0.99}, r"prune = 0.99 is outside \[0, 0.95\]"),
        ({"swap": "magic"}, "swap = 'magic' is none of ema"),
        ({"swap": ["ema"]}, "is none of ema"),
        ({"stop": True}, "stop = True is outside"),
        ({"hold": 2}, "hold = 2 is outside"),
        ({"cadence": 1.5}, "cadence = 1.5 is outside"),
        ({"restore": "last"}, "restore = 'last' is no root id"),
        ({"stop": 0.5, "learning_rate": 1}, "cannot set 'learning_rate'"),
        ({"refused": "x", "mix": 0.5}, "a policy that is refused sets nothing"),
        ({"refused": "x" * 2000}, "at most 1000 characters"),
        ({"evidence": 3}, "must be a map"),
    ],
)
def test_a_policy_outside_its_bounds_is_refused_by_the_kernel(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(RecurosError, match=message) as caught:
        check_policy(settings)
    assert caught.value.code == "E2-LIMIT"
