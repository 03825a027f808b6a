"""How far a layer's outputs have gone from those of the first firings: Mahalanobis distance and distance to nearest neighbours.

    d(x)^2 = (x - m)' S^-1 (x - m),  S = (1 - a) C + a (tr C / p) I,  a: Ledoit and Wolf 2004, lemma 3.3 to theorem 3.2
    z = x / |x|,  r_k(z) = distance to its k-th nearest among the bank,  credibility = (1 + #{held out: r_k >= r_k(z)}) / (1 + #held out)

Sources: Lee et al. 2018, equation 1 (Mahalanobis distance of features; one class here); Sun et al. 2022, section 3 (deep k nearest
neighbours, normalised features); Papernot and McDaniel 2018, section 4 (credibility as a conformal p-value).
The first FIT rows fit the Gaussian or fill the bank, the next HELD_OUT ones set the threshold (their LEVEL quantile with the finite-
sample correction of split conformal prediction) or the p-values; only rows after those are scored. So the figures say how far training
has moved from where it was when the probe was attached. Bounds: ROWS_TAKEN rows of a firing, FEATURES features, evenly chosen.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Final

import torch
from torch import Tensor

from probes.helpers.rows import columns, finite

ROWS_TAKEN: Final = 64
FIT: Final = 512
HELD_OUT: Final = 256
FEATURES: Final = 512
LEVEL: Final = 0.975
NEIGHBOURS: Final = 10


@dataclass(frozen=True, slots=True)
class Reference:
    """`rows`: those that fit; `centre`, `factor`: mean and Cholesky factor once they are all there; `held_out`: scores, sorted when full.

    Then the scored: `count` rows, their `total` score, `beyond` the threshold and the sum of `credibility`.
    """

    rows: Tensor
    centre: Tensor | None = None
    factor: Tensor | None = None
    held_out: Tensor | None = None
    threshold: float = 0.0
    count: int = 0
    total: float = 0.0
    beyond: int = 0
    credibility: float = 0.0


def mahalanobis(held: Reference | None, x: Tensor) -> tuple[Reference, tuple[float, float, float, float]]:
    """The reference with these rows [n, d] folded in, and (mean distance, threshold, outliers, rows) of the scored ones."""
    held, rest = _filled(held, x)
    if len(rest) and held.factor is None:
        centre = held.rows.mean(0)
        held = replace(held, centre=centre, factor=torch.linalg.cholesky(ledoit_wolf(held.rows - centre)))
    if len(rest) and held.factor is not None and held.centre is not None:
        solved = torch.linalg.solve_triangular(held.factor, (rest - held.centre).T, upper=False)
        held = _scored(held, solved.square().sum(0).sqrt())
    mean = held.total / held.count if held.count else 0.0
    return held, (mean, held.threshold, float(held.beyond), float(held.count))


def deep_knn(held: Reference | None, x: Tensor) -> tuple[Reference, tuple[float, float, float]]:
    """The reference with these rows [n, d] folded in, and (mean distance, mean credibility, rows) of the scored ones."""
    held, rest = _filled(held, torch.nn.functional.normalize(x.double(), dim=1))
    if len(rest):
        # Of unit vectors, |a - b|^2 = 2 - 2 a'b: no n x m x d is made.
        nearest = (rest @ held.rows.T).topk(NEIGHBOURS, dim=1).values[:, -1]
        held = _scored(held, (2 - 2 * nearest).clamp(min=0).sqrt())
    means = (held.total / held.count, held.credibility / held.count) if held.count else (0.0, 0.0)
    return held, (*means, float(held.count))


def ledoit_wolf(centred: Tensor) -> Tensor:
    """The shrunk covariance [p, p] of centred rows [n, p]: Ledoit and Wolf 2004; a little of the mean variance where all rows coincide."""
    n, p = centred.shape
    covariance = centred.T @ centred / n
    mean = float(covariance.diagonal().mean())
    distance = float(covariance.square().sum()) / p - mean**2
    spread = (float(centred.square().sum(1).square().sum()) / n - float(covariance.square().sum())) / (n * p)
    shrinkage = 1.0 if distance <= 0 else min(max(spread / distance, 0.0), 1.0)
    shrunk = (1 - shrinkage) * covariance
    floor = max(shrinkage * mean, 1e-12 * mean, 1e-300)
    return shrunk + floor * torch.eye(p, dtype=covariance.dtype)


def _filled(held: Reference | None, x: Tensor) -> tuple[Reference, Tensor]:
    """The reference with as many rows as it still lacks, and the rows beyond them."""
    x = columns(finite(x), FEATURES)
    if held is None or held.rows.shape[1] != x.shape[1]:
        held = Reference(x[:0])
    lacking = FIT - len(held.rows)
    if lacking <= 0:
        return held, x
    return replace(held, rows=torch.cat((held.rows, x[:lacking]))), x[lacking:]


def _scored(held: Reference, scores: Tensor) -> Reference:
    """Scores first go to the held-out part, until that is full; then they are judged by it."""
    before = scores[:0] if held.held_out is None else held.held_out
    lacking = HELD_OUT - len(before)
    if lacking > 0:
        before = torch.cat((before, scores[:lacking]))
        scores = scores[lacking:]
        threshold = 0.0
        if len(before) == HELD_OUT:
            before = before.sort().values
            threshold = float(before[min(math.ceil((HELD_OUT + 1) * LEVEL), HELD_OUT) - 1])
        held = replace(held, held_out=before, threshold=threshold)
    if not len(scores):
        return held
    at_least = HELD_OUT - torch.searchsorted(before, scores)
    return replace(
        held,
        count=held.count + len(scores),
        total=held.total + float(scores.sum()),
        beyond=held.beyond + int((scores > held.threshold).sum()),
        credibility=held.credibility + float(((1 + at_least) / (1 + HELD_OUT)).sum()),
    )
