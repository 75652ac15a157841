"""Nodes as a pass reads them once: properties of onnx_ir are Python, and a walk asks for many."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import onnx_ir as ir

from secateur.graph_passes.axes.subgraphs import has_no_subgraph

_WITH_BODIES = frozenset({"If", "Loop", "Scan", "SequenceMap"})


class Visit:
    """A node as it was when it was read; whoever rewrites it makes a new visit."""

    __slots__ = ("inputs", "key", "node", "op", "outputs")

    def __init__(self, node: ir.Node) -> None:
        self.node = node
        self.op: str = node.op_type
        self.key = f"{domain}:{self.op}" if (domain := node.domain) else self.op
        """Of the op in the tables of rules: ``domain:Op`` outside ai.onnx."""
        self.inputs: Sequence[ir.Value | None] = node.inputs
        self.outputs: Sequence[ir.Value] = node.outputs

    def holds_graphs(self) -> bool:
        """Tell whether an attribute is a graph, which in ai.onnx only a few ops have."""
        is_able = self.key in _WITH_BODIES or self.key != self.op
        return is_able and not has_no_subgraph(self.node)


def visits_of(nodes: Iterable[ir.Node]) -> list[Visit]:
    """Read nodes, those of a graph in its order."""
    return [Visit(node) for node in nodes]


__all__ = ["Visit", "visits_of"]
