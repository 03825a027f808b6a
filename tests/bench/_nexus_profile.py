"""What profiling costs and keeps: a forward pass with the covariance probes on every layer against the plain pass.

Rows: speed with probes over speed without (1 is free), the same for scikit-learn's IncrementalPCA, and bytes stored over the bytes of
the raw float16 activations that they stand for.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any, Final

import numpy as np
import torch

from nexus.model.student import NexusStudent
from nexus.profiler.covariance import CovarianceProbe, IncrementalProbe, Rows, spectrum
from nexus.stages.profile import hooked

BATCH: Final = 8
TOKENS: Final = 256
COMPONENTS: Final = 64
KEY_LAYERS: Final = 3
PASSES: Final = 2
PROFILE_TOKENS: Final = 200 * TOKENS
"""Of a profile of 200 samples."""


def cases(model: NexusStudent) -> dict[str, Callable[[], None]]:
    """ "plain", "covariance", "incremental": one forward pass over the same bytes."""
    draw = torch.Generator().manual_seed(42)
    ids = torch.randint(0, 256, (BATCH, TOKENS), generator=draw)
    names = [next(n for n, m in model.named_modules() if m is layer) for layer in model.layers[-KEY_LAYERS:]]

    @torch.no_grad()
    def one() -> None:
        model(input_ids=ids, use_cache=False)

    def plain() -> None:
        for _ in range(PASSES):
            one()

    def watched(make: Callable[[Rows], Any]) -> Callable[[], None]:
        def run() -> None:
            with hooked(model, {name: make(Rows()) for name in names}) as dispatcher:
                for step in range(PASSES):
                    dispatcher.step(step)
                    one()

        return run

    return {
        "first": plain,
        "second": plain,
        "covariance": watched(CovarianceProbe),
        "incremental": watched(lambda rows: IncrementalProbe(rows, COMPONENTS)),
    }


def stored_share(model: NexusStudent) -> float:
    """Bytes of basis and coefficients of a layer at its 97 % rank over its raw activations in float16."""
    layer = model.layers[-1]
    name = next(n for n, m in model.named_modules() if m is layer)
    probe = CovarianceProbe(Rows())
    with hooked(model, {name: probe}) as dispatcher, torch.no_grad():
        dispatcher.step(0)
        model(
            input_ids=torch.randint(0, 256, (BATCH, TOKENS), generator=torch.Generator().manual_seed(1)),
            use_cache=False,
        )
    assert probe.moments is not None
    variances, basis = spectrum(probe.moments.covariance())
    rank = int(np.searchsorted(np.cumsum(variances) / variances.sum(), 0.97) + 1)
    out = io.BytesIO()
    np.savez_compressed(out, basis=basis[:rank].astype(np.float16), mean=probe.moments.mean().astype(np.float16))
    coefficients = io.BytesIO()
    np.savez_compressed(coefficients, mean=np.zeros(rank, np.float16), variance=variances[:rank].astype(np.float32))
    return (len(out.getvalue()) + len(coefficients.getvalue())) / (PROFILE_TOKENS * model.width * 2)
