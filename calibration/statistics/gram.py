"""X^T X of the rows that a weight reads: the Hessian of its layer's squared error."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from secateur.calibration.statistics.rows import Weights

Matrix: TypeAlias = NDArray[np.float64]


@dataclass(slots=True)
class Gram:
    """Sum of outer products over all rows, (in, in) float64; and the sum of the rows."""

    n_samples: int = 0
    n_rows: float = 0
    """Rows, or the sum of their weights."""
    products: Matrix = field(default_factory=lambda: np.zeros((0, 0)))
    total: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))

    def add(self, samples: Sequence[NDArray[Any]], weights: Weights = None) -> None:
        """Take in samples of (tokens, features) each, and how much each token counts."""
        rows = np.concatenate(samples) if len(samples) > 1 else samples[0]
        if not self.n_samples:
            self.products = np.zeros((rows.shape[1], rows.shape[1]))
            self.total = np.zeros(rows.shape[1])
        self.n_samples += len(samples)
        if weights is None:
            self.n_rows += len(rows)
            self.total += rows.sum(axis=0, dtype=np.float64)
        else:
            counts = np.concatenate(weights)
            self.n_rows += float(counts.sum())
            self.total += counts @ rows
            rows = rows * np.sqrt(counts)[:, None].astype(rows.dtype)
        self.products += rows.T @ rows

    @property
    def hessian(self) -> Matrix:
        """Two over the number of samples, times the products: as the published code scales it."""
        return self.products * (2.0 / max(self.n_samples, 1))


__all__ = ["Gram"]
