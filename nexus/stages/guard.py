"""The watch over the anchor error of a job: when it counts as lost, where to go back to, and by how much to pull harder.

Responsible for: folding committed windows, restores and settings, in their order, into one state, so that a job that was killed
knows from its ledger alone what a living one knows. Refuses: to ask for more than ESCALATIONS_MAX escalations; after those the job
ends at its best window. Pure.

error_k = mean anchor term of window k; rolling_k = mean of the last ROLL errors; lost when rolling_k > (1 + RISE) * min rolling and the
rise is more than NOISE of the first window's error: near zero, ten percent of next to nothing is noise.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final

from syscalls import limits

RISE: Final = 0.10
ROLL: Final = 3
NOISE: Final = 0.01
GROWTH: Final = 2.0
ESCALATIONS_MAX: Final = 3


@dataclass(frozen=True)
class Seen:
    """A committed window: its anchor error, the rolling mean there (None while there are too few), the root of its state."""

    window: int
    error: float
    rolling: float | None
    root: str


@dataclass
class Guard:
    """`alpha`: the anchor weight in force, before annealing. `lost`: the window that broke the bound; None while it holds.

    `kept`: the windows that the state in hand descends from, the abandoned ones left out. `raised`: the weight was escalated for `lost`.
    """

    alpha: float
    kept: list[Seen] = field(default_factory=list)
    lost: Seen | None = None
    raised: bool = False
    escalations: int = 0
    first: float | None = None

    def committed(self, window: int, error: float, root: str) -> None:
        """Take a committed window in."""
        recent = [s.error for s in self.kept[1 - ROLL :]] + [error]
        rolling = sum(recent) / ROLL if len(recent) == ROLL else None
        seen = Seen(window, error, rolling, root)
        best = self.best
        self.first = error if self.first is None else self.first
        self.kept.append(seen)
        if self.lost is None and rolling is not None and best is not None and best.rolling is not None:
            bound = max((1.0 + RISE) * best.rolling, best.rolling + NOISE * self.first)
            self.lost = seen if rolling > bound else None

    def restored(self, root: str) -> None:
        """The run went back to the state `root`; what came after it counts no more."""
        at = max((n for n, s in enumerate(self.kept) if s.root == root), default=len(self.kept) - 1)
        self.kept = self.kept[: at + 1]
        self.lost, self.raised = None, False

    def weighed(self, alpha: float) -> None:
        """The anchor has another weight."""
        if self.lost is not None and alpha > self.alpha:
            self.raised, self.escalations = True, self.escalations + 1
        self.alpha = alpha

    @property
    def best(self) -> Seen | None:
        """The window with the lowest rolling error before the one that was lost, the latest of equals."""
        end = None if self.lost is None else self.lost.window
        there = [s for s in self.kept if s.rolling is not None and (end is None or s.window < end)]
        return min(reversed(there), key=lambda s: s.rolling or 0.0) if there else None

    @property
    def spent(self) -> bool:
        """Lost once more, with nothing left to escalate."""
        return self.lost is not None and not self.raised and self.escalations >= ESCALATIONS_MAX

    @property
    def next_alpha(self) -> float:
        """What to escalate to."""
        return min(limits.ALPHA_MAX, self.alpha * GROWTH)

    def summary(self) -> dict[str, Any]:
        """{"verdict": falling | stable | rising, "first", "last", "best", "escalations", "alpha"} of the windows that count."""
        if not self.kept or self.first is None:
            return {"verdict": "off"}
        tail = self.kept[-ROLL:]
        last = sum(s.error for s in tail) / len(tail)
        lowest = min(s.error for s in self.kept)
        change = last / self.first - 1.0 if self.first > 0 else 0.0
        return {
            "verdict": "falling" if change < -RISE else "rising" if change > RISE else "stable",
            "first": self.first,
            "last": last,
            "best": lowest,
            "escalations": self.escalations,
            "alpha": self.alpha,
        }
