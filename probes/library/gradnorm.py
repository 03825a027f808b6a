"""Gradient norm of each parameter, ||g||_2, as accumulated when the backward pass reaches it (before any clipping).

The root of the sum of the squares over the parameters of one step is the global norm (Pascanu et al. 2013, section 3.2).
Refuses: sparse gradients (it is evicted with the reason); a gradient with NaN or infinity counts as `nonfinite` and
enters no sum.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from probes.maps import Table
from probes.program import Context, Program


class GradNorm(Program):
    """Map `parameters`: per parameter fires, sumsq (of norms), max, last, last_step, nonfinite."""

    def __init__(self, every: int) -> None:
        self.name = "builtin:gradnorm"
        self.every = every
        self.parameters = Table(("fires", "sumsq", "max", "last", "last_step", "nonfinite"), rows_max=4096)
        self.maps = {"parameters": self.parameters}

    def fire(self, context: Context) -> None:
        """Fold one parameter's gradient into its row."""
        grad, site = context.tensor("grad"), context.site
        if grad.is_sparse:
            raise ValueError(f"the gradient of {site} is sparse")
        norm = float(torch.linalg.vector_norm(grad.float() if grad.dtype != torch.float64 else grad))
        if not math.isfinite(norm):
            self.parameters.add(site, nonfinite=1)
            return
        self.parameters.add(site, fires=1, sumsq=norm * norm)
        self.parameters.raise_to(site, max=norm)
        self.parameters.put(site, last=norm, last_step=context.step)

    def summary(self) -> dict[str, Any]:
        """{"global": norm over the parameters of the latest step, "step", "nonfinite", "parameters": {name: last norm}}."""
        rows = {name: self.parameters.get(name) for name in self.parameters.rows}
        fired = {name: row for name, row in rows.items() if row["fires"]}
        step = max((row["last_step"] for row in fired.values()), default=None)
        latest = [row["last"] for row in fired.values() if row["last_step"] == step]
        return {
            "global": math.sqrt(sum(norm * norm for norm in latest)) if latest else None,
            "step": None if step is None else int(step),
            "nonfinite": int(sum(row["nonfinite"] for row in rows.values())),
            "parameters": {name: row["last"] for name, row in fired.items()},
        }
