"""Remove units: slice every weight that contains them and respell what counts them."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

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
from secateur.graph_passes.axes.axis_map import ConstantUse, constant_tensor
from secateur.graph_passes.axes.constants import unused_name
from secateur.graph_passes.axes.visits import Visit
from secateur.graph_passes.blocks import remove_blocks, select_blocks
from secateur.graph_passes.cut_tensor import CutTensor
from secateur.graph_passes.groups import Analysis, analyse
from secateur.graph_passes.names import name_copies
from secateur.graph_passes.plan import Plan, resolve_plan
from secateur.graph_passes.unread import remove_unread

_Positions = NDArray[np.int64]
_Way = tuple[tuple[int, bytes], ...]
"""Per cut axis its number and the kept positions: what makes two uses the same."""


def remove(model: ir.Model, plan: Plan) -> ir.Model:
    """Return a model without the units that the plan leaves out.

    The input stays as it is; tensors that are not cut are shared with it, cut ones are
    sliced when they are first read, so that nothing is loaded here.

    Raises:
        BadInputError: the plan does not fit the model.
        PreconditionError: a shape computed in the graph cannot be spelled after the cut.
    """
    analysis = analyse(model, allow_outputs=plan.allow_outputs, allow_ids=plan.allow_ids)
    keep = resolve_plan(analysis, plan)
    _record(analysis, plan)
    blocks = select_blocks(analysis.model, plan.blocks) if plan.blocks else ()
    smaller = remove_atoms(analysis, keep)
    if blocks:  # after the cuts, which need the values that the analysis knows
        remove_blocks(smaller, blocks)
        remove_unread(smaller)
    return smaller


@without_collector()
def remove_atoms(analysis: Analysis, keep: Mapping[Atom, _Positions]) -> ir.Model:
    """Cut the analysed model itself, in place, and return it."""
    model = analysis.model
    cut = _Cut(model.graph, analysis.axes, keep)
    _slice_constants(model, cut)
    rewrites = REWRITES.table()
    for visit in cut.axes.visited.values():
        rewrite = rewrites.get(visit.key)
        if rewrite is not None and cut.touches(visit) and cut.axes.knows(visit.node, -1):
            rewrite(visit.node, cut.axes, keep)
    _resize_values(cut)
    remove_unread(model, cut.axes.visited)
    return model


@dataclass(frozen=True, slots=True)
class _Cut:
    """What is kept, and which axes that cuts; many values have the very same axes."""

    graph: ir.Graph
    axes: AxisMap
    keep: Mapping[Atom, _Positions]
    _known: dict[int, tuple[int, ...]] = field(default_factory=dict)
    _shapes: dict[tuple[Any, ...], ir.Shape] = field(default_factory=dict)

    def of(self, exprs: Sequence[Expr]) -> tuple[int, ...]:
        """Numbers of those of the axes that are cut, which have to be the analysis' own."""
        found = self._known.get(id(exprs))
        if found is None:
            cut = []
            for axis, expr in enumerate(exprs):
                if len(expr) == 1 and type(expr[0]) is Atom:  # most axes are one leaf atom
                    if expr[0] in self.keep:
                        cut.append(axis)
                elif is_cut(expr, self.keep):
                    cut.append(axis)
            self._known[id(exprs)] = found = tuple(cut)
        return found

    def shape(self, dims: tuple[Any, ...]) -> ir.Shape:
        """Return the shape, frozen; weights of one size share it."""
        found = self._shapes.get(dims)
        if found is None:
            self._shapes[dims] = found = ir.Shape(dims, frozen=True)
        return found

    def touches(self, visit: Visit) -> bool:
        """Tell whether some axis of an input or output of a node is cut."""
        of_values, of_uses = self.axes.of_values, self.axes.of_uses
        for value in visit.outputs:
            exprs = of_values.get(value)
            if exprs is not None and self.of(exprs):
                return True
        for slot, given in enumerate(visit.inputs):
            exprs = None if given is None else of_values.get(given)
            if exprs is None:
                used = of_uses.get((visit.node, slot))
                exprs = None if used is None else used.exprs
            if exprs is not None and self.of(exprs):
                return True
        return False


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
            "ids": dict(plan.allow_ids),
        }
        for name, (group, units) in groups.items()
    }
    record |= {
        name: {"role": "block", "layer": name, "size": 1, "kept": []} for name in plan.blocks
    }
    analysis.model.metadata_props["secateur.removals"] = json.dumps([*done, record])


def _slice_constants(model: ir.Model, cut: _Cut) -> None:
    """Slice each constant once per way in which its uses are cut."""
    ways: dict[ir.Value, dict[_Way, list[ConstantUse]]] = {}
    spelled: dict[Expr, bytes] = {}
    kept: dict[bytes, _Positions] = {}

    def positions(expr: Expr) -> bytes:
        raw = spelled.get(expr)
        if raw is None:
            found = indices(expr, cut.keep)
            spelled[expr] = raw = found.tobytes()
            kept[raw] = found
        return raw

    for use in cut.axes.of_uses.values():
        axes = cut.of(use.exprs)
        if axes:
            way = tuple([(axis, positions(use.exprs[axis])) for axis in axes])
            ways.setdefault(use.value, {}).setdefault(way, []).append(use)
    copies: dict[str, str] = {}
    for found in ways.values():
        for way, uses in found.items():
            old, name = uses[0].name, _replace(cut, {i: kept[raw] for i, raw in way}, uses)
            if name != old:
                copies[name] = old
    if copies:
        name_copies(model, copies)


def _replace(cut: _Cut, kept: Mapping[int, _Positions], uses: Sequence[ConstantUse]) -> str:
    """Slice a constant for some of its uses, lazily; return the name of what they read now."""
    value, whole = uses[0].value, uses[0].dims
    tensor = constant_tensor(value)  # as it is by now: weights may change after the analysis
    assert tensor is not None
    # of the value and of what it holds, as in a file
    shape = cut.shape(tuple([len(kept[i]) if i in kept else d for i, d in enumerate(whole)]))
    is_alone = len(value.uses()) == len(uses) and not value.is_graph_output()
    old = uses[0].name
    name = old if is_alone else unused_name(cut.graph, f"{old}.cut")
    sliced = CutTensor(tensor, kept, shape, name)
    if is_alone:
        value.const_value, value.shape = sliced, shape
        return name
    fresh = ir.Value(name=name, shape=shape, type=ir.TensorType(tensor.dtype), const_value=sliced)
    cut.graph.register_initializer(fresh)
    for use in uses:
        use.visit.node.replace_input_with(use.slot, fresh)
    return name


def _resize_values(cut: _Cut) -> None:
    """Declare the new sizes of computed values, which else would contradict the weights."""
    of_values = cut.axes.of_values
    shapes = [value.shape for value in of_values]
    times = Counter([id(shape) for shape in shapes])
    for (value, exprs), declared in zip(of_values.items(), shapes, strict=True):
        if exprs is None or declared is None or len(exprs) != len(declared.dims):
            continue
        axes, shape = cut.of(exprs), declared
        if axes and (shape.frozen or times[id(shape)] > 1):
            value.shape = shape = shape.copy()  # it is the shape of something else, too
        for axis in axes:
            is_known = isinstance(size(exprs[axis]), int)
            shape[axis] = kept_length(exprs[axis], cut.keep) if is_known else None


__all__ = ["remove", "remove_atoms"]
