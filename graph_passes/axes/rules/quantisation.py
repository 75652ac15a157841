"""Quantise and dequantise, and products of whole numbers."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from secateur.graph_passes.axes.relations import (
    AXIS_RULES,
    OUT,
    Blocks,
    Fold,
    Frozen,
    Port,
    Relation,
    Same,
    carried,
)
from secateur.graph_passes.axes.rules.contraction import broadcast_axes
from secateur.graph_passes.axes.rules.convolution import conv_like
from secateur.graph_passes.axes.view import View

_BLOCKED = "one scale stands for a block of positions"
_APART = "the zero points along it differ"


@AXIS_RULES.register(
    *("QuantizeLinear", "DequantizeLinear"),
    *("com.microsoft:QuantizeLinear", "com.microsoft:DequantizeLinear"),
)
def quantise(view: View) -> Iterator[Relation]:
    """(A, ..., C, ...), scale, zero point (() or (C) or per block) -> (A, ..., C, ...)."""
    shape, scale = view.shape(0), view.shape(1)
    if shape is None or scale is None:
        return
    axis = view.integer("axis", 1) % max(len(shape), 1)
    slots = (1, 2) if view.has(2) else (1,)
    for i in range(len(shape)):
        yield carried(i)
    if len(scale) == 1 and scale != (1,):
        yield Same((Port(0, axis), *(Port(slot, 0) for slot in slots)))
    elif len(scale) > 1:
        for i in range(len(scale)):
            if i != axis:
                yield Same((Port(0, i), *(Port(slot, i) for slot in slots)))
                continue
            yield Blocks(
                (Port(0, i),),
                scale[i],
                ((),),
                tuple(Port(slot, i) for slot in slots),
                fixed=_BLOCKED,
            )


@AXIS_RULES.register("DynamicQuantizeLinear")
def dynamic(view: View) -> Iterator[Relation]:
    """(A, ...) -> (A, ...), scale (), zero point (): the range always holds 0, so 0 is neutral."""
    for axis in range(view.rank(0) or 0):
        yield Fold((Port(0, axis),), neutral=0.0)
        yield carried(axis)


@AXIS_RULES.register("MatMulInteger")
def matmul_integer(view: View) -> Iterator[Relation]:
    """(..., M, K) @ (..., K, N) -> (..., M, N), zero points () or (M) and () or (N)."""
    yield from _matmul(view, 1, {0: (2,), 1: (3,)})


@AXIS_RULES.register("QLinearMatMul")
def matmul_quantised(view: View) -> Iterator[Relation]:
    """A, scale, zero, B, scale, zero, scale, zero -> (..., M, N), as MatMulInteger."""
    yield from _matmul(view, 3, {0: (1, 2), 3: (4, 5)})


def _matmul(view: View, right: int, tables: dict[int, tuple[int, ...]]) -> Iterator[Relation]:
    a, b = view.rank(0), view.rank(right)
    if a is None or b is None or min(a, b) < 2:
        return
    yield from _sum_over(view, Port(0, a - 1), Port(right, b - 2), tables[right][-1])
    n_batch = max(a, b) - 2
    yield from broadcast_axes(view, (0, right), n_batch)
    rows, columns = Port(0, a - 2), Port(right, b - 1)
    yield Same((rows, Port(OUT, n_batch)))
    yield Same((columns, Port(OUT, n_batch + 1)))
    for port, slots in ((rows, tables[0]), (columns, tables[right])):
        for slot in slots:
            if view.shape(slot) not in (None, (), (1,)):
                yield Same((port, Port(slot, (view.rank(slot) or 1) - 1)))


def _sum_over(view: View, left: Port, right: Port, zero: int) -> Iterator[Relation]:
    """A weight of its zero point adds nothing, whatever stands against it."""
    yield Same((left, right))
    found = np.zeros(1) if not view.has(zero) else view.constant(zero)
    if found is None or np.unique(found).size != 1:
        yield Frozen(right, _APART if found is not None else "its zero points are computed")
        return
    yield Fold((right,), neutral=float(found.reshape(-1)[0]))


@AXIS_RULES.register("ConvInteger")
def conv_integer(view: View) -> Iterator[Relation]:
    """As Conv, of whole numbers: zero points () and () or (O)."""
    yield from _conv(view, 1, (3,))


@AXIS_RULES.register("QLinearConv")
def conv_quantised(view: View) -> Iterator[Relation]:
    """X, scale, zero, W, scale, zero, scale, zero, bias (O) -> as Conv; scales () or (O)."""
    yield from _conv(view, 3, (4, 5, 8))


def _conv(view: View, weight: int, tables: tuple[int, ...]) -> Iterator[Relation]:
    if view.rank(weight) is None:
        return
    per_channel = [slot for slot in tables if view.shape(slot) not in (None, (), (1,))]
    zero = 3 if weight == 1 else 5
    for relation in conv_like(view, weight, tuple(Port(slot, 0) for slot in per_channel)):
        if isinstance(relation, Fold):
            # only groups of one channel have no product to sum over between X and W
            left = next((p for p in relation.ports if p.slot == 0), None)
            right = next(p for p in relation.ports if p.slot == weight)
            yield from _sum_over(view, left or right, right, zero)
        else:
            yield relation
