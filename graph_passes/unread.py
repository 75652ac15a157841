"""Take out what nobody reads."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import onnx_ir as ir
from onnx_ir.passes import common

from secateur.graph_passes.axes.visits import Visit

_NONE: Mapping[ir.Node, Visit] = MappingProxyType({})


def remove_unread(model: ir.Model, visited: Mapping[ir.Node, Visit] = _NONE) -> None:
    """Remove the nodes and initialisers of a graph that nobody reads, and optional outputs.

    The pass of onnx_ir looks every op up in ONNX's tables, to find optional outputs; that is
    done only for a graph in which some node has an output that nobody reads beside one that
    somebody does, or something else that could be left out.

    ``visited`` are nodes of a caller that has read them, whose outputs are the same still.
    """
    graph = model.graph
    is_rest = bool(model.functions)
    for node in reversed(graph):
        visit = visited.get(node) or Visit(node)
        unread = [not (value.uses() or value.is_graph_output()) for value in visit.outputs]
        if all(unread):
            graph.remove(node, safe=True)
        else:
            is_rest = is_rest or any(unread) or _may_be_tidied(visit)
    held = graph.initializers
    for name, value in tuple(held.data.items()):
        if not (value.uses() or value.is_graph_output() or value.is_graph_input()):
            del held[name]
    if is_rest:
        common.RemoveUnusedNodesPass()(model)


def _may_be_tidied(visit: Visit) -> bool:
    """Tell whether the pass could do more to a node than remove it or an output."""
    if not visit.inputs or visit.inputs[-1] is None or visit.holds_graphs():
        return True
    return visit.key == "BatchNormalization" and "training_mode" in visit.node.attributes.data


__all__ = ["remove_unread"]
