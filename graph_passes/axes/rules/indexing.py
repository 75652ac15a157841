"""Gathers and scatters: what is read by position, and what is carried beside it."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from secateur.graph_passes.axes.axis_map import AxisMap, LookUp, constant
from secateur.graph_passes.axes.constants import new_constant
from secateur.graph_passes.axes.expression import Expr, Keep, indices, leaves
from secateur.graph_passes.axes.lookups import translate_ids
from secateur.graph_passes.axes.relations import (
    AXIS_RULES,
    OUT,
    REWRITES,
    Fresh,
    Frozen,
    Index,
    Port,
    Product,
    ReadAt,
    Relation,
    Same,
    Unread,
    carried,
)
from secateur.graph_passes.axes.rules.elementwise import elementwise
from secateur.graph_passes.axes.view import View
from secateur.graph_passes.names import node_name

_COMPUTED = "it is read at computed positions"
_UPDATES = "each of its positions is written somewhere"


@AXIS_RULES.register("Gather")
def gather(view: View) -> Iterator[Relation]:
    """(..., A, ...), index (I...) -> (..., I..., ...): the axes of the index take A's place.

    Constant indices that are a run of A make a part of it; computed ones freeze A.
    """
    rank, n_index = view.rank(0), view.rank(1)
    if rank is None or n_index is None:
        return
    picked = view.integer("axis", 0) % rank
    for axis in range(rank):
        if axis != picked:
            out = axis if axis < picked else axis + n_index - 1
            yield Same((Port(0, axis), Port(OUT, out)))
    values, shape = view.constant(1), view.shape(0) or ()
    if values is None:
        yield ReadAt(Port(0, picked), 1, is_lookup=True)
        for axis in range(n_index):
            yield Same((Port(1, axis), Port(OUT, picked + axis)))
        return
    yield from _gather_constant(values, shape[picked], picked)


def _gather_constant(values: np.ndarray, total: object, picked: int) -> Iterator[Relation]:
    flat = values.reshape(-1)
    if isinstance(total, int):
        flat = np.where(flat < 0, flat + total, flat)
    positions = tuple(int(v) for v in flat)
    outs = tuple(Port(OUT, picked + axis) for axis in range(values.ndim))
    if values.ndim == 0:
        yield Index(Port(0, picked), positions)
    elif values.ndim == 1:
        yield Index(Port(0, picked), positions, outs[0])
        yield Same((Port(1, 0), outs[0]))
    elif positions == tuple(range(len(positions))) and len(positions) == total:
        for axis, port in enumerate(outs):
            yield Fresh(port, int(values.shape[axis]))
        yield Product((Port(0, picked),), outs)
        for axis, port in enumerate(outs):
            yield Same((Port(1, axis), port))
    else:
        yield Frozen(Port(0, picked), "it is read at constant positions")
        for axis, port in enumerate(outs):
            yield Same((Port(1, axis), port))


@REWRITES.register("Gather", "GatherND")
def renumber(node: ir.Node, axes: AxisMap, keep: Keep) -> None:
    """Constant positions are spelled anew: where each of them stands after the cut.

    The index tensor itself was cut along its own axes before. Ids from outside stay what they
    were: a table says where the row of each now stands.
    """
    if (lookup := axes.lookups.get(node)) is not None:
        _look_up(lookup, axes.expr(node, lookup.port), keep)
        return
    values = constant(node.inputs[1])
    if node.attributes.get_int("batch_dims", 0):
        return  # then the axes that are read are frozen
    data = axes.at(node, 0)
    whole = data[node.attributes.get_int("axis", 0) % len(data)]
    if values is None or (node.op_type == "GatherND" and values.shape[-1] != 1):
        return
    if not any(atom in keep for atom in leaves(whole)):
        return
    kept = indices(whole, keep)
    total = indices(whole, {}).size
    moved = np.searchsorted(kept, np.where(values < 0, values + total, values))
    assert isinstance(node.graph, ir.Graph)
    name = f"{node_name(node)}.positions"
    node.replace_input_with(1, new_constant(node.graph, name, moved.astype(values.dtype)))


def _look_up(lookup: LookUp, rows: Expr, keep: Keep) -> None:
    kept, total = indices(rows, keep), indices(rows, {}).size
    if len(kept) == total:
        return
    table = np.full(total, np.searchsorted(kept, lookup.stand_in), np.int64)
    table[kept] = np.arange(len(kept))
    translate_ids(lookup, table)


@AXIS_RULES.register("Equal")
def equal(view: View) -> Iterator[Relation]:
    """Broadcast comparison; positions against 0, 1, 2, ... make a one-hot axis."""
    yield from elementwise(view)
    for slot, other in ((0, 1), (1, 0)):
        shape, numbers = view.shape(other), view.constant(other)
        if numbers is None or shape is None or not view.holds_positions(slot):
            continue
        counted = np.array_equal(numbers.reshape(-1), np.arange(numbers.size))
        axis = next((a for a, length in enumerate(shape) if length == numbers.size), None)
        if counted and axis is not None and numbers.size > 1:
            yield ReadAt(Port(other, axis), slot)


@REWRITES.register("Equal")
def recount(node: ir.Node, axes: AxisMap, keep: Keep) -> None:
    """The numbers that positions are compared with are counted anew after a cut."""
    for slot, other in ((0, 1), (1, 0)):
        numbers, whole = constant(node.inputs[other]), axes.positions(node.inputs[slot])
        if numbers is None or whole is None or not any(a in keep for a in leaves(whole)):
            continue
        moved = np.searchsorted(indices(whole, keep), numbers).astype(numbers.dtype)
        assert isinstance(node.graph, ir.Graph)
        name = f"{node_name(node)}.numbers"
        node.replace_input_with(other, new_constant(node.graph, name, moved))


@AXIS_RULES.register("GatherElements")
def gather_elements(view: View) -> Iterator[Relation]:
    """Axes of equal size are carried by data, index and output; the read one is frozen."""
    data, index = view.shape(0), view.shape(1)
    if data is None or index is None:
        return
    picked = view.integer("axis", 0) % len(data)
    for axis in range(len(data)):
        yield Same((Port(1, axis), Port(OUT, axis)))
        if axis == picked:
            yield ReadAt(Port(0, axis), 1)
        elif data[axis] == index[axis]:
            yield carried(axis)
        else:
            yield Frozen(Port(0, axis), "only a part of it is read")
            yield Frozen(Port(1, axis), "it goes along a part of the data")


@AXIS_RULES.register("GatherND")
def gather_nd(view: View) -> Iterator[Relation]:
    """(b..., A..., r...), index (b..., i..., K) -> (b..., i..., r...): K axes are frozen."""
    data, index = view.shape(0), view.shape(1)
    if data is None or index is None or not isinstance(index[-1], int):
        return
    batch, depth = view.integer("batch_dims", 0), index[-1]
    for axis in range(batch):
        yield Same((Port(0, axis), Port(1, axis), Port(OUT, axis)))
    values = view.constant(1)
    if values is not None and batch == 0 and depth == 1 and values.ndim == 2:
        yield from _gather_constant(values[:, 0], data[0], 0)
        yield Unread(Port(1, 1))
        for axis in range(1, len(data)):
            yield carried(axis)
        return
    if depth == 1:
        yield ReadAt(Port(0, batch), 1)
    else:
        for axis in range(batch, batch + depth):
            yield Frozen(Port(0, axis), _COMPUTED)
    for axis in range(batch, len(index) - 1):
        yield Same((Port(1, axis), Port(OUT, axis)))
    for axis in range(batch + depth, len(data)):
        yield Same((Port(0, axis), Port(OUT, axis - batch - depth + len(index) - 1)))


@AXIS_RULES.register("ScatterElements", "Scatter")
def scatter_elements(view: View) -> Iterator[Relation]:
    """Written axis frozen; the others are carried by data and output."""
    rank = view.rank(0) or 0
    written = view.integer("axis", 0) % max(rank, 1)
    data, index = view.shape(0) or (), view.shape(1) or ()
    for axis in range(rank):
        yield carried(axis)
        yield Same((Port(1, axis), Port(2, axis)))
        if axis == written:
            yield ReadAt(Port(0, axis), 1)
            yield Frozen(Port(1, axis), _UPDATES)
        elif data[axis] == index[axis]:
            yield Same((Port(0, axis), Port(1, axis)))
        else:
            yield Frozen(Port(0, axis), "only a part of it is written")
            yield Frozen(Port(1, axis), _UPDATES)


@AXIS_RULES.register("ScatterND")
def scatter_nd(view: View) -> Iterator[Relation]:
    """(A..., r...), index (i..., K), updates (i..., r...) -> (A..., r...): A and i are frozen."""
    rank, index = view.rank(0), view.shape(1)
    if rank is None or index is None or not isinstance(index[-1], int):
        return
    depth = index[-1]
    for axis in range(rank):
        ports = [Port(0, axis), Port(OUT, axis)]
        if axis >= depth:
            ports.append(Port(2, axis - depth + len(index) - 1))
        yield Same(tuple(ports))
        if axis < depth:
            yield Frozen(Port(0, axis), "it is written at computed positions")
    for axis in range(len(index) - 1):
        yield Same((Port(1, axis), Port(2, axis)))
        yield Frozen(Port(1, axis), _UPDATES)


@AXIS_RULES.register("OneHot")
def one_hot(view: View) -> Iterator[Relation]:
    """(I...) -> (I..., depth): the new axis stands for classes and is frozen."""
    rank = view.rank(0) or 0
    new = view.integer("axis", -1) % (rank + 1)
    for axis in range(rank):
        yield Same((Port(0, axis), Port(OUT, axis if axis < new else axis + 1)))
    yield Fresh(Port(OUT, new))
    yield ReadAt(Port(OUT, new), 0)


@REWRITES.register("OneHot")
def one_hot_depth(node: ir.Node, axes: AxisMap, keep: Keep) -> None:
    """The depth is the number of positions that are left."""
    exprs = axes.at(node, OUT)
    expr = exprs[node.attributes.get_int("axis", -1) % len(exprs)]
    depth = constant(node.inputs[1])
    if depth is None or not any(atom in keep for atom in leaves(expr)):
        return
    left = np.full(depth.shape, len(indices(expr, keep)), depth.dtype)
    assert isinstance(node.graph, ir.Graph)
    node.replace_input_with(1, new_constant(node.graph, f"{node_name(node)}.depth", left))


@AXIS_RULES.register("Trilu")
def triangle(view: View) -> Iterator[Relation]:
    """(..., N, M): all axes are carried; the last two are compared by position."""
    rank = view.rank(0) or 0
    for axis in range(rank):
        yield carried(axis)
        if axis >= rank - 2:
            yield Frozen(Port(0, axis), "rows and columns are compared by position")
