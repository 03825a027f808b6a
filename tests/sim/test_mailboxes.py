"""Calls that wait in a mailbox: nobody answers them unasked, and they do not outlive the capabilities that they were sent under.

Both were found by the capability model (tests/model/capability.py) before they were found here.
"""

from __future__ import annotations

from world import S, World, document

from kernel.events import Received
from kernel.state import State
from syscalls import abi, limits, wire


def stuck() -> tuple[World, State]:
    """A runtime whose dataset server holds as many calls of the Observer as it has credit for, with one more in its mailbox."""
    world = World(1, document())
    world.boot()
    assert world.run(lambda: world.state is not None and world.state.phase == "running", 10 * S)
    s = world.state
    assert s is not None
    world.processes["dataset"].hung = True
    split = abi.METHOD_BY_NAME["dataset.split"]
    observer = world.processes["observer"]
    endpoint = observer.caps["dataset"]
    for number in range(limits.MAILBOX_CREDIT + 1):
        call = wire.Call(1_000 + number, abi.SYSCALL_BY_NAME["call"].nr, 1, [endpoint, split.nr, ["test"]])
        world.step(Received("observer", observer.route, call))
    assert s.servers["dataset"].queue, "nothing waits"
    return world, s


def test_a_server_that_answers_a_call_it_was_not_given_is_refused_and_the_call_stays_within_reach() -> None:
    world, s = stuck()
    dataset = s.servers["dataset"]
    waiting = dataset.queue[0][0].id
    in_flight, refused = dataset.in_flight, s.refused.get("stray reply", 0)
    world.step(Received("dataset", world.processes["dataset"].route, wire.Reply(waiting, True, [0])))
    assert s.refused["stray reply"] == refused + 1
    assert dataset.in_flight == in_flight, "an answer to nothing gives no credit"
    assert waiting in s.pending
    assert dataset.queue[0][0].id == waiting


def test_the_calls_of_a_dead_server_leave_the_mailboxes_they_wait_in() -> None:
    world, s = stuck()
    waiting = {frame.id for frame, _ in s.servers["dataset"].queue if s.pending[frame.id].kind == "relay"}
    assert waiting
    world.end(world.processes["observer"], -9)
    assert world.run(lambda: s.servers["observer"].state == "dead", S)
    assert not waiting & {frame.id for frame, _ in s.servers["dataset"].queue}
    assert not waiting & set(s.pending)
    assert s.caps.owed("observer") == 0
