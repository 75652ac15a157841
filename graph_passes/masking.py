"""The dense twin of a removal: nothing is cut, the removed units are neutral where combined.

A removal is exact when the cut graph equals this twin. The twin only writes constants
and inserts Where; it shares no slicing with the removal it is held against.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from secateur.errors import PreconditionError
from secateur.graph_passes.axes import Atom, AxisMap, FoldUse, indices, leaves, node_name, size
from secateur.graph_passes.axes.axis_map import constant_tensor
from secateur.graph_passes.axes.relations import Port
from secateur.graph_passes.axes.rewrites import new_constant
from secateur.graph_passes.groups import analyse_prepared
from secateur.graph_passes.plan import Plan, resolve_plan
from secateur.graph_passes.prepare import prepare

_Keep = Mapping[Atom, NDArray[np.int64]]


def mask(model: ir.Model, plan: Plan) -> ir.Model:
    """Return the whole model with the units that the plan leaves out made neutral.

    For a contraction the *reader's* weight is set to zero, never the producer's, whose
    zero an activation or a norm would turn into something else.

    Raises:
        BadInputError: the plan does not fit the model.
        PreconditionError: a cut crosses a norm, which has no neutral element.
    """
    analysis = analyse_prepared(prepare(model))
    keep = resolve_plan(analysis, plan)
    for fold in analysis.axes.folds:
        cut = [port for port in fold.ports if _is_cut(fold.node, port, analysis.axes, keep)]
        if not cut:
            continue
        if fold.neutral is None:
            raise PreconditionError(
                "a norm over cut units has no neutral element", where=node_name(fold.node)
            )
        _neutralise(analysis.model.graph, fold, cut, (analysis.axes, keep))
    return analysis.model


def _is_cut(node: ir.Node, port: Port, axes: AxisMap, keep: _Keep) -> bool:
    return any(atom in keep for atom in leaves(axes.expr(node, port)))


def _neutralise(
    graph: ir.Graph, fold: FoldUse, cut: list[Port], context: tuple[AxisMap, _Keep]
) -> None:
    """Fill the cut elements of one port of the fold: the weight's if there is one."""
    axes, keep = context
    assert fold.neutral is not None
    is_weight = [_weight(fold.node, port) is not None for port in cut]
    port = cut[is_weight.index(True)] if any(is_weight) else cut[0]
    expr = axes.expr(fold.node, port)
    kept = np.zeros(_static(size(expr), fold.node), dtype=bool)
    kept[indices(expr, keep)] = True
    tensor = _weight(fold.node, port)
    if tensor is not None:
        array = np.moveaxis(tensor.numpy().copy(), port.axis, 0)
        array[~kept] = fold.neutral
        value = new_constant(
            graph, f"{node_name(fold.node)}.masked", np.moveaxis(array, 0, port.axis)
        )
        fold.node.replace_input_with(port.slot, value)
        return
    _insert_where(graph, fold, port, (kept, len(axes.at(fold.node, port.slot))))


def _weight(node: ir.Node, port: Port) -> ir.TensorProtocol | None:
    value = node.inputs[port.slot]
    return None if value is None else constant_tensor(value)


def _static(length: object, node: ir.Node) -> int:
    if not isinstance(length, int):
        raise PreconditionError("a cut axis has a dynamic size", where=node_name(node))
    return length


def _insert_where(
    graph: ir.Graph, fold: FoldUse, port: Port, kept: tuple[NDArray[np.bool_], int]
) -> None:
    positions, rank = kept
    value = fold.node.inputs[port.slot]
    assert value is not None
    if value.dtype is None:
        raise PreconditionError("the type of a masked value is unknown", where=node_name(fold.node))
    shape = [1] * rank
    shape[port.axis] = positions.size
    name = f"{node_name(fold.node)}.mask{port.slot}.{port.axis}"
    condition = new_constant(graph, name, positions.reshape(shape))
    fill = new_constant(graph, f"{name}.fill", np.array(fold.neutral, value.dtype.numpy()))
    where = ir.Node("", "Where", [condition, value, fill], name=f"{name}.where")
    where.outputs[0].name = f"{name}.where"
    where.outputs[0].dtype = value.dtype
    where.outputs[0].shape = value.shape
    graph.insert_before(fold.node, where)
    fold.node.replace_input_with(port.slot, where.outputs[0])


__all__ = ["mask"]
