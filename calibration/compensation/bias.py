"""Add the mean of what goes: FLAP's bias.

Source: An et al., FLAP, AAAI 2024, arXiv:2312.11983, section 3.4; as in CASIA-IVA-Lab/FLAP, but
added to a bias that is there, where the published code overwrites it, and in full precision.
"""

from __future__ import annotations

import numpy as np

from secateur.calibration.compensation.core import (
    COMPENSATIONS,
    Array,
    Compensation,
    Kept,
    Refitted,
)
from secateur.calibration.statistics.moments import Fluctuation


def mean_of_removed(weight: Array, kept: Kept, sums: Fluctuation) -> Refitted:
    """A bias that stands in for the mean of the removed inputs; weights stay as they are."""
    mean = np.repeat(sums.mean, weight.shape[1] // len(sums.mean))
    return Refitted(np.where(kept, weight, 0.0), weight[:, ~kept] @ mean[~kept])


COMPENSATIONS.register("bias")(Compensation(mean_of_removed, Fluctuation, patches=False))

__all__ = ["mean_of_removed"]
