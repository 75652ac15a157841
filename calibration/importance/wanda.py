"""Keep the units whose inputs are long where the weights that read them are large.

Source: Sun et al., A Simple and Effective Pruning Approach for Large Language Models, ICLR 2024,
arXiv:2306.11695, equation 1; summed over the columns of a unit.
"""

from __future__ import annotations

import numpy as np

from secateur.calibration.importance.core import CRITERIA, Context, Scores
from secateur.calibration.importance.gathered import by_unit, readings
from secateur.calibration.statistics.moments import Moments
from secateur.calibration.statistics.places import Place
from secateur.graph_passes.groups import Group


@CRITERIA.register("wanda")
def wanda(group: Group, context: Context) -> Scores:
    """Sum over the reading weights of |weight| times the length of its input feature."""
    found = readings(group, context, moments)
    parts = [
        by_unit(np.abs(place.matrix()).sum(axis=0) * per_column(sums.norm, place), place, group)
        for place, sums in found
    ]
    total: Scores = sum(parts, start=np.zeros(group.size))
    return total


def moments(place: Place, group: Group) -> Moments:
    """Begin the sums that several criteria share."""
    del place, group
    return Moments()


def per_column(features: Scores, place: Place) -> Scores:
    """Repeat a number per input feature for every kernel position that reads it."""
    return np.repeat(features, int(np.prod(place.kernel, dtype=np.int64)))


__all__ = ["moments", "per_column", "wanda"]
