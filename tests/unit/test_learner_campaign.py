"""The learner's campaign: its plan prunes and swaps in every way, its checkpoints hold everything, it finds differences."""

from __future__ import annotations

from pathlib import Path

from servers.learner.engine import Engine
from tests.campaign import learner
from tests.campaign._learner_child import SPEC, batch_at, load, save, steer


def go(engine: Engine, stop: int) -> None:
    while engine.step < stop:
        steer(engine)
        engine.micro_step(batch_at(engine.step))


def test_a_checkpoint_in_the_middle_of_gates_continues_bit_for_bit(tmp_path: Path) -> None:
    engine = Engine(SPEC, 7)
    assert load(tmp_path) == {}
    go(engine, 60)
    root = save(engine, tmp_path)
    assert not (tmp_path / "next").exists()
    go(engine, 80)
    other = Engine(SPEC, 7)
    other.restore(load(tmp_path))
    assert other.digest() == root
    go(other, 80)
    assert other.digest() == engine.digest()
    assert engine.roles["student"].model.architecture["layer_neurons"] != [32, 32], "gates were folded in meanwhile"


def test_a_state_that_differs_is_a_violation() -> None:
    details = {"states_compared": 0}
    want = {"3": "b3:a", "6": "b3:b"}
    assert learner._compared([["back", "3", "b3:a"], ["step", "4"], ["kept", "6", "b3:b"]], want, details) == ""
    assert details == {"states_compared": 2}
    assert "undisturbed b3:b" in learner._compared([["kept", "6", "b3:c"]], want, details)
