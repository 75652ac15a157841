"""Keep the heads that are most often the strongest of their layer: top-1 usage.

Source: the usage statistic of SHRP, arXiv:2512.20635, of which only the abstract was readable. SHRP
trains a router and an expander first; without them a head's use is the length of what it adds to
the stream. This is a criterion of its own and not SHRP.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from secateur.calibration.importance.core import CRITERIA, Context, Scores
from secateur.calibration.importance.gathered import readings
from secateur.calibration.statistics.moments import Sums
from secateur.calibration.statistics.places import Place
from secateur.graph_passes.groups import Group


@CRITERIA.register("top1_usage")
def top1_usage(group: Group, context: Context) -> Scores:
    """Share of tokens for which the unit's contribution through the next weight is the longest."""
    found = [sums.mean for _, sums in readings(group, context, _usage)]
    total: Scores = np.sum(found, axis=0)
    return total


def _usage(place: Place, group: Group) -> Sums:
    weight, owners = place.matrix(), place.owners(group.atom)
    if place.kernel:
        weight = weight.reshape(len(weight), -1, int(np.prod(place.kernel))).sum(axis=2)
        owners = owners.reshape(-1, int(np.prod(place.kernel)))[:, 0]
    parts = [(owners == unit) for unit in range(group.size)]
    products = [weight[:, mine].T @ weight[:, mine] for mine in parts]

    def measure(rows: NDArray[Any]) -> NDArray[np.float64]:
        """(T, features) -> (T, units): 1 for the unit that adds most."""
        squares = np.stack(
            [
                np.einsum("ti,ij,tj->t", rows[:, mine], product, rows[:, mine], optimize=True)
                for mine, product in zip(parts, products, strict=True)
            ],
            axis=1,
        )
        used: NDArray[np.float64] = np.eye(group.size)[squares.argmax(axis=1)]
        return used

    return Sums(measure)


__all__ = ["top1_usage"]
