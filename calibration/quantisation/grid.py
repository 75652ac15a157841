"""Grids of whole numbers that weights are rounded to, row by row.

Source: the quantiser of GPTQ (Frantar et al., ICLR 2023, arXiv:2210.17323) and QuaRot
(arXiv:2404.00456), with its search for the range that loses least.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Array: TypeAlias = NDArray[np.float64]

_SMALLEST_SHARE = 0.8
"""The search shrinks a range by at most this share, in steps of one percent."""
_STEPS = 100
_POWER = 2.4


@dataclass(frozen=True, slots=True)
class Grid:
    """How rows become whole numbers: ``round(w / scale) + zero``, clipped."""

    bits: int
    scale: Array
    """(out, 1)"""
    zero: Array
    """(out, 1); all 0 in a symmetric grid."""
    symmetric: bool = True

    @property
    def limits(self) -> tuple[int, int]:
        """Smallest and largest whole number."""
        top: int = 2 ** (self.bits - 1)
        return (-top, top - 1) if self.symmetric else (0, 2 * top - 1)

    def codes(self, weight: Array) -> Array:
        """Whole numbers of (out, in) weights, as floats."""
        whole: Array = np.clip(np.round(weight / self.scale) + self.zero, *self.limits)
        return whole

    def rounded(self, weight: Array) -> Array:
        """The weights that the whole numbers stand for."""
        near: Array = (self.codes(weight) - self.zero) * self.scale
        return near


def fit_grid(weight: Array, bits: int, *, symmetric: bool = True, search: bool = False) -> Grid:
    """Fit a grid to each row of (out, in) weights.

    Args:
        weight: rows that are all 0 get a range of 1.
        bits: of a whole number.
        symmetric: zero stands for 0, and the range is that of the largest absolute value.
        search: shrink the range of a row where that loses less, by the 2.4th power of the error.
    """
    low = np.minimum(weight.min(axis=1, keepdims=True), 0.0)
    high = np.maximum(weight.max(axis=1, keepdims=True), 0.0)
    if symmetric:
        high = np.maximum(np.abs(low), high)
        low = np.where(low < 0, -high, low)
    empty = (low == 0) & (high == 0)
    low, high = np.where(empty, -1.0, low), np.where(empty, 1.0, high)
    best = _grid(low, high, bits, symmetric=symmetric)
    if not search:
        return best
    least = np.full(low.shape, np.inf)
    for step in range(int(_SMALLEST_SHARE * _STEPS)):
        share = 1 - step / _STEPS
        tried = _grid(share * low, share * high, bits, symmetric=symmetric)
        error = (np.abs(tried.rounded(weight) - weight) ** _POWER).sum(axis=1, keepdims=True)
        better = error < least
        least = np.where(better, error, least)
        best = Grid(
            bits,
            np.where(better, tried.scale, best.scale),
            np.where(better, tried.zero, best.zero),
            symmetric,
        )
    return best


def _grid(low: Array, high: Array, bits: int, *, symmetric: bool) -> Grid:
    if symmetric:
        return Grid(bits, high / (2 ** (bits - 1) - 1), np.zeros(high.shape))
    scale = (high - low) / (2**bits - 1)
    return Grid(bits, scale, np.round(-low / scale), symmetric=False)


__all__ = ["Grid", "fit_grid"]
