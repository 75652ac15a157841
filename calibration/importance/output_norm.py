"""Keep the units whose output is long where the next weight reads it.

For a head this is its part of the output projection's input, for an FFN channel its
activation. Source: head and neuron scores by activation norm; the aggregated form is FLAP's
input feature norm (An et al., AAAI 2024, arXiv:2312.11983, section 3) without its weights.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from secateur.calibration.importance.core import CRITERIA, Context, Scores
from secateur.calibration.importance.gathered import readings
from secateur.calibration.statistics.moments import Sums
from secateur.calibration.statistics.places import Place
from secateur.calibration.units import sum_by_unit, units
from secateur.graph_passes.groups import Group


@CRITERIA.register("output_norm")
def output_norm(group: Group, context: Context) -> Scores:
    """Mean length of the unit's output over all tokens of the data that are no padding."""
    found = [sums for _, sums in readings(group, context, _lengths)]
    total: Scores = sum((sums.total for sums in found), start=np.zeros(group.size))
    return total / sum(sums.n_rows for sums in found)


def _lengths(place: Place, group: Group) -> Sums:
    owners = units(place.expr, group.atom)

    def measure(rows: NDArray[Any]) -> NDArray[np.float64]:
        """(T, features) -> (T, units): length of each unit's part of each row."""
        lengths: NDArray[np.float64] = np.sqrt(
            sum_by_unit(np.square(rows, dtype=np.float64), owners, group.size)
        )
        return lengths

    return Sums(measure)


__all__ = ["output_norm"]
