"""Keep the units with large weights, over the whole coupled group.

Source: Li et al., Pruning Filters for Efficient ConvNets, ICLR 2017, arXiv:1608.08710 (L1);
over every weight slice that contains the unit as in Structurally Prune Anything,
arXiv:2403.18955, section 3.2.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import onnx_ir as ir

from secateur.calibration.importance.aggregation import aggregate
from secateur.calibration.importance.core import CRITERIA, Context, Scores
from secateur.calibration.units import sum_by_unit, units
from secateur.errors import BadInputError
from secateur.graph_passes.axes.axis_map import constant_tensor
from secateur.graph_passes.groups import Group, WeightUse
from secateur.weights import array_of

_BLOCK_ELEMENTS = 1 << 18
"""2 MB in float64: it stays in the cache while it is measured and summed."""

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
    return aggregate(sizes(group, counted(group, context), np.abs), context.scoring.aggregate)


@CRITERIA.register("l2")
def l2(group: Group, context: Context) -> Scores:
    """Sum of squared weights of the unit in each weight of the group, aggregated; no root."""
    return aggregate(sizes(group, counted(group, context), np.square), context.scoring.aggregate)


@CRITERIA.register("group_norm")
def group_norm(group: Group, context: Context) -> Scores:
    """Euclidean length of the unit over all weights of the group: the root of ``l2``."""
    return np.sqrt(l2(group, context))


def sizes(group: Group, uses: Iterable[WeightUse], measure: Callable[[Scores], Scores]) -> Scores:
    """Sum ``measure``, number by number, over each unit's slices: (weights, units).

    A weight is read in blocks, so that no copy of the whole in float64 is ever made.

    Raises:
        BadInputError: a weight holds NaN or infinities.
    """
    found = []
    for use in uses:
        by_position = _sums_along(use, measure)
        if not np.isfinite(by_position).all():
            by_position = measure(weight(use)).sum(axis=_others(use))  # says what is wrong
        found.append(sum_by_unit(by_position, units(use.expr, group.atom), group.size))
    return np.stack(found)


def _sums_along(use: WeightUse, measure: Callable[[Scores], Scores]) -> Scores:
    """Sum ``measure`` over everything but the axis of the use, some rows at a time."""
    array = array_of(_tensor(use))
    if array.ndim == 1:
        return measure(array.astype(np.float64))
    totals = np.zeros(array.shape[use.axis])
    step = max(1, _BLOCK_ELEMENTS * len(array) // max(array.size, 1))
    for start in range(0, len(array), step):
        block = measure(array[start : start + step].astype(np.float64)).sum(axis=_others(use))
        if use.axis == 0:
            totals[start : start + step] = block
        else:
            totals += block
    return totals


def _others(use: WeightUse) -> tuple[int, ...]:
    return tuple(i for i in range(len(use.shape)) if i != use.axis)


def rows(group: Group, uses: Iterable[WeightUse], measure: Callable[[Scores], Scores]) -> Scores:
    """Sum ``measure`` of a whole weight over each unit's slice: (weights, units)."""
    found = []
    for use in uses:
        by_position = measure(weight(use)).sum(axis=_others(use))
        found.append(sum_by_unit(by_position, units(use.expr, group.atom), group.size))
    return np.stack(found)


def counted(group: Group, context: Context) -> list[WeightUse]:
    """Uses that say how large a unit is: each axis once, no statistics, biases where asked.

    A group of biases alone (a learned position) is measured by them.
    """
    seen: dict[tuple[object, ...], WeightUse] = {}
    for use in group.weights:
        if use.slot not in _STATISTICS.get(use.node.op_type, ()):
            seen.setdefault((use.initialiser, use.axis, use.expr), use)
    found = list(seen.values())
    if context.scoring.biases:
        return found
    return [use for use in found if not is_bias(use)] or found


def is_bias(use: WeightUse) -> bool:
    """Tell whether a weight is added, one number a unit, rather than multiplied."""
    if use.node.op_type in {"Add", "Sub"}:
        return all(dim == 1 for axis, dim in enumerate(use.shape) if axis != use.axis)
    return _BIAS_SLOTS.get(use.node.op_type) == use.slot


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


__all__ = ["counted", "group_norm", "is_bias", "l1", "l2", "rows", "sizes", "weight"]
