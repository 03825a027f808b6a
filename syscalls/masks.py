"""What `rl_prune` takes: the one place that knows the keys and bounds of a mask spec.

    {"sparsity": 0.5}                                  as {"method": "magnitude", "target": 0.5}
    {"method": "magnitude", "target": 0.5}             zero that share of the matrix weights at once
    {"method": "movement", "target": 0.6, "steps": N}  by signed movement: warm-up, scores, a cubic ramp in the last third
    {"method": "l0", "target": 0.5, "steps": N, "weight": 1.0}  learned gates over heads and neurons, which are then removed
    {"method": "heads", "heads": [[layer, head], ...]} those attention heads, counted from 1, at once
    {"method": "heads", "target": 0.25}                that share of all heads, the ones that write least

Responsible for: one normal form. Refuses: everything else (E2-USAGE naming key, value and bound).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from syscalls.errors import RecurosError

METHODS: Final = ("magnitude", "movement", "l0", "heads")
STEPS_MIN: Final = 10
STEPS_MAX: Final = 1 << 31
HEADS_MAX: Final = 4_096
WEIGHT_MAX: Final = 1_000.0
_KEYS: Final = {
    "magnitude": ("target",),
    "movement": ("target", "steps"),
    "l0": ("target", "steps", "weight"),
    "heads": ("target", "heads"),
}


def checked(spec: Mapping[str, Any]) -> dict[str, Any]:
    """The spec in its normal form: always "method", "target" unless heads are named, other keys as given."""
    given = dict(spec)
    if "sparsity" in given:
        if set(given) != {"sparsity"}:
            raise _bad(f"sparsity stands alone, got {sorted(given)}", 'mask_spec={"sparsity": 0.5}')
        given = {"method": "magnitude", "target": given["sparsity"]}
    method = given.pop("method", "magnitude")
    if method not in METHODS:
        raise _bad(f"method {method!r:.40} is unknown", f"one of {', '.join(METHODS)}")
    unknown = sorted(str(key) for key in given.keys() - set(_KEYS[method]))
    if unknown:
        raise _bad(f"method {method} takes no {unknown[0]!r:.40}", f"it takes {', '.join(_KEYS[method])}")
    if ("target" in given) == ("heads" in given):
        raise _bad(f"method {method} needs a target{' or heads' if method == 'heads' else ''}", "target is a share")
    if "heads" in given:
        return {"method": method, "heads": _heads(given["heads"])}
    low_open = method != "magnitude"
    target = given["target"]
    if not _number(target) or not (0 < target < 1 or (target == 0 and not low_open)):
        bound = "(0, 1)" if low_open else "[0, 1)"
        raise _bad(f"target {target!r:.40} is outside {bound}", "choose a share such as 0.5")
    found: dict[str, Any] = {"method": method, "target": float(target)}
    if "steps" in given:
        steps = given["steps"]
        if type(steps) is not int or not STEPS_MIN <= steps <= STEPS_MAX:
            raise _bad(
                f"steps {steps!r:.40} is no whole number of at least {STEPS_MIN}", "leave it out for most of the phase"
            )
        found["steps"] = steps
    if "weight" in given:
        weight = given["weight"]
        if not _number(weight) or not 0 < weight <= WEIGHT_MAX:
            raise _bad(f"weight {weight!r:.40} is outside (0, {WEIGHT_MAX:g}]", "1.0 is usual")
        found["weight"] = float(weight)
    return found


def _heads(heads: Any) -> list[list[int]]:
    pairs = heads if isinstance(heads, list) else []
    good = all(
        isinstance(p, list) and len(p) == 2 and all(type(n) is int and 1 <= n <= HEADS_MAX for n in p) for p in pairs
    )
    if not pairs or not good or len(pairs) > HEADS_MAX:
        raise _bad(f"heads {heads!r:.80} are no pairs [layer, head] counted from 1", "heads = [[1, 2], [3, 1]]")
    return sorted([layer, head] for layer, head in {(p[0], p[1]) for p in pairs})


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _bad(text: str, hint: str) -> RecurosError:
    return RecurosError("E2-USAGE", f"rl_prune: {text}", hint=hint)
