"""The dense twin of a removal: nothing is cut, the removed units are neutral where combined.

A removal is exact when the cut graph equals this twin. The twin only writes constants
and inserts Where; it shares no slicing with the removal it is held against.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from secateur.errors import PreconditionError
from secateur.graph_passes.axes import Atom, AxisMap, FoldUse, indices, leaves, node_name, size
from secateur.graph_passes.axes.axis_map import LookUp, constant_tensor
from secateur.graph_passes.axes.constants import new_constant
from secateur.graph_passes.axes.lookups import translate_ids
from secateur.graph_passes.axes.relations import Port
from secateur.graph_passes.blocks import select_blocks, silence_blocks
from secateur.graph_passes.groups import analyse_prepared
from secateur.graph_passes.kept_norms import renormalise
from secateur.graph_passes.kept_positions import (
    KeptPositions,
    condition,
    dynamic_axis,
    kept_positions,
)
from secateur.graph_passes.plan import Plan, resolve_plan
from secateur.graph_passes.prepare import prepare

_Keep = Mapping[Atom, NDArray[np.int64]]


def mask(model: ir.Model, plan: Plan) -> ir.Model:
    """Return the whole model with the units that the plan leaves out made neutral.

    For a contraction the *reader's* weight is set to zero, never the producer's, whose
    zero an activation or a norm would turn into something else.

    A norm over cut units has no neutral element; it becomes the same norm over the units
    that are kept, so that the twin says what a *renormalised* removal has to equal.

    Raises:
        BadInputError: the plan does not fit the model.
        PreconditionError: a cut crosses an op whose restriction to kept units is unknown.
    """
    analysis = analyse_prepared(
        prepare(model), allow_outputs=plan.allow_outputs, allow_ids=plan.allow_ids
    )
    keep = resolve_plan(analysis, plan)
    blocks = select_blocks(analysis.model, plan.blocks) if plan.blocks else ()
    _take_kept_outputs(analysis.model.graph, analysis.axes, keep)
    fills = [_fill(fold, analysis.axes, keep) for fold in analysis.axes.folds]
    for fill in fills:  # planned before anything is rewired: the axes know the old values
        if fill is None:
            continue
        if fill.neutral is None:
            renormalise(analysis.model.graph, fill.node, _of_static_axes(fill))
        else:
            _neutralise(analysis.model.graph, fill)
    for lookup in analysis.axes.lookups.values():
        _stand_in(lookup, analysis.axes, keep)
    silence_blocks(analysis.model, blocks)
    return analysis.model


def _stand_in(lookup: LookUp, axes: AxisMap, keep: _Keep) -> None:
    """Ids whose row is gone become the id that stands in for them; the rows stay."""
    rows = axes.expr(lookup.node, lookup.port)
    if any(atom in keep for atom in leaves(rows)):
        ids = np.arange(_static(size(rows), lookup.node))
        kept = np.isin(ids, indices(rows, keep))
        translate_ids(lookup, np.where(kept, ids, lookup.stand_in))


@dataclass(frozen=True, slots=True)
class _Fill:
    """What a fold needs: which positions of which axes of one input stay."""

    node: ir.Node
    slot: int
    rank: int
    kept: dict[int, KeptPositions]
    neutral: float | None


def _fill(fold: FoldUse, axes: AxisMap, keep: _Keep) -> _Fill | None:
    cut = [port for port in fold.ports if _is_cut(fold.node, port, axes, keep)]
    if not cut:
        return None
    if fold.neutral is None:
        slot = 0
    else:  # the weight's port, if there is one
        weights = [port.slot for port in cut if _weight(fold.node, port.slot) is not None]
        slot = weights[0] if weights else cut[0].slot
    kept = {}
    for port in cut:
        if port.slot == slot:
            kept[port.axis] = kept_positions(axes.expr(fold.node, port), keep, fold.node)
    return _Fill(fold.node, slot, len(axes.at(fold.node, slot)), kept, fold.neutral)


def _of_static_axes(fill: _Fill) -> dict[int, NDArray[np.bool_]]:
    if any(None in (kept.before, kept.after) for kept in fill.kept.values()):
        raise dynamic_axis(fill.node)
    return {axis: kept.stays for axis, kept in fill.kept.items()}


def _take_kept_outputs(graph: ir.Graph, axes: AxisMap, keep: _Keep) -> None:
    """A graph output that a cut shortens gives only its kept positions here too."""
    computed = set(axes.values())
    for i, output in enumerate(graph.outputs):
        if output not in computed:
            continue  # a weight that is an output stays whole
        current = output
        for axis, expr in enumerate(axes.of(output)):
            if not any(atom in keep for atom in leaves(expr)):
                continue
            left = indices(expr, keep)
            kept = new_constant(graph, f"{output.name}.kept{axis}", left)
            take = ir.Node("", "Gather", [current, kept], [ir.AttrInt64("axis", axis)])
            take.name = f"{output.name}.take{axis}"
            take.outputs[0].type = output.type
            if current.shape is not None:
                shape = current.shape.copy()
                shape[axis] = left.size
                take.outputs[0].shape = shape
            graph.append(take)
            current = take.outputs[0]
        if current is not output:
            name, output.name = output.name, f"{output.name}.dense"
            current.name = name
            graph.outputs[i] = current


def _is_cut(node: ir.Node, port: Port, axes: AxisMap, keep: _Keep) -> bool:
    return any(atom in keep for atom in leaves(axes.expr(node, port)))


def _neutralise(graph: ir.Graph, fill: _Fill) -> None:
    """Write the neutral element over the cut positions of one input of the fold."""
    tensor = _weight(fill.node, fill.slot)
    for axis, kept in fill.kept.items():
        if tensor is None:
            _insert_where(graph, fill, axis, kept)
            continue
        value = fill.node.inputs[fill.slot]
        current = None if value is None else constant_tensor(value)
        assert current is not None
        array = np.moveaxis(current.numpy().copy(), axis, 0)
        array[~kept.stays] = fill.neutral
        name = f"{node_name(fill.node)}.masked"
        masked = new_constant(graph, name, np.moveaxis(array, 0, axis))
        fill.node.replace_input_with(fill.slot, masked)


def _weight(node: ir.Node, slot: int) -> ir.TensorProtocol | None:
    value = node.inputs[slot]
    return None if value is None else constant_tensor(value)


def _static(length: object, node: ir.Node) -> int:
    if not isinstance(length, int):
        raise dynamic_axis(node)
    return length


def _insert_where(graph: ir.Graph, fill: _Fill, axis: int, kept: KeptPositions) -> None:
    value = fill.node.inputs[fill.slot]
    assert value is not None
    assert fill.neutral is not None
    nodes = _where(graph, fill, value, (axis, kept, fill.neutral))
    graph.insert_before(fill.node, nodes)
    fill.node.replace_input_with(fill.slot, nodes[-1].outputs[0])
    if fill.node.op_type == "LogSoftmax":
        _hide_infinity(graph, fill, axis, kept)


def _hide_infinity(graph: ir.Graph, fill: _Fill, axis: int, kept: KeptPositions) -> None:
    """A log softmax hands the -inf on, which a zero weight would turn into NaN: 0 instead."""
    result = fill.node.outputs[0]
    readers = tuple(result.uses())
    nodes = _where(graph, fill, result, (axis, kept, 0.0))
    graph.insert_after(fill.node, nodes)
    for reader, slot in readers:
        reader.replace_input_with(slot, nodes[-1].outputs[0])


def _where(
    graph: ir.Graph, fill: _Fill, value: ir.Value, where: tuple[int, KeptPositions, float]
) -> list[ir.Node]:
    """Return nodes that write a number over the positions of an axis that do not stay."""
    axis, kept, number = where
    if value.dtype is None and graph.opset_imports.get("", 20) < 15:
        raise PreconditionError("the type of a masked value is unknown", where=node_name(fill.node))
    name = f"{node_name(fill.node)}.mask.{value.name}.{axis}"
    shape = [-1 if i == axis else 1 for i in range(fill.rank)]
    nodes, stays = condition(graph, value, shape, kept, name)
    dtype = np.float32 if value.dtype is None else value.dtype.numpy()
    filler = new_constant(graph, f"{name}.fill", np.array(number, dtype))
    if value.dtype is None:  # behind an op that shape inference does not know
        nodes.append(ir.Node("", "CastLike", [filler, value], name=f"{name}.typed"))
        filler = nodes[-1].outputs[0]
        filler.name = f"{name}.typed"
    node = ir.Node("", "Where", [stays, value, filler], name=f"{name}.where")
    node.outputs[0].name = f"{name}.where"
    node.outputs[0].type, node.outputs[0].shape = value.type, value.shape
    return [*nodes, node]


__all__ = ["mask"]
