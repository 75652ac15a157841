"""Remove units: slice every weight that contains them and respell what counts them."""

from __future__ import annotations

import json
from collections.abc import Mapping

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from secateur.graph_passes.axes import (
    REWRITES,
    Atom,
    AxisMap,
    Expr,
    indices,
    is_cut,
    kept_length,
    size,
)
from secateur.graph_passes.axes.allocation import without_collector
from secateur.graph_passes.axes.axis_map import constant_tensor
from secateur.graph_passes.axes.constants import unused_name
from secateur.graph_passes.axes.relations import op_key
from secateur.graph_passes.blocks import remove_blocks, select_blocks
from secateur.graph_passes.groups import Analysis, analyse_prepared
from secateur.graph_passes.names import name_copies
from secateur.graph_passes.plan import Plan, resolve_plan
from secateur.graph_passes.prepare import prepare
from secateur.graph_passes.unread import remove_unread
from secateur.weights import array_of, take

_Cut = tuple[tuple[int, bytes], ...]
"""Per cut axis its number and the kept positions: what makes two uses the same."""
_Uses = list[tuple[ir.Node, int]]


def remove(model: ir.Model, plan: Plan) -> ir.Model:
    """Return a model without the units that the plan leaves out.

    The input stays as it is; tensors that are not cut are shared with it, cut ones are
    sliced when they are first read, so that nothing is loaded here.

    Raises:
        BadInputError: the plan does not fit the model.
        PreconditionError: a shape computed in the graph cannot be spelled after the cut.
    """
    analysis = analyse_prepared(prepare(model), allow_outputs=plan.allow_outputs)
    keep = resolve_plan(analysis, plan)
    _record(analysis, plan)
    blocks = select_blocks(analysis.model, plan.blocks) if plan.blocks else ()
    smaller = remove_atoms(analysis, keep)
    if blocks:  # after the cuts, which need the values that the analysis knows
        remove_blocks(smaller, blocks)
        remove_unread(smaller)
    return smaller


@without_collector()
def remove_atoms(analysis: Analysis, keep: Mapping[Atom, NDArray[np.int64]]) -> ir.Model:
    """Cut the analysed model itself, in place, and return it."""
    model, axes = analysis.model, analysis.axes
    _slice_constants(model, axes, keep)
    for node in tuple(model.graph):
        rewrite = REWRITES.find(op_key(node))
        if rewrite is not None and axes.knows(node, -1) and _reads(node, axes, keep):
            rewrite(node, axes, keep)
    _resize_values(axes, keep)
    remove_unread(model)
    return model


def _record(analysis: Analysis, plan: Plan) -> None:
    """Add what goes to the model's metadata, enough to make the plan again."""
    done = json.loads(analysis.model.metadata_props.get("secateur.removals", "[]"))
    groups = {name: (analysis.group(name), units) for name, units in plan.keep.items()}
    record = {
        name: {
            "role": group.role,
            "layer": group.layer,
            "size": group.size,
            "kept": sorted(units),
            "exact": group.exact,
            "outputs": list(plan.allow_outputs),
        }
        for name, (group, units) in groups.items()
    }
    record |= {
        name: {"role": "block", "layer": name, "size": 1, "kept": []} for name in plan.blocks
    }
    analysis.model.metadata_props["secateur.removals"] = json.dumps([*done, record])


def _reads(node: ir.Node, axes: AxisMap, keep: Mapping[Atom, NDArray[np.int64]]) -> bool:
    slots = [*range(len(node.inputs)), *(~i for i in range(len(node.outputs)))]
    return any(
        is_cut(expr, keep)
        for slot in slots
        if axes.knows(node, slot)
        for expr in axes.at(node, slot)
    )


def _slice_constants(
    model: ir.Model, axes: AxisMap, keep: Mapping[Atom, NDArray[np.int64]]
) -> None:
    """Slice each constant once per way in which its uses are cut."""
    cuts: dict[ir.Value, dict[_Cut, _Uses]] = {}
    spelled: dict[Expr, bytes] = {}

    def positions(expr: Expr) -> bytes:
        if expr not in spelled:
            spelled[expr] = indices(expr, keep).tobytes()
        return spelled[expr]

    for (node, slot), exprs in axes.of_uses.items():
        value = node.inputs[slot]
        if value is None:
            continue
        key = tuple([(i, positions(expr)) for i, expr in enumerate(exprs) if is_cut(expr, keep)])
        cuts.setdefault(value, {}).setdefault(key, []).append((node, slot))
    copies: dict[str, str] = {}
    for value, ways in cuts.items():
        for key, uses in ways.items():
            if key:
                copies[_replace(model.graph, value, key, uses)] = value.name or ""
    name_copies(model, copies)


def _replace(graph: ir.Graph, value: ir.Value, key: _Cut, uses: _Uses) -> str:
    """Slice a constant for some of its uses, lazily; return the name of what they read now."""
    tensor = constant_tensor(value)
    assert tensor is not None
    kept = {axis: np.frombuffer(raw, dtype=np.int64) for axis, raw in key}
    shape = [len(kept[i]) if i in kept else dim for i, dim in enumerate(tensor.shape.numpy())]
    is_alone = len(value.uses()) == len(uses) and not value.is_graph_output()
    name = value.name or "" if is_alone else unused_name(graph, f"{value.name}.cut")
    lazy = ir.LazyTensor(
        lambda: _take(tensor, kept), dtype=tensor.dtype, shape=ir.Shape(shape), name=name
    )
    if is_alone:
        value.const_value, value.shape = lazy, ir.Shape(shape)
        return name
    fresh = ir.Value(
        name=name, shape=ir.Shape(shape), type=ir.TensorType(tensor.dtype), const_value=lazy
    )
    graph.register_initializer(fresh)
    for node, slot in uses:
        node.replace_input_with(slot, fresh)
    return name


def _take(tensor: ir.TensorProtocol, kept: Mapping[int, NDArray[np.int64]]) -> ir.TensorProtocol:
    return ir.Tensor(take(array_of(tensor), kept), dtype=tensor.dtype)


def _resize_values(axes: AxisMap, keep: Mapping[Atom, NDArray[np.int64]]) -> None:
    """Declare the new sizes of computed values, which else would contradict the weights."""
    for value, exprs in axes.of_values.items():
        if value.shape is None or exprs is None:
            continue
        touched = [is_cut(expr, keep) for expr in exprs]
        if not any(touched) or len(exprs) != len(value.shape):
            continue
        dims: list[int | ir.SymbolicDim | None] = []
        for dim, expr, goes in zip(value.shape, exprs, touched, strict=True):
            if not goes:
                dims.append(dim)
            elif isinstance(size(expr), int):
                dims.append(kept_length(expr, keep))
            else:
                dims.append(None)
        value.shape = ir.Shape(dims)


__all__ = ["remove", "remove_atoms"]
