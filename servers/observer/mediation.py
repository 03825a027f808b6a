"""Whether an interrupt is taken: the policy's side of new data, constraints and changed objectives.

Responsible for: a verdict with its reason, as a pure function of the request, the pack and what is known of the held-out data. Refuses:
nothing by raising; a request that is not taken is a verdict, too, and a record.

- an objective: packs that are a control or a paper's keep theirs; `starter` takes temperatures within its own bounds;
- a constraint: not one that rules out more than a tenth of the held-out labels, since it would teach against the data;
- new data: not more than `NEW_DATA_MOST` times what the run learns from, which would be another run.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from servers.observer.policy import Numbers

NEW_DATA_MOST: Final = 10.0
RULED_OUT_MOST: Final = 0.10

Verdict = tuple[bool, str]


def consider(
    kind: str, body: Mapping[str, Any], pack: str, numbers: Numbers, labels: NDArray[np.int64], classes: int
) -> Verdict:
    """(taken, why). `labels`: held-out labels [n], empty where rows have none."""
    if kind == "objective":
        return _objective(body, pack, numbers)
    if kind == "constraint":
        return _constraint(body, labels, classes)
    before = int(body["total"]) - int(body["rows"])
    if body["rows"] > NEW_DATA_MOST * before:
        return False, f"{body['rows']} new samples beside {before} would be another run"
    return True, f"{body['rows']} new samples beside {before}"


def _objective(body: Mapping[str, Any], pack: str, numbers: Numbers) -> Verdict:
    if pack != "starter":
        what = "is a control" if pack == "static" else "keeps its paper's objective"
        return False, f"the pack {pack!r} {what}"
    low, high = numbers["temperature_min"], numbers["temperature_max"]
    if "temperature" in body and not low <= body["temperature"] <= high:
        return False, f"temperature {body['temperature']:g} is outside the pack's {low:g}..{high:g}"
    return True, "within the pack's bounds"


def _constraint(body: Mapping[str, Any], labels: NDArray[np.int64], classes: int) -> Verdict:
    named = {*body.get("allow", []), *body.get("forbid", []), *(c for a, b in body.get("implies", []) for c in (a, *b))}
    beyond = sorted(c for c in named if c >= classes)
    if beyond:
        return False, f"class {beyond[0]} is none of the model's {classes}"
    left = set(body.get("allow", range(classes))) - set(body.get("forbid", []))
    sets = {label: left for label in range(classes)}
    for label, implied in body.get("implies", []):
        sets[label] = sets[label] & set(implied)
        if not sets[label]:
            return False, f"nothing is left to rows of class {label}"
    if not left:
        return False, "no class is left"
    if not len(labels):
        return True, "there are no held-out labels to hold it against"
    out = float(np.mean([int(label) not in sets[int(label)] for label in labels]))
    if out > RULED_OUT_MOST:
        return False, f"it rules out {out:.0%} of the held-out labels"
    return True, f"it rules out {out:.0%} of the held-out labels"
