"""Entropy of attention: for each layer and head, the mean over queries of H = -sum_k a_k log a_k, in nats.

Source: Clark et al. 2019, section 3.2. Low: the head looks at few tokens; log(keys): it looks at all alike.
Refuses: attention that can neither be read nor recomputed to the module's own output (see `probes.attention`).
"""

from __future__ import annotations

from typing import Any

import torch

from probes.maps import Table
from probes.program import Context, Program


class AttentionEntropy(Program):
    """Map `heads`: one row per "layer#head" with rows (queries seen) and sum of entropies; `path` says how it was read."""

    def __init__(self, every: int) -> None:
        self.name = "builtin:attn-entropy"
        self.every = every
        self.heads = Table(("rows", "entropy"), rows_max=4096)
        self.paths: dict[str, str] = {}
        self.maps = {"heads": self.heads}

    def fire(self, context: Context) -> None:
        """Fold one layer's attention rows into its heads."""
        probs, self.paths[context.site] = context.attention()
        # entr(p) = -p log p, and 0 at p = 0.
        entropy = torch.special.entr(probs.float()).sum(-1)
        queries = entropy.numel() // entropy.shape[1]
        for head, total in enumerate(entropy.double().sum(dim=(0, 2)).tolist()):
            self.heads.add(f"{context.site}#{head}", rows=queries, entropy=total)

    def summary(self) -> dict[str, Any]:
        """{"layers": {name: {"path", "heads": [mean entropy in nats]}}}."""
        layers: dict[str, Any] = {name: {"path": path, "heads": []} for name, path in self.paths.items()}
        for row in self.heads.rows:
            fields, name = self.heads.get(row), row.rpartition("#")[0]
            layer = layers.setdefault(name, {"path": "", "heads": []})
            layer["heads"].append(fields["entropy"] / fields["rows"] if fields["rows"] else None)
        return {"layers": layers}
