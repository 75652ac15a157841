"""PruneNet: a small policy that reads a weight matrix and says which rows to keep.

Source: Sengupta et al., You Only Prune Once: Designing Calibration-Free Model Compression with
Policy Learning, ICLR 2025; as in LCS2-IIITD/PruneNet. Keeping the best rows is deterministic here,
the published code draws them, also in deployment. ``prunenet_training`` trains a policy.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from secateur.calibration.importance.core import CRITERIA, Context, Scores
from secateur.calibration.importance.unit_weights import weight as weight_of
from secateur.calibration.units import sum_of_units
from secateur.errors import BadInputError, PreconditionError
from secateur.graph_passes.groups import Group, WeightUse

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


@CRITERIA.register("prunenet")
def prunenet(group: Group, context: Context) -> Scores:
    """Probability that a row of the weights that make the unit matters, by a trained policy.

    The policy is handed in as arrays ``prunenet.projection``, ``prunenet.bias`` and
    ``prunenet.row_vector``; one serves every layer of its width. Keeping the best rows is
    deterministic, and an extension.

    Raises:
        BadInputError: no policy, or one for weights of another size.
        PreconditionError: no matrix makes these units.
    """
    policy = _policy(context)
    found = [_by_row(policy, use, group) for use in group.weights if makes(use)]
    if not found:
        raise PreconditionError("no matrix makes these units", where=group.name)
    total: Scores = np.mean(found, axis=0)
    return total


def _policy(context: Context) -> Policy:
    names = ("projection", "bias", "row_vector")
    missing = [name for name in names if f"prunenet.{name}" not in context.arrays]
    if missing:
        raise BadInputError(
            f"no array 'prunenet.{missing[0]}' was handed in",
            wanted="a trained policy: " + ", ".join(f"prunenet.{name}" for name in names),
        )
    return Policy(*(context.arrays[f"prunenet.{name}"] for name in names))


def makes(use: WeightUse) -> bool:
    """Whether the weight is a matrix that writes the unit's axis."""
    if use.node.op_type == "Gemm" and use.slot == 1:
        return use.axis == (0 if use.node.attributes.get_int("transB", 0) else 1)
    return use.node.op_type == "MatMul" and (use.slot, use.axis, len(use.shape)) == (1, 1, 2)


def _by_row(policy: Policy, use: WeightUse, group: Group) -> Vector:
    rows = np.moveaxis(weight_of(use), use.axis, 0)
    if rows.shape != np.asarray(policy.projection).shape:
        raise BadInputError(
            "the policy is for weights of another size",
            where=use.parameter,
            got=str(np.asarray(policy.projection).shape),
            wanted=str(rows.shape),
        )
    return sum_of_units(row_scores(policy, rows), use.expr, group.atom)


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
    return largest_gap(a, b)


def largest_gap(a: Vector, b: Vector) -> float:
    """Kolmogorov-Smirnov statistic: the largest gap between two distributions of numbers."""
    points = np.concatenate([a, b])
    shares = [(values[None, :] <= points[:, None]).mean(axis=1) for values in (a, b)]
    return float(np.abs(shares[0] - shares[1]).max())


__all__ = [
    "Policy",
    "keep_probability",
    "largest_gap",
    "makes",
    "prunenet",
    "row_scores",
    "spectrum_distance",
]
