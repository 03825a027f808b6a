"""What a policy pack is, and the bounds every policy keeps.

Responsible for: the evidence a pack may look at, the decision it gives, its numbers with their limits, and weights that are
bounded and have mean 1 at once. Refuses: numbers the pack does not have or outside their limits (E2-MANIFEST), decisions
outside the bounds. Pure; numpy only.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from kfs.ids import is_object_id
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
    snapshot: str = ""

    def add(
        self,
        ece: float,
        momentum: float,
        accuracy: float | None = None,
        teacher: float | None = None,
        snapshot: str = "",
    ) -> None:
        """Take a new evaluation; the one before it joins the average. `snapshot`: whose it is."""
        if self.count == 1:
            self.ema = self.ece
        elif self.count > 1:
            self.ema = momentum * self.ema + (1 - momentum) * self.ece
        self.count, self.ece, self.fresh = self.count + 1, ece, True
        self.accuracy, self.teacher, self.snapshot = accuracy, teacher, snapshot

    def to_list(self) -> list[Any]:
        """Plain values; `HeldOut(*values)` reads them back."""
        return [self.count, self.ece, self.ema, self.fresh, self.accuracy, self.teacher, self.snapshot]


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


@dataclass
class Guards:
    """What rules remember of their own doing.

    `collapsed`: evaluations in a row that were beyond `collapse_most`, `restores` asked for so far, `restored_at`: the window from
    which the last one applies, -1 once that was reached. `cadence`: in force, `cadence_at`: the window that changed it. `moved`:
    [temperature and held-out accuracy before the last move, validations then], [] while nothing is to be judged; `frozen`: the
    generation in which the temperature is left alone. `judged`: [generation, validations] that were counted last.
    """

    collapsed: int = 0
    restores: int = 0
    restored_at: int = -1
    cadence: int = 1
    cadence_at: int = -(1 << 31)
    moved: list[float] = field(default_factory=list)
    frozen: int = -1
    judged: list[int] = field(default_factory=lambda: [0, 0])

    def to_list(self) -> list[Any]:
        """Plain values; `Guards(*values)` reads them back."""
        return [getattr(self, f.name) for f in fields(self)]


@dataclass(frozen=True)
class Evidence:
    """All a pack may look at. `temperature`: the last one decided. `changed_at`: the window whose evidence moved it.

    `generations`: [generation, held-out accuracy, mean student entropy, snapshot], oldest first; a figure that is not known is None.
    """

    window: int
    diagnostics: Figures
    trajectory: Trajectory
    held_out: HeldOut
    samples: Samples
    temperature: float
    changed_at: int
    gate: Mapping[str, Any] = field(default_factory=dict)
    progress: Progress | None = None
    guards: Guards = field(default_factory=Guards)
    generation: int = 0
    generations: Sequence[Sequence[Any]] = ()

    @property
    def judges(self) -> bool:
        """Whether there is a validation from after the last move of the temperature took effect."""
        moved = self.guards.moved
        return bool(moved) and self.held_out.count > moved[2] and self.held_out.accuracy is not None

    def spoiled(self, numbers: Numbers) -> bool:
        """Whether held-out accuracy fell by more than `temperature_guard` since before that move."""
        guard, accuracy = numbers.get("temperature_guard", 0.0), self.held_out.accuracy
        return guard > 0 and self.judges and accuracy is not None and accuracy < self.guards.moved[1] - guard

    def settled(self, numbers: Numbers) -> bool:
        """Whether the last change of temperature has had its `cooldown` windows."""
        return self.window - self.changed_at >= numbers.get("cooldown", 1)


@dataclass(frozen=True)
class Decision:
    """Settings wanted ({}: no change), weights and order F32 [n_train] if any, and the reasons in words.

    Settings: those of the loss by name; "cadence" (probes fire so many times as seldom); "hold" (1: the plan's swaps are left out).
    "prune" (share of weights), "swap" (mode), "restore" (a snapshot to go back to) and "stop" (1: end the phase) act once, at the
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
    "hold": (0, 1),
    "cadence": (1, limits.CADENCE_MAX),
}


def check(decision: Decision, numbers: Numbers, gate: Mapping[str, Any]) -> Decision:
    """The decision, if it keeps the bounds; E2-LIMIT names what does not."""
    for key, value in decision.settings.items():
        if key == "swap":
            if value not in limits.SWAP_MODES:
                raise RecurosError("E2-LIMIT", f"swap {value!r} is none of {', '.join(limits.SWAP_MODES)}")
        elif key == "restore":
            if not is_object_id(value):
                raise RecurosError("E2-LIMIT", f"restore {value!r:.40} is no root id of a snapshot")
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
