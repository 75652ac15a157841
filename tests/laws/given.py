"""Short spellings of the inputs of a case: ``x`` computed, ``c`` constant, ``ints`` spelled out."""

from __future__ import annotations

import numpy as np
from tests.laws.law import Given


def x(
    *shape: int,
    dtype: str = "float32",
    low: float = -1.0,
    high: float = 1.0,
    dynamic: str = "",
) -> Given:
    """A computed input; ``dynamic`` names its axes from the first on, ``-`` for a fixed one."""
    return Given(shape, dtype, low, high, dynamic=dynamic)


def c(
    *shape: int,
    dtype: str = "float32",
    low: float = -1.0,
    high: float = 1.0,
    values: object = None,
) -> Given:
    """A constant; ``values`` fixes what stands in it, and its shape."""
    if values is None:
        return Given(shape, dtype, low, high, constant=True)
    array = np.array(values, dtype)
    return Given(array.shape, dtype, constant=True, values=tuple(array.reshape(-1).tolist()))


def ints(*values: int) -> Given:
    """A constant vector of integers: a target, axes, lengths."""
    return Given((len(values),), "int64", constant=True, values=values)
