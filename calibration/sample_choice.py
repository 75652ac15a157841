"""Which samples to calibrate on: the most central ones, or those a model has most to say about.

Source: ``centrality``: LexRank (Erkan and Radev, JAIR 22, 2004), continuous and without damping as
in crabcamp/lexrank. ``quadrant_levels``: the error-uncertainty plane of Q-Tuning (the pages of
Q-tuning/Q-tuning and gszfwsb/Q-tuning): perplexity against entropy, of which the misconceptions
(wrong and sure) and the calibration data (right and unsure) stay. There it picks data for training;
here it picks samples to calibrate on, and ``token_choice`` has its tokens. The pages define the
quadrants in two ways that contradict one another; what is meant here stands in this sentence.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from secateur.errors import BadInputError

Vector: TypeAlias = NDArray[np.float64]


def tf_idf(samples: Sequence[NDArray[Any]]) -> NDArray[np.float64]:
    """Counts of tokens, those of few samples weighing more: (samples, tokens that occur)."""
    known, places = np.unique(np.concatenate([s.ravel() for s in samples]), return_inverse=True)
    owners = np.repeat(np.arange(len(samples)), [s.size for s in samples])
    counts = np.zeros((len(samples), len(known)))
    np.add.at(counts, (owners, places.ravel()), 1.0)
    rare: NDArray[np.float64] = 1 + np.log(len(samples) / (counts > 0).sum(axis=0))
    return counts * rare


def centrality(features: NDArray[Any]) -> Vector:
    """How often a random walk over similar samples is at each, (samples,); mean 1 a component.

    Args:
        features: (samples, D); similarity is their cosine, negative ones weigh nothing.

    Raises:
        BadInputError: NaN or infinities.
    """
    x = np.asarray(features, dtype=np.float64)
    if not np.isfinite(x).all():
        raise BadInputError("the samples hold NaN or infinities")
    lengths = np.linalg.norm(x, axis=1, keepdims=True)
    x = x / np.maximum(lengths, np.finfo(np.float64).tiny)
    alike = np.maximum(x @ x.T, 0.0)
    degrees = alike.sum(axis=1)
    scores = np.ones(len(x))
    for part in _components(alike > 0):
        total = degrees[part].sum()
        if total > 0:
            scores[part] = degrees[part] * len(part) / total
    return scores


def _components(linked: NDArray[np.bool_]) -> list[NDArray[np.int64]]:
    """Samples that can be reached from one another."""
    left, found = np.ones(len(linked), dtype=bool), []
    while left.any():
        reached = np.zeros(len(linked), dtype=bool)
        reached[np.flatnonzero(left)[0]] = True
        while (wider := reached | linked[reached].any(axis=0)).sum() > reached.sum():
            reached = wider
        left &= ~reached
        found.append(np.flatnonzero(reached))
    return found


def evidence(
    logits: NDArray[Any], ids: NDArray[Any], real: NDArray[np.bool_]
) -> tuple[Vector, Vector]:
    """Error and uncertainty of each sample: mean loss of the next token, and mean entropy.

    Args:
        logits: (B, N, V) of a causal model.
        ids: (B, N) tokens.
        real: (B, N), false at padding.

    Raises:
        BadInputError: a sample of fewer than two tokens, NaN or infinities.
    """
    x = np.asarray(logits, dtype=np.float64)[:, :-1]
    x = x - x.max(axis=2, keepdims=True)
    log_probabilities = x - np.log(np.exp(x).sum(axis=2, keepdims=True))
    losses = -np.take_along_axis(log_probabilities, ids[:, 1:, None], axis=2)[..., 0]
    entropies = -(np.exp(log_probabilities) * log_probabilities).sum(axis=2)
    both = real[:, 1:] & real[:, :-1]
    counts = both.sum(axis=1)
    if not counts.all():
        raise BadInputError("a sample has fewer than two tokens, so that none can be predicted")
    error = (losses * both).sum(axis=1) / counts
    uncertainty = (entropies * both).sum(axis=1) / counts
    if not np.isfinite(error + uncertainty).all():
        raise BadInputError("the model's scores hold NaN or infinities")
    return error, uncertainty


def quadrant_levels(error: Vector, uncertainty: Vector) -> Vector:
    """How far the quadrants have to grow to hold each sample, (samples,) from 0 to 1.

    Both start in their corners of the plane of ranks and grow alike, which comes to the bisection
    of quantiles that meets a share; those with the lowest levels are chosen.
    """
    levels: Vector = np.minimum(*_quadrants(error, uncertainty))
    return levels


def are_misconceptions(error: Vector, uncertainty: Vector) -> NDArray[np.bool_]:
    """Which samples are nearer to the corner of those that are wrong and sure, (samples,)."""
    misconceptions, calibration = _quadrants(error, uncertainty)
    nearer: NDArray[np.bool_] = misconceptions < calibration
    return nearer


def _quadrants(error: Vector, uncertainty: Vector) -> tuple[Vector, Vector]:
    """How far misconceptions and calibration data have to grow to hold each sample."""
    wrong, unsure = _ranks(error), _ranks(uncertainty)
    return np.maximum(1 - wrong, unsure), np.maximum(wrong, 1 - unsure)


def _ranks(values: Vector) -> Vector:
    """Place of each value among all, from 0 for the lowest to 1."""
    places = np.empty(len(values))
    places[np.argsort(values, kind="stable")] = np.arange(len(values))
    return places / max(len(values) - 1, 1)


__all__ = ["are_misconceptions", "centrality", "evidence", "quadrant_levels", "tf_idf"]
