"""X^T X of the rows that a weight reads: the Hessian of its layer's squared error."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Matrix: TypeAlias = NDArray[np.float64]


@dataclass(slots=True)
class Gram:
    """Sum of outer products over all rows, (in, in) float64; and the sum of the rows."""

    n_samples: int = 0
    n_rows: int = 0
    products: Matrix = field(default_factory=lambda: np.zeros((0, 0)))
    total: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))

    def add(self, samples: Sequence[NDArray[Any]]) -> None:
        """Take in samples of (tokens, features) each."""
        rows = np.concatenate(samples) if len(samples) > 1 else samples[0]
        if not self.n_samples:
            self.products = np.zeros((rows.shape[1], rows.shape[1]))
            self.total = np.zeros(rows.shape[1])
        self.products += rows.T @ rows
        self.total += rows.sum(axis=0, dtype=np.float64)
        self.n_samples += len(samples)
        self.n_rows += len(rows)

    @property
    def hessian(self) -> Matrix:
        """Two over the number of samples, times the products: as the published code scales it."""
        return self.products * (2.0 / max(self.n_samples, 1))


__all__ = ["Gram"]
