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

_BLOCK_ELEMENTS = 1 << 22


def array_of(tensor: ir.TensorProtocol) -> Array:
    """Return the values of a tensor; those in a file leave memory with the array.

    ``numpy()`` of an external tensor keeps the file mapped, and every page that was read
    counts as memory, until ``release()`` is called, which fails while anybody has an array of
    it. This array has a mapping to itself.
    """
    import onnx_ir as ir

    if not isinstance(tensor, ir.ExternalTensor):
        return tensor.numpy()
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


def _take_axis(array: Array, positions: NDArray[np.int64], axis: int) -> Array:
    """Take positions; whole heads of 64 as runs of 64, not number by number."""
    run = _common_run(positions, array.shape[axis])
    if run < 2:
        return array.take(positions, axis)
    before, after = array.shape[:axis], array.shape[axis + 1 :]
    runs = array.reshape(*before, array.shape[axis] // run, run, *after)
    return runs.take(positions[::run] // run, axis).reshape(*before, len(positions), *after)


def _common_run(positions: NDArray[np.int64], length: int) -> int:
    """Longest length of which the kept positions, and the gaps between them, are multiples."""
    starts = np.flatnonzero(np.diff(positions, prepend=-2) != 1)
    return math.gcd(length, len(positions), *starts.tolist(), *positions[starts].tolist())


__all__ = ["Array", "array_of", "bytes_of", "take"]
