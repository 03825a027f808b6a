"""Sparsity of each trainable parameter: the share of its weights that are exactly zero, as training goes on.

    sparsity = #{w = 0} / #w

Source: Gale, Elsen and Hooker 2019, section 2. Zeros are counted as the weights above -1e-300 less those above 0, which
counts both zeros and nothing that float32 or a 16-bit float could hold besides. `pruned` looks at the masks instead.
"""

from __future__ import annotations

from probes.library.source import Document, Figures, Source, ratio, table

TEXT = '''
"""Share of zeros of each parameter."""
hook("on_grad", every=25)

parameters = map.array(per_site=True, fields=("weights", "zeros", "gradient_zeros", "last_step"))


def probe(grad, param):
    parameters["weights"] = param.size
    parameters["zeros"] = count_gt(param, -1e-300) - count_gt(param, 0.0)
    parameters["gradient_zeros"] = count_gt(grad, -1e-300) - count_gt(grad, 0.0)
    parameters["last_step"] = step
'''


def summary(document: Document) -> Figures:
    """{"sparsity": over all weights, "gradient": the same of their gradients, "weights", "parameters": {name: sparsity}}."""
    found = table(document, "parameters")
    weights = sum(row["weights"] for row in found.values())
    return {
        "sparsity": ratio(sum(row["zeros"] for row in found.values()), weights),
        "gradient": ratio(sum(row["gradient_zeros"] for row in found.values()), weights),
        "weights": int(weights),
        "parameters": {name: ratio(row["zeros"], row["weights"]) for name, row in found.items()},
    }


SOURCE = Source("sparsity", TEXT, summary)
