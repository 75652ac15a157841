"""Sums over the tokens that a weight reads, by feature."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Vector: TypeAlias = NDArray[np.float64]


def _empty() -> Vector:
    return np.zeros(0)


@dataclass(slots=True)
class Moments:
    """Sums over samples of (tokens, features) activations; memory does not grow with the data."""

    n_samples: int = 0
    n_rows: int = 0
    total: Vector = field(default_factory=_empty)
    """Sum over rows."""
    square: Vector = field(default_factory=_empty)
    """Sum of squares over rows: half the diagonal of a layer's Hessian."""

    def add(self, samples: Sequence[NDArray[Any]]) -> None:
        """Take in samples of (tokens, features) each."""
        for rows in samples:
            total = rows.sum(axis=0, dtype=np.float64)
            square = np.einsum("ti,ti->i", rows, rows).astype(np.float64)
            self.total = self.total + total if self.n_samples else total
            self.square = self.square + square if self.n_samples else square
            self.n_samples, self.n_rows = self.n_samples + 1, self.n_rows + len(rows)

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
    n_rows: int = 0
    total: Vector = field(default_factory=_empty)

    def add(self, samples: Sequence[NDArray[Any]]) -> None:
        """Take in samples of (tokens, features) each."""
        for rows in samples:
            found = np.asarray(self.measure(rows)).sum(axis=0, dtype=np.float64)
            self.total = self.total + found if self.n_rows else found
            self.n_rows += len(rows)

    @property
    def mean(self) -> Vector:
        """Mean over rows."""
        result: Vector = self.total / max(self.n_rows, 1)
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

    def add(self, samples: Sequence[NDArray[Any]]) -> None:
        """Take in samples of (tokens, features) each."""
        for raw in samples:
            self._add(np.asarray(raw, dtype=np.float64))

    def _add(self, rows: NDArray[np.float64]) -> None:
        k = self.n_samples
        if not k:
            self.mean = self.fluctuation = self.square = np.zeros(rows.shape[1])
        if not len(rows):
            return
        self.mean = self.mean * k / (k + 1) + rows.mean(axis=0) / (k + 1)
        self.square = self.square * k / (k + 1) + np.square(rows).sum(axis=0) / (k + 1)
        if k:
            distance = np.square(rows - self.mean).sum(axis=0)
            self.fluctuation = self.fluctuation * (k - 1) / k + distance / (k + 1)
        self.n_samples = k + 1


__all__ = ["Fluctuation", "Moments", "Sums"]
