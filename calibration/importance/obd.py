"""Keep the units whose removal would cost the next layer most, weights taken one by one.

Source: LeCun et al., Optimal Brain Damage, NIPS 1990 (``obd``: half of w^2 times the Hessian's
diagonal); Hassibi and Stork, Second Order Derivatives for Network Pruning, NIPS 1992 (``obs``:
half of w^2 over the diagonal of the inverse). The Hessian is that of the layer's squared error,
X^T X of its inputs, so that no gradient is needed.
"""

from __future__ import annotations

import numpy as np

from secateur.calibration.importance.core import CRITERIA, Context, Scores
from secateur.calibration.importance.gathered import by_unit, readings
from secateur.calibration.importance.wanda import moments, per_column
from secateur.calibration.statistics.gathering import BY_KERNEL
from secateur.calibration.statistics.gram import Gram
from secateur.calibration.statistics.normal import damped, without_dead
from secateur.calibration.statistics.places import Place
from secateur.graph_passes.groups import Group


@CRITERIA.register("obd")
def obd(group: Group, context: Context) -> Scores:
    """Half of the squared weights that read the unit times their Hessian's diagonal."""
    found = readings(group, context, moments)
    parts = [
        by_unit(
            np.square(place.matrix()).sum(axis=0) * per_column(sums.square, place), place, group
        )
        for place, sums in found
    ]
    total: Scores = sum(parts, start=np.zeros(group.size)) / 2
    return total


@CRITERIA.register("obs")
def obs(group: Group, context: Context) -> Scores:
    """Half of the squared weights that read the unit over the inverse Hessian's diagonal."""
    parts = []
    for place, sums in readings(group, context, gram, BY_KERNEL):
        hessian, weight = without_dead(sums.products, place.matrix())
        inverse = np.linalg.inv(damped(hessian))
        parts.append(by_unit(np.square(weight).sum(axis=0) / np.diag(inverse), place, group))
    total: Scores = sum(parts, start=np.zeros(group.size)) / 2
    return total


def gram(place: Place, group: Group) -> Gram:
    """Begin X^T X, which several criteria share."""
    del place, group
    return Gram()


__all__ = ["gram", "obd", "obs"]
