"""What a policy pack is, and the bounds every policy keeps.

Responsible for: the evidence a pack may look at, the decision it gives, its numbers with their limits, and weights that are
bounded and have mean 1 at once. Refuses: numbers the pack does not have or outside their limits (E2-MANIFEST), decisions
outside the bounds. Pure; numpy only.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from servers.observer.diagnostics import Floats, Samples
from servers.observer.readers import Figures
from servers.observer.trajectory import Trajectory
from syscalls import limits
from syscalls.errors import RecurosError

Numbers = Mapping[str, float]


@dataclass(frozen=True)
class Number:
    """A pack's number: default and inclusive limits."""

    default: float
    low: float
    high: float
    doc: str


@dataclass
class HeldOut:
    """The scores on validation data. `ema` covers the student's ECEs before the newest one; accuracies are the newest.

    `fresh` until a decision has looked at it, so that one evaluation moves the temperature once.
    """

    count: int = 0
    ece: float = 0.0
    ema: float = 0.0
    fresh: bool = False
    accuracy: float | None = None
    teacher: float | None = None

    def add(self, ece: float, momentum: float, accuracy: float | None = None, teacher: float | None = None) -> None:
        """Take a new evaluation; the one before it joins the average."""
        if self.count == 1:
            self.ema = self.ece
        elif self.count > 1:
            self.ema = momentum * self.ema + (1 - momentum) * self.ece
        self.count, self.ece, self.fresh = self.count + 1, ece, True
        self.accuracy, self.teacher = accuracy, teacher

    def to_list(self) -> list[Any]:
        """Plain values; `HeldOut(*values)` reads them back."""
        return [self.count, self.ece, self.ema, self.fresh, self.accuracy, self.teacher]


@dataclass(frozen=True)
class Progress:
    """Where the phase is at the window's end, in steps; `applies_at`: where it is when a decision of now applies.

    `passes`: how often the phase was gone through in this generation. `steps`: of a window.
    """

    phase_step: int
    phase_steps: int
    steps: int
    passes: int
    steps_per_epoch: float
    applies_at: int


@dataclass(frozen=True)
class Evidence:
    """All a pack may look at. `temperature`: the last one decided. `changed_at`: the window whose evidence moved it."""

    window: int
    diagnostics: Figures
    trajectory: Trajectory
    held_out: HeldOut
    samples: Samples
    temperature: float
    changed_at: int
    gate: Mapping[str, Any] = field(default_factory=dict)
    progress: Progress | None = None

    def settled(self, numbers: Numbers) -> bool:
        """Whether the last change of temperature has had its `cooldown` windows."""
        return self.window - self.changed_at >= numbers.get("cooldown", 1)


@dataclass(frozen=True)
class Decision:
    """Settings wanted ({}: no change), weights and order F32 [n_train] if any, and the reasons in words.

    Settings: those of the loss by name; "prune" (share of weights), "swap" (mode) and "stop" (1: end the phase) act once, at the
    window that the decision applies from. `refused`: why the decision that was made is outside the bounds, and is none.
    """

    settings: dict[str, Any] = field(default_factory=dict)
    weights: NDArray[np.float32] | None = None
    reasons: tuple[str, ...] = ()
    order: NDArray[np.float32] | None = None
    refused: str = ""


@dataclass(frozen=True)
class Pack:
    """A policy pack: a pure function and its numbers."""

    name: str
    decide: Callable[[Evidence, Numbers], Decision]
    numbers: Mapping[str, Number]


def numbers_of(pack: Pack, table: Mapping[str, Any]) -> dict[str, float]:
    """The pack's numbers, with the manifest's [policy] table over the defaults; keys may be in kebab case."""
    given = {str(k).replace("-", "_"): v for k, v in table.items() if k != "pack" and v is not None}
    for name, value in given.items():
        if name not in pack.numbers:
            close = difflib.get_close_matches(name, pack.numbers, n=1)
            hint = f"did you mean {close[0]}?" if close else f"numbers: {', '.join(sorted(pack.numbers)) or 'none'}"
            raise RecurosError("E2-MANIFEST", f"[policy] pack {pack.name!r} has no number {name!r}", hint=hint)
        number = pack.numbers[name]
        if isinstance(value, bool) or not isinstance(value, int | float) or not number.low <= value <= number.high:
            raise RecurosError(
                "E2-MANIFEST",
                f"[policy] {name} = {value!r} is outside {number.low:g}..{number.high:g}",
                hint=f"{number.doc}; default {number.default:g}",
            )
    return {name: float(given.get(name, number.default)) for name, number in pack.numbers.items()}


def bounded_weights(raw: Floats, low: float, high: float) -> Floats:
    """clip(s * raw, low, high) with the one s that makes the mean 1. raw: positive [n]; 0 <= low <= 1 <= high.

    Normalising first and clipping afterwards would leave another mean, and so another learning rate.
    """
    if not len(raw):
        return raw.copy()
    floor, ceiling = low / float(raw.max()), high / float(raw.min())
    for _ in range(200):  # the mean rises with s: bisect until no double lies between
        scale = (floor + ceiling) / 2
        if scale in (floor, ceiling):
            break
        if float(np.clip(scale * raw, low, high).mean()) < 1.0:
            floor = scale
        else:
            ceiling = scale
    return np.clip(ceiling * raw, low, high)


BOUNDS: Final[dict[str, tuple[float, float]]] = {
    "temperature": (limits.TEMPERATURE_MIN, limits.TEMPERATURE_MAX),
    "mix": (0.0, 1.0),
    "alpha": (0.0, limits.ALPHA_MAX),
    **dict.fromkeys(limits.TERMS, (0.0, limits.TERM_WEIGHT_MAX)),
    "prune": (0.0, limits.PRUNE_MAX),
    "stop": (0, 1),
}


def check(decision: Decision, numbers: Numbers, gate: Mapping[str, Any]) -> Decision:
    """The decision, if it keeps the bounds; E2-LIMIT names what does not."""
    for key, value in decision.settings.items():
        if key == "swap":
            if value not in limits.SWAP_MODES:
                raise RecurosError("E2-LIMIT", f"swap {value!r} is none of {', '.join(limits.SWAP_MODES)}")
        elif key not in BOUNDS:
            raise RecurosError("E2-LIMIT", f"a policy cannot set {key!r}")
        elif not BOUNDS[key][0] <= value <= BOUNDS[key][1]:
            low, high = BOUNDS[key]
            raise RecurosError("E2-LIMIT", f"{key} {value} is outside {low:g}..{high:g}")
    if decision.weights is not None:
        low, high = numbers.get("weight_min", 0.0), numbers.get("weight_max", np.inf)
        # Only a gate, or a pack told to, leaves a sample out altogether.
        may_be_zero = bool(gate) or numbers.get("band_floor", 0.0) == 0.0 or numbers.get("ood_most", 0.0) > 0.0
        slack = 1e-6  # weights are float32
        for weight in np.unique(decision.weights).tolist():
            inside = low * (1 - slack) <= weight <= high * (1 + slack) or (weight == 0.0 and may_be_zero)
            if not inside:
                raise RecurosError("E2-LIMIT", f"sample weight {weight:g} is outside {low:g}..{high:g}")
    if decision.order is not None and not np.isfinite(decision.order).all():
        raise RecurosError("E2-LIMIT", "a sample's place in the curriculum is not finite")
    return decision


def checked(decision: Decision, numbers: Numbers, gate: Mapping[str, Any]) -> Decision:
    """The decision, or a refusal that says why: a pack outside its bounds changes nothing and stops nothing."""
    try:
        return check(decision, numbers, gate)
    except RecurosError as error:
        return Decision(refused=error.message, reasons=decision.reasons)
