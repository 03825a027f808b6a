"""A smooth stand-in for the calibration error (Karandikar et al. 2021, soft-binned ECE with the square as its norm).

calibration = sum_b S_b / N * (A_b - C_b)^2 over 15 bins, g_b(c) = softmax_b(-(c - centre_b)^2 / SOFTNESS), S_b = sum_i w_i g_b(c_i),
C_b and A_b the means of confidence and of hits under w g_b. Hard bins pass gradients to confidences alone and none across a bin's edge; ECE
itself stays a report.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

from servers.learner.losses.base import KdSettings, Rows, Term

BINS: Final = 15
SOFTNESS: Final = 0.01
TINY: Final = 1e-8


class CalibrationTerm(Term):
    """calibration * the soft-binned error."""

    name = "calibration"
    needs = frozenset()

    def value(self, rows: Rows, kd: KdSettings) -> Tensor:
        """0 to 1."""
        confidence, guess = torch.softmax(rows.student, dim=-1).max(dim=-1)
        hit = (guess == rows.targets).to(confidence.dtype)
        return soft_binned(confidence, hit, rows.weight)


def soft_binned(confidence: Tensor, hit: Tensor, weight: Tensor) -> Tensor:
    """The squared error over soft bins: three times [N] -> a scalar."""
    centres = (torch.arange(BINS, dtype=confidence.dtype, device=confidence.device) + 0.5) / BINS
    member = torch.softmax(-(confidence[:, None] - centres).square() / SOFTNESS, dim=1) * weight[:, None]
    size = member.sum(0)
    sums = member.T @ torch.stack((confidence, hit), dim=1)
    apart = (sums[:, 1] - sums[:, 0]) / size.clamp_min(TINY)
    return (size * apart.square()).sum() / weight.sum()
