"""The verdict on one capability: paired scores of teacher and student against a contract.

Responsible for: the ratio above chance, its paired-bootstrap interval, and one of three verdicts. Refuses: scores that are not
paired item by item. It never rounds in the student's favour: too few items, or an interval that reaches below the contract, is
`insufficient evidence`, which is not a pass.

ratio = (mean(student) - chance) / (mean(teacher) - chance); items are drawn with replacement, the same ones for both
(Efron and Tibshirani 1993, section 8.3). One-sided 95 %.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from nexus.contracts import Contract
from syscalls.errors import RecurosError

RESAMPLES: Final = 4000
LEVEL: Final = 0.05
TEACHER_ABOVE_CHANCE_MIN: Final = 0.02
"""A teacher that hardly beats chance has nothing that a ratio could be taken of."""

PASS, FAIL, INSUFFICIENT = "pass", "fail", "insufficient evidence"
Scores = NDArray[np.float64]


@dataclass(frozen=True)
class Verdict:
    """`ratio` with its bootstrap bounds, over `items` paired items."""

    capability: str
    verdict: str
    reason: str
    ratio: float
    lower: float
    upper: float
    teacher: float
    student: float
    items: int
    retain: float

    def to_map(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def judge(contract: Contract, teacher: Scores, student: Scores, seed: int) -> Verdict:
    """Judge per-item scores in [0, 1], float64 [n] each."""
    if teacher.shape != student.shape or teacher.ndim != 1:
        raise RecurosError(
            "E9-INTEGRITY",
            f"capability {contract.capability}: {teacher.shape} teacher scores and {student.shape} student scores are no pairs",
            hint="score both on the same items",
        )
    n = len(teacher)
    means = float(teacher.mean()) if n else 0.0, float(student.mean()) if n else 0.0
    above = means[0] - contract.chance
    ratio = (means[1] - contract.chance) / above if above > 0 else 0.0
    low, high = bounds(teacher, student, contract.chance, seed) if above > 0 else (0.0, 0.0)
    verdict, reason = _decide(contract, n, above, ratio, low)
    return Verdict(contract.capability, verdict, reason, ratio, low, high, means[0], means[1], n, contract.retain)


def _decide(contract: Contract, n: int, above: float, ratio: float, low: float) -> tuple[str, str]:
    if n < contract.items:
        return INSUFFICIENT, f"{n} items, the contract asks for {contract.items}"
    if above < TEACHER_ABOVE_CHANCE_MIN:
        return INSUFFICIENT, f"the teacher is {above:.4f} above chance; there is nothing to retain"
    if ratio < contract.retain:
        return FAIL, f"ratio {ratio:.4f} is below {contract.retain:g}"
    if low < contract.retain:
        return INSUFFICIENT, f"ratio {ratio:.4f}, but its lower bound {low:.4f} is below {contract.retain:g}"
    return PASS, f"ratio {ratio:.4f}, lower bound {low:.4f}"


def bounds(teacher: Scores, student: Scores, chance: float, seed: int) -> tuple[float, float]:
    """The 5th and 95th percentile of the ratio over paired resamples; a resample without a teacher above chance counts as 0."""
    dice = np.random.default_rng(seed)
    n = len(teacher)
    ratios = np.empty(RESAMPLES)
    for at in range(0, RESAMPLES, 500):
        pick = dice.integers(0, n, size=(500, n))
        above = teacher[pick].mean(axis=1) - chance
        kept = student[pick].mean(axis=1) - chance
        ratios[at : at + 500] = np.where(above > 0, kept / np.where(above > 0, above, 1.0), 0.0)
    low, high = np.quantile(ratios, [LEVEL, 1.0 - LEVEL])
    return float(low), float(high)
