"""Keep the units that are seldom zero.

Source: Hu et al., Network Trimming: A Data-Driven Neuron Pruning Approach towards Efficient Deep
Architectures, arXiv:1607.03250, section 3.1 (average percentage of zeros).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from secateur.calibration.importance.core import CRITERIA, Context, Scores
from secateur.calibration.importance.gathered import by_unit, readings
from secateur.calibration.statistics.moments import Sums
from secateur.calibration.statistics.places import Place
from secateur.errors import PreconditionError
from secateur.graph_passes.groups import Group


@CRITERIA.register("apoz")
def apoz(group: Group, context: Context) -> Scores:
    """Share of tokens or positions at which the unit's activation is not zero.

    Raises:
        PreconditionError: no activation of the group is ever zero, as behind a GELU.
    """
    found = readings(group, context, _nonzero)
    shares = [by_unit(sums.mean, place, group) for place, sums in found]
    widths = [by_unit(np.ones(len(sums.mean)), place, group) for place, sums in found]
    score: Scores = sum(shares, start=np.zeros(group.size)) / sum(widths)
    if (score >= 1).all():
        raise PreconditionError(
            "no activation of these units is ever zero, so that zeros cannot rank them",
            where=group.name,
            next_step="this criterion is for ReLU; rank by output_norm or wanda",
        )
    return score


def _nonzero(place: Place, group: Group) -> Sums:
    del place, group
    return Sums(_is_nonzero)


def _is_nonzero(rows: NDArray[Any]) -> NDArray[np.bool_]:
    nonzero: NDArray[np.bool_] = rows != 0
    return nonzero


__all__ = ["apoz"]
