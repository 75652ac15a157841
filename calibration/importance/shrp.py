"""Keep the heads that are the first choice of most tokens: top-1 usage.

Source: the usage statistic of SHRP, arXiv:2512.20635, of which only the abstract was readable.
``shrp`` counts the choices of routers that ``shrp_training`` has trained; ``top1_usage`` takes the
head that adds most to the stream, which needs no training and is not SHRP.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from secateur.calibration.importance.core import CRITERIA, Context, Scores
from secateur.calibration.importance.gathered import readings
from secateur.calibration.importance.shrp_training import maker
from secateur.calibration.statistics.gathering import gather
from secateur.calibration.statistics.moments import Sums
from secateur.calibration.statistics.places import Place, all_places
from secateur.errors import BadInputError
from secateur.graph_passes.groups import Group


@CRITERIA.register("top1_usage")
def top1_usage(group: Group, context: Context) -> Scores:
    """Share of tokens for which the unit's contribution through the next weight is the longest."""
    found = [sums.mean for _, sums in readings(group, context, _usage)]
    total: Scores = np.sum(found, axis=0)
    return total


@CRITERIA.register("shrp")
def shrp(group: Group, context: Context) -> Scores:
    """Share of tokens that a trained router sends to the head.

    From ``<group>@router``, (D, heads), and ``<group>@router_bias``, as ``train_routers`` makes
    them for a model, or as a model that was trained with a router has them.

    Raises:
        BadInputError: no router for the group, or one of another size; no data.
        PreconditionError: the units are no heads, or no matrix makes them.
    """
    key = "shrp"
    if key not in context.gathered:
        known = all_places(context.analysis)
        pairs = [(maker(one, known), _choices(one, context)) for one in context.groups]
        gather(context.analysis.model, pairs, context.data)
        context.gathered[key] = {
            one.name: sums.mean for one, (_, sums) in zip(context.groups, pairs, strict=True)
        }
    found: Scores = context.gathered[key][group.name]
    return found


def _choices(group: Group, context: Context) -> Sums:
    name = f"{group.name}@router"
    if name not in context.arrays:
        raise BadInputError(
            f"no array {name!r} was handed in",
            wanted="a router for every group of heads",
            next_step="train them: calibration.importance.shrp_training.train_routers",
        )
    router = np.asarray(context.arrays[name], dtype=np.float64)
    bias = np.asarray(context.arrays.get(f"{name}_bias", np.zeros(group.size)), dtype=np.float64)
    if router.shape[1:] != (group.size,) or bias.shape != (group.size,):
        raise BadInputError(
            "the router is for another number of heads",
            where=name,
            got=f"{router.shape} and {bias.shape}",
            wanted=f"(width, {group.size}) and ({group.size},)",
        )

    def measure(rows: NDArray[Any]) -> NDArray[np.float64]:
        """(T, width) -> (T, heads): 1 for the head that the router chooses."""
        if rows.shape[1] != len(router):
            raise BadInputError(
                "the router is for another width",
                where=name,
                got=str(len(router)),
                wanted=str(rows.shape[1]),
            )
        chosen: NDArray[np.float64] = np.eye(group.size)[(rows @ router + bias).argmax(axis=1)]
        return chosen

    return Sums(measure)


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


__all__ = ["shrp", "top1_usage"]
