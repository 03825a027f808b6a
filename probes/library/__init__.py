"""The built-in probes: one small file each, and the explicit list of their factories.

`probes.catalogue` declares the same names to the torch-free side, with hooks, parameters, rights, cost and one-line docs.
"""

from __future__ import annotations

from collections.abc import Callable

from probes import catalogue
from probes.library.attn_entropy import AttentionEntropy
from probes.library.cka import Cka
from probes.library.disagreement import Disagreement
from probes.library.ece import Ece
from probes.library.entropy import Entropy
from probes.library.gradnorm import GradNorm
from probes.library.rms import Rms
from probes.program import Program

FACTORIES: dict[str, Callable[..., Program]] = {
    "attn-entropy": AttentionEntropy,
    "cka": Cka,
    "disagreement": Disagreement,
    "ece": Ece,
    "entropy": Entropy,
    "gradnorm": GradNorm,
    "rms": Rms,
}


def build(prog: str, every: int = 0) -> Program:
    """A fresh program for `builtin:NAME[,key=value...]`; `every` > 0 overrides its cadence.

    Raises what `probes.catalogue.parse` raises.
    """
    builtin, params = catalogue.parse(prog if not every else f"{prog},every={every}")
    return FACTORIES[builtin.name](**params)
