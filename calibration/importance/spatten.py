"""Keep the heads that send much on: SpAtten-style static head importance.

Source: Wang et al., SpAtten: Efficient Sparse Attention Architecture with Cascade Token and Head
Pruning, HPCA 2021, arXiv:2012.09852, section III-C. There heads go while the model runs; here the
same sum is taken over the data and heads go for good, in every layer by itself.
"""

from __future__ import annotations

import numpy as np

from secateur.calibration.importance.core import CRITERIA, Context, Scores
from secateur.calibration.importance.gathered import by_unit, readings
from secateur.calibration.statistics.moments import Sums
from secateur.calibration.statistics.places import Place
from secateur.graph_passes.groups import Group


@CRITERIA.register("spatten")
def spatten(group: Group, context: Context) -> Scores:
    """Sum of absolute values of the unit's output before the next weight, over all tokens."""
    found = readings(group, context, _absolute)
    parts = [by_unit(sums.total, place, group) for place, sums in found]
    total: Scores = sum(parts, start=np.zeros(group.size))
    return total


def _absolute(place: Place, group: Group) -> Sums:
    del place, group
    return Sums(np.abs)


__all__ = ["spatten"]
