"""What criteria share that look at activations: one pass for all groups, then sums by unit."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from secateur.calibration.importance.core import Context, Scores
from secateur.calibration.statistics.gathering import BY_FEATURE, Accumulator, How, gather
from secateur.calibration.statistics.places import Place, all_places, places_of
from secateur.calibration.units import sum_by_unit
from secateur.graph_passes.groups import Group

Kind = TypeVar("Kind", bound=Accumulator)


def readings(
    group: Group,
    context: Context,
    make: Callable[[Place, Group], Kind],
    how: How = BY_FEATURE,
) -> list[tuple[Place, Kind]]:
    """Return the places that read a group with the sums that ``make`` began for each.

    The first call runs the data once for every group of the context.

    Raises:
        BadInputError: data that cannot be used, as ``gather`` says.
        PreconditionError: no weight reads one of the groups.
    """
    key = f"{make.__module__}.{make.__qualname__}"
    if key not in context.gathered:
        known = all_places(context.analysis)
        made = {
            one.name: [(place, make(place, one)) for place in places_of(one, known)]
            for one in context.groups
        }
        pairs = [pair for found in made.values() for pair in found]
        gather(context.analysis.model, pairs, context.data, how)
        context.gathered[key] = made
    found: list[tuple[Place, Kind]] = context.gathered[key][group.name]
    return found


def by_unit(values: NDArray[np.float64], place: Place, group: Group) -> Scores:
    """Sum numbers of an activation's features, or of a weight's columns, by unit."""
    owners = place.owners(group.atom)
    if len(values) != len(owners):  # features of a convolution's input, not kernel positions
        owners = owners.reshape(len(values), -1)[:, 0]
    return sum_by_unit(values, owners, group.size)


__all__ = ["by_unit", "readings"]
