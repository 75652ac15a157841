"""Neutral elements of folds, and how they pass from the result of an op to an operand."""

from __future__ import annotations

import enum
import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import onnx_ir as ir

from secateur.graph_passes.axes import constant
from secateur.graph_passes.selection.region import Regions

MASKED = -1e4
"""Additive masks write this or less at positions that may not be attended."""

_LARGEST = {
    ir.DataType.FLOAT16: 65504.0,
    ir.DataType.BFLOAT16: 3.3895313892515355e38,
    ir.DataType.FLOAT: 3.4028234663852886e38,
    ir.DataType.DOUBLE: 1.7976931348623157e308,
}


class Fill(enum.Enum):
    """What a slot without a token holds."""

    ZERO = "zero"
    ONE = "one"
    LOWEST = "lowest"
    HIGHEST = "highest"
    FALSE = "false"
    TRUE = "true"

    def number(self, dtype: ir.DataType) -> float:
        """Return the value in a type; extremes are finite, so that no NaN can come of them."""
        largest = _LARGEST.get(dtype, 0.0)
        return {"zero": 0.0, "one": 1.0, "lowest": -largest, "highest": largest}[self.value]


class Neutral(NamedTuple):
    """``fill`` in slots without a token along ``axis``, counted from the right (negative)."""

    fill: Fill
    axis: int


def fill_of(neutral: float) -> Fill | None:
    """Return the fill for a fold's neutral element, None where there is none for it."""
    known = {0.0: Fill.ZERO, 1.0: Fill.ONE, -math.inf: Fill.LOWEST, math.inf: Fill.HIGHEST}
    return known.get(neutral)


Takers = Iterator[tuple[int, Neutral]]


def transfers(node: ir.Node, neutral: Neutral, regions: Regions) -> Takers:
    """Yield the operands any one of which makes ``neutral`` of the result.

    A pair (slot, what that operand must hold) is given only where it is certain, the other
    operands being finite.
    """
    rule = None if node.domain else _TRANSFERS.get(node.op_type)
    if rule is not None:
        yield from rule(node, neutral, regions)


def _same(node: ir.Node, neutral: Neutral, regions: Regions) -> Takers:
    del node, regions
    yield 0, neutral


def _cast(node: ir.Node, neutral: Neutral, regions: Regions) -> Takers:
    del regions
    source, target = node.inputs[0], node.outputs[0]
    before = None if source is None else source.dtype
    after = target.dtype or ir.DataType(node.attributes.get_int("to", 0))
    fill = neutral.fill
    if before == ir.DataType.BOOL and after != ir.DataType.BOOL:
        turned = {Fill.ZERO: Fill.FALSE, Fill.ONE: Fill.TRUE}.get(fill)
    elif after == ir.DataType.BOOL and before != ir.DataType.BOOL:
        turned = {Fill.FALSE: Fill.ZERO, Fill.TRUE: Fill.ONE}.get(fill)
    else:
        turned = fill
    if before is not None and turned is not None:
        yield 0, Neutral(turned, neutral.axis)


def _not(node: ir.Node, neutral: Neutral, regions: Regions) -> Takers:
    del node, regions
    turned = {Fill.TRUE: Fill.FALSE, Fill.FALSE: Fill.TRUE}.get(neutral.fill)
    if turned is not None:
        yield 0, Neutral(turned, neutral.axis)


def _absorbing(fill: Fill) -> Callable[[ir.Node, Neutral, Regions], Takers]:
    """Any one operand that holds ``fill`` makes the result hold it."""

    def rule(node: ir.Node, neutral: Neutral, regions: Regions) -> Takers:
        del regions
        if neutral.fill is fill:
            yield from ((slot, neutral) for slot in range(len(node.inputs)))

    return rule


def _add(node: ir.Node, neutral: Neutral, regions: Regions) -> Takers:
    del regions
    if neutral.fill in (Fill.LOWEST, Fill.HIGHEST):
        slots = (0, 1) if node.op_type == "Add" else (0,)
        yield from ((slot, neutral) for slot in slots)


def _mul(node: ir.Node, neutral: Neutral, regions: Regions) -> Takers:
    del regions
    slots = (0, 1) if node.op_type == "Mul" else (0,)
    for slot in slots:
        if neutral.fill is Fill.ZERO:
            yield slot, neutral
        other = constant(node.inputs[1 - slot])
        if neutral.fill in (Fill.LOWEST, Fill.HIGHEST) and other is not None and other.min() > 0:
            yield slot, neutral


def _where(node: ir.Node, neutral: Neutral, regions: Regions) -> Takers:
    del regions
    for slot, chosen in ((2, Fill.FALSE), (1, Fill.TRUE)):
        if _holds(constant(node.inputs[slot]), neutral.fill):
            yield 0, Neutral(chosen, neutral.axis)
            yield 3 - slot, neutral


def _holds(array: np.ndarray | None, fill: Fill) -> bool:
    if array is None:
        return False
    match fill:
        case Fill.LOWEST:
            return bool((array <= MASKED).all())
        case Fill.HIGHEST:
            return bool((array >= -MASKED).all())
        case Fill.ZERO | Fill.FALSE:
            return not array.any()
        case _:
            return bool((array == 1).all())


def _unsqueeze(node: ir.Node, neutral: Neutral, regions: Regions) -> Takers:
    """Map the axis back to before the insertion."""
    axes = constant(node.inputs[1])
    inner = regions.exprs(node, 0)
    if axes is None or inner is None:
        return
    rank = len(inner) + axes.size
    inserted = {int(axis) % rank for axis in axes.reshape(-1)}
    axis = rank + neutral.axis
    if axis not in inserted:
        position = axis - sum(i < axis for i in inserted)
        yield 0, Neutral(neutral.fill, position - len(inner))


def _reshape(node: ir.Node, neutral: Neutral, regions: Regions) -> Takers:
    """Axes from the right up to the neutral one are the same before and after."""
    before, after = regions.exprs(node, 0), regions.made(node)
    if before and after and before[neutral.axis :] == after[neutral.axis :]:
        yield 0, neutral


def _transpose(node: ir.Node, neutral: Neutral, regions: Regions) -> Takers:
    del regions
    perm = node.attributes.get("perm")
    if perm is not None:
        order = list(perm.as_ints())
        yield 0, Neutral(neutral.fill, order[len(order) + neutral.axis] - len(order))


_TRANSFERS: dict[str, Callable[[ir.Node, Neutral, Regions], Takers]] = {
    "Cast": _cast,
    "Identity": _same,
    "Dropout": _same,
    "Expand": _same,
    "Not": _not,
    "And": _absorbing(Fill.FALSE),
    "Or": _absorbing(Fill.TRUE),
    "Min": _absorbing(Fill.LOWEST),
    "Max": _absorbing(Fill.HIGHEST),
    "Add": _add,
    "Sub": _add,
    "Mul": _mul,
    "Div": _mul,
    "Where": _where,
    "Unsqueeze": _unsqueeze,
    "Reshape": _reshape,
    "Transpose": _transpose,
}

__all__ = ["MASKED", "Fill", "Neutral", "fill_of", "transfers"]
