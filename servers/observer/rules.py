"""Rules that several packs share: prune ramp, role swaps, plateaus, collapse, probe cadence, curriculum order.

Responsible for: each rule as a pure function of evidence and numbers, with the numbers that it takes. Refuses: nothing; a rule whose
number is 0 is off. What a rule asks for at a window's end applies two windows later, so it looks at where the phase will be then.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from servers.observer.diagnostics import Samples
from servers.observer.policy import Evidence, Number, Numbers, Progress
from syscalls import limits

PRUNE: Final = {
    "prune_target": Number(
        0.0, 0.0, 0.95, "share of the student's weights to prune by a phase's end; 0 prunes nothing"
    ),
    "prune_start": Number(2 / 3, 0.0, 1.0, "share of the phase before the ramp"),
    "refit_epochs": Number(5.0, 0.0, 1e6, "epochs after the ramp, in which the mask holds"),
}
SWAP: Final = {
    "swap_every": Number(
        2.0, 0.0, 1e6, "passes of a repeating phase between two swaps that the pack asks for; 0 asks for none"
    )
}
PLATEAU: Final = {
    "plateau_windows": Number(0.0, 0.0, 15.0, "windows without gain that end the phase; 0 never ends it"),
    "plateau_gain": Number(0.01, 0.0, 1.0, "relative fall of the KL that counts as a gain"),
}
COLLAPSE: Final = {
    "collapse_most": Number(
        0.10,
        0.0,
        1.0,
        "relative fall of held-out accuracy below the best generation's that is a collapse; 0 watches none",
    ),
    "collapse_evaluations": Number(2.0, 1.0, 100.0, "evaluations in a row beyond it before anything is done"),
    "collapse_restores": Number(
        2.0, 0.0, 16.0, "returns to the last good generation in a run; after them, swaps are left out"
    ),
}
CADENCE: Final = {
    "cadence_most": Number(
        1.0, 1.0, limits.CADENCE_MAX, "how many times as seldom probes may fire; 1 keeps their cadence"
    ),
    "cadence_steady": Number(
        0.05, 0.0, 1.0, "relative change of KL and CKA over eight values below which they are steady"
    ),
}
STEADY_VALUES: Final = 8
CURRICULUM: Final = {
    "curriculum": Number(0.0, -1.0, 1.0, "1 shows easy samples first in each epoch, -1 hard ones; 0 keeps the order"),
}

Asked = tuple[dict[str, Any], tuple[str, ...]]
"""Settings and the reasons for them."""
NOTHING: Final[Asked] = ({}, ())


def prune_ramp(evidence: Evidence, numbers: Numbers) -> Asked:
    """target * (1 - (1 - x)^3), x the place in the ramp (Zhu and Gupta 2017, equation 1; Sanh et al. 2020, equation 6).

    The ramp takes what is left of the phase after `prune_start`, less the refit.
    """
    p, target = evidence.progress, numbers["prune_target"]
    if p is None or target <= 0.0:
        return NOTHING
    end = max(numbers["prune_start"], 1.0 - numbers["refit_epochs"] * p.steps_per_epoch / p.phase_steps)
    here, then = (_place(step / p.phase_steps, numbers["prune_start"], end) for step in (p.phase_step, p.applies_at))
    if then <= 0.0 or here >= 1.0 or p.applies_at >= p.phase_steps:
        return NOTHING
    sparsity = target * (1.0 - (1.0 - then) ** 3)
    return {"prune": sparsity}, (f"prune to {sparsity:.3f}: {then:.0%} of the ramp to {target:g}",)


def _place(share: float, start: float, end: float) -> float:
    if share < start:
        return 0.0
    return 1.0 if end <= start else min(1.0, (share - start) / (end - start))


def swap(evidence: Evidence, numbers: Numbers, mode: str) -> Asked:
    """A swap after every `swap_every` passes; a swap that the plan makes starts the count anew."""
    p, every = evidence.progress, int(numbers["swap_every"])
    if p is None or every <= 0 or p.phase_step < p.phase_steps or p.passes % every:
        return NOTHING
    return {"swap": mode}, (f"swap by {mode}: {p.passes} passes since the last",)


def plateau(evidence: Evidence, numbers: Numbers) -> Asked:
    """Stop the phase when the least KL of the last n windows is not below that of the n before by `plateau_gain`."""
    p, n = evidence.progress, int(numbers["plateau_windows"])
    series = evidence.trajectory.series.get("kl")
    if p is None or n <= 0 or series is None or len(series.recent) < 2 * n:
        return NOTHING
    if p.phase_step < 2 * n * p.steps or p.applies_at >= p.phase_steps:
        return NOTHING  # the history is another phase's, or the phase ends by itself
    values = [value for _, value in series.recent[-2 * n :]]
    before, now = min(values[:n]), min(values[n:])
    if now < before * (1.0 - numbers["plateau_gain"]):
        return NOTHING
    return {"stop": 1}, (f"stop the phase: KL {now:.4f} in the last {n} windows, {before:.4f} before",)


def collapse(evidence: Evidence, numbers: Numbers) -> Asked:
    """Go back to the last good generation when later ones lost it, `collapse_restores` times at most; then hold the swaps while it lasts.

    Good: the newest other generation within `collapse_most` of the best one's held-out accuracy.
    """
    guards, most = evidence.guards, numbers["collapse_most"]
    if most <= 0.0 or guards.restored_at >= 0:
        return NOTHING
    out = guards.restores >= int(numbers["collapse_restores"])
    if guards.collapsed < int(numbers["collapse_evaluations"]):
        return NOTHING
    best = max((row[1] for row in evidence.generations if row[1] is not None), default=0.0)
    good = [r for r in evidence.generations[:-1] if r[3] and r[1] is not None and r[1] >= best * (1 - most)]
    now = evidence.held_out.accuracy
    fall = f"held-out accuracy {now if now is not None else math.nan:.4f} after {best:.4f} of the best generation"
    if out or not good:
        why = f"{guards.restores} returns have not helped" if out else "no snapshot of a good generation is known"
        return {"hold": 1}, (f"no more swaps: {fall}, {guards.collapsed} evaluations in a row; {why}",)
    generation, accuracy, _, snapshot = good[-1]
    return {"restore": snapshot}, (
        f"back to generation {int(generation)} ({accuracy:.4f}): {fall}, {guards.collapsed} evaluations in a row",
    )


def cadence(evidence: Evidence, numbers: Numbers) -> Asked:
    """Probe half as often while KL and CKA are steady, each time after eight windows more; as attached once they move."""
    most, guards = int(numbers["cadence_most"]), evidence.guards
    if most <= 1:
        return NOTHING
    now = min(guards.cadence, most)
    seen = [s for name in ("kl", "cka") if (s := evidence.trajectory.series.get(name)) is not None]
    changes = [_relative(series.recent[-STEADY_VALUES:]) for series in seen if len(series.recent) >= STEADY_VALUES]
    if not changes:
        return {"cadence": now}, ()
    if max(changes) > numbers["cadence_steady"]:
        return {"cadence": 1}, (
            (f"probes at their own cadence: figures moved by {max(changes):.1%}",) if now > 1 else ()
        )
    if now >= most or evidence.window - guards.cadence_at < STEADY_VALUES:
        return {"cadence": now}, ()
    return {"cadence": min(most, 2 * now)}, (
        f"probes {min(most, 2 * now)} times as seldom: figures moved by {max(changes):.1%}",
    )


def _relative(recent: Sequence[Sequence[float]]) -> float:
    """How far apart the values are, in shares of their mean."""
    values = [value for _, value in recent]
    mean = sum(values) / len(values)
    return (max(values) - min(values)) / abs(mean) if mean != 0.0 else 0.0


def curriculum(samples: Samples, numbers: Numbers) -> NDArray[np.float32] | None:
    """Difficulty F32 [n_train], lower earlier: the teacher's entropy and the disagreement, by rank (Bengio et al. 2009).

    Samples not traced yet are in the middle. None while the rule is off or nothing was traced.
    """
    sign, seen = numbers["curriculum"], samples.seen
    if sign == 0.0 or not seen.any():
        return None
    difficulty = np.full(len(seen), 0.5)
    count = int(seen.sum())
    ranks = [np.argsort(np.argsort(values[seen], kind="stable"), kind="stable") for values in _hard(samples)]
    difficulty[seen] = (ranks[0] + ranks[1]) / (2 * max(1, count - 1))
    ordered: NDArray[np.float32] = (np.sign(sign) * difficulty).astype(np.float32)
    return ordered


def _hard(samples: Samples) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    return samples.entropy, samples.disagreement


def merged(*asked: Asked) -> Asked:
    """All of them; a later one wins where two set one thing."""
    settings = {key: value for some, _ in asked for key, value in some.items()}
    return settings, tuple(reason for _, reasons in asked for reason in reasons)


def progress_of(metrics: Mapping[str, Any], passes: int, rows: float | None, samples: int, lag: int) -> Progress | None:
    """Where the phase is, from what the learner reports; None where it reports none.

    `rows`: traced rows of the window, a classifier's batches whole; of a language model they are fewer, and an epoch looks longer.
    """
    steps, step, total = (metrics.get(name) for name in ("steps", "phase_step", "phase_steps"))
    if not (isinstance(steps, int) and isinstance(step, int) and isinstance(total, int) and steps > 0 and total > 0):
        return None
    batch = max(1.0, (rows or 0.0) / steps)
    return Progress(step, total, steps, passes, samples / batch, step + (lag - 1) * steps)
