"""Reductions, cumulative sums and arg-reductions."""

from __future__ import annotations

import math
from collections.abc import Iterator

from secateur.graph_passes.axes.relations import (
    AXIS_RULES,
    OUT,
    Fold,
    Fresh,
    Frozen,
    Port,
    Positions,
    Relation,
    Same,
    Unread,
    by_units,
    carried,
)
from secateur.graph_passes.axes.sizes import static
from secateur.graph_passes.axes.view import View

NEUTRAL: dict[str, float | None] = {
    "ReduceSum": 0.0,
    "ReduceSumSquare": 0.0,
    "ReduceL1": 0.0,
    "ReduceL2": 0.0,
    "ReduceLogSum": 0.0,
    "ReduceLogSumExp": -math.inf,
    "ReduceMax": -math.inf,
    "ReduceMin": math.inf,
    "ReduceProd": 1.0,
    "ReduceMean": None,
}


@AXIS_RULES.register(*NEUTRAL)
@by_units
def reduce(view: View) -> Iterator[Relation]:
    """Folded axes vanish (or become 1 with ``keepdims``), the others are carried."""
    rank = view.rank(0)
    axes = _reduced(view)
    if rank is None or axes is None:
        return
    keepdims, out = view.integer("keepdims", 1), 0
    neutral = NEUTRAL[view.node.op_type]
    for axis in range(rank):
        if axis in axes:
            yield Fold((Port(0, axis),), neutral)
            if not keepdims:
                continue
            yield Fresh(Port(OUT, out), 1)
        else:
            yield Same((Port(0, axis), Port(OUT, out)))
        out += 1
    if view.has(1):
        yield Unread(Port(1, 0))


def _reduced(view: View) -> frozenset[int] | None:
    """Axes to reduce, from the input or the attribute; None where they are computed."""
    rank = view.rank(0)
    if rank is None:
        return None
    listed = view.attribute_ints("axes")
    if view.has(1):
        sizes = view.ints(1)
        if sizes is None or not all(isinstance(s, int) for s in sizes):
            return None
        listed = tuple(static(s) for s in sizes)
    if not listed:
        return frozenset() if view.integer("noop_with_empty_axes", 0) else frozenset(range(rank))
    return frozenset(axis % rank for axis in listed)


@AXIS_RULES.register("ArgMax", "ArgMin")
@by_units
def arg_reduce(view: View) -> Iterator[Relation]:
    """The searched axis folds; its positions come out, the others are carried."""
    rank = view.rank(0) or 0
    searched = view.integer("axis", 0) % max(rank, 1)
    out = 0
    for axis in range(rank):
        if axis == searched:
            smallest = view.node.op_type == "ArgMin"
            yield Fold((Port(0, axis),), math.inf if smallest else -math.inf)
            yield Positions(OUT, Port(0, axis), 1)
            if not view.integer("keepdims", 1):
                continue
            yield Fresh(Port(OUT, out), 1)
        else:
            yield Same((Port(0, axis), Port(OUT, out)))
        out += 1


@AXIS_RULES.register("CumSum")
@by_units
def cumulative_sum(view: View) -> Iterator[Relation]:
    """Every axis is carried; the summed one folds with neutral 0: cut elements add nothing."""
    rank = view.rank(0) or 0
    where = view.ints(1)
    for axis in range(rank):
        if where is None or not isinstance(where[0], int):
            yield Frozen(Port(0, axis), "the summed axis is computed")
        elif axis == where[0] % rank:
            yield Fold((Port(0, axis),), 0.0)
        yield carried(axis)
    if (view.rank(1) or 0) > 0:
        yield Unread(Port(1, 0))


@AXIS_RULES.register("TopK")
def top_k(view: View) -> Iterator[Relation]:
    """(..., A, ...) -> values and positions (..., K, ...).

    Cut elements at -inf are never picked while K others are left; the positions that
    come out may only be used to read A itself (experts), else A is frozen.
    """
    rank = view.rank(0) or 0
    searched = view.integer("axis", -1) % max(rank, 1)
    for axis in range(rank):
        if axis != searched:
            yield Same((Port(0, axis), Port(OUT, axis), Port(~1, axis)))
            continue
        k = view.ints(1)
        if k is not None and isinstance(k[0], int):
            smallest = view.integer("largest", 1) == 0
            yield Fold((Port(0, axis),), math.inf if smallest else -math.inf)
            yield Positions(~1, Port(0, axis), k[0])
        else:
            yield Frozen(Port(0, axis), "a computed number of the largest is picked")
        yield Fresh(Port(OUT, axis), k[0] if k else None)
        yield Same((Port(OUT, axis), Port(~1, axis)))
        yield Frozen(Port(OUT, axis), "the number of the largest is spelled out")
    if (view.rank(1) or 0) > 0:
        yield Unread(Port(1, 0))
