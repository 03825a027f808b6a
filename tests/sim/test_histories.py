"""Histories from seeds: what must hold, holds; what must not matter, does not. `python -m tests.sim --seeds N` runs more of them."""

from __future__ import annotations

import hashlib
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import histories
import pytest
from invariants import check_ledger
from world import MS, Faults, S, Violation, World, digest, document

from kfs.records import RecordKind

SEEDS = 60


@pytest.mark.parametrize("first", range(0, SEEDS, 10))
def test_every_history_keeps_its_windows(first: int) -> None:
    for seed in range(first, first + 10):
        try:
            histories.run(seed)
        except BaseException as error:
            error.add_note(f"seed {seed}: python -m tests.sim --first {seed} --seeds 1 --stop")
            raise


@pytest.mark.parametrize("seed", [3, 8, 11])
def test_the_same_seed_gives_the_same_ledger_bytes(seed: int) -> None:
    one, two = histories.run(seed), histories.run(seed)
    assert one.ledger
    assert one == two


def test_a_seed_gives_the_same_ledger_head_in_another_process() -> None:
    program = "import sys, hashlib; sys.path[:0] = sys.argv[1:3]; import histories\n"
    program += "print([hashlib.sha256(histories.run(seed).ledger).hexdigest() for seed in (3, 8, 11)])"
    here = Path(__file__).resolve().parent
    heads = {
        subprocess.run(
            [sys.executable, "-c", program, str(here.parents[1]), str(here)],
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for hash_seed in ("1", "2")
    }
    assert heads == {str([hashlib.sha256(histories.run(seed).ledger).hexdigest() for seed in (3, 8, 11)]) + "\n"}


def chain(seed: int, faults: dict[str, Any], *, cuts: int = 0, drains: int = 0) -> list[str | None]:
    """Committed states of one plan, to its end, under some faults."""
    rng = random.Random(seed)
    world = World(seed, document(windows=(2, 6, 2)), faults=Faults(**faults, until_ns=6 * S))
    for _ in range(cuts + drains):
        world.boot()
        world.run(lambda: world.state is not None and world.state.phase == "running", 10 * S)
        world.run(lambda: False, rng.randrange(100, 1_500) * MS)
        if drains:
            world.signal()
            world.run(lambda: world.exit is not None, 60 * S)
        world.power_cut()
    world.boot()
    done = world.run(lambda: world.state is not None and world.state.phase in ("done", "failed"), 900 * S)
    assert done, f"seed {seed}: not done"
    assert world.state is not None
    assert world.state.phase == "done", f"seed {seed}: {world.state.error}"
    commits = check_ledger(world.disk, built=digest("built"), policies=False)
    return [r.result_snap for r in commits]


@pytest.mark.parametrize(
    "faults",
    [
        {"late": 0.2},
        {"stall": 0.02},
        {"hang": 0.05},
        {"loss": 0.03},
        {"late": 0.2, "inexact": 0.5},
        {"no_space": 0.1},
        {"kill": 1.0, "who": ("learner",)},
        {"crash": 0.05, "who": ("dataset",)},
        {"crash": 0.05, "who": ("archivist",)},
        {"lost_ack": 0.1},
        {"kill": 1.0, "who": ("gpu",)},
    ],
    ids=str,
)
def test_the_result_is_that_of_a_quiet_world(faults: dict[str, Any]) -> None:
    quiet = chain(0, {})
    assert len(quiet) == 10
    for seed in range(1, 6):
        assert chain(seed, faults) == quiet, f"seed {seed}"


def test_stopping_and_booting_again_changes_nothing() -> None:
    quiet = chain(0, {})
    for seed in range(1, 6):
        assert chain(seed, {}, drains=2) == quiet, f"seed {seed}"


def test_a_power_cut_loses_no_commit_and_says_which_policies_it_lost() -> None:
    lost = 0
    for seed in range(10):
        world = World(seed, document())
        world.boot()
        world.run(lambda w=world, n=3 + seed % 4: len(w.disk.objects) >= n, 60 * S)
        before = [r.result_snap for r in world.disk.log if r.kind is RecordKind.WINDOW_COMMIT]
        world.power_cut()
        world.boot()
        assert world.run(lambda w=world: w.state is not None and w.state.phase == "done", 60 * S)
        after = [r.result_snap for r in check_ledger(world.disk, built=digest("built"))]
        assert after[: len(before)] == before
        lost += sum(r.kind is RecordKind.POLICY and r.args["pack"] == "lost" for r in world.disk.log)
    assert lost


def test_a_server_that_never_answers_does_not_stop_the_shutdown() -> None:
    world = World(1, document(), faults=Faults(hang=1.0))
    world.boot()
    world.run(lambda: world.state is not None and bool(world.state.windows), 10 * S)
    world.signal()
    assert world.run(lambda: world.exit is not None, 60 * S)
    assert world.disk.log[-1].kind in (RecordKind.HALT, RecordKind.EXIT)


def test_the_judge_sees_a_commit_that_is_not_there() -> None:
    world = World(1, document())
    world.boot()
    world.run(lambda: world.state is not None and world.state.phase == "done", 60 * S)
    check_ledger(world.disk, built=digest("built"))
    commits = [r for r in world.disk.log if r.kind is RecordKind.WINDOW_COMMIT]
    world.disk.log.remove(commits[2])
    with pytest.raises(Violation):
        check_ledger(world.disk, built=digest("built"))
