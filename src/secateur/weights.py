"""Reading weights of models that may be larger than memory."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import onnx_ir as ir

Array = NDArray[Any]

_BLOCK_ELEMENTS = 1 << 20
_CACHED_BYTES = 1 << 18
"""Whole rows of so many bytes are still in the processor's cache when columns are taken of them."""
_SMALL_ELEMENTS = 1 << 14
"""Below, finding out how to copy takes longer than copying."""
_FEW_ELEMENTS = 1 << 17
"""Up to here a copy of whole rows, of which columns are taken then, costs less than one go."""


def array_of(tensor: ir.TensorProtocol) -> Array:
    """Return the values of a tensor; those in a file leave memory with the array.

    ``numpy()`` of an external tensor keeps the file mapped, and every page that was read
    counts as memory, until ``release()`` is called, which fails while anybody has an array of
    it. This array has a mapping to itself.
    """
    import onnx_ir as ir

    if ir.ExternalTensor not in type(tensor).__mro__:  # isinstance takes ten times as long
        return tensor.numpy()
    assert isinstance(tensor, ir.ExternalTensor)
    own = ir.ExternalTensor(
        tensor.location,
        tensor.offset,
        tensor.length,
        tensor.dtype,
        shape=tensor.shape,
        name=tensor.name or "",
        base_dir=tensor.base_dir,
    )
    return own.numpy()


def bytes_of(tensor: ir.TensorProtocol) -> memoryview:
    """Return the bytes of a tensor as ONNX stores them, without a copy where there is none."""
    if tensor.dtype.bitwidth < 8:
        return memoryview(tensor.tobytes())  # several numbers to a byte
    flat = np.ascontiguousarray(array_of(tensor)).reshape(-1)
    return flat.view(np.uint8).data


def take(array: Array, kept: Mapping[int, NDArray[np.int64]]) -> Array:
    """Copy the kept positions of each axis, some rows at a time.

    Args:
        array: any shape.
        kept: ascending positions by axis; an axis that is not named stays whole.

    Returns:
        A new array; besides it only a few rows are in memory.
    """
    if len(kept) == 1:
        ((axis, positions),) = kept.items()
        return _take_axis(array, positions, axis)
    if kept.keys() == {0, 1} and array.size <= _FEW_ELEMENTS:
        return _at(_at(array, kept[0], 0), kept[1], 1)
    if kept.keys() == {0, 1} and array.flags.c_contiguous:
        return _take_rows_and_columns(array, kept[0], kept[1])
    rows = kept.get(0, np.arange(array.shape[0]))
    shape = [len(kept[axis]) if axis in kept else n for axis, n in enumerate(array.shape)]
    taken = np.empty(shape, array.dtype)
    step = max(1, _BLOCK_ELEMENTS * array.shape[0] // max(array.size, 1))
    for start in range(0, len(rows), step):
        block = _take_axis(array, rows[start : start + step], 0)
        for axis, positions in kept.items():
            block = _take_axis(block, positions, axis) if axis else block
        taken[start : start + step] = block
    return taken


def _take_rows_and_columns(
    array: Array, rows: NDArray[np.int64], columns: NDArray[np.int64]
) -> Array:
    """Take along the first two axes, without a copy of all whole rows between."""
    run = _common_run(columns, array.shape[1]) if array.ndim == 2 else 1  # channels have no heads
    columns = columns[::run] // run
    items = array.reshape(array.shape[0], array.shape[1] // run, -1)
    taken = np.empty((len(rows), len(columns), items.shape[2]), array.dtype)
    if items.shape[2] == 1:  # number by number, which costs more than copying rows before
        step = max(1, _CACHED_BYTES // items[:1].nbytes)
        for start in range(0, len(rows), step):
            block = items.take(rows[start : start + step], 0)
            block.take(columns, 1, out=taken[start : start + step], mode="clip")  # others copy
    else:
        flat, width = items.reshape(-1, items.shape[2]), items.shape[1]
        step = max(1, _BLOCK_ELEMENTS // len(columns))
        for start in range(0, len(rows), step):
            which = rows[start : start + step, None] * width + columns
            flat.take(which, 0, out=taken[start : start + step], mode="clip")
    return taken.reshape(len(rows), -1, *array.shape[2:])


def _take_axis(array: Array, positions: NDArray[np.int64], axis: int) -> Array:
    """Take positions; whole heads of 64 as runs of 64, not number by number."""
    if array.size <= _SMALL_ELEMENTS:
        return _at(array, positions, axis)
    run = _common_run(positions, array.shape[axis])
    if run < 2:
        return _at(array, positions, axis)
    before, after = array.shape[:axis], array.shape[axis + 1 :]
    runs = array.reshape(*before, array.shape[axis] // run, run, *after)
    return _at(runs, positions[::run] // run, axis).reshape(*before, len(positions), *after)


def _at(array: Array, positions: NDArray[np.int64], axis: int) -> Array:
    """Take positions that ascend: with the ends inside all are, and NumPy need not look at each.

    Single numbers of every row, columns of a matrix, come twice as fast.

    Raises:
        IndexError: a position is outside.
    """
    if len(positions):
        first, last = positions.item(0), positions.item(-1)
        if not 0 <= first <= last < array.shape[axis]:
            raise IndexError(f"positions {first} to {last} of {array.shape[axis]}")
    return array.take(positions, axis, mode="clip")


def _common_run(positions: NDArray[np.int64], length: int) -> int:
    """Longest length of which the kept positions, and the gaps between them, are multiples."""
    inner = np.flatnonzero(positions[1:] != positions[:-1] + 1) + 1
    at_all = math.gcd(length, len(positions), *positions[:1].tolist(), *inner[:1].tolist())
    if at_all == 1 or not len(inner):
        return at_all
    return math.gcd(at_all, *inner.tolist(), *positions[inner].tolist())


__all__ = ["Array", "array_of", "bytes_of", "take"]
