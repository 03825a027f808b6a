"""Process CPU time of cases that take turns call by call, in an order drawn anew each turn.

Responsible for: `turns`, the sample that every row of the part is made of, in this process and in a peer's (so: standard library
only), `rounds` of them, and the judgement whether a difference can be seen at all. Refuses: a verdict where the A/A control
spreads over more than half of the margin that is claimed.
"""

from __future__ import annotations

import random
import statistics
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from time import process_time_ns
from typing import Any, Final, NamedTuple


class Turn(NamedTuple):
    """A case with something to do before each of its turns, which is not counted."""

    call: Callable[[], object]
    before: Callable[[], object]


Cases = Mapping[str, Callable[[], object] | Turn]
Samples = dict[str, list[float]]
SEED = 42
RESIDUE_US: Final = 0.4


def turns(cases: Cases, calls: int, order: random.Random, inner: int = 1) -> dict[str, float]:
    """CPU nanoseconds per call of each case over `calls` turns; a turn makes `inner` calls of each, one case after another."""
    spent = dict.fromkeys(cases, 0)
    names = list(cases)
    for _ in range(calls):
        order.shuffle(names)
        for name in names:
            case = cases[name]
            if isinstance(case, Turn):
                case.before()
            call = case.call if isinstance(case, Turn) else case
            begun = process_time_ns()
            for _ in range(inner):
                call()
            spent[name] += process_time_ns() - begun
    return {name: ns / (calls * inner) for name, ns in spent.items()}


def rounds(cases: Cases, count: int, calls: int, inner: int = 1) -> Samples:
    """A sample of each case in each of `count` rounds, after one call of each that does not count."""
    order = random.Random(SEED)
    turns(cases, 1, order)
    found: Samples = {name: [] for name in cases}
    for _ in range(count):
        for name, ns in turns(cases, calls, order, inner).items():
            found[name].append(ns)
    return found


_FORWARD: Final = ("_forward_hooks", "_forward_hooks_with_kwargs", "_forward_hooks_always_called")


class Hooks:
    """The hooks that are on some torch modules now, to be put back in place of others.

    With it all cases of a row run on one and the same model: two copies of a model differ by a few per cent for where they lie in
    memory, which is more than the rows are about. PyTorch never lets go of a parameter's list of gradient hooks altogether: an
    empty one stays once there was one, and costs each backward pass about RESIDUE_US a parameter, the plain one too.
    """

    def __init__(self, *models: Any) -> None:
        self._modules = [(m.__dict__, {n: m.__dict__[n] for n in _FORWARD}) for root in models for m in root.modules()]
        self._parameters = [
            (p, OrderedDict() if (held := p._post_accumulate_grad_hooks) is None else held)
            for root in models
            for p in root.parameters()
        ]

    def put(self) -> None:
        """These hooks and no others are on the modules."""
        for held, hooks in self._modules:
            held.update(hooks)
        for parameter, hooks in self._parameters:
            parameter._post_accumulate_grad_hooks = hooks

    def fork(self) -> None:
        """The same hooks are on the modules, and what is added to them now is not added to these."""
        for held, hooks in self._modules:
            held.update({name: type(value)(value) for name, value in hooks.items()})
        for parameter, hooks in self._parameters:
            parameter._post_accumulate_grad_hooks = OrderedDict(hooks)


def over(found: Samples, case: str, under: str) -> list[float]:
    """Round by round, one case's time over another's."""
    return [a / b for a, b in zip(found[case], found[under], strict=True)]


def more(found: Samples, case: str, under: str) -> list[float]:
    """Round by round, what a case takes beyond another, in nanoseconds."""
    return [a - b for a, b in zip(found[case], found[under], strict=True)]


def width(values: Sequence[float]) -> float:
    """From the lower to the upper quartile."""
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return high - low


def resolved(control: Sequence[float], margin: float) -> bool:
    """Whether the A/A control is narrow enough to see a difference of `margin`, in the control's own unit."""
    return len(control) > 1 and width(control) <= abs(margin) / 2
