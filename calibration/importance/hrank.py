"""Keep the channels whose feature maps have a high rank.

Source: Lin et al., HRank: Filter Pruning using High-Rank Feature Map, CVPR 2020, arXiv:2002.10179,
section 3.2; 500 images are enough there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from secateur.calibration.importance.core import CRITERIA, Context, Scores
from secateur.calibration.importance.gathered import readings
from secateur.calibration.statistics.places import Place
from secateur.calibration.statistics.rows import Weights
from secateur.calibration.units import units
from secateur.errors import PreconditionError
from secateur.graph_passes.groups import Group


@dataclass(slots=True)
class Ranks:
    """Sum over samples of the rank of every unit's map."""

    owners: NDArray[np.int64]
    n_units: int
    n_samples: int = 0
    total: Scores = field(default_factory=lambda: np.zeros(0))

    def add(self, samples: Sequence[NDArray[Any]], weights: Weights = None) -> None:
        """Take in samples of (positions, features); a map is square, or tokens by width.

        A rank has no weights: tokens count or, at weight 0, are not here.
        """
        del weights
        for rows in samples:
            maps = [self._map(rows[:, self.owners == unit]) for unit in range(self.n_units)]
            found = np.array([np.linalg.matrix_rank(one) for one in maps], dtype=np.float64)
            self.total = self.total + found if self.n_samples else found
            self.n_samples += 1

    def _map(self, features: NDArray[Any]) -> NDArray[Any]:
        """A head's tokens by width as they are; a channel's positions as a square if they are."""
        side = int(np.sqrt(len(features)))
        is_square = features.shape[1] == 1 and side * side == len(features)
        return features.reshape(side, side) if is_square else features


@CRITERIA.register("hrank")
def hrank(group: Group, context: Context) -> Scores:
    """Mean rank of the unit's feature map over the samples.

    What reads the units behind a pooling, one number each, has no map and does not count.

    Raises:
        PreconditionError: the units have no maps anywhere, only one number a token.
    """
    found = [sums for _, sums in readings(group, context, _ranks)]
    maps = [sums.total / sums.n_samples for sums in found if (sums.total > sums.n_samples).any()]
    if not maps:
        raise PreconditionError(
            "these units have no feature maps, so that every rank is 1",
            where=group.name,
            next_step="this criterion is for channels of images and for heads",
        )
    total: Scores = np.sum(maps, axis=0)
    return total


def _ranks(place: Place, group: Group) -> Ranks:
    return Ranks(units(place.expr, group.atom), group.size)


__all__ = ["Ranks", "hrank"]
