"""New constants for a graph that is being rewritten."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir


def replace_ints(node: ir.Node, slot: int, entries: Sequence[int]) -> None:
    """Give ``node`` an integer constant, of the type that stood there, as input.

    It is called by what it holds, and nodes that read the same numbers share it.
    """
    graph = node.graph
    assert isinstance(graph, ir.Graph)
    old = node.inputs[slot]
    dtype = np.int32 if old is not None and old.dtype == ir.DataType.INT32 else np.int64
    array = np.array(entries, dtype)
    name = f"sizes.{dtype.__name__}.{'.'.join([str(entry) for entry in entries])}"
    there = graph.initializers.get(name)
    if there is None or not _holds(there, array):
        there = new_constant(graph, name, array)
    node.replace_input_with(slot, there)


def _holds(value: ir.Value, array: np.ndarray) -> bool:
    """Tell whether an initialiser is that constant, whatever it is called."""
    tensor = value.const_value
    if tensor is None or value.is_graph_input() or value.is_graph_output():
        return False
    there = tensor.numpy()
    same = there.dtype == array.dtype and there.shape == array.shape
    return same and there.tobytes() == array.tobytes()


def new_constant(graph: ir.Graph, name: str, array: np.ndarray) -> ir.Value:
    """Register an initialiser under ``name``, or under that with a number if it is taken."""
    unique = unused_name(graph, name)
    tensor = ir.Tensor(array, name=unique)
    value = ir.Value(
        name=unique,
        shape=tensor.shape,
        type=ir.TensorType(tensor.dtype),
        const_value=tensor,
    )
    graph.register_initializer(value)
    return value


def unused_name(graph: ir.Graph, name: str) -> str:
    """Return ``name``, or it with a number where an initialiser has it already."""
    unique, number = name, 1
    while unique in graph.initializers:
        unique, number = f"{name}.{number}", number + 1
    return unique


__all__ = ["new_constant", "replace_ints", "unused_name"]
