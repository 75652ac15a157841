"""Sums of a measure of a weight along its first two axes, each number read once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

_BLOCK_ELEMENTS = 1 << 17
"""So many numbers stay in the cache while they are measured and summed."""
_NARROW = frozenset({"float16", "bfloat16", "float32"})

Measure = Callable[[NDArray[Any]], NDArray[Any]]
Sums = NDArray[np.float64]


def marginals(array: NDArray[Any], measure: Measure) -> tuple[Sums, Sums]:
    """Sum ``measure``, number by number, over all axes but the first, and all but the second.

    Numbers of 32 bits and fewer are measured, and summed over the kernel of a convolution, in
    float32; all else is in float64. No copy of the whole is made.

    Args:
        array: of two axes or more: (rows, columns, ...).
        measure: from an array to one of the same shape and type.

    Returns:
        (rows,) and (columns,).
    """
    rows, columns = array.shape[:2]
    kind = np.float32 if array.dtype.name in _NARROW else np.float64
    kernel = array.reshape(rows, columns, -1)
    ones = np.ones(kernel.shape[2], kind)
    along_rows, along_columns = np.empty(rows), np.zeros(columns)
    step = max(1, _BLOCK_ELEMENTS * rows // max(array.size, 1))
    for start in range(0, rows, step):
        measured = measure(kernel[start : start + step].astype(kind, copy=False))
        if len(ones) > 1:
            measured = measured.reshape(-1, len(ones)) @ ones
        summed = measured.reshape(-1, columns).astype(np.float64)
        summed.sum(axis=1, out=along_rows[start : start + step])
        along_columns += summed.sum(axis=0)
    return along_rows, along_columns


__all__ = ["Measure", "Sums", "marginals"]
