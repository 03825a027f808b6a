"""What the packs of papers share: loss weights that are the same all the time, or for a part of the phase.

Responsible for: one map of settings, the terms that it does not name set to 0, so that a pack's objective is its paper's and
nothing else; an operator's constraint stays. Refuses: nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from syscalls import limits

OFF: Final[dict[str, float]] = {"alpha": 0.0, **{name: 0.0 for name in limits.TERMS if name != "semantic"}, "task": 1.0}
INSIDE: Final[dict[str, float]] = {"mix": 0.0, "task": 0.0}
"""Neither task nor distillation of the answers: for objectives that look inside the models only."""


def only(**weights: float) -> dict[str, Any]:
    """Settings with these weights, and every other term beside task and KD off."""
    settings: Mapping[str, float] = {**OFF, **weights}
    return dict(settings)
