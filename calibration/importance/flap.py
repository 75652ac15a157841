"""FLAP: how much a feature fluctuates over the data, times what the next weight makes of it.

Source: An et al., Fluctuation-based Adaptive Structured Pruning for Large Language Models,
AAAI 2024, arXiv:2312.11983, sections 3.2 to 3.4; defaults and the divisors of the running
statistics as in CASIA-IVA-Lab/FLAP.
"""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from secateur.calibration.importance.core import CRITERIA, Context, Scores
from secateur.calibration.importance.gathered import by_unit, readings
from secateur.calibration.statistics.gathering import How
from secateur.calibration.statistics.moments import Fluctuation
from secateur.calibration.statistics.places import Place
from secateur.errors import BadInputError
from secateur.graph_passes.groups import Group

Vector: TypeAlias = NDArray[np.float64]
Metric = Literal["IFV", "WIFV", "WIFN"]

_SQUARED = frozenset({"heads", "query_heads"})


@CRITERIA.register("flap")
def flap(group: Group, context: Context) -> Scores:
    """Fluctuation of the unit's features times the squared weights that read them, standardised.

    The metric of heads is squared first, as published, and averaged over a head's features. Rank
    with scope ``global`` and normalise ``none``: the scores of all layers compare as they are.

    Raises:
        BadInputError: fewer than two samples, or features that never change.
    """
    return _scored(group, context, "WIFV")


@CRITERIA.register("flap_ifv")
def flap_ifv(group: Group, context: Context) -> Scores:
    """FLAP's fluctuation alone, without the weights that read the features.

    Raises:
        BadInputError: fewer than two samples, or features that never change.
    """
    return _scored(group, context, "IFV")


@CRITERIA.register("flap_wifn")
def flap_wifn(group: Group, context: Context) -> Scores:
    """FLAP's length of the features times the sizes of the weights that read them.

    Raises:
        BadInputError: fewer than two samples.
    """
    return _scored(group, context, "WIFN")


def _scored(group: Group, context: Context, metric: Metric) -> Scores:
    total = np.zeros(group.size)
    for place, found in readings(group, context, _fluctuation, How(at_least=2)):
        if metric != "WIFN" and not found.fluctuation.any():
            raise BadInputError(
                "no feature changes over the data", where=place.value, wanted="samples that differ"
            )
        # A kernel's positions count as so many more rows of the weight.
        matrix = place.matrix()
        rows = matrix.reshape(len(matrix), len(found.mean), -1).swapaxes(1, 2)
        values = feature_metric(found, rows.reshape(-1, len(found.mean)), metric)
        scores = standardised(values**2 if group.role in _SQUARED else values)
        widths = by_unit(np.ones(len(scores)), place, group)
        total = total + by_unit(scores, place, group) / widths
    return total


def _fluctuation(place: Place, group: Group) -> Fluctuation:
    del place, group
    return Fluctuation()


def feature_metric(found: Fluctuation, weight: NDArray[Any], metric: Metric) -> Vector:
    """Score input features by statistics and the (out, in) weight that reads them."""
    w = np.asarray(weight, dtype=np.float64)
    if metric == "IFV":
        return found.fluctuation
    if metric == "WIFV":
        weighted: Vector = found.fluctuation * np.square(w).sum(axis=0)
        return weighted
    scaled: Vector = (np.abs(w) * np.sqrt(found.square)).mean(axis=0)
    return scaled


def standardised(metric: Vector) -> Vector:
    """Mean 0 and unbiased deviation 1, so that layers can be compared."""
    result: Vector = (metric - metric.mean()) / metric.std(ddof=1)
    return result


def keep_globally(scores: Vector, costs: Vector, ratio: float) -> NDArray[np.bool_]:
    """Keep the best units until what goes is closest to ``ratio`` of the total cost.

    The unit at the threshold goes: only strictly larger scores stay.
    """
    order = np.argsort(-scores, kind="stable")
    spent = np.cumsum(costs[order])
    at = int(np.argmin(np.abs(spent - spent[-1] * (1 - ratio))))
    kept: NDArray[np.bool_] = scores > scores[order[at]]
    return kept


def compensation(found: Fluctuation, weight: NDArray[Any], kept: NDArray[np.bool_]) -> Vector:
    """Bias (out,) that stands in for the mean of the removed features."""
    w = np.asarray(weight, dtype=np.float64)
    bias: Vector = w[:, ~kept] @ found.mean[~kept]
    return bias


__all__ = [
    "compensation",
    "feature_metric",
    "flap",
    "flap_ifv",
    "flap_wifn",
    "keep_globally",
    "standardised",
]
