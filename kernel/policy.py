"""What a policy may set, and what it asks for once: pruning, a role swap, a return to an earlier state, the end of a phase.

Responsible for: the typed bounds of a policy's settings, and the directives that a window gets because a policy applies from it.
Refuses: keys it does not know, values outside their bounds (E2-LIMIT naming key, value and bound).
"""

from __future__ import annotations

from typing import Any, Final

from kernel.state import Cursor, State
from kfs.ids import is_object_id
from syscalls import limits
from syscalls.errors import RecurosError

BOUNDS: Final[dict[str, tuple[float, float]]] = {
    "temperature": (limits.TEMPERATURE_MIN, limits.TEMPERATURE_MAX),
    "mix": (0.0, 1.0),
    "alpha": (0.0, limits.ALPHA_MAX),
    **dict.fromkeys(limits.TERMS, (0.0, limits.TERM_WEIGHT_MAX)),
    "prune": (0.0, limits.PRUNE_MAX),
    "stop": (0, 1),
    "hold": (0, 1),
    "cadence": (1, limits.CADENCE_MAX),
    "weights": (0, 1),
    "order": (0, 1),
}
OTHERS: Final = ("swap", "restore", "evidence", "refused")
ONCE: Final = ("swap", "prune", "restore")
"""What is done at the window that the policy applies from, and not again."""
REFUSED_CHARS_MAX: Final = 1_000


def check_policy(settings: dict[str, Any]) -> None:
    """The typed bounds of a policy; E2-LIMIT names key, value and bound."""
    for key, value in settings.items():
        if key == "evidence" and not isinstance(value, dict):
            raise RecurosError("E2-LIMIT", "policy evidence must be a map of figures")
        if key == "swap" and value not in limits.SWAP_MODES:
            raise RecurosError("E2-LIMIT", f"policy swap = {value!r:.40} is none of {', '.join(limits.SWAP_MODES)}")
        if key == "restore" and not is_object_id(value):
            raise RecurosError("E2-LIMIT", f"policy restore = {value!r:.40} is no root id of a snapshot")
        if key == "refused" and not (isinstance(value, str) and len(value) <= REFUSED_CHARS_MAX):
            raise RecurosError("E2-LIMIT", f"policy refused must be a text of at most {REFUSED_CHARS_MAX} characters")
        if key in OTHERS:
            continue
        if key not in BOUNDS:
            raise RecurosError("E2-LIMIT", f"a policy cannot set {key!r:.40}", hint=f"it can set: {', '.join(BOUNDS)}")
        low, high = BOUNDS[key]
        whole = key != "cadence" or value == value // 1
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not whole or not low <= value <= high:
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
    back = [["restore", {"snapshot": settings["restore"]}]] if settings.get("restore") else []
    swap = [["swap", {"mode": settings["swap"]}]] if settings.get("swap") else []
    target = settings.get("prune") or 0.0
    return [*back, *swap, *([["prune", {"method": "magnitude", "target": target}]] if target > 0 else [])]


def drop_once(s: State, window: int) -> dict[str, Any]:
    """Take back what the policy of exactly this window asks for once, since the learner refused it; what it was."""
    settings = s.policies.get(window, {})
    dropped = {key: settings[key] for key in ONCE if settings.get(key)}
    if dropped:
        s.policies[window] = {key: value for key, value in settings.items() if key not in ONCE}
    return dropped


def end_phase(s: State, after: Cursor) -> bool:
    """Go to `after` where the policy of the next window ends its phase; only in the middle of one, so that it happens once."""
    if s.cursor.window == 0 or not s.policies.get(s.next_window, {}).get("stop"):
        return False
    s.cursor = after
    return True
