"""When a learner's step is captured as a CUDA graph, replayed, and dropped: the driver's decision, one a window.

Responsible for: the table below and its counts. A step is *steady* when `steady` windows in a row had the same key, which is a digest
of everything that a captured graph has burnt in: the shapes of the batch, the roles' architectures, the terms of the objective that
are on, masks, and the probes at each site. Scalars that policies change (temperature, weights, learning rate) live in device tensors
and are not in the key.

    same key as the captured one                 -> replay
    another key, seen `steady` windows in a row  -> capture (and replay what was captured)
    anything else                                -> dynamic

Refuses: to capture again a key whose capture failed (the operation does not support it); it stays dynamic and says why.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

DYNAMIC: Final = "dynamic"
CAPTURE: Final = "capture"
REPLAY: Final = "replay"
FAILURES_KEPT: Final = 64


class GraphDriver:
    """Decides for one learner. `supported` is empty where graphs exist, else the reason why this device has none."""

    def __init__(self, steady: int, supported: str = "") -> None:
        self._steady = steady
        self._unsupported = supported
        self._key = ""
        self._seen = 0
        self._captured = ""
        self._failed: dict[str, str] = {}
        self.path = DYNAMIC
        self.reason = supported or "no window yet"
        self.counts = {"captures": 0, "replayed_steps": 0, "dynamic_steps": 0, "fallbacks": 0}

    def plan(self, key: str) -> dict[str, str]:
        """The path of the next window, whose step has this key; a key of "" cannot be captured."""
        self._seen = self._seen + 1 if key == self._key else 1
        self._key = key
        self.path, self.reason = self._decide(key)
        return {"path": self.path, "reason": self.reason}

    def _decide(self, key: str) -> tuple[str, str]:
        if self._unsupported:
            return DYNAMIC, self._unsupported
        if not key:
            return DYNAMIC, "the learner says that its step cannot be captured"
        if key in self._failed:
            return DYNAMIC, f"capture failed before: {self._failed[key]}"
        if key == self._captured:
            return REPLAY, "nothing changed since the capture"
        if self._captured:  # the learner lets its graph go, too
            self._captured = ""
            self.counts["fallbacks"] += 1
            return DYNAMIC, "the step changed since the capture"
        if self._seen > self._steady:
            return CAPTURE, f"{self._seen - 1} windows of the same step"
        return DYNAMIC, f"steady for {self._seen - 1} of {self._steady} windows"

    def report(self, key: str, facts: Mapping[str, Any]) -> None:
        """What a window did: `captured` (bool), `failed` (the reason), `replayed`, `dynamic` (steps), `fallback` (the reason)."""
        if facts.get("captured"):
            self._captured = key
            self.counts["captures"] += 1
        if facts.get("failed"):
            self._failed[key] = str(facts["failed"])[:300]
            while len(self._failed) > FAILURES_KEPT:
                del self._failed[next(iter(self._failed))]
        if facts.get("fallback"):
            self.counts["fallbacks"] += 1
            self._captured = ""
            self.reason = str(facts["fallback"])[:300]
        self.counts["replayed_steps"] += int(facts.get("replayed", 0))
        self.counts["dynamic_steps"] += int(facts.get("dynamic", 0))

    def forget(self) -> None:
        """The learner was restarted: what it had captured is gone."""
        self._captured, self._key, self._seen = "", "", 0

    def to_map(self) -> dict[str, Any]:
        """For telemetry and people."""
        return {"path": self.path, "reason": self.reason, **self.counts}
