"""How a window begins: its batches out of a page, then phase, policy and directives on the engine.

Responsible for: being the one place that does it, so that a granted window and its replay cannot differ. Refuses: a window that
does not belong to the engine's position in the plan; directives that it does not know.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from servers.learner.engine import Engine
from servers.learner.phase import phase_of
from servers.learner.state import Leaf
from syscalls.errors import RecurosError
from syscalls.pages import Array, unpack_arrays


def batches_of(view: memoryview, steps: int) -> list[dict[str, Array]]:
    """The columns of each micro-step: page arrays "b<i>/<column>"; E2-DATA when a step has none."""
    arrays, _ = unpack_arrays(view)
    batches: list[dict[str, Array]] = [{} for _ in range(steps)]
    for name, array in arrays.items():
        step, _, column = name.partition("/")
        number = int(step[1:]) if step[1:].isdigit() else -1
        if 0 <= number < steps:
            batches[number][column] = array
    for number, columns in enumerate(batches):
        if not columns:
            raise RecurosError("E2-DATA", f"the window's page holds no batch {number} of {steps}")
    return batches


def enter(
    engine: Engine,
    window: int,
    phase: dict[str, Any],
    step0: int,
    policy: Mapping[str, Any],
    directives: Sequence[Any],
    pruned: Callable[[], None],
    read: Callable[[str], Mapping[str, Leaf]],
) -> None:
    """A return to an earlier state, then phase, policy and directives: an operator's directive outlives the start of a phase.

    `pruned` is called after each pruning, for whoever wants to look at it; `read` gives the leaves of a snapshot.
    """
    for kind, args in directives:
        if kind == "restore":
            _go_back(engine, phase, str(args["snapshot"]), read)
    found = phase_of(phase)
    local = step0 % found.steps_total
    if local == 0:
        engine.begin(phase)
    elif not engine.is_in(phase) or engine.phase_step != local:
        raise RecurosError(
            "E9-INTEGRITY",
            f"window {window} starts at step {local} of phase {found.name!r}; the engine is at step {engine.phase_step}",
            hint="the base does not belong to this position of the plan",
        )
    engine.apply_policy(policy)
    for directive in directives:
        if directive[0] != "restore":
            _direct(engine, str(directive[0]), dict(directive[1]), pruned)


def _go_back(engine: Engine, phase: dict[str, Any], snapshot: str, read: Callable[[str], Mapping[str, Leaf]]) -> None:
    """Everything of a snapshot but its place in the plan and what operators set since.

    Where it was taken while another role was trained, the optimizer is fresh.
    """
    place = engine.phase, engine.step, engine.phase_step, engine.generation, engine._kd
    try:
        engine.restore(read(snapshot))
    except RecurosError as error:
        # The base is restored when the window rolls back; asking for this again would fail the same way.
        raise RecurosError("E2-USAGE", f"cannot go back to {snapshot}: {error.message}", hint=error.hint) from error
    now = phase_of(phase)
    if engine.phase is None or engine.phase.train != now.train:
        engine.begin(phase)
    engine.phase, engine.step, engine.phase_step, engine.generation, engine._kd = place


def _direct(engine: Engine, kind: str, args: dict[str, Any], pruned: Callable[[], None]) -> None:
    if kind == "swap":
        engine.swap(str(args["mode"]))
    elif kind == "kd":
        engine.set_kd(**args)
    elif kind == "micro-batches":
        engine.cut_batches(int(args["parts"]))
    elif kind == "constrain":
        engine.constrain(**args)
    elif kind == "prune":
        engine.prune(args)
        pruned()
    else:
        raise RecurosError(
            "E1-NOSYS", f"the learner knows no directive {kind!r}", hint="swap, restore, kd, constrain or prune"
        )
