"""What a policy may set, and what it asks for once: pruning, a role swap, the end of a phase.

Responsible for: the typed bounds of a policy's settings, and the directives that a window gets because a policy applies from it.
Refuses: keys it does not know, values outside their bounds (E2-LIMIT naming key, value and bound).
"""

from __future__ import annotations

from typing import Any, Final

from kernel.state import Cursor, State
from syscalls import limits
from syscalls.errors import RecurosError

BOUNDS: Final[dict[str, tuple[float, float]]] = {
    "temperature": (limits.TEMPERATURE_MIN, limits.TEMPERATURE_MAX),
    "mix": (0.0, 1.0),
    "alpha": (0.0, limits.ALPHA_MAX),
    **dict.fromkeys(limits.TERMS, (0.0, limits.TERM_WEIGHT_MAX)),
    "prune": (0.0, limits.PRUNE_MAX),
    "stop": (0, 1),
    "weights": (0, 1),
    "order": (0, 1),
}
OTHERS: Final = ("swap", "evidence", "refused")
REFUSED_CHARS_MAX: Final = 1_000


def check_policy(settings: dict[str, Any]) -> None:
    """The typed bounds of a policy; E2-LIMIT names key, value and bound."""
    for key, value in settings.items():
        if key == "evidence" and not isinstance(value, dict):
            raise RecurosError("E2-LIMIT", "policy evidence must be a map of figures")
        if key == "swap" and value not in limits.SWAP_MODES:
            raise RecurosError("E2-LIMIT", f"policy swap = {value!r:.40} is none of {', '.join(limits.SWAP_MODES)}")
        if key == "refused" and not (isinstance(value, str) and len(value) <= REFUSED_CHARS_MAX):
            raise RecurosError("E2-LIMIT", f"policy refused must be a text of at most {REFUSED_CHARS_MAX} characters")
        if key in OTHERS:
            continue
        if key not in BOUNDS:
            raise RecurosError("E2-LIMIT", f"a policy cannot set {key!r:.40}", hint=f"it can set: {', '.join(BOUNDS)}")
        low, high = BOUNDS[key]
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
            raise RecurosError(
                "E2-LIMIT", f"policy {key} = {value!r:.40} is outside [{low:g}, {high:g}]", hint="the policy is refused"
            )
    extra = sorted(set(settings) - {"refused", "evidence"})
    if "refused" in settings and extra:
        raise RecurosError("E2-LIMIT", f"a policy that is refused sets nothing, and this one sets {extra[0]!r:.40}")


def directives_at(s: State, window: int, train: str) -> list[list[Any]]:
    """What the policy that applies from exactly this window asks for once. Nothing in a phase that trains the teacher."""
    settings = s.policies.get(window, {})
    if train != "student":
        return []
    swap = [["swap", {"mode": settings["swap"]}]] if settings.get("swap") else []
    target = settings.get("prune") or 0.0
    return [*swap, *([["prune", {"method": "magnitude", "target": target}]] if target > 0 else [])]


def end_phase(s: State, after: Cursor) -> bool:
    """Go to `after` where the policy of the next window ends its phase; only in the middle of one, so that it happens once."""
    if s.cursor.window == 0 or not s.policies.get(s.next_window, {}).get("stop"):
        return False
    s.cursor = after
    return True
