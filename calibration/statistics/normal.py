"""What is done to X^T X before it can be inverted."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Array: TypeAlias = NDArray[np.float64]

DAMPING = 0.01
"""Share of the mean of the diagonal that is added to it: the value of every published code here."""


def damped(hessian: Array, share: float = DAMPING) -> Array:
    """Add a share of the mean of the diagonal to the diagonal."""
    added: Array = hessian + np.eye(len(hessian)) * share * np.diag(hessian).mean()
    return added


def without_dead(hessian: Array, weight: Array) -> tuple[Array, Array]:
    """Give inputs that were always 0 a diagonal of 1 and weights (out, in) of 0."""
    dead = np.diag(hessian) == 0
    if not dead.any():
        return hessian, weight
    hessian, weight = hessian.copy(), weight.copy()
    hessian[dead, dead] = 1.0
    weight[:, dead] = 0.0
    return hessian, weight


def upper_factor(hessian: Array) -> Array:
    """Upper Cholesky factor U of the inverse: inverse = U^T U."""
    factor: Array = np.linalg.cholesky(np.linalg.inv(hessian)).T
    return factor


__all__ = ["DAMPING", "damped", "upper_factor", "without_dead"]
