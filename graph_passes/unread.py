"""Take out what nobody reads."""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes import common

from secateur.graph_passes.axes.subgraphs import has_no_subgraph


def remove_unread(model: ir.Model) -> None:
    """Remove the nodes and initialisers of a graph that nobody reads, and optional outputs.

    The pass of onnx_ir looks every op up in ONNX's tables, to find optional outputs; that is
    done only for a graph in which some node has an output that nobody reads beside one that
    somebody does, or something else that could be left out.
    """
    graph = model.graph
    is_rest = bool(model.functions)
    for node in reversed(graph):
        unread = [not (value.uses() or value.is_graph_output()) for value in node.outputs]
        if all(unread):
            graph.remove(node, safe=True)
        else:
            is_rest = is_rest or any(unread) or _may_be_tidied(node)
    held = graph.initializers
    for name, value in tuple(held.data.items()):
        if not (value.uses() or value.is_graph_output() or value.is_graph_input()):
            del held[name]
    if is_rest:
        common.RemoveUnusedNodesPass()(model)


def _may_be_tidied(node: ir.Node) -> bool:
    """Tell whether the pass could do more to a node than remove it or an output."""
    given = node.inputs
    if not given or given[-1] is None:
        return True
    return "training_mode" in node.attributes.data or not has_no_subgraph(node)


__all__ = ["remove_unread"]
