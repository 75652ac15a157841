"""Rows that are read by ids from outside: a table before the lookup stands for what went."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from secateur.graph_passes.axes.axis_map import LookUp, constant_tensor
from secateur.graph_passes.axes.constants import new_constant
from secateur.graph_passes.names import node_name


def table_of_ids(node: ir.Node | None) -> np.ndarray | None:
    """Return the (V,) integers of a node that gives ``table[id]`` for each id, None of others."""
    if node is None or node.op_type != "Gather" or node.domain:
        return None
    table = node.inputs[0]
    tensor = None if table is None else constant_tensor(table)
    if tensor is None or len(tensor.shape.dims) != 1 or tensor.dtype not in _INTEGERS:
        return None
    return tensor.numpy()


def translate_ids(lookup: LookUp, table: np.ndarray) -> None:
    """Let a lookup read ``table[id]`` instead of id, in place; a table before it is taken in.

    Args:
        lookup: of the graph that is rewritten.
        table: (V,) integers, one per id.
    """
    node, ids = lookup.node, lookup.node.inputs[lookup.slot]
    graph = node.graph
    assert ids is not None
    assert isinstance(graph, ir.Graph)
    first = ids.producer()
    before = table_of_ids(first)
    if first is not None and before is not None and _are_within(before, len(table)):
        table, ids = table[before], first.inputs[1]
        assert ids is not None
    dtype = np.int64 if ids.dtype is None else ids.dtype.numpy()
    constant = new_constant(graph, f"{node_name(node)}.table", table.astype(dtype))
    name = f"{constant.name}.ids"  # as unique as the constant's
    made = ir.Node("", "Gather", [constant, ids], name=name)
    made.outputs[0].name = name
    made.outputs[0].type, made.outputs[0].shape = ids.type, ids.shape
    graph.insert_before(node, made)
    node.replace_input_with(lookup.slot, made.outputs[0])


def _are_within(numbers: np.ndarray, count: int) -> bool:
    return bool(np.all((numbers >= -count) & (numbers < count)))


_INTEGERS = frozenset({ir.DataType.INT32, ir.DataType.INT64})

__all__ = ["table_of_ids", "translate_ids"]
