"""Keep the units with large weights, over the whole coupled group.

Source: Li et al., Pruning Filters for Efficient ConvNets, ICLR 2017, arXiv:1608.08710 (L1);
summed over every weight slice that contains the unit as in Structurally Prune Anything,
arXiv:2403.18955, section 3.2.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from secateur.calibration.importance.core import CRITERIA, Context, Scores
from secateur.calibration.importance.units import sum_by_unit, units
from secateur.errors import BadInputError
from secateur.graph_passes.axes.axis_map import constant_tensor
from secateur.graph_passes.groups import Group, WeightUse


@CRITERIA.register("l1")
def l1(group: Group, _context: Context) -> Scores:
    """Sum of absolute weights of the unit, over all weights of the group."""
    return _summed(group, np.abs)


@CRITERIA.register("l2")
def l2(group: Group, _context: Context) -> Scores:
    """Euclidean length of the unit's weights, over all weights of the group."""
    return np.sqrt(_summed(group, np.square))


def _summed(group: Group, measure: Callable[[Scores], Scores]) -> Scores:
    total = np.zeros(group.size)
    for use in _once_each(group):
        by_position = measure(weight(use))
        others = tuple(i for i in range(by_position.ndim) if i != use.axis)
        owners = units(use.expr, group.atom)
        total += sum_by_unit(by_position.sum(axis=others), owners, group.size)
    return total


def _once_each(group: Group) -> Iterator[WeightUse]:
    """Uses of the group without those that read the same axis of the same weight again."""
    seen = set()
    for use in group.weights:
        if (use.initialiser, use.axis, use.expr) not in seen:
            seen.add((use.initialiser, use.axis, use.expr))
            yield use


def weight(use: WeightUse) -> Scores:
    """Return a weight as float64.

    Raises:
        BadInputError: it holds NaN or infinities.
    """
    value = use.node.inputs[use.slot]
    tensor = None if value is None else constant_tensor(value)
    if tensor is None:
        raise BadInputError(f"the weight {use.parameter!r} has no values")
    array = np.asarray(tensor.numpy(), dtype=np.float64)
    if not np.isfinite(array).all():
        raise BadInputError(
            f"the weight {use.parameter!r} holds NaN or infinities",
            where=use.initialiser,
            got=f"{int((~np.isfinite(array)).sum())} of {array.size} numbers",
            next_step="check the checkpoint: such a model cannot be ranked",
        )
    return array


__all__ = ["l1", "l2", "weight"]
