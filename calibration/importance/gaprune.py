"""GAPrune: weights that a domain needs more than general text does, where gradients agree.

Source: Tang and Yang, GAPrune: Gradient-Alignment Pruning for Domain-Aware Embeddings,
arXiv:2509.10844, section 3; as in yixuantt/GAPrune. Scores single weights, not units, and with
its defaults ranks nearly as magnitude does: see ``rank_correlation``.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from secateur.calibration.importance.core import CRITERIA, Context, Scores
from secateur.calibration.importance.gradients import by_slice
from secateur.calibration.importance.unit_weights import matrices
from secateur.calibration.importance.unit_weights import weight as weight_of
from secateur.calibration.statistics.handed_in import HandedIn
from secateur.graph_passes.groups import Group

logger = logging.getLogger(__name__)

Array: TypeAlias = NDArray[np.float64]
PostProcess = Literal["none", "zscore_sigmoid", "rank"]


@dataclass(frozen=True, slots=True)
class Evidence:
    """Gradients and diagonal Fisher information of one (out, in) weight, per kind of data."""

    gradient_general: NDArray[Any]
    gradient_domain: NDArray[Any]
    fisher_general: NDArray[Any]
    fisher_domain: NDArray[Any]


@CRITERIA.register("gaprune")
def gaprune(group: Group, context: Context) -> Scores:
    """Sum of GAPrune's scores over the matrices of a unit: an extension, GAPrune is unstructured.

    From ``NAME@general`` and ``NAME@domain`` (gradients) and ``NAME@fisher_general`` and
    ``NAME@fisher_domain``. How far the ranking is that of |w| goes to the log.

    Raises:
        BadInputError: an array is missing or does not fit.
        PreconditionError: convolutions make or read these units.
    """
    given, total = HandedIn(context.analysis.model, context.arrays), np.zeros(group.size)
    for use in matrices(group, context):
        kinds = ("general", "domain", "fisher_general", "fisher_domain")
        score = raw_score(weight_of(use), Evidence(*(given.find(use, kind) for kind in kinds)))
        correlation = rank_correlation(score, weight_of(use))
        logger.info("%s: rank correlation with |w| %.4f", use.parameter, correlation)
        total = total + by_slice(score, use, group)
    return total


def alignment(evidence: Evidence) -> Array:
    """Product of the two unit gradients, averaged over 3 x 3 neighbours with zeros outside."""
    general = evidence.gradient_general.astype(np.float64)
    domain = evidence.gradient_domain.astype(np.float64)
    lengths = np.linalg.norm(general) * np.linalg.norm(domain)
    product: Array = general * domain / lengths if lengths else 0.0 * general
    padded = np.pad(product, 1)
    rows, columns = product.shape
    total = np.zeros(product.shape)
    for i in range(3):
        for j in range(3):
            total += padded[i : i + rows, j : j + columns]
    mean: Array = total / 9
    return mean


def raw_score(
    weight: NDArray[Any], evidence: Evidence, beta: float = 1.0, compression: float = 0.5
) -> Array:
    """Weigh domain against general importance and add the size of the weight."""
    size = np.abs(np.asarray(weight, dtype=np.float64))
    difference = (evidence.fisher_domain - beta * evidence.fisher_general) * size
    agreed = np.clip(1 + 0.2 * alignment(evidence), 0.8, 1.2)
    score: Array = np.logaddexp(0.0, difference * agreed + compression * np.sqrt(size + 1e-8))
    return score


def post_processed(score: Array, how: PostProcess, temperature: float = 1.0) -> Array:
    """Make the scores of matrices comparable: as they are, a sigmoid of z-scores, or ranks."""
    if how == "none":
        return score
    if how == "rank":
        order = np.argsort(np.argsort(score, axis=None)).reshape(score.shape)
        ranks: Array = (order.astype(np.float64) + 1) / score.size
        return ranks
    z = (score - score.mean()) / (score.std(ddof=1) + 1e-8)
    squashed: Array = 1 / (1 + np.exp(-z / temperature))
    return squashed


def rank_correlation(score: Array, weight: NDArray[Any]) -> float:
    """Spearman correlation of a score with the size of the weight: 1 is plain magnitude."""
    a, b = (
        np.argsort(np.argsort(x, axis=None)).astype(np.float64) for x in (score, np.abs(weight))
    )
    return float(np.corrcoef(a, b)[0, 1])


__all__ = ["Evidence", "alignment", "gaprune", "post_processed", "rank_correlation", "raw_score"]
