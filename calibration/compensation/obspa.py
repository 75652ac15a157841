"""OBSPA: spread what goes over the weights that stay, by the inverse Hessian.

Source: Wang et al., Structurally Prune Anything, arXiv:2403.18955, section 3.3. ``obspa`` is the
closed form, in which every column that stays makes up for every one that goes. ``obspa_sweep`` is
the pass from left to right of a co-author's code (johnrachwan123/Torch-Pruning at 777d5aa), which
never updates columns left of the one that goes; it is there for comparison.
"""

from __future__ import annotations

import numpy as np

from secateur.calibration.compensation.core import (
    COMPENSATIONS,
    Array,
    Compensation,
    Kept,
    Refitted,
)
from secateur.calibration.statistics.gram import Gram
from secateur.calibration.statistics.normal import DAMPING, damped, upper_factor, without_dead


def closed_form(weight: Array, kept: Kept, sums: Gram) -> Refitted:
    """Least squares on the inputs that stay, the Hessian damped; no bias."""
    hessian, weight = without_dead(sums.hessian, weight)
    hessian = damped(hessian)
    fitted = np.zeros(weight.shape)
    if kept.any():
        target = weight @ hessian[:, kept]
        fitted[:, kept] = np.linalg.solve(hessian[np.ix_(kept, kept)], target.T).T
    return Refitted(fitted)


def sweep(weight: Array, kept: Kept, hessian: Array, damping: float = DAMPING) -> Array:
    """Remove columns from left to right, each error spread over the columns to its right."""
    hessian, weight = without_dead(hessian, weight)
    factor = upper_factor(damped(hessian, damping))
    swept = weight.copy()
    for column in np.flatnonzero(~kept).tolist():
        error = swept[:, column] / factor[column, column]
        swept[:, column:] -= np.outer(error, factor[column, column:])
        swept[:, column] = 0.0
    return swept


def fastest_columns(
    weight: Array, hessian: Array, share: float, block: int, damping: float = DAMPING
) -> Array:
    """Sweep blocks of columns; in each the ``int(block * share)`` with the lowest scores go.

    Scores are those before the sweep reached the block, by sums over a column.
    """
    hessian, weight = without_dead(hessian, weight)
    factor = upper_factor(damped(hessian, damping))
    swept = weight.copy()
    for start in range(0, weight.shape[1], block):
        stop = min(start + block, weight.shape[1])
        inside = np.diag(factor)[start:stop]
        scores = (np.square(swept[:, start:stop]) / np.square(inside)).sum(axis=0)
        gone = np.argsort(scores, kind="stable")[: int((stop - start) * share)] + start
        for column in np.sort(gone).tolist():
            error = swept[:, column] / factor[column, column]
            swept[:, column:] -= np.outer(error, factor[column, column:])
            swept[:, column] = 0.0
    return swept


def _left_to_right(weight: Array, kept: Kept, sums: Gram) -> Refitted:
    """Columns that go are swept from left to right, as in the published precursor."""
    return Refitted(sweep(weight, kept, sums.hessian))


COMPENSATIONS.register("obspa")(Compensation(closed_form, Gram))
COMPENSATIONS.register("obspa_sweep")(Compensation(_left_to_right, Gram))

__all__ = ["closed_form", "fastest_columns", "sweep"]
