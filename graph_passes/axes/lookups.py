"""Rows that are read by ids from outside: a table before the lookup stands for what went."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import onnx_ir as ir

from secateur.graph_passes.axes.constants import new_constant
from secateur.graph_passes.axes.relations import Port
from secateur.graph_passes.names import node_name


class LookUp(NamedTuple):
    """``node`` reads rows of an axis by the ids that its input ``slot`` holds."""

    node: ir.Node
    port: Port
    slot: int
    stand_in: int
    """The id whose row is read for every id whose own is gone."""


def translate_ids(lookup: LookUp, table: np.ndarray) -> None:
    """Let a lookup read ``table[id]`` instead of id, in place.

    Args:
        lookup: of the graph that is rewritten.
        table: (V,) integers, one per id.
    """
    node, ids = lookup.node, lookup.node.inputs[lookup.slot]
    graph = node.graph
    assert ids is not None
    assert isinstance(graph, ir.Graph)
    name = f"{node_name(node)}.ids"
    dtype = np.int64 if ids.dtype is None else ids.dtype.numpy()
    constant = new_constant(graph, f"{name}.table", table.astype(dtype))
    made = ir.Node("", "Gather", [constant, ids], name=name)
    made.outputs[0].name = name
    made.outputs[0].type, made.outputs[0].shape = ids.type, ids.shape
    graph.insert_before(node, made)
    node.replace_input_with(lookup.slot, made.outputs[0])


__all__ = ["LookUp", "translate_ids"]
