"""The trajectory of each diagnostic across windows.

Responsible for: last value, exponential moving average, slope and a bounded history per diagnostic, as plain values that a
restarted Observer can take up. Refuses: growth; a value that is missing or not finite leaves its series as it was.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

HISTORY: Final = 32
MOMENTUM: Final = 0.9


@dataclass
class Series:
    """`ema`: ema = m * ema + (1 - m) * value, started at the first value. `recent`: [window, value] pairs, oldest first."""

    count: int = 0
    ema: float = 0.0
    recent: list[list[float]] = field(default_factory=list)

    def add(self, window: int, value: float) -> None:
        """Fold one value in."""
        self.ema = value if self.count == 0 else MOMENTUM * self.ema + (1 - MOMENTUM) * value
        self.count += 1
        self.recent = [*self.recent, [float(window), value]][-HISTORY:]

    @property
    def last(self) -> float | None:
        """The newest value."""
        return self.recent[-1][1] if self.recent else None

    @property
    def slope(self) -> float | None:
        """Least-squares change per window over the recent history; None under three values."""
        if len(self.recent) < 3:
            return None
        n = len(self.recent)
        mean_x, mean_y = (sum(row[i] for row in self.recent) / n for i in (0, 1))
        spread = sum((x - mean_x) ** 2 for x, _ in self.recent)
        return sum((x - mean_x) * (y - mean_y) for x, y in self.recent) / spread if spread > 0 else None


class Trajectory:
    """A series per diagnostic."""

    def __init__(self) -> None:
        self.series: dict[str, Series] = {}

    def add(self, window: int, values: Mapping[str, float | None]) -> None:
        """Fold one window's diagnostics in."""
        for name, value in values.items():
            if value is not None and math.isfinite(value):
                self.series.setdefault(name, Series()).add(window, value)

    def to_map(self) -> dict[str, Any]:
        """Plain values."""
        return {name: [s.count, s.ema, s.recent] for name, s in self.series.items()}

    @classmethod
    def of_map(cls, values: Mapping[str, Any]) -> Trajectory:
        """Inverse of `to_map`."""
        made = cls()
        for name, (count, ema, recent) in values.items():
            made.series[name] = Series(int(count), float(ema), [[float(w), float(v)] for w, v in recent])
        return made
