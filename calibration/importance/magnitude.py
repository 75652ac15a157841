"""Keep the units with large weights, over the whole coupled group.

Source: Li et al., Pruning Filters for Efficient ConvNets, ICLR 2017, arXiv:1608.08710 (L1);
over every weight slice that contains the unit as in Structurally Prune Anything,
arXiv:2403.18955, section 3.2.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np
import onnx_ir as ir

from secateur.calibration.importance.aggregation import aggregate
from secateur.calibration.importance.core import CRITERIA, Context, Scores
from secateur.calibration.importance.marginals import Measure, marginals
from secateur.calibration.units import sum_by_unit, units
from secateur.errors import BadInputError, PreconditionError
from secateur.graph_passes.axes.axis_map import constant_tensor
from secateur.graph_passes.groups import Group, WeightUse
from secateur.weights import array_of

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


@CRITERIA.register("l1")
def l1(group: Group, context: Context) -> Scores:
    """Sum of absolute weights of the unit in each weight of the group, aggregated."""
    return aggregate(_sizes(group, context, np.abs), context.scoring.aggregate)


@CRITERIA.register("l2")
def l2(group: Group, context: Context) -> Scores:
    """Sum of squared weights of the unit in each weight of the group, aggregated; no root."""
    return aggregate(_sizes(group, context, np.square), context.scoring.aggregate)


@CRITERIA.register("group_norm")
def group_norm(group: Group, context: Context) -> Scores:
    """Euclidean length of the unit over all weights of the group: the root of ``l2``."""
    return np.sqrt(l2(group, context))


def _sizes(group: Group, context: Context, measure: Measure) -> Scores:
    """Sum ``measure``, number by number, over each unit's slices: (weights, units).

    A weight is read once for all groups of the context, in blocks, so that no copy of the
    whole in float64 is ever made.

    Raises:
        BadInputError: a weight holds NaN or infinities.
    """
    read: dict[str, Sequence[Scores]] = context.gathered.setdefault(f"sums of {measure}", {})
    found = []
    for use in counted(group, context):
        sums = read.get(use.initialiser)
        if sums is None:
            read[use.initialiser] = sums = _sums(use, measure)
        by_position = sums[use.axis] if use.axis < len(sums) else _sum_behind(use, measure)
        found.append(_by_unit(by_position, use, group))
    return np.stack(found)


def _sums(use: WeightUse, measure: Measure) -> Sequence[Scores]:
    """Sum ``measure`` along the first axes of a weight."""
    array = array_of(_tensor(use))
    if array.ndim < 2:
        return [_sum_along(use, measure)]
    sums = marginals(array, measure)
    if np.isfinite(sums[0]).all():
        return sums
    return [measure(weight(use)).sum(axis=_others(use, axis)) for axis in range(2)]


def _sum_behind(use: WeightUse, measure: Measure) -> Scores:
    """Sum ``measure`` along an axis behind the second, as stacked experts have one."""
    total: Scores = np.zeros(use.shape[use.axis])
    for row in array_of(_tensor(use)):
        others = tuple(i for i in range(row.ndim) if i + 1 != use.axis)
        total += measure(row.astype(np.float64)).sum(axis=others)
    return total if np.isfinite(total).all() else _sum_along(use, measure)


def _sum_along(use: WeightUse, measure: Measure) -> Scores:
    """Sum ``measure`` along the axis of a use, of the whole weight at once."""
    summed: Scores = measure(weight(use)).sum(axis=_others(use, use.axis))
    return summed


def _others(use: WeightUse, axis: int) -> tuple[int, ...]:
    return tuple(i for i in range(len(use.shape)) if i != axis)


def rows(group: Group, uses: Iterable[WeightUse], measure: Callable[[Scores], Scores]) -> Scores:
    """Sum ``measure`` of a whole weight over each unit's slice: (weights, units)."""
    return np.stack([_by_unit(_sum_along(use, measure), use, group) for use in uses])


def _by_unit(by_position: Scores, use: WeightUse, group: Group) -> Scores:
    """Sum the positions of each unit, of which most axes have one."""
    if len(use.expr) == 1 and use.expr[0] is group.atom:
        return by_position
    return sum_by_unit(by_position, units(use.expr, group.atom), group.size)


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


__all__ = ["counted", "group_norm", "is_bias", "l1", "l2", "matrices", "rows", "weight"]
