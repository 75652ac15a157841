"""Integer arithmetic on constants, done once: what exporters that do not optimise leave behind.

A convolution without bias comes as ``Conv(x, w, Expand(0, Expand(Shape(w), [1])))``; the
size of that bias is known, but shape inference does not see through two Expands.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from secateur.graph_passes.axes.visits import Visit

_OPS = frozenset(
    {
        *("Add", "Cast", "Concat", "Div", "Equal", "Expand", "Gather", "Identity", "Max", "Min"),
        *("Mod", "Mul", "Range", "ReduceProd", "Reshape", "Shape", "Slice", "Squeeze", "Sub"),
        *("Unsqueeze", "Where"),
    }
)
_MOST_ELEMENTS = 64
"""Shapes are short; larger integer constants are tables, which stay where they are."""


def fold_integers(graph: ir.Graph, visits: Sequence[Visit]) -> bool:
    """Replace small integer results of constants by constants; tell whether there were any.

    Shapes of constants count as constants. Values behind a folded one lose a shape with open
    sizes, because shape inference can do better with it.

    Args:
        graph: that is changed.
        visits: all of its nodes, in its order.
    """
    folded = False
    for visit in visits:
        node = visit.node
        result = _value(node, visit.key) if visit.key in _OPS else None
        if result is None:
            continue
        output = node.outputs[0]
        for reader in output.consumers():
            for value in reader.outputs:
                if value.shape is not None and not value.shape.is_static():
                    value.shape = None
        output.replace_all_uses_with(_initialiser(graph, output, result))
        graph.remove(node, safe=True)
        folded = True
    return folded


def _value(node: ir.Node, op: str) -> NDArray[np.generic] | None:
    given = node.inputs  # as they are by now
    if not given or (op != "Shape" and given[0] is not None and given[0].const_value is None):
        return None  # most nodes compute with something that is computed
    if len(node.outputs) != 1 or node.outputs[0].is_graph_output():
        return None
    if op == "Shape":
        return _shape_of_constant(node)
    feeds: dict[str, NDArray[np.generic]] = {}
    for value in given:
        array = None if value is None else _small(value)
        if value is not None and array is None:
            return None
        if value is not None and array is not None:
            feeds[value.name or ""] = array
    from onnx.reference import ReferenceEvaluator

    (result,) = ReferenceEvaluator(ir.to_proto(node)).run(None, feeds)
    return result if _is_small(result) else None


def _shape_of_constant(node: ir.Node) -> NDArray[np.int64] | None:
    source = node.inputs[0]
    if source is None or source.is_graph_input() or source.const_value is None:
        return None
    start, end = node.attributes.get_int("start", 0), node.attributes.get_int("end", None)
    return np.asarray(source.const_value.shape.numpy()[start:end], dtype=np.int64)


def _small(value: ir.Value) -> NDArray[np.generic] | None:
    tensor = value.const_value
    if tensor is None or value.is_graph_input() or tensor.size > _MOST_ELEMENTS:
        return None
    if tensor.dtype not in {ir.DataType.INT64, ir.DataType.INT32, ir.DataType.BOOL}:
        return None
    return tensor.numpy()


def _is_small(array: NDArray[np.generic]) -> bool:
    return array.dtype.kind in "ib" and array.size <= _MOST_ELEMENTS


def _initialiser(graph: ir.Graph, like: ir.Value, array: NDArray[np.generic]) -> ir.Value:
    name = f"{like.name}_folded"
    tensor = ir.tensor(array, name=name)
    value = ir.Value(
        name=name,
        type=ir.TensorType(tensor.dtype),
        shape=ir.Shape(array.shape),
        const_value=tensor,
    )
    graph.register_initializer(value)
    return value


__all__ = ["fold_integers"]
