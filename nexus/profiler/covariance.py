"""Second moments of hidden states, gathered by probes on a teacher's hooks.

Responsible for: a probe that adds each firing's rows to a mean and a covariance (and, for two teachers on the same positions, to the
cross terms), spectra by eigh, canonical correlations, and scikit-learn's IncrementalPCA under its name. Refuses: to keep a row;
what leaves here is [width] and [width, width] at most.

    C = (sum x x^T - n m m^T) / (n - 1);  CCA: singular values of Caa^-1/2 Cab Cbb^-1/2 (Hotelling, 1936)
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from probes.maps import Map
from probes.program import Context, Program

Array = NDArray[np.float64]
RIDGE: Final = 1e-6
"""Of the mean variance, so that directions without variance do not correlate by rounding."""


class Rows:
    """Which positions of the running batch count, shared by the probes of one pass: bool [B, T]."""

    keep: Tensor | None = None

    def of(self, hidden: Tensor) -> Tensor:
        """[N, width] float32, copied out of the step."""
        flat = hidden.detach().reshape(-1, hidden.shape[-1]).float()
        return flat if self.keep is None else flat[self.keep.reshape(-1)]


class Moments:
    """n, sum and sum of outer products; products of a batch in float32, sums in float64."""

    def __init__(self, width: int) -> None:
        self.n = 0
        self.total = torch.zeros(width, dtype=torch.float64)
        self.outer = torch.zeros(width, width, dtype=torch.float64)

    def add(self, rows: Tensor) -> None:
        """Take rows [N, width] in. A batch is centred before its product, so that a large mean costs no digits."""
        self.n += rows.shape[0]
        mean = rows.mean(dim=0) if rows.shape[0] else rows.sum(dim=0)
        centred = rows - mean
        wide = mean.double()
        self.total += wide * rows.shape[0]
        self.outer += (centred.T @ centred).double() + rows.shape[0] * torch.outer(wide, wide)

    def mean(self) -> Array:
        """float64 [width]."""
        found: Array = (self.total / max(1, self.n)).numpy()
        return found

    def covariance(self) -> Array:
        """float64 [width, width]."""
        mean = self.total / max(1, self.n)
        found: Array = ((self.outer - self.n * torch.outer(mean, mean)) / max(1, self.n - 1)).numpy()
        return found


class CovarianceProbe(Program):
    """on_forward: adds a layer's output to its moments."""

    name = "nexus:covariance"
    every = 1

    def __init__(self, rows: Rows) -> None:
        self.maps: dict[str, Map] = {}
        self._rows = rows
        self.moments: Moments | None = None

    def fire(self, context: Context) -> None:
        """Fold one firing in."""
        rows = self._rows.of(context.tensor("output"))
        if self.moments is None:
            self.moments = Moments(rows.shape[1])
        self.moments.add(rows)

    def summary(self) -> dict[str, Any]:
        """Rows so far."""
        return {"rows": 0 if self.moments is None else self.moments.n}


class IncrementalProbe(Program):
    """on_forward: the same question put to scikit-learn's IncrementalPCA, which cannot see a rank above its components."""

    name = "nexus:incremental-pca"
    every = 1

    def __init__(self, rows: Rows, components: int) -> None:
        from sklearn.decomposition import IncrementalPCA

        self.maps: dict[str, Map] = {}
        self._rows = rows
        self._waiting: list[Tensor] = []
        self.components = components
        self.pca = IncrementalPCA(n_components=components)

    def fire(self, context: Context) -> None:
        """It takes batches of at least as many rows as components: smaller ones wait."""
        self._waiting.append(self._rows.of(context.tensor("output")).clone())
        if sum(len(w) for w in self._waiting) >= 2 * self.components:
            self.pca.partial_fit(torch.cat(self._waiting).numpy())
            self._waiting = []

    def summary(self) -> dict[str, Any]:
        """Rows so far."""
        return {"rows": int(getattr(self.pca, "n_samples_seen_", 0))}


class PairProbe(Program):
    """on_forward of one layer of each of two teachers, one after the other on the same rows: moments of both side by side."""

    name = "nexus:pair"
    every = 1

    def __init__(self, rows: Rows) -> None:
        self.maps: dict[str, Map] = {}
        self._rows = rows
        self.last: Tensor | None = None

    def fire(self, context: Context) -> None:
        """Hold this batch until the other teacher has seen it; one batch at most."""
        self.last = self._rows.of(context.tensor("output")).clone()

    def summary(self) -> dict[str, Any]:
        """Nothing is summed here."""
        return {}


def spectrum(covariance: Array) -> tuple[Array, Array]:
    """(variances in falling order [width], directions as rows [width, width])."""
    values, vectors = np.linalg.eigh(covariance)
    order = np.argsort(values)[::-1]
    return np.maximum(values[order], 0.0), vectors[:, order].T.copy()


def rank_of(variances: Array, share: float) -> int:
    """The smallest k whose variances hold `share` of the sum."""
    total = float(variances.sum())
    if total <= 0:
        return 1
    return int(np.searchsorted(np.cumsum(variances) / total, share) + 1)


def canonical(joint: Array, width: int) -> Array:
    """Canonical correlations in falling order, from the covariance of [a | b] with a of `width` columns."""
    a, b, cross = joint[:width, :width], joint[width:, width:], joint[:width, width:]
    found: Array = np.clip(np.linalg.svd(_whiten(a) @ cross @ _whiten(b), compute_uv=False), 0.0, 1.0)
    return found


def _whiten(covariance: Array) -> Array:
    values, vectors = np.linalg.eigh(covariance)
    floor = RIDGE * max(float(values.mean()), 1e-30)
    scale = np.where(values > floor, 1.0 / np.sqrt(np.maximum(values, floor)), 0.0)
    found: Array = (vectors * scale) @ vectors.T
    return found


def rsa(a: Array, b: Array) -> float:
    """Representational similarity: correlation of the two distance matrices over the same items (Kriegeskorte et al., 2008)."""
    upper = np.triu_indices(len(a), 1)
    da = np.linalg.norm(a[:, None] - a[None, :], axis=-1)[upper]
    db = np.linalg.norm(b[:, None] - b[None, :], axis=-1)[upper]
    if da.std() == 0 or db.std() == 0:
        return 0.0
    return float(np.corrcoef(da, db)[0, 1])
