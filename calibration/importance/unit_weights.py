"""Which weights say how large a unit is, and sums over the slices of them that hold it.

Compiled where ``setup.py`` compiles, for criteria that are nothing else than such sums.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import numpy as np
import onnx_ir as ir

from secateur.calibration.importance.core import Context, Scores
from secateur.calibration.importance.marginals import Measure, marginals, scratch
from secateur.calibration.units import sum_of_units
from secateur.errors import BadInputError, PreconditionError
from secateur.graph_passes.axes.axis_map import constant_tensor
from secateur.graph_passes.groups import Group, WeightUse
from secateur.weights import array_of

_Place = tuple[str, int]
"""The name of a weight and an axis of it."""

_BIAS_SLOTS = {
    "Conv": 2,
    "ConvTranspose": 2,
    "Gemm": 2,
    "BatchNormalization": 2,
    "LayerNormalization": 2,
    "InstanceNormalization": 2,
    "GroupNormalization": 2,
}
_STATISTICS = {"BatchNormalization": (3, 4)}


def sizes(group: Group, context: Context, measure: Measure) -> Scores:
    """Sum ``measure``, number by number, over each unit's slices: (weights, units).

    A weight is read once for all groups of the context, in blocks, so that no copy of the
    whole in float64 is ever made.

    Raises:
        BadInputError: a weight holds NaN or infinities.
    """
    read: dict[_Place, Scores] = context.gathered.setdefault(f"sums of {measure}", {})
    uses = counted(group, context)
    found = np.empty((len(uses), group.size))
    for row, use in enumerate(uses):
        by_position = read.get((use.initialiser, use.axis))
        if by_position is None:
            read.update(_sums(use, measure, context))
            by_position = read[use.initialiser, use.axis]
        found[row] = sum_of_units(by_position, use.expr, group.atom)
    if math.isfinite(found.sum()):
        return found
    return rows(group, uses, measure)  # too large for float32, unless this raises


def _asked(context: Context) -> set[_Place]:
    """Which axes of which weights the groups of a context need."""
    asked: set[_Place] | None = context.gathered.get("axes of weights")
    if asked is None:
        asked = {(use.initialiser, use.axis) for group in context.groups for use in group.weights}
        context.gathered["axes of weights"] = asked
    return asked


def _room(context: Context) -> Scores:
    """Memory for the numbers that are measured, the same for all weights."""
    room: Scores | None = context.gathered.get("room for measured weights")
    if room is None:
        context.gathered["room for measured weights"] = room = scratch()
    return room


def _sums(use: WeightUse, measure: Measure, context: Context) -> dict[_Place, Scores]:
    """Sum ``measure`` along the axis of a use, and in the same go along another that is asked."""
    name, array = use.initialiser, array_of(_tensor(use))
    if use.axis > 1:
        return {(name, use.axis): _sum_behind(use, measure)}
    if array.ndim < 2:
        sums = {0: measure(array.astype(np.float64))}
    else:
        asked = _asked(context)
        axes = [axis for axis in (0, 1) if axis == use.axis or (name, axis) in asked]
        with np.errstate(over="ignore"):  # `sizes` looks at what comes out
            sums = marginals(array, measure, axes, _room(context))
    return {(name, axis): each for axis, each in sums.items()}


def _sum_behind(use: WeightUse, measure: Measure) -> Scores:
    """Sum ``measure`` along an axis behind the second, as stacked experts have one."""
    total: Scores = np.zeros(use.shape[use.axis])
    for row in array_of(_tensor(use)):
        others = tuple(i for i in range(row.ndim) if i + 1 != use.axis)
        total += measure(row.astype(np.float64)).sum(axis=others)
    return total


def _sum_along(use: WeightUse, measure: Callable[[Scores], Scores]) -> Scores:
    """Sum ``measure`` along the axis of a use, of the whole weight at once."""
    summed: Scores = measure(weight(use)).sum(axis=_others(use, use.axis))
    return summed


def _others(use: WeightUse, axis: int) -> tuple[int, ...]:
    return tuple(i for i in range(len(use.shape)) if i != axis)


def rows(group: Group, uses: Iterable[WeightUse], measure: Callable[[Scores], Scores]) -> Scores:
    """Sum ``measure`` of a whole weight over each unit's slice: (weights, units)."""
    return np.stack([sum_of_units(_sum_along(use, measure), use.expr, group.atom) for use in uses])


def counted(group: Group, context: Context) -> list[WeightUse]:
    """Uses that say how large a unit is: each axis once, no statistics, biases where asked.

    A group of biases alone (a learned position) is measured by them.
    """
    seen: dict[tuple[object, ...], WeightUse] = {}
    for use in group.weights:
        if use.slot not in _STATISTICS.get(use.op, ()):
            seen.setdefault((use.initialiser, use.axis, use.expr), use)
    found = list(seen.values())
    if context.scoring.biases:
        return found
    return [use for use in found if not is_bias(use)] or found


def matrices(group: Group, context: Context) -> list[WeightUse]:
    """Uses of matrices that make or read the units, for criteria that are about nothing else.

    Raises:
        PreconditionError: the units have no matrix, or a convolution has them too.
    """
    found = [use for use in counted(group, context) if not is_bias(use) and len(use.shape) > 1]
    kernels = [use.parameter for use in found if len(use.shape) > 2]
    if kernels or not found:
        raise PreconditionError(
            "this criterion is for units of matrices",
            where=group.name,
            got=f"a kernel: {kernels[0]}" if kernels else "no matrix",
            next_step="rank by taylor, fisher or weights",
        )
    return found


def is_bias(use: WeightUse) -> bool:
    """Tell whether a weight is added, one number a unit, rather than multiplied."""
    if use.op in {"Add", "Sub"}:
        return all(dim == 1 for axis, dim in enumerate(use.shape) if axis != use.axis)
    return _BIAS_SLOTS.get(use.op) == use.slot


def weight(use: WeightUse) -> Scores:
    """Return a weight as float64.

    Raises:
        BadInputError: it holds NaN or infinities.
    """
    array = np.asarray(_tensor(use).numpy(), dtype=np.float64)
    if not np.isfinite(array).all():
        raise BadInputError(
            f"the weight {use.parameter!r} holds NaN or infinities",
            where=use.initialiser,
            got=f"{int((~np.isfinite(array)).sum())} of {array.size} numbers",
            next_step="check the checkpoint: such a model cannot be ranked",
        )
    return array


def _tensor(use: WeightUse) -> ir.TensorProtocol:
    value = use.node.inputs[use.slot]
    tensor = None if value is None else constant_tensor(value)
    if tensor is None:
        raise BadInputError(f"the weight {use.parameter!r} has no values")
    return tensor


__all__ = ["counted", "is_bias", "matrices", "rows", "sizes", "weight"]
