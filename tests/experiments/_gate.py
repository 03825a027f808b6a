"""The in-distribution gate: which training samples lie within what held-out data of the same source looks like to the teacher.

Responsible for: distances in the teacher's last hidden layer (Lee et al. 2018, equation 2: the smallest Mahalanobis distance to a
class mean under one tied covariance, here Ledoit and Wolf's) and a threshold. Refuses: to judge a sample by a fit that it was part of,
or to take a threshold from such samples: they always look closer than they are. Half of the held-out samples are fitted, the
other half set the threshold, and the training samples are judged.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.covariance import LedoitWolf

from servers.models.model import Batch, Model

HELD_OUT_SHARE: Final = 0.95
"""The share of held-out samples that the gate leaves in."""

Floats = NDArray[np.float64]


def open_samples(teacher: Model, training: Batch, held_out: Batch) -> NDArray[np.bool_]:
    """True for each training sample that is no further out than 95 % of the held-out ones."""
    held, labels = features(teacher, held_out), held_out["labels"].numpy()
    fit = Distances(held[::2], labels[::2])
    threshold = float(np.quantile(fit.of(held[1::2]), HELD_OUT_SHARE))
    inside: NDArray[np.bool_] = fit.of(features(teacher, training)) <= threshold
    return inside


@torch.no_grad()
def features(model: Model, arrays: Batch) -> Floats:
    """The last hidden state, averaged over positions: F64 [n, width]."""
    was_training = model.module.training
    model.module.eval()
    last = model.forward(arrays, need_hidden=True).hidden[-1]
    model.module.train(was_training)
    values: Floats = last.mean(dim=1).double().numpy()
    return values


class Distances:
    """Class means and a tied covariance of `values` [n, width] with `labels` [n]."""

    def __init__(self, values: Floats, labels: NDArray[np.int64]) -> None:
        self.means = np.stack([values[labels == label].mean(axis=0) for label in np.unique(labels)])
        place = np.searchsorted(np.unique(labels), labels)
        covariance = LedoitWolf(assume_centered=True).fit(values - self.means[place]).covariance_
        # A layer of rectifiers has units that no sample moves; a floor keeps the matrix positive definite.
        floor = 1e-6 * max(float(np.trace(covariance)) / len(covariance), 1e-12)
        self.root = np.linalg.cholesky(covariance + floor * np.eye(len(covariance)))

    def of(self, values: Floats) -> Floats:
        """The smallest squared distance to a class mean: F64 [n]."""
        gaps = values[:, None, :] - self.means[None]
        white = np.linalg.solve(self.root, gaps.reshape(-1, gaps.shape[-1]).T)
        distances: Floats = (white**2).sum(axis=0).reshape(gaps.shape[:2]).min(axis=1)
        return distances
