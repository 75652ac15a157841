"""Keep the units with large weights, over the whole coupled group.

Source: Li et al., Pruning Filters for Efficient ConvNets, ICLR 2017, arXiv:1608.08710 (L1);
over every weight slice that contains the unit as in Structurally Prune Anything,
arXiv:2403.18955, section 3.2.
"""

from __future__ import annotations

import numpy as np

from secateur.calibration.importance.aggregation import aggregate
from secateur.calibration.importance.core import CRITERIA, Context, Scores
from secateur.calibration.importance.unit_weights import sizes
from secateur.graph_passes.groups import Group


@CRITERIA.register("l1")
def l1(group: Group, context: Context) -> Scores:
    """Sum of absolute weights of the unit in each weight of the group, aggregated."""
    return aggregate(sizes(group, context, np.abs), context.scoring.aggregate)


@CRITERIA.register("l2")
def l2(group: Group, context: Context) -> Scores:
    """Sum of squared weights of the unit in each weight of the group, aggregated; no root."""
    return aggregate(sizes(group, context, np.square), context.scoring.aggregate)


@CRITERIA.register("group_norm")
def group_norm(group: Group, context: Context) -> Scores:
    """Euclidean length of the unit over all weights of the group: the root of ``l2``."""
    return np.sqrt(l2(group, context))


__all__ = ["group_norm", "l1", "l2"]
