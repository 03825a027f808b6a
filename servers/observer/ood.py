"""Which training samples lie outside the distribution, by the teacher's own features.

Responsible for: Mahalanobis distances to the nearest class mean with one tied, shrunk covariance (Lee et al. 2018, equation 2; Ledoit
and Wolf 2004), each sample judged by a fit that it was not part of, and the threshold from held-out data. Refuses: fewer than two
samples a class to fit on, features that are not finite (E2-DATA). numpy and scikit-learn.

Samples judged by their own fit look nearer than they are: a threshold from such distances would drop a fifth to nearly all good
data. So the training samples are fitted in two halves, each judged by the other, and the threshold is a quantile of held-out ones,
judged by both.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import numpy as np
from numpy.typing import NDArray

from servers.observer.diagnostics import Floats
from syscalls.errors import RecurosError

QUANTILE: Final = 0.975
LEAST_A_CLASS: Final = 2
LEAST_HELD_OUT: Final = 20
"""Fewer held-out samples say nothing about a quantile of 97.5 %."""

Judge = Callable[[Floats], Floats]


def fit(features: Floats, labels: NDArray[np.int64]) -> Judge:
    """min over classes of (x - mean_c)^T S^-1 (x - mean_c), S tied over the classes; features [n, d] -> judge of [m, d]."""
    # scikit-learn takes over a second to import, and few runs come here.
    from sklearn.covariance import LedoitWolf

    classes, counts = np.unique(labels, return_counts=True)
    if not len(classes) or counts.min() < LEAST_A_CLASS:
        fewest = int(counts.min()) if len(counts) else 0
        raise RecurosError(
            "E2-DATA",
            f"a class has {fewest} samples to fit a distribution on; it needs {LEAST_A_CLASS}",
            hint="more data",
        )
    if not np.isfinite(features).all():
        raise RecurosError("E2-DATA", "the teacher's features are not finite", hint="look at the teacher's weights")
    means = np.stack([features[labels == c].mean(axis=0) for c in classes])
    centred = features - means[np.searchsorted(classes, labels)]
    covariance = LedoitWolf(assume_centered=True).fit(centred).covariance_
    scale = float(np.trace(covariance)) / len(covariance)
    if not scale > 0.0:
        raise RecurosError(
            "E2-DATA", "the teacher's features are the same for every sample of a class", hint="train it"
        )
    # Shrinkage makes it regular but for rounding; constant features need the floor.
    factor = np.linalg.cholesky(covariance + np.eye(len(covariance)) * scale * 1e-6)

    def judge(x: Floats) -> Floats:
        whitened = np.linalg.solve(factor, x.T).T
        centres = np.linalg.solve(factor, means.T).T
        nearest: Floats = np.stack([((whitened - c) ** 2).sum(axis=1) for c in centres]).min(axis=0)
        return nearest

    return judge


def outlying(train: Floats, labels: NDArray[np.int64], held_out: Floats) -> tuple[Floats, float]:
    """Distance of each training sample [n], and the threshold; E2-DATA when there is too little to fit or to judge by."""
    if len(held_out) < LEAST_HELD_OUT:
        raise RecurosError(
            "E2-DATA",
            f"{len(held_out)} held-out samples give no threshold; at least {LEAST_HELD_OUT} are needed",
            hint="give validation a larger share",
        )
    half = _halves(labels)
    judges = [fit(train[half == side], labels[half == side]) for side in (0, 1)]
    distance = np.empty(len(train))
    for side in (0, 1):
        distance[half == side] = judges[1 - side](train[half == side])
    reference = np.concatenate([judge(held_out) for judge in judges])
    return distance, float(np.quantile(reference, QUANTILE))


def _halves(labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """0 or 1 for each sample: within each class, by turns."""
    half = np.zeros(len(labels), dtype=np.int64)
    for c in np.unique(labels):
        rows = np.flatnonzero(labels == c)
        half[rows] = np.arange(len(rows)) % 2
    return half
