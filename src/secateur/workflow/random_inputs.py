"""Inputs made up from a graph's own signature: for proofs and for counting, never for claims."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from secateur.errors import BadInputError
from secateur.graph_passes.axes import constant
from secateur.runtime.backend import Array

_SHORTEST = 2
_MANY, _LONG, _N_BATCHES = 16, 32, 8
"""Of inputs to calibrate on: samples of a batch, every other dimension, batches."""
_MADE_UP = ((2, 7), (3, 12))
"""Batch, and every other dynamic dimension."""


def required_inputs(model: ir.Model) -> list[ir.Value]:
    """The inputs that a run must be given: those without a default."""
    return [value for value in model.graph.inputs if value.const_value is None]


def dimension_names(model: ir.Model) -> tuple[str, ...]:
    """Names of the dynamic dimensions of the inputs, in order of appearance."""
    dims = [dim for value in required_inputs(model) for dim in value.shape or ()]
    return tuple(dict.fromkeys(str(dim.value) for dim in dims if isinstance(dim, ir.SymbolicDim)))


def random_inputs(
    model: ir.Model, sizes: Mapping[str, int], *, seed: int, ragged: bool = True
) -> dict[str, Array]:
    """One batch for the graph: ids below their table's rows, masks of 1s, normal floats.

    Args:
        model: its inputs without a default are filled.
        sizes: of every dynamic dimension, by name.
        seed: of the numbers.
        ragged: end the masks early, each sample at its own length; else they are all 1.

    Raises:
        BadInputError: a dimension that ``sizes`` does not give.
    """
    rng = np.random.default_rng(seed)
    lengths: Array | None = None
    arrays: dict[str, Array] = {}
    for value in required_inputs(model):
        shape = _shape(value, sizes)
        dtype = (value.dtype or ir.DataType.FLOAT).numpy()
        rows = _table_rows(value)
        if np.issubdtype(dtype, np.floating):
            arrays[str(value.name)] = rng.standard_normal(shape).astype(dtype)
        elif rows:
            arrays[str(value.name)] = rng.integers(0, rows, shape).astype(dtype)
        else:
            if lengths is None and len(shape) == 2:
                low = min(_SHORTEST, shape[1]) if ragged else shape[1]
                lengths = rng.integers(low, shape[1], shape[0], endpoint=True)
                lengths[0] = shape[1]  # one sample fills the batch, as in any padded batch
            arrays[str(value.name)] = _mask(shape, lengths).astype(dtype)
    return arrays


def made_up_batches(model: ir.Model) -> list[dict[str, Array]]:
    """Two small ragged batches of different sizes."""
    names = dimension_names(model)
    return [
        random_inputs(model, {n: batch if n == names[0] else other for n in names}, seed=batch)
        for batch, other in _MADE_UP
    ]


def calibration_batches(model: ir.Model) -> list[dict[str, Array]]:
    """Random inputs to calibrate on where there are no others: normal floats, any ids."""
    names = dimension_names(model)
    sizes = {name: _MANY if name == names[0] else _LONG for name in names}
    return [random_inputs(model, sizes, seed=seed, ragged=False) for seed in range(_N_BATCHES)]


def _shape(value: ir.Value, sizes: Mapping[str, int]) -> tuple[int, ...]:
    shape = []
    for dim in value.shape or ():
        if isinstance(dim, int):
            shape.append(dim)
            continue
        name = str(dim.value)
        if name not in sizes:
            raise BadInputError(
                f"the size of dimension {name!r} is not known", where=f"input {value.name!r}"
            )
        shape.append(sizes[name])
    return tuple(shape)


def _mask(shape: tuple[int, ...], lengths: Array | None) -> Array:
    if lengths is None or len(shape) != 2:
        return np.ones(shape, np.int64)
    return (np.arange(shape[1]) < lengths[:, None]).astype(np.int64)


def _table_rows(value: ir.Value) -> int:
    """Rows of the table that the input is looked up in; 0 for an input that is none."""
    for node, slot in value.uses():
        table = constant(node.inputs[0]) if node.op_type == "Gather" and slot == 1 else None
        if table is not None and table.ndim >= 2:
            return int(table.shape[0])
        if node.op_type in {"Cast", "Identity"} and (rows := _table_rows(node.outputs[0])):
            return rows
    return 0


__all__ = [
    "calibration_batches",
    "dimension_names",
    "made_up_batches",
    "random_inputs",
    "required_inputs",
]
