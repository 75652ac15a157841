"""Ops that read only shapes, or make tensors out of them."""

from __future__ import annotations

from collections.abc import Iterator

from secateur.graph_passes.axes.relations import (
    AXIS_RULES,
    OUT,
    Fresh,
    Frozen,
    Port,
    Relation,
    Unread,
    carried,
)
from secateur.graph_passes.axes.view import View


@AXIS_RULES.register("Shape", "Size")
def shape(view: View) -> Iterator[Relation]:
    """(A, B, ...) -> (rank): no element is read; the sizes are tracked beside the axes."""
    rank = view.rank(0)
    if rank is None:
        return
    for axis in range(rank):
        yield Unread(Port(0, axis))
    if view.node.op_type == "Shape":
        first, last = view.integer("start", 0), view.integer("end", rank)
        yield Fresh(Port(OUT, 0), len(range(rank)[first:last]))


@AXIS_RULES.register("ConstantOfShape")
def constant_of_shape(view: View) -> Iterator[Relation]:
    """Shape (r) -> (...): every position is the same, so each axis stands for itself."""
    sizes = view.ints(0)
    if sizes is None:
        return
    for axis, length in enumerate(sizes):
        yield Fresh(Port(OUT, axis), length)
    yield Unread(Port(0, 0))


@AXIS_RULES.register("Range")
def range_(view: View) -> Iterator[Relation]:
    """start, limit, delta -> (N): positions are values, so the axis is frozen."""
    start, limit, step = view.ints(0), view.ints(1), view.ints(2)
    length = None
    if start == (0,) and step == (1,) and limit is not None:
        length = limit[0]
    yield Fresh(Port(OUT, 0), length)
    yield Frozen(Port(OUT, 0), "its positions are values")


@AXIS_RULES.register("EyeLike")
def eye_like(view: View) -> Iterator[Relation]:
    """(N, M) -> (N, M): rows and columns are compared by position."""
    for axis in range(view.rank(0) or 0):
        yield carried(axis)
        yield Frozen(Port(0, axis), "rows and columns are compared by position")


@AXIS_RULES.register("RandomNormalLike", "RandomUniformLike", "Bernoulli")
def random_like(view: View) -> Iterator[Relation]:
    """(A, ...) -> (A, ...): a cut would draw other numbers, so all axes are frozen."""
    for axis in range(view.rank(0) or 0):
        yield carried(axis)
        yield Frozen(Port(0, axis), "random numbers are drawn for it")
