"""A working copy of a model in the form that the analysis wants."""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes import common

from secateur.graph_passes.axes.subgraphs import has_no_subgraph
from secateur.graph_passes.connections import check_connections
from secateur.graph_passes.constant_folding import fold_integers
from secateur.graph_passes.late_broadcast import broadcast_late

_CONSTANTS_NEED_NO_INPUT = 4
"""Before this IR version every initialiser had to be a graph input too, also those made here."""


def prepare(model: ir.Model, *, in_place: bool = False) -> ir.Model:
    """Return a copy with functions inlined, constants lifted and shapes inferred.

    Tensors are shared with the original, which stays as it is. Shapes are inferred
    only where the file lacks some, or where folded integers make open sizes known.

    Args:
        model: any.
        in_place: change the model itself and return it, for a caller that needs no copy.

    Raises:
        BadInputError: the graph contradicts itself, see ``check_connections``.
    """
    copy, nodes = model, tuple(model.graph)  # which takes onnx_ir a while: done once
    is_nested = check_connections(model.graph, nodes)
    if not in_place:
        copy = model.clone()
        nodes = tuple(copy.graph)
    copy.ir_version = max(copy.ir_version, _CONSTANTS_NEED_NO_INPUT)
    if copy.functions:
        common.InlinePass()(copy)
        nodes = tuple(copy.graph)
        is_nested = any(not has_no_subgraph(node) for node in nodes)
    if is_nested or any(node.op_type == "Constant" for node in nodes):
        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(copy)
        nodes = tuple(copy.graph)
    if fold_integers(copy.graph, nodes):
        nodes = tuple(copy.graph)
    outputs = [value for node in nodes for value in node.outputs]
    if any((value.shape is None or value.dtype is None) and value.name for value in outputs):
        common.ShapeInferencePass(data_prop=True)(copy)
        nodes = tuple(copy.graph)
    if broadcast_late(copy.graph, nodes):
        common.RemoveUnusedNodesPass()(copy)
    return copy


__all__ = ["prepare"]
