"""Leave out an Expand whose readers broadcast anyway: it would tie what they read it with.

A padding mask that is expanded to all heads once, and added in every layer, makes the heads
of all layers one axis: whoever removes a head of one layer removes it in all of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import onnx_ir as ir

from secateur.graph_passes.axes.visits import Visit

_ELEMENTWISE = frozenset(
    {
        *("Add", "Sub", "Mul", "Div", "Pow", "Where", "And", "Or", "Xor", "Min", "Max"),
        *("Equal", "Less", "LessOrEqual", "Greater", "GreaterOrEqual"),
    }
)
_SHAPED = frozenset({"Reshape", "Expand"})
_MASK_SLOT = 3
_HEAD_AXIS = -3


def broadcast_late(graph: ir.Graph, visits: Sequence[Visit]) -> bool:
    """Take out Expands along axes of a fixed size, and Reshapes there and back between them.

    Given   y = Reshape(Reshape(Expand(mask, (B, H, 1, N)), (B*H, 1, N)), (B, H, 1, N))
            s = Add(scores, y)                       with scores (B, H, N, N)
    Result  s = Add(scores, mask)

    Only what the shapes of the file prove is done. ``visits`` are all nodes of the graph, in
    its order. Returns whether something changed.
    """
    changed = False
    shaped = [visit for visit in visits if visit.key in _SHAPED]
    for visit in shaped:
        if visit.key == "Reshape" and not visit.outputs[0].is_graph_output():
            changed |= _skip_round_trip(graph, visit.node)
    for visit in shaped:
        if visit.key == "Expand" and visit.node.graph is graph:
            changed |= _leave_out(graph, visit.node)
    return changed


def _skip_round_trip(graph: ir.Graph, node: ir.Node) -> bool:
    """A chain of Reshapes that ends in the shape it began with does nothing."""
    result = node.outputs[0]
    wanted, source, chain = _dims(result), node.inputs[0], [node]
    while source is not None and (above := source.producer()) is not None:
        if above.domain or above.op_type != "Reshape":
            return False
        chain.append(above)
        source = above.inputs[0]
        if source is not None and wanted is not None and _dims(source) == wanted:
            result.replace_all_uses_with(source)
            _remove_unread(graph, chain)
            return True
    return False


def _remove_unread(graph: ir.Graph, chain: list[ir.Node]) -> None:
    """Remove nodes, last first, as long as nobody reads them."""
    for node in chain:
        if node.outputs[0].uses() or node.outputs[0].is_graph_output():
            return
        graph.remove(node, safe=True)


def _leave_out(graph: ir.Graph, node: ir.Node) -> bool:
    source, result = node.inputs[0], node.outputs[0]
    if source is None or result.is_graph_output():
        return False
    narrow, wide = _dims(source), _dims(result)
    if narrow is None or wide is None or len(narrow) != len(wide) or not result.uses():
        return False
    axes = {i - len(wide): n for i, n in enumerate(wide) if narrow[i] != n}
    fixed = bool(axes) and all(isinstance(size, int) for size in axes.values())
    if not fixed or not _all_broadcast(result, axes):
        return False
    for value in _expanded(result):
        dims = list(value.shape or ())
        for axis in axes:
            dims[axis] = 1
        value.shape = ir.Shape(dims)
    result.replace_all_uses_with(source)
    graph.remove(node, safe=True)
    return True


def _all_broadcast(value: ir.Value, axes: dict[int, int | str]) -> bool:
    """Tell whether every reader gets these axes, counted from the right, from elsewhere."""
    if value.is_graph_output():
        return False
    return all(_broadcasts(node, slot, axes) for node, slot in value.uses())


def _broadcasts(node: ir.Node, slot: int, axes: dict[int, int | str]) -> bool:
    if node.domain:
        return False
    if node.op_type == "Attention":
        return slot == _MASK_SLOT and set(axes) == {_HEAD_AXIS}
    if node.op_type == "Expand":
        return slot == 0 and not _asks_for(node, axes) and _all_broadcast(node.outputs[0], axes)
    if node.op_type not in _ELEMENTWISE:
        return False
    rank = len(_dims(node.outputs[0]) or ())
    others = [
        dims
        for i, other in enumerate(node.inputs)
        if i != slot and other is not None and (dims := _dims(other)) is not None
    ]
    return all(
        -axis <= rank and any(len(dims) >= -axis and dims[axis] == size for dims in others)
        for axis, size in axes.items()
    )


def _asks_for(node: ir.Node, axes: dict[int, int | str]) -> bool:
    """Tell whether an Expand would make one of these axes by itself."""
    target = node.inputs[1]
    asked = _entries(target) if target is not None else None
    return asked is None or any(len(asked) >= -axis and asked[axis] != 1 for axis in axes)


def _entries(target: ir.Value) -> list[int | None] | None:
    """Return what a shape spells, None for entries that are computed."""
    if target.const_value is not None and not target.is_graph_input():
        return [int(entry) for entry in target.const_value.numpy().ravel()]
    node = target.producer()
    if node is None or node.domain or node.op_type != "Concat":
        return None
    entries: list[int | None] = []
    for part in node.inputs:
        known = None if part is None else part.const_value
        if known is not None:
            entries.extend(int(entry) for entry in known.numpy().ravel())
        elif part is None or _dims(part) != (1,):
            return None
        else:
            entries.append(None)
    return entries


def _expanded(value: ir.Value) -> Iterator[ir.Value]:
    """Yield what further Expands make of a value."""
    for node, _ in value.uses():
        if node.op_type == "Expand" and not node.domain:
            yield node.outputs[0]
            yield from _expanded(node.outputs[0])


def _dims(value: ir.Value) -> tuple[int | str, ...] | None:
    """Return the shape, None where a size is not known."""
    if value.shape is None:
        return None
    dims = tuple(dim if isinstance(dim, int) else dim.value for dim in value.shape)
    return None if any(dim is None for dim in dims) else dims  # type: ignore[return-value]


__all__ = ["broadcast_late"]
