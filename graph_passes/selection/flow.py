"""How data flows through a graph: readers, descendants and single-value frontiers.

``Shape`` and ``Size`` read no element, so no data flows through them.
"""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

SHAPE_READERS = frozenset({"Shape", "Size"})


def reads_shape_only(node: ir.Node) -> bool:
    """Tell whether the node looks at the shape of its input and at no element."""
    return not node.domain and node.op_type in SHAPE_READERS


def readers(value: ir.Value) -> list[tuple[ir.Node, int]]:
    """Return the (node, slot) pairs that read elements of ``value``."""
    return [(node, slot) for node, slot in value.uses() if not reads_shape_only(node)]


def descendants(value: ir.Value) -> set[ir.Node]:
    """Return every node that data from ``value`` reaches."""
    found: set[ir.Node] = set()
    waiting = [node for node, _ in readers(value)]
    while waiting:
        node = waiting.pop()
        if node in found:
            continue
        found.add(node)
        for output in node.outputs:
            waiting.extend(reader for reader, _ in readers(output))
    return found


def ancestors(value: ir.Value) -> Iterator[ir.Node]:
    """Yield each node that data of ``value`` comes from once, nearest first."""
    seen: set[ir.Node] = set()
    waiting = [value]
    while waiting:
        node = waiting.pop(0).producer()
        if node is None or node in seen or reads_shape_only(node):
            continue
        seen.add(node)
        yield node
        waiting.extend(item for item in node.inputs if item is not None)


def bottlenecks(start: ir.Value, order: list[ir.Node]) -> list[ir.Value]:
    """Return the values through which alone data from ``start`` flows on.

    Args:
        start: Where the flow begins; it is the first bottleneck.
        order: The graph's nodes in topological order.

    Returns:
        Values in graph order: after each of them the live frontier was that one value.
    """
    reached = descendants(start)
    open_uses = {start: len(readers(start))}
    found = [start]
    for node in order:
        if node not in reached:
            continue
        for value in set(node.inputs):
            if value in open_uses and not reads_shape_only(node):
                open_uses[value] -= sum(item is value for item in node.inputs)
                if not open_uses[value]:
                    del open_uses[value]
        for output in node.outputs:
            if uses := len(readers(output)):
                open_uses[output] = uses
        if len(open_uses) == 1:
            only = next(iter(open_uses))
            if only is not found[-1]:
                found.append(only)
    return found


__all__ = ["ancestors", "bottlenecks", "descendants", "readers", "reads_shape_only"]
