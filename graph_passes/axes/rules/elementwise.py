"""Ops that work element by element, with NumPy broadcasting."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import lru_cache

from secateur.graph_passes.axes.relations import (
    AXIS_RULES,
    OUT,
    Port,
    Relation,
    Same,
    Unread,
    by_units,
    carried,
)
from secateur.graph_passes.axes.view import View

_ONE_INPUT = (
    *("Abs", "Acos", "Acosh", "Asin", "Asinh", "Atan", "Atanh", "BitwiseNot", "Cast", "Ceil"),
    *("Celu", "Cos", "Cosh", "Elu", "Erf", "Exp", "Floor", "Gelu", "HardSigmoid", "HardSwish"),
    *("Identity", "IsInf", "IsNaN", "LeakyRelu", "Log", "Mish", "Neg", "Not", "Reciprocal"),
    *("Relu", "Round", "Selu", "Shrink", "Sigmoid", "Sign", "Sin", "Sinh", "Softplus"),
    *("Softsign", "Sqrt", "Swish", "Tan", "Tanh", "ThresholdedRelu", "com.microsoft:QuickGelu"),
    *("com.microsoft:Gelu",),
)

_BROADCAST = (
    *("Add", "And", "BitShift", "BitwiseAnd", "BitwiseOr", "BitwiseXor", "Clip", "Div"),
    *("Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Max", "Mean", "Min"),
    *("Mod", "Mul", "Or", "PRelu", "Pow", "Sub", "Sum", "Where", "Xor", "com.microsoft:BiasGelu"),
    *("com.microsoft:FastGelu",),
)


@AXIS_RULES.register(*_BROADCAST, *_ONE_INPUT)
@by_units
def elementwise(view: View) -> Iterable[Relation]:
    """(..., A), (..., A or 1), ... -> (..., A): every axis is carried.

    A broadcast axis of size 1 takes part in nothing.
    """
    operands = []
    for slot in range(len(view)):
        if view.has(slot):
            shape = view.shape(slot)
            if shape is None:
                return ()
            operands.append((slot, *[size == 1 for size in shape]))
    return _carried(tuple(operands))


@lru_cache(maxsize=1024)
def _carried(operands: tuple[tuple[int, ...], ...]) -> tuple[Relation, ...]:
    """Relations of operands given as slot and, per axis, whether its size is 1.

    They depend on nothing else, and half of the nodes of a graph are of this kind.
    """
    rank = max(len(units) - 1 for units in operands)
    relations = []
    for axis in range(rank):
        ports: list[Port] = []
        units: list[Port] = []
        for slot, *is_unit in operands:
            here = axis - rank + len(is_unit)
            if here >= 0:
                (units if is_unit[here] else ports).append(Port(slot, here))
        relations.append(Same((*(ports or units[:1]), Port(OUT, axis))))
    return tuple(relations)


@AXIS_RULES.register("Dropout")
@by_units
def dropout(view: View) -> Iterator[Relation]:
    """(A, ...) -> (A, ...): the identity at inference; the mask output follows."""
    for axis in range(view.rank(0) or 0):
        outs = [Port(~i, axis) for i in range(len(view.node.outputs))]
        yield Same((Port(0, axis), *outs))


@AXIS_RULES.register("CastLike")
@by_units
def cast_like(view: View) -> Iterator[Relation]:
    """(A, ...), like -> (A, ...): only the type of the second input is read."""
    for axis in range(view.rank(0) or 0):
        yield carried(axis)
    for axis in range(view.rank(1) or 0):
        yield Unread(Port(1, axis))
