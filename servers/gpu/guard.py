"""The thermal and power guard: whether the device may take a new window, judged from one sample at a time.

Responsible for: four verdicts and the sentence behind each. `ok`; `soft`, no new window until it has cooled down; `hard`, the running
window is given up as well; `lost`, the device does not answer any more. Refuses: to flutter. What was too hot counts as ok again
only `cool_down_c` degrees (or a tenth of the power) below the soft limit, so a device at its limit does not stop and go every second.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from servers.gpu.nvml import HARMFUL

OK: Final = "ok"
SOFT: Final = "soft"
HARD: Final = "hard"
LOST: Final = "lost"
POWER_BACK: Final = 0.9
"""The share of the soft power limit below which a device counts as rested."""


@dataclass(frozen=True)
class Limits:
    """Degrees Celsius and watts; None does not guard. A hard limit lies above its soft one, as the manifest's check has it."""

    temperature_soft_c: float | None = None
    temperature_hard_c: float | None = None
    power_soft_w: float | None = None
    power_hard_w: float | None = None
    cool_down_c: float = 5.0

    @classmethod
    def of(cls, device: Mapping[str, Any]) -> Limits:
        """From the manifest's `[device]` table."""
        return cls(**{name: device[name] for name in cls.__dataclass_fields__ if device.get(name) is not None})


class Guard:
    """Judges samples in order; `verdict` and `reason` are those of the last one."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self.verdict = OK
        self.reason = ""

    def judge(self, gauges: Mapping[str, Any]) -> str:
        """The verdict on a sample: `temperature_c`, `power_w`, `throttled`, `lost`; a gauge that is None or absent says nothing."""
        self.verdict, self.reason = self._judge(gauges)
        return self.verdict

    def _judge(self, gauges: Mapping[str, Any]) -> tuple[str, str]:
        if gauges.get("lost"):
            return LOST, "the device has fallen off the bus: the driver reports it as lost"
        limits, held = self._limits, self.verdict != OK
        temperature, power = gauges.get("temperature_c"), gauges.get("power_w")
        for value, hard, unit in ((temperature, limits.temperature_hard_c, "C"), (power, limits.power_hard_w, "W")):
            if value is not None and hard is not None and value >= hard:
                return HARD, f"{value:g} {unit}, the hard limit is {hard:g} {unit}"
        harmful = [reason for reason in gauges.get("throttled") or () if reason in HARMFUL]
        if harmful:
            return SOFT, f"the device slows itself down: {', '.join(harmful)}"
        soft = limits.temperature_soft_c
        if temperature is not None and soft is not None and temperature >= soft - (limits.cool_down_c if held else 0.0):
            back = f", {soft - limits.cool_down_c:g} C to go on" if held else ""
            return SOFT, f"{temperature:g} C, the soft limit is {soft:g} C{back}"
        soft = limits.power_soft_w
        if power is not None and soft is not None and power >= soft * (POWER_BACK if held else 1.0):
            back = f", {soft * POWER_BACK:g} W to go on" if held else ""
            return SOFT, f"{power:g} W, the soft limit is {soft:g} W{back}"
        return OK, ""

    def to_map(self) -> dict[str, str]:
        """For telemetry."""
        return {"verdict": self.verdict, "reason": self.reason}
