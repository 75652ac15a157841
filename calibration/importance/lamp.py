"""Keep the units with large weights, as a share of what would be left of their layer.

Source: Lee et al., Layer-adaptive Sparsity for the Magnitude-based Pruning, ICLR 2021,
arXiv:2010.07611, equation 4; summed over the slices of a unit.
"""

from __future__ import annotations

import numpy as np

from secateur.calibration.importance.aggregation import aggregate
from secateur.calibration.importance.core import CRITERIA, Context, Scores
from secateur.calibration.importance.unit_weights import counted, rows
from secateur.graph_passes.groups import Group


@CRITERIA.register("lamp")
def lamp(group: Group, context: Context) -> Scores:
    """Square of a weight over the sum of all squares in its tensor that are not smaller."""
    return aggregate(rows(group, counted(group, context), _adapted), context.scoring.aggregate)


def _adapted(weight: Scores) -> Scores:
    squares = np.square(weight).ravel()
    order = np.argsort(squares, kind="stable")
    left = np.cumsum(squares[order][::-1])[::-1]  # the weight and everything sorted behind it
    scores = np.zeros(squares.size)
    scores[order] = squares[order] / np.maximum(left, np.finfo(np.float64).tiny)
    return scores.reshape(weight.shape)


__all__ = ["lamp"]
