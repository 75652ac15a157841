"""Sums of a measure of a weight along its first two axes, each number read once."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

_BLOCK_ELEMENTS = 1 << 17
"""So many numbers stay in the cache while they are measured and summed."""

Measure = Callable[[NDArray[Any]], NDArray[Any]]
Sums = NDArray[np.float64]


def marginals(array: NDArray[Any], measure: Measure) -> tuple[Sums, Sums]:
    """Sum ``measure``, number by number, over all axes but the first, and all but the second.

    Floats of 32 bits and fewer are measured and summed in float32, a block at a time, which
    gives six digits; all else is in float64. No copy of the whole is made.

    Args:
        array: of two axes or more: (rows, columns, ...).
        measure: from an array to one of the same shape and type.

    Returns:
        (rows,) and (columns,).
    """
    rows, columns = array.shape[:2]
    is_narrow = array.dtype.itemsize <= 4 and array.dtype.kind not in "iu"  # floats of all kinds
    kind = np.float32 if is_narrow else np.float64
    flat = array.reshape(rows, math.prod(array.shape[1:]))
    along_rows, along_rest = np.empty(rows), np.zeros(flat.shape[1])
    step = max(1, _BLOCK_ELEMENTS // max(flat.shape[1], 1))
    across, down = np.ones(flat.shape[1], kind), np.ones(step, kind)
    for start in range(0, rows, step):
        measured = measure(flat[start : start + step].astype(kind, copy=False))
        along_rows[start : start + step] = measured @ across
        along_rest += np.asarray(down[: len(measured)] @ measured, np.float64)
    return along_rows, along_rest.reshape(columns, math.prod(array.shape[2:])).sum(axis=1)


__all__ = ["Measure", "Sums", "marginals"]
