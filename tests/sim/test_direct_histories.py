"""Direct channels in whole histories: used, taken in mid-flight, ended by deaths; and the judge sees a word that stands for nothing."""

from __future__ import annotations

from typing import Any

import histories
import pytest
from world import MS, Faults, S, Violation, World, document

from kernel.events import ChannelSet, Effect


def directly(seed: int, kind: type[World] = World, **faults: Any) -> World:
    world = kind(seed, document(windows=(20, 20), direct=True), faults=Faults(**faults))
    world.direct = True
    world.boot()
    world.at(300 * MS, world.hello)
    return world


def take(world: World) -> None:
    """An operator takes the channel that stands."""
    assert world.state is not None
    (channel,) = world.state.channels.values()
    world.took = True
    world.operator("cap_take", principal=channel.caller, cap=channel.slot)


def test_snapshots_go_over_a_channel_and_not_through_the_kernel() -> None:
    world = directly(1)
    assert world.run(lambda: world.served_directly >= 10, 60 * S)
    assert world.state is not None
    assert world.state.committed_window >= 8


def test_a_channel_taken_in_mid_flight_costs_at_most_the_window_and_calls_go_through_the_kernel() -> None:
    for after_ms in range(0, 40, 3):
        world = directly(2)
        assert world.run(lambda w=world: w.served_directly == 3, 60 * S)
        world.run(lambda: False, after_ms * MS)
        take(world)
        served = world.served_directly
        s = world.state
        assert s is not None
        goal = s.committed_window + 5
        assert world.run(lambda s=s, goal=goal: s.committed_window >= goal, 60 * S)
        assert world.served_directly == served, "nothing is served over a channel that was taken"
        assert s.counts["missed"] <= 1


@pytest.mark.parametrize("seed", [85, 115])
def test_a_death_while_a_channel_is_opened_denies_nobody_the_next_one(seed: int) -> None:
    """The archivist had died, and the kernel did not know it yet: that is no revocation, and the caller must not take it for one."""
    assert histories.run(seed).direct > 0


class Forgetful(World):
    """A world whose page of generations is never cleared."""

    def _perform(self, effect: Effect) -> None:
        if not (isinstance(effect, ChannelSet) and not effect.generation):
            super()._perform(effect)


def test_the_judge_sees_a_word_that_stands_without_its_channel() -> None:
    world = directly(3, Forgetful)
    assert world.run(lambda: world.served_directly == 3, 60 * S)
    with pytest.raises(Violation, match="word"):
        take(world)
