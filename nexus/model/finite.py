"""Whether weights are numbers.

Responsible for: finding NaN and infinity by reading each tensor once, without a copy. Refuses: nothing; the caller says what it means.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


def first_not_finite(state: Mapping[str, Tensor]) -> str:
    """The name of the first tensor that holds NaN or infinity; "" where none does. Both show in a tensor's extremes."""
    for key, value in state.items():
        if not value.is_floating_point() or not value.numel():
            continue
        values = value.float() if value.element_size() < 2 else value
        if not torch.isfinite(torch.stack(list(torch.aminmax(values)))).all():
            return key
    return ""
