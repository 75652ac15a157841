"""Sums over the tokens that a weight reads, by feature."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from secateur.calibration.statistics.rows import Weights

Vector: TypeAlias = NDArray[np.float64]


def _empty() -> Vector:
    return np.zeros(0)


@dataclass(slots=True)
class Moments:
    """Sums over samples of (tokens, features) activations; memory does not grow with the data."""

    n_samples: int = 0
    n_rows: float = 0
    """Rows, or the sum of their weights."""
    total: Vector = field(default_factory=_empty)
    """Sum over rows."""
    square: Vector = field(default_factory=_empty)
    """Sum of squares over rows: half the diagonal of a layer's Hessian."""

    def add(self, samples: Sequence[NDArray[Any]], weights: Weights = None) -> None:
        """Take in samples of (tokens, features) each, and how much each token counts."""
        for i, rows in enumerate(samples):
            if weights is None:
                count: float = len(rows)
                total = rows.sum(axis=0, dtype=np.float64)
                square = np.einsum("ti,ti->i", rows, rows).astype(np.float64)
            else:
                count, total = float(weights[i].sum()), weights[i] @ rows
                square = np.einsum("t,ti,ti->i", weights[i], rows, rows)
            self.total = self.total + total if self.n_samples else total
            self.square = self.square + square if self.n_samples else square
            self.n_samples, self.n_rows = self.n_samples + 1, self.n_rows + count

    @property
    def norm(self) -> Vector:
        """Euclidean length of each feature over all rows."""
        result: Vector = np.sqrt(self.square)
        return result


@dataclass(slots=True)
class Sums:
    """The sum over rows of whatever ``measure`` makes of a row's features."""

    measure: Callable[[NDArray[Any]], NDArray[Any]]
    """(tokens, features) -> (tokens, anything)."""
    n_rows: float = 0
    """Rows, or the sum of their weights."""
    total: Vector = field(default_factory=_empty)

    def add(self, samples: Sequence[NDArray[Any]], weights: Weights = None) -> None:
        """Take in samples of (tokens, features) each, and how much each token counts."""
        for i, rows in enumerate(samples):
            found = np.asarray(self.measure(rows))
            if weights is None:
                count: float = len(rows)
                total = found.sum(axis=0, dtype=np.float64)
            else:
                count, total = float(weights[i].sum()), weights[i] @ found
            self.total = self.total + total if self.n_rows else total
            self.n_rows += count

    @property
    def mean(self) -> Vector:
        """Mean over rows."""
        result: Vector = self.total / (self.n_rows or 1.0)
        return result


@dataclass(slots=True)
class Fluctuation:
    """FLAP's running statistics of features, by sample.

    The distance is measured from the mean *after* the sample was added, and divided by samples
    rather than tokens: the published code's rule, not Welford's.
    """

    n_samples: int = 0
    mean: Vector = field(default_factory=_empty)
    """Mean over samples of a sample's mean."""
    fluctuation: Vector = field(default_factory=_empty)
    """Squared distance from the running mean; the first sample adds nothing."""
    square: Vector = field(default_factory=_empty)
    """Mean over samples of the squared length over tokens."""

    def add(self, samples: Sequence[NDArray[Any]], weights: Weights = None) -> None:
        """Take in samples of (tokens, features) each, and how much each token counts."""
        for i, raw in enumerate(samples):
            counts = np.ones(len(raw)) if weights is None else weights[i]
            self._add(np.asarray(raw, dtype=np.float64), counts)

    def _add(self, rows: NDArray[np.float64], counts: NDArray[np.float64]) -> None:
        k = self.n_samples
        if not k:
            self.mean = self.fluctuation = self.square = np.zeros(rows.shape[1])
        if not len(rows):
            return
        self.mean = self.mean * k / (k + 1) + counts @ rows / counts.sum() / (k + 1)
        self.square = self.square * k / (k + 1) + counts @ np.square(rows) / (k + 1)
        if k:
            distance = counts @ np.square(rows - self.mean)
            self.fluctuation = self.fluctuation * (k - 1) / k + distance / (k + 1)
        self.n_samples = k + 1


__all__ = ["Fluctuation", "Moments", "Sums"]
