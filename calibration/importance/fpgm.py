"""Keep the units that no other unit resembles.

Source: He et al., Filter Pruning via Geometric Median for Deep Convolutional Neural Networks
Acceleration, CVPR 2019, arXiv:1811.00250, section 3.3; over every weight that makes the unit.
"""

from __future__ import annotations

import numpy as np

from secateur.calibration.importance.aggregation import aggregate
from secateur.calibration.importance.core import CRITERIA, Context, Scores
from secateur.calibration.importance.unit_weights import counted, weight
from secateur.calibration.units import units
from secateur.graph_passes.groups import Group, WeightUse


@CRITERIA.register("fpgm")
def fpgm(group: Group, context: Context) -> Scores:
    """Sum of distances to all other units of the group, in each weight, aggregated."""
    found = [_distances(_slices(group, use)) for use in counted(group, context)]
    return aggregate(np.stack(found), context.scoring.aggregate)


def _slices(group: Group, use: WeightUse) -> Scores:
    """(units, numbers of a unit in this weight)."""
    by_position = np.moveaxis(weight(use), use.axis, 0).reshape(use.shape[use.axis], -1)
    owners = units(use.expr, group.atom)
    order = np.argsort(owners, kind="stable")
    return by_position[order[owners[order] >= 0]].reshape(group.size, -1)


def _distances(slices: Scores) -> Scores:
    lengths = np.square(slices).sum(axis=1)
    squares = lengths[:, None] + lengths[None, :] - 2 * slices @ slices.T
    distances: Scores = np.sqrt(np.maximum(squares, 0)).sum(axis=1)
    return distances


__all__ = ["fpgm"]
