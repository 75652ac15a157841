"""Sums of a measure of a weight along its first two axes, each number read once."""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import Any

import numpy as np
from numpy.typing import NDArray

_BLOCK_ELEMENTS = 1 << 18
"""So many are measured at a time: fewer cost more calls, and each adds to all columns."""

Measure = np.ufunc
Sums = NDArray[np.float64]


def scratch() -> Sums:
    """Return room for the numbers that are measured; fresh memory costs more than filling it."""
    return np.empty(_BLOCK_ELEMENTS)


def marginals(
    array: NDArray[Any], measure: Measure, axes: Collection[int], room: Sums
) -> dict[int, Sums]:
    """Sum ``measure``, number by number, over all axes but the first, and all but the second.

    Floats of 32 bits and fewer are measured and summed in float32, a block at a time, which
    gives six digits; all else is in float64. No copy of the whole is made.

    Args:
        array: of two axes or more: (rows, columns, ...).
        measure: of one number, such as ``np.square``.
        axes: which of 0 and 1 are asked for.
        room: what ``scratch`` gave, written over.

    Returns:
        By axis: (rows,) and (columns,), those that were asked for.
    """
    rows, columns = array.shape[:2]
    is_narrow = array.dtype.itemsize <= 4 and array.dtype.kind not in "iu"  # floats of all kinds
    kind = np.float32 if is_narrow else np.float64
    flat = array.reshape(rows, math.prod(array.shape[1:]))
    width = flat.shape[1]
    step = min(rows, max(1, _BLOCK_ELEMENTS // max(width, 1)))
    ones = np.ones(max(width, step), kind)
    held = room.view(kind) if step * width <= _BLOCK_ELEMENTS else np.empty(width, kind)
    blocks = held[: step * width].reshape(step, width)
    along_rows, along_rest = np.empty(rows), np.zeros(width)
    for start in range(0, rows, step):
        block = flat[start : start + step].astype(kind, copy=False)
        measured = measure(block, out=blocks[: len(block)])
        if 0 in axes:
            along_rows[start : start + step] = measured @ ones[:width]
        if 1 in axes:
            along_rest += ones[: len(block)] @ measured
    found: dict[int, Sums] = {}
    if 0 in axes:
        found[0] = along_rows
    if 1 in axes:
        is_flat = width == columns
        found[1] = along_rest if is_flat else along_rest.reshape(columns, -1).sum(axis=1)
    return found


__all__ = ["Measure", "Sums", "marginals"]
