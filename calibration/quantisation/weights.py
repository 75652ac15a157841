"""A weight as stored whole numbers (or FP8), and the scales that turn it back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import ml_dtypes
import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from secateur.calibration.quantisation.gptq import Rounding, gptq
from secateur.calibration.quantisation.scheme import Scheme

Array: TypeAlias = NDArray[np.float64]

FP8_MAX = 448.0
"""Largest number of E4M3."""
BITS = {"int8": 8, "int4": 4}
_SMALLEST_BLOCK = 16


@dataclass(frozen=True, slots=True)
class Stored:
    """Codes in the layout of the weight, and the attributes of the node that reads them."""

    codes: ir.TensorProtocol
    scale: NDArray[np.float32]
    axis: int
    block: int = 0


@dataclass(frozen=True, slots=True)
class Layout:
    """How a weight lies in the graph: (out, in) as ``Place.matrix`` has it, and back."""

    shape: tuple[int, ...]
    axis: int
    """Axis that is summed over."""

    @property
    def out_axis(self) -> int:
        """Axis of the output channels, the first that is not summed over."""
        return 1 if self.axis == 0 else 0

    def home(self, matrix: Array) -> Array:
        """Lay (out, in) numbers out like the weight."""
        if len(self.shape) > 2:  # a kernel: (out, in * positions)
            return matrix.reshape(self.shape)
        return matrix if self.axis == 1 else matrix.T


def block_of(n_inputs: int, wanted: int) -> int:
    """Largest block up to the wanted one that divides the inputs; 0 if below 16."""
    block = wanted
    while block >= _SMALLEST_BLOCK and n_inputs % block:
        block //= 2
    return block if block >= _SMALLEST_BLOCK else 0


def store(matrix: Array, layout: Layout, scheme: Scheme, hessian: Array | None) -> Stored:
    """Round (out, in) weights as a scheme says.

    Args:
        matrix: the weights.
        layout: of the weight in the graph.
        scheme: kind and rounding.
        hessian: (in, in), for GPTQ; None rounds to the nearest.
    """
    if scheme.kind == "fp8":
        return _store_fp8(matrix, layout)
    bits = BITS[scheme.kind]
    block = block_of(matrix.shape[1], scheme.block) if scheme.kind == "int4" else 0
    rounding = Rounding(bits, group=block, search=scheme.kind == "int4")
    return store_whole(matrix, layout, rounding, hessian)


def store_whole(
    matrix: Array, layout: Layout, rounding: Rounding, hessian: Array | None = None
) -> Stored:
    """Round (out, in) weights to whole numbers.

    With a Hessian the scales are those that GPTQ worked with: fitted again to what it wrote, they
    would differ wherever a range was cut or a row's largest code is not the grid's.

    Args:
        matrix: the weights.
        layout: of the weight in the graph.
        rounding: symmetric, and in the order of the columns; up to 4 bits are stored as INT4.
        hessian: (in, in), for GPTQ; None rounds to the nearest.
    """
    size = rounding.group or matrix.shape[1]
    if hessian is None:
        grouped = matrix.reshape(-1, size)
        grid = rounding.fit(grouped)
        codes = grid.codes(grouped).reshape(matrix.shape)
        scale = grid.scale.reshape(len(matrix), -1)
    else:
        rounded = gptq(matrix, hessian, rounding)
        codes, scale = rounded.codes, rounded.scale[:, ::size]
    dtype = ml_dtypes.int4 if rounding.bits <= BITS["int4"] else np.int8
    stored = ir.Tensor(np.ascontiguousarray(layout.home(codes)).astype(dtype))
    if not rounding.group:
        return Stored(stored, scale[:, 0].astype(np.float32), layout.out_axis)
    scales = np.ascontiguousarray(layout.home(scale)).astype(np.float32)
    return Stored(stored, scales, layout.axis, rounding.group)


def _store_fp8(matrix: Array, layout: Layout) -> Stored:
    largest = np.abs(matrix).max(axis=1)
    scale = np.where(largest > 0, largest, 1.0) / FP8_MAX
    codes = layout.home(matrix / scale[:, None])
    stored = ir.Tensor(np.ascontiguousarray(codes).astype(ml_dtypes.float8_e4m3fn))
    return Stored(stored, scale.astype(np.float32), layout.out_axis)


__all__ = ["BITS", "FP8_MAX", "Layout", "Stored", "block_of", "store", "store_whole"]
