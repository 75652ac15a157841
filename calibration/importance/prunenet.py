"""PruneNet: a small policy that reads a weight matrix and says which rows to keep.

Source: Sengupta et al., You Only Prune Once: Designing Calibration-Free Model Compression with
Policy Learning, ICLR 2025; as in LCS2-IIITD/PruneNet. Only the policy's application; keeping the
best rows is deterministic here, the published code draws them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Vector: TypeAlias = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Policy:
    """A trained policy for (rows, D) weights."""

    projection: NDArray[Any]
    """(rows, D)"""
    bias: NDArray[Any]
    """(rows,)"""
    row_vector: NDArray[Any]
    """(rows, 1)"""


def row_scores(policy: Policy, weight: NDArray[Any]) -> Vector:
    """Probability in (0, 1) that a row matters, (rows,)."""
    seen = np.asarray(weight, dtype=np.float64) @ np.asarray(policy.projection, np.float64).T
    logits = (seen + policy.bias) @ np.asarray(policy.row_vector, np.float64)[:, 0]
    scores: Vector = 1 / (1 + np.exp(-logits))
    return scores


def keep_probability(scores: Vector, noise: NDArray[Any]) -> Vector:
    """Relaxed Bernoulli draw with uniform noise in (0, 1), (rows,)."""
    drawn = np.asarray(noise, dtype=np.float64)
    odds = drawn / (1 - drawn) * scores / (1 - scores)
    kept: Vector = odds / (1 + odds)
    return kept


def spectrum_distance(whole: NDArray[Any], part: NDArray[Any]) -> float:
    """Largest gap between the distributions of the singular values of two matrices."""
    a, b = (np.linalg.svd(np.asarray(x, np.float64), compute_uv=False) for x in (whole, part))
    points = np.concatenate([a, b])
    shares = [(values[None, :] <= points[:, None]).mean(axis=1) for values in (a, b)]
    return float(np.abs(shares[0] - shares[1]).max())


__all__ = ["Policy", "keep_probability", "row_scores", "spectrum_distance"]
