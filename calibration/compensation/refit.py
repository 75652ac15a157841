"""Least squares of what reads the removed units.

Source: ``least_squares``: the refit of ThiNet (Luo et al., ICCV 2017, arXiv:1707.06342, section
3.3), with a free bias. ``tyr``: Li et al., Tyr-the-Pruner, NeurIPS 2025, arXiv:2503.09657, section
3, which has none and damps the products of the inputs.
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
from secateur.calibration.importance.tyr import normal_from_gram
from secateur.calibration.importance.tyr import refit as refit_groups
from secateur.calibration.statistics.gram import Gram
from secateur.calibration.statistics.normal import damped


def with_bias(weight: Array, kept: Kept, sums: Gram) -> Refitted:
    """Weights and a bias that give the least squared error on the inputs that stay."""
    mean = sums.total / sums.n_rows
    covariance = sums.products / sums.n_rows - np.outer(mean, mean)
    covariance = damped(covariance + np.diag(np.where(np.diag(covariance) <= 0, 1.0, 0.0)))
    fitted = np.zeros(weight.shape)
    if kept.any():
        target = weight @ covariance[:, kept]
        fitted[:, kept] = np.linalg.solve(covariance[np.ix_(kept, kept)], target.T).T
    return Refitted(fitted, weight @ mean - fitted @ mean)


def without_bias(weight: Array, kept: Kept, sums: Gram) -> Refitted:
    """Tyr's refit of the groups that stay."""
    return Refitted(refit_groups(normal_from_gram(weight, sums.products), kept, 1))


COMPENSATIONS.register("least_squares")(Compensation(with_bias, Gram))
COMPENSATIONS.register("tyr")(Compensation(without_bias, Gram))

__all__ = ["with_bias", "without_bias"]
