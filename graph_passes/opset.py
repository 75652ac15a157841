"""Raise a graph to a later opset where that changes only how attributes are spelled."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from secateur.errors import PreconditionError
from secateur.graph_passes.axes import node_name

SELECTION_OPSET = 18
"""Reductions with axes as an input, and Split with a number of outputs."""

_OLDEST = 13

_AXES_BECAME_INPUT = frozenset(
    {
        *("ReduceMax", "ReduceMin", "ReduceMean", "ReduceProd", "ReduceL1", "ReduceL2"),
        *("ReduceLogSum", "ReduceLogSumExp", "ReduceSumSquare"),
    }
)
_CHANGED_MEANING = {"GroupNormalization": 21, "DFT": 20, "Resize": 19}
"""Ops whose meaning or signature changed, with the opset that did it."""


def opset_of(model: ir.Model) -> int:
    """Return the version of the default operator set."""
    return model.opset_imports.get("", model.opset_imports.get("ai.onnx", 1))


def raise_opset(model: ir.Model, to: int) -> bool:
    """Bring a model to opset ``to`` at least; True where something was changed.

    Raises:
        PreconditionError: the model is older than opset 13, or holds an op whose meaning
            changed on the way.
    """
    have = opset_of(model)
    if have >= to:
        return False
    if have < _OLDEST:
        raise PreconditionError(
            "the model's opset is too old to be raised here",
            got=f"opset {have}",
            wanted=f"opset {_OLDEST} or later",
            next_step="export it again, or convert it with onnx.version_converter",
        )
    for node in model.graph.all_nodes():
        changed = _CHANGED_MEANING.get(node.op_type)
        if not node.domain and changed is not None and have < changed <= to:
            raise PreconditionError(
                f"raising the opset from {have} to {to} would change {node.op_type}",
                where=f"node {node_name(node)}",
                next_step=f"export the model again at opset {to}",
            )
    if have < SELECTION_OPSET:
        for node in list(model.graph):
            _respell(node, model.graph)
    model.opset_imports[""] = to
    return True


def _respell(node: ir.Node, graph: ir.Graph) -> None:
    if node.domain:
        return
    if node.op_type == "Split" and len(node.inputs) < 2:
        node.attributes["num_outputs"] = ir.AttrInt64("num_outputs", len(node.outputs))
    axes = node.attributes.get("axes")
    if node.op_type not in _AXES_BECAME_INPUT or axes is None:
        return
    array = np.array(axes.as_ints(), dtype=np.int64)
    value = ir.Value(
        name=f"{node.outputs[0].name}/axes",
        const_value=ir.tensor(array),
        shape=ir.Shape(array.shape),
        type=ir.TensorType(ir.DataType.INT64),
    )
    graph.register_initializer(value)
    del node.attributes["axes"]
    node.resize_inputs(2)
    node.replace_input_with(1, value)


__all__ = ["SELECTION_OPSET", "opset_of", "raise_opset"]
