"""Graphs inside nodes: the bodies of If, Loop and Scan."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import onnx_ir as ir

_SUBGRAPHS = (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)


def has_no_subgraph(node: ir.Node) -> bool:
    """Tell whether no attribute of a node is a graph."""
    listed = node.attributes.data
    return not listed or all(attribute.type not in _SUBGRAPHS for attribute in listed.values())


def captured(node: ir.Node) -> Iterator[ir.Value]:
    """Yield outer values that the subgraphs of a node read."""
    for attribute in node.attributes.values():
        graphs: Iterable[ir.Graph] = ()
        if attribute.type == ir.AttributeType.GRAPH:
            graphs = (attribute.as_graph(),)
        elif attribute.type == ir.AttributeType.GRAPHS:
            graphs = attribute.as_graphs()
        for graph in graphs:
            for inner in graph.all_nodes():
                yield from (value for value in inner.inputs if value is not None)
            yield from graph.outputs


__all__ = ["captured", "has_no_subgraph"]
