"""GPTQ: round a weight column by column and spread each error over those not yet rounded.

Source: Frantar et al., GPTQ, ICLR 2023, arXiv:2210.17323; blocks, groups and the order of columns
as in the code that RSQ and QuaRot share.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from secateur.calibration.quantisation.grid import Grid, fit_grid
from secateur.calibration.statistics.normal import (
    DAMPING,
    damped,
    upper_factor,
    without_dead,
)

Array: TypeAlias = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Rounding:
    """How weights are rounded."""

    bits: int = 4
    symmetric: bool = True
    group: int = 0
    """Columns that share a grid; 0: the whole row."""
    search: bool = True
    """Shrink ranges where that loses less."""
    by_activity: bool = False
    """Start with the inputs that are largest on the data."""
    block: int = 128
    """Columns after which errors reach the rest; groups are fitted to what is there by then."""
    damping: float = DAMPING

    def fit(self, weight: Array) -> Grid:
        """Fit a grid to rows."""
        return fit_grid(weight, self.bits, symmetric=self.symmetric, search=self.search)


@dataclass(frozen=True, slots=True)
class Rounded:
    """What GPTQ made of (out, in) weights."""

    values: Array
    """(out, in), each on the grid of its row, or of its row and group."""
    codes: Array
    """(out, in) whole numbers, as floats."""
    scale: Array
    """(out, in): two columns of one group have one scale."""


def gptq(weight: Array, hessian: Array, rounding: Rounding) -> Rounded:
    """Round (out, in) weights to what their grid can say.

    Args:
        weight: of one product.
        hessian: (in, in) of its inputs, weighted or not.
        rounding: the grid, and the order of work.
    """
    grid = rounding.fit(weight)
    hessian, weight = without_dead(hessian, weight)
    n_columns = weight.shape[1]
    order = np.arange(n_columns)
    if rounding.by_activity:
        order = np.argsort(-np.diag(hessian), kind="stable")
    left, hessian = weight[:, order].copy(), hessian[np.ix_(order, order)]
    factor = upper_factor(damped(hessian, rounding.damping))
    values, codes, scale = (np.empty(left.shape) for _ in range(3))
    for start in range(0, n_columns, rounding.block):
        stop = min(start + rounding.block, n_columns)
        inside, errors = left[:, start:stop].copy(), np.zeros((len(left), stop - start))
        for i, column in enumerate(range(start, stop)):
            if rounding.group and column % rounding.group == 0:
                grid = rounding.fit(left[:, column : column + rounding.group])
            at = order[column]
            codes[:, at] = grid.codes(inside[:, i : i + 1])[:, 0]
            scale[:, at] = grid.scale[:, 0]
            values[:, at] = (codes[:, at] - grid.zero[:, 0]) * grid.scale[:, 0]
            errors[:, i] = (inside[:, i] - values[:, at]) / factor[column, column]
            inside[:, i:] -= np.outer(errors[:, i], factor[column, column:stop])
        left[:, stop:] -= errors @ factor[start:stop, stop:]
    return Rounded(values, codes, scale)


__all__ = ["Rounded", "Rounding", "gptq"]
