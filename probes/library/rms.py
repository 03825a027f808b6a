"""Activation watch: RMS, largest magnitude and non-finite count of each layer's output.

    rms = sqrt(sum x^2 / n) over the finite values of every firing

Source: Zhang and Sennrich 2019, equation 4 (RMS). Refuses: layers whose output holds no tensor (counted `empty`).
"""

from __future__ import annotations

import math
from typing import Any

import torch

from probes.maps import Table
from probes.program import Context, Program


class Rms(Program):
    """Map `layers`: per layer count, sumsq, absmax, nonfinite, empty and the last firing's rms and absmax."""

    def __init__(self, every: int) -> None:
        self.name = "builtin:rms"
        self.every = every
        self.layers = Table(("count", "sumsq", "absmax", "nonfinite", "empty", "last_rms", "last_absmax"))
        self.maps = {"layers": self.layers}

    def fire(self, context: Context) -> None:
        """Fold one layer's output into its row."""
        x = context.get("output")
        if x is None or not x.numel() or not x.is_floating_point():
            self.layers.add(context.site, empty=1)
            return
        sumsq, absmax = _moments(x)
        count, bad = x.numel(), 0
        if not math.isfinite(sumsq):
            finite = x[x.isfinite()]
            bad = count - finite.numel()
            count = finite.numel()
            sumsq, absmax = _moments(finite.double()) if count else (0.0, 0.0)
        self.layers.add(context.site, count=count, sumsq=sumsq, nonfinite=bad)
        self.layers.raise_to(context.site, absmax=absmax)
        self.layers.put(context.site, last_rms=math.sqrt(sumsq / count) if count else 0.0, last_absmax=absmax)

    def summary(self) -> dict[str, Any]:
        """{"layers": {name: {"rms", "absmax", "nonfinite"}}, "nonfinite": total}."""
        layers = {}
        for name in self.layers.rows:
            row = self.layers.get(name)
            rms = math.sqrt(row["sumsq"] / row["count"]) if row["count"] else None
            layers[name] = {"rms": rms, "absmax": row["absmax"], "nonfinite": int(row["nonfinite"])}
        return {"layers": layers, "nonfinite": sum(layer["nonfinite"] for layer in layers.values())}


def _moments(x: torch.Tensor) -> tuple[float, float]:
    """Sum of squares and largest magnitude; halves are widened first, since their squares overflow at 256."""
    x = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
    # aminmax is 20 times faster than the infinity norm, and as the norm it lets NaN through.
    low, high = torch.aminmax(x)
    norm, low, high = torch.stack((torch.linalg.vector_norm(x), low, high)).tolist()
    return norm * norm, max(-low, high)
