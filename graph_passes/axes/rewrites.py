"""Spelling shapes anew after a cut: targets, bounds and lengths that are constants.

Registered for the layout ops whose constant inputs carry sizes; a computed target is
replaced entry by entry, so that only what depends on a cut axis changes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from secateur.errors import PreconditionError
from secateur.graph_passes.axes.axis_map import AxisMap, constant
from secateur.graph_passes.axes.constants import new_constant, replace_ints
from secateur.graph_passes.axes.expression import (
    Expr,
    Keep,
    indices,
    is_cut,
    kept_length,
    resolve,
    size,
)
from secateur.graph_passes.axes.relations import OUT, REWRITES
from secateur.graph_passes.axes.rules.layout import slice_bounds, split_lengths
from secateur.graph_passes.axes.sizes import Size, static
from secateur.graph_passes.axes.view import View
from secateur.graph_passes.names import node_name


@REWRITES.register("Reshape", "Expand", "ConstantOfShape")
def target(node: ir.Node, axes: AxisMap, keep: Keep) -> None:
    """Spell the target shape from the axes of the output."""
    slot = 0 if node.op_type == "ConstantOfShape" else 1
    exprs = axes.at(node, OUT)
    if not any(is_cut(expr, keep) for expr in exprs):
        return
    old = constant(node.inputs[slot])
    if old is not None:
        new = [
            _entry(e, expr, keep)
            for e, expr in zip(old.tolist(), _aligned(exprs, old.size), strict=True)
        ]
        replace_ints(node, slot, new)
        return
    _respell_computed(node, slot, axes, keep)


def _aligned(exprs: Sequence[Expr], length: int) -> Sequence[Expr]:
    """The last ``length`` axes: an Expand target may be shorter than the output."""
    return exprs[len(exprs) - length :]


def _entry(old: int, expr: Expr, keep: Keep) -> int:
    if old in (0, -1, 1) or not is_cut(expr, keep):
        return old
    return kept_length(expr, keep)


def _respell_computed(node: ir.Node, slot: int, axes: AxisMap, keep: Keep) -> None:
    """A target computed from shapes: static axes become constants, a cut dynamic one -1 or less.

    A Reshape can leave one size open; any other is the computed entry times the share that stays.
    """
    old, exprs = node.inputs[slot], axes.at(node, OUT)
    assert old is not None
    aligned = _aligned(exprs, _length(old) or len(exprs))
    if node.op_type == "Reshape" and _still_true(aligned, axes.ints(old), keep):
        return
    cut_dynamic = [
        i for i, e in enumerate(aligned) if is_cut(e, keep) and not isinstance(size(e), int)
    ]
    spelled = axes.ints(old) or ()
    left_open = cut_dynamic[:1] if node.op_type == "Reshape" else []
    entries: list[int | ir.Value | None] = []
    for i, expr in enumerate(aligned):
        if isinstance(size(expr), int):
            entries.append(kept_length(expr, keep))
        elif i in left_open:
            entries.append(-1)
        elif i in cut_dynamic:
            if i >= len(spelled) or spelled[i] != size(expr):
                raise _not_spelled(node)
            entries.append(_scaled(node, i, old, *_share(expr, keep)))
        elif left_open and i < len(spelled) and spelled[i] == -1:
            entries.append(_length_of_input(node, expr, axes))  # only one size can be left open
        else:
            entries.append(None)
    _concat_entries(node, slot, old, entries)


def _still_true(exprs: Sequence[Expr], spelled: Sequence[Size | None] | None, keep: Keep) -> bool:
    """Tell whether every axis that is cut is left open (-1), so that the target follows it."""
    return spelled is not None and all(
        entry == -1 for expr, entry in zip(exprs, spelled, strict=True) if is_cut(expr, keep)
    )


def _not_spelled(node: ir.Node) -> PreconditionError:
    return PreconditionError(
        "a computed shape does not tell the size of an axis that is cut and dynamic",
        where=node_name(node),
        next_step="keep the groups of this block whole",
    )


def _share(expr: Expr, keep: Keep) -> tuple[int, int]:
    """Positions of the cut factors of an axis, before and after; all others stay as they are."""
    cut = [factor for factor in resolve(expr) if is_cut((factor,), keep)]
    return static(size(tuple(cut))), kept_length(tuple(cut), keep)


def _scaled(node: ir.Node, entry: int, old: ir.Value, whole: int, kept: int) -> ir.Value:
    """(1,) int64: an entry of a computed target over ``whole``, times ``kept``."""
    graph = node.graph
    assert isinstance(graph, ir.Graph)
    base = f"{node_name(node)}.target.{entry}"
    value = old
    for op, number in (("Gather", entry), ("Div", whole), ("Mul", kept)):
        operand = new_constant(graph, f"{base}.{op.lower()}", np.array([number], np.int64))
        made = ir.Node("", op, [value, operand], name=f"{base}.{op.lower()}.of")
        made.outputs[0].name = made.name
        graph.insert_before(node, made)
        value = made.outputs[0]
    return value


def _length_of_input(node: ir.Node, expr: Expr, axes: AxisMap) -> ir.Value:
    """(1,) int64: the length of the axis of the first input that is ``expr``."""
    axis = next((i for i, other in enumerate(axes.at(node, 0)) if other == expr), None)
    if axis is None:
        raise PreconditionError(
            "a computed shape leaves a size open that no axis of the input has",
            where=node_name(node),
            next_step="keep the groups of this block whole",
        )
    graph = node.graph
    assert isinstance(graph, ir.Graph)
    base = f"{node_name(node)}.length"
    shape = ir.Node("", "Shape", [node.inputs[0]], name=f"{base}.shape")
    position = new_constant(graph, f"{base}.position", np.array([axis], np.int64))
    gathered = ir.Node("", "Gather", [shape.outputs[0], position], name=base)
    for made in (shape, gathered):
        made.outputs[0].name = made.name
        graph.insert_before(node, made)
    return gathered.outputs[0]


def _length(value: ir.Value) -> int:
    shape = value.shape
    return static(shape[0]) if shape is not None and isinstance(shape[0], int) else 0


def _concat_entries(
    node: ir.Node, slot: int, old: ir.Value, entries: list[int | ir.Value | None]
) -> None:
    known = [entry for entry in entries if isinstance(entry, int)]
    if len(known) == len(entries):
        replace_ints(node, slot, known)
        return
    graph = node.graph
    assert isinstance(graph, ir.Graph)
    parts: list[ir.Value] = []
    for i, entry in enumerate(entries):
        base = f"{node_name(node)}.target.{i}"
        if isinstance(entry, ir.Value):
            parts.append(entry)
            continue
        if entry is not None:
            parts.append(new_constant(graph, base, np.array([entry], np.int64)))
            continue
        position = new_constant(graph, f"{base}.position", np.array([i], np.int64))
        gathered = ir.Node("", "Gather", [old, position], name=base)
        gathered.outputs[0].name = base
        graph.insert_before(node, gathered)
        parts.append(gathered.outputs[0])
    joined = ir.Node(
        "", "Concat", parts, [ir.AttrInt64("axis", 0)], name=f"{node_name(node)}.target"
    )
    joined.outputs[0].name = f"{node_name(node)}.target"
    graph.insert_before(node, joined)
    node.replace_input_with(slot, joined.outputs[0])


@REWRITES.register("Slice")
def bounds(node: ir.Node, axes: AxisMap, keep: Keep) -> None:
    """Starts and stops count the kept positions before them."""
    exprs = axes.at(node, 0)
    found = slice_bounds(View.of(node, axes))
    touched = [axis for axis, expr in enumerate(exprs) if is_cut(expr, keep)]
    if found is None or not any(axis in found for axis in touched):
        return
    order = list(found)
    starts, stops = [], []
    old = {slot: _spelled(node, slot) for slot in (1, 2)}
    for i, axis in enumerate(order):
        start, stop, _ = found[axis]
        if axis in touched:
            kept = indices(exprs[axis], keep)
            start, stop = (int(np.searchsorted(kept, static(b))) for b in (start, stop))
        elif old[1] is None or old[2] is None:
            raise PreconditionError(
                "a Slice with computed bounds also reads a cut axis", where=node_name(node)
            )
        else:
            start, stop = int(old[1][i]), int(old[2][i])
        starts.append(static(start))
        stops.append(static(stop))
    if len(node.inputs) < 3:
        node.attributes["starts"] = ir.AttrInt64s("starts", starts)
        node.attributes["ends"] = ir.AttrInt64s("ends", stops)
        return
    replace_ints(node, 1, starts)
    replace_ints(node, 2, stops)


def _spelled(node: ir.Node, slot: int) -> Sequence[int] | None:
    """Starts (1) or ends (2) of a Slice as integers; None where they are computed."""
    if len(node.inputs) < 3:
        return tuple(node.attributes[("starts", "ends")[slot - 1]].as_ints())
    array = constant(node.inputs[slot])
    return None if array is None else [int(bound) for bound in array]


@REWRITES.register("Split")
def lengths(node: ir.Node, axes: AxisMap, keep: Keep) -> None:
    """The lengths of the parts are spelled out, also where they were even before."""
    exprs = axes.at(node, 0)
    axis = node.attributes.get_int("axis", 0) % len(exprs)
    if not is_cut(exprs[axis], keep):
        return
    if split_lengths(View.of(node, axes), size(exprs[axis])) is None:
        raise PreconditionError("a Split with computed lengths is cut", where=node_name(node))
    new = [kept_length(axes.at(node, ~i)[axis], keep) for i in range(len(node.outputs))]
    if "split" in node.attributes or _opset(node) < 13:
        node.attributes["split"] = ir.AttrInt64s("split", new)
        return
    node.attributes.pop("num_outputs", None)
    if len(node.inputs) < 2:
        node.resize_inputs(2)
    replace_ints(node, 1, new)


def _opset(node: ir.Node) -> int:
    assert isinstance(node.graph, ir.Graph)
    return node.graph.opset_imports.get("", 20)


@REWRITES.register("Resize")
def resize_sizes(node: ir.Node, axes: AxisMap, keep: Keep) -> None:
    """A ``sizes`` input spells the channels too."""
    old = constant(node.inputs[3]) if len(node.inputs) > 3 else None
    exprs = axes.at(node, OUT)
    if old is None or not any(is_cut(expr, keep) for expr in exprs):
        return
    replace_ints(node, 3, [_entry(int(e), x, keep) for e, x in zip(old, exprs, strict=True)])
