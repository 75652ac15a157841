"""A working copy of a model in the form that the analysis wants."""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes import common

from secateur.graph_passes.axes.visits import Visit, visits_of
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
    return prepare_and_visit(model, in_place=in_place)[0]


def prepare_and_visit(model: ir.Model, *, in_place: bool) -> tuple[ir.Model, list[Visit]]:
    """Do as ``prepare``; return the nodes of the copy too, which an analysis asks for next."""
    copy, visits = model, visits_of(model.graph)
    is_nested = check_connections(model.graph, visits)
    if not in_place:
        copy = model.clone()
        visits = visits_of(copy.graph)
    copy.ir_version = max(copy.ir_version, _CONSTANTS_NEED_NO_INPUT)
    if copy.functions:
        common.InlinePass()(copy)
        visits = visits_of(copy.graph)
        is_nested = any(visit.holds_graphs() for visit in visits)
    if is_nested or any(visit.key == "Constant" for visit in visits):
        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(copy)
        visits = visits_of(copy.graph)
    if fold_integers(copy.graph, visits):
        visits = visits_of(copy.graph)
    if any(_is_open(value) for visit in visits for value in visit.outputs):
        common.ShapeInferencePass(data_prop=True)(copy)
        visits = visits_of(copy.graph)
    if broadcast_late(copy.graph, visits):
        common.RemoveUnusedNodesPass()(copy)
        visits = visits_of(copy.graph)
    return copy, visits


def _is_open(value: ir.Value) -> bool:
    """Tell whether shape inference could say more of a value."""
    return (value.shape is None or value.type is None) and bool(value.name)


__all__ = ["prepare", "prepare_and_visit"]
