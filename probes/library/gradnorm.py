"""Gradient norm of each parameter, ||g||_2, as accumulated when the backward pass reaches it (before any clipping).

The root of the sum of the squares over the parameters of one step is the global norm (Pascanu et al. 2013, section 3.2). A gradient
with NaN or infinity counts as `nonfinite` and enters no sum.
"""

from __future__ import annotations

import math

from probes.library.source import Document, Figures, Source, table

TEXT = '''
"""Norm of each parameter's gradient."""
hook("on_grad", every=25)

parameters = map.array(per_site=True, fields=("fires", "sumsq", "max", "last", "last_step", "nonfinite"))


def probe(grad):
    square = sumsq(grad)
    if isfinite(square):
        length = sqrt(square)
        parameters["fires"] += 1
        parameters["sumsq"] += square
        parameters.raise_to("max", length)
        parameters["last"] = length
        parameters["last_step"] = step
    else:
        parameters["nonfinite"] += 1
'''


def summary(document: Document) -> Figures:
    """{"global": norm over the parameters of the latest step, "step", "nonfinite", "parameters": {name: last norm}}."""
    found = table(document, "parameters")
    fired = {name: row for name, row in found.items() if row["fires"]}
    step = max((row["last_step"] for row in fired.values()), default=None)
    latest = [row["last"] for row in fired.values() if row["last_step"] == step]
    return {
        "global": math.sqrt(sum(length * length for length in latest)) if latest else None,
        "step": None if step is None else int(step),
        "nonfinite": int(sum(row["nonfinite"] for row in found.values())),
        "parameters": {name: row["last"] for name, row in fired.items()},
    }


SOURCE = Source("gradnorm", TEXT, summary)
