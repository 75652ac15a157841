"""FLAP: how much a feature fluctuates over the data, times what the next weight makes of it.

Source: An et al., Fluctuation-based Adaptive Structured Pruning for Large Language Models,
AAAI 2024, arXiv:2312.11983, sections 3.2 to 3.4; defaults and the divisors of the running
statistics as in CASIA-IVA-Lab/FLAP.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

Vector: TypeAlias = NDArray[np.float64]
Metric = Literal["IFV", "WIFV", "WIFN"]


@dataclass(frozen=True, slots=True)
class FeatureStatistics:
    """Running statistics of a layer's input features, each (in,)."""

    mean: Vector
    fluctuation: Vector
    """Squared distance from the running mean, per sequence; the first adds nothing."""
    square: Vector
    """Mean over sequences of the squared length over tokens."""


def feature_statistics(sequences: Iterable[NDArray[Any]]) -> FeatureStatistics:
    """Gather statistics over (T, in) inputs, one sequence at a time.

    The fluctuation is measured from the mean *after* the sequence was added, and divided by
    sequences rather than tokens: the published code's rule, not Welford's.
    """
    mean = fluctuation = square = np.zeros(0)
    for k, raw in enumerate(sequences):
        rows = np.asarray(raw, dtype=np.float64)
        if k == 0:
            mean = fluctuation = square = np.zeros(rows.shape[1])
        mean = mean * k / (k + 1) + rows.mean(axis=0) / (k + 1)
        square = square * k / (k + 1) + np.square(rows).sum(axis=0) / (k + 1)
        if k:
            distance = np.square(rows - mean).sum(axis=0)
            fluctuation = fluctuation * (k - 1) / k + distance / (k + 1)
    return FeatureStatistics(mean, fluctuation, square)


def feature_metric(found: FeatureStatistics, weight: NDArray[Any], metric: Metric) -> Vector:
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


def compensation(found: FeatureStatistics, weight: NDArray[Any], kept: NDArray[np.bool_]) -> Vector:
    """Bias (out,) that stands in for the mean of the removed features."""
    w = np.asarray(weight, dtype=np.float64)
    bias: Vector = w[:, ~kept] @ found.mean[~kept]
    return bias


__all__ = [
    "FeatureStatistics",
    "compensation",
    "feature_metric",
    "feature_statistics",
    "keep_globally",
    "standardised",
]
