"""Running mean of squared gradients, element by element, summarised: `fisher` of a program on `on_grad`.

    v_i = mean over firings of g_i^2;   trace = (elements / taken) sum_i v_i,   max = max_i v_i

g is the batch's gradient as training uses it, so v is not the Fisher information, whose squares are of single samples
(Kirkpatrick et al. 2017, equation 3; the built-in `fisher` does that): for B independent samples E v = |G|^2 + F / B. At most ELEMENTS
evenly chosen elements of a parameter are kept.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

from probes.helpers.rows import spread

ELEMENTS: Final = 65_536

Squares = tuple[Tensor, int, int]
"""Sum of squares [taken], firings, elements of the parameter."""


def taken(grad: Tensor) -> Tensor:
    """The chosen elements as one row, with their parameter's size in front; float64 holds it exactly."""
    flat = grad.detach().reshape(-1)
    index = spread(flat.numel(), ELEMENTS)
    chosen = flat if index is None else flat[index]
    return torch.cat((torch.tensor([float(flat.numel())], dtype=torch.float64), chosen.double()))[None]


def fisher(held: Squares | None, chosen: Tensor) -> tuple[Squares | None, tuple[float, float, float]]:
    """The mean with a gradient more, and (trace, max, firings); a gradient that is not finite is left out."""
    size, square = int(chosen[0, 0]), chosen[0, 1:].square()
    if bool(square.isfinite().all()):
        if held is None or held[0].shape != square.shape:
            held = (square, 1, size)
        else:
            held = (held[0] + square, held[1] + 1, size)
    if held is None:
        return None, (0.0, 0.0, 0.0)
    mean = held[0] / held[1]
    return held, (float(mean.sum()) * held[2] / len(mean), float(mean.max()), float(held[1]))
