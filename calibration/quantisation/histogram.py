"""How large the numbers of an activation are, in a histogram that grows with them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from secateur.calibration.statistics.rows import Weights

N_BINS = 2048


@dataclass(slots=True)
class Histogram:
    """Counts of absolute values in equal bins from 0 to ``top``; ``top`` doubles when it must."""

    top: float = 0.0
    largest: float = 0.0
    counts: NDArray[np.int64] = field(default_factory=lambda: np.zeros(N_BINS, np.int64))

    def add(self, samples: Sequence[NDArray[Any]], weights: Weights = None) -> None:
        """Take in samples of (tokens, features) each.

        A range has to hold every token that counts at all: those of weight 0 are not here.
        """
        del weights
        for rows in samples:
            values = np.abs(rows).ravel()
            most = float(values.max(initial=0.0))
            self.largest = max(self.largest, most)
            if not self.top and most:
                self.top = most
            while most > self.top and self.top:
                pairs = self.counts.reshape(-1, 2).sum(axis=1)
                self.counts = np.concatenate([pairs, np.zeros(N_BINS // 2, np.int64)])
                self.top *= 2
            self.counts += np.histogram(values, N_BINS, (0.0, self.top or 1.0))[0]

    @property
    def middles(self) -> NDArray[np.float64]:
        """The value that stands for each bin."""
        return np.linspace(0.5, N_BINS - 0.5, N_BINS) * np.float64(self.top / N_BINS)


__all__ = ["N_BINS", "Histogram"]
