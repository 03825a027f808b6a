"""Signals that take more than one window: what the trajectory, the held-out scores and the generations say together.

Responsible for: drift, dark knowledge, the capacity ceiling, compression efficiency and the collapse watch. Refuses: to tell a signal
before there is enough to tell it from (None). Pure. These are heuristics for a person to look at and for a policy to bound; each
says exactly what it computes.

    drift              1 - CKA of student and teacher over the window's batches
    dark_knowledge     mean entropy of the teacher's answers, nats: what they say beyond one class (Hinton et al. 2015)
    dark_gap           KL(T || S) / H(T): nats of it that the student lacks, for each there is; above 1 it lacks more than all
    capacity_ceiling   in [0, 1]: 1 - (relative fall of the KL over the recent history) / 10 %, 0 where the KL is below 0.01 nats.
                       Near 1 the student has stopped to come nearer, although there is more to learn (Cho and Hariharan 2019)
    efficiency         held-out accuracy lost for each million parameters removed; pruned weights count as removed
    collapse           (best generation's accuracy - this one's) / best; above 0 generations get worse (Shumailov et al. 2024)
    diversity          mean entropy of the student's answers over that of the first generation: towards 0 its answers narrow
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from servers.observer.readers import Figures
from servers.observer.trajectory import Series

CEILING_WINDOWS: Final = 8
CEILING_FALL: Final = 0.10
CEILING_KL: Final = 0.01
GENERATIONS_KEPT: Final = 64

Generations = list[list[Any]]
"""[generation, held-out accuracy or None, mean student entropy or None, snapshot of that accuracy or ""], oldest first."""


def window_signals(figures: Mapping[str, float | None]) -> Figures:
    """Signals of one window's figures."""
    cka, kl, entropy = figures.get("cka"), figures.get("kl"), figures.get("entropy_teacher")
    return {
        "drift": None if cka is None else 1.0 - cka,
        "dark_knowledge": entropy,
        "dark_gap": kl / entropy if kl is not None and entropy is not None and entropy > 0 else None,
    }


def capacity_ceiling(kl: Series | None) -> float | None:
    """See the module docstring; None before the KL has a history of eight windows."""
    if kl is None or len(kl.recent) < CEILING_WINDOWS:
        return None
    slope = kl.slope
    mean = sum(value for _, value in kl.recent) / len(kl.recent)
    if slope is None:
        return None
    if mean < CEILING_KL:
        return 0.0
    half = slope * (kl.recent[-1][0] - kl.recent[0][0]) / 2
    first, last = mean - half, mean + half  # of the fitted line
    if first <= 0:
        return 0.0
    fall = (first - last) / first
    return 1.0 - min(1.0, max(0.0, fall / CEILING_FALL))


def efficiency(
    student: float | None, teacher: float | None, metrics: Mapping[str, Any], sparsity: float | None
) -> float | None:
    """Accuracy lost for each million parameters that the student lacks; None where it lacks none or nothing was scored."""
    if student is None or teacher is None:
        return None
    kept = float(metrics.get("student_params", 0.0)) * (1.0 - (sparsity or 0.0))
    removed = float(metrics.get("teacher_params", 0.0)) - kept
    return (teacher - student) / removed * 1e6 if removed > 0 else None


def noted(
    generations: Generations, generation: int, accuracy: float | None, entropy: float | None, snapshot: str = ""
) -> Generations:
    """The list with this generation's latest figures; the first and the newest 63 are kept."""
    rows = [list(row) for row in generations]
    if not rows or rows[-1][0] != generation:
        rows.append([float(generation), None, None, ""])
    last = rows[-1]
    if accuracy is not None:
        last[1], last[3] = accuracy, snapshot
    last[2] = last[2] if entropy is None else entropy
    return rows if len(rows) <= GENERATIONS_KEPT else [rows[0], *rows[-(GENERATIONS_KEPT - 1) :]]


def generation_signals(generations: Generations) -> Figures:
    """The collapse watch; None until two generations have been scored."""
    scored = [row[1] for row in generations if row[1] is not None]
    best = max(scored, default=0.0)
    now = generations[-1][1] if generations else None
    first, last = (generations[0][2], generations[-1][2]) if generations else (None, None)
    several = len(generations) > 1
    return {
        "collapse": (best - now) / best if several and now is not None and len(scored) > 1 and best > 0 else None,
        "diversity": last / first if several and first is not None and last is not None and first > 0 else None,
    }
