"""How much each token of a calibration text counts: RSQ's scaling.

Source: Sung et al., RSQ: Learning from Important Tokens Leads to Better Quantized LLMs,
arXiv:2503.01820, section 4; the kinds and defaults of ylsung/rsq. Every function takes arrays of
all sequences, (S, T, ...), and returns (S, T) scores, larger counts more.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Array: TypeAlias = NDArray[np.float64]


def by_attention(probabilities: NDArray[Any]) -> Array:
    """(S, H, T, T) attention, rows are queries: what a token gets over heads and queries."""
    received: Array = np.asarray(probabilities, dtype=np.float64).sum(axis=(1, 2))
    return received


def by_norm(hidden: NDArray[Any]) -> Array:
    """(S, T, D) inputs of the layer: their length."""
    length: Array = np.linalg.norm(np.asarray(hidden, dtype=np.float64), axis=-1)
    return length


def by_stability(before: NDArray[Any], after: NDArray[Any]) -> Array:
    """(S, T, D) inputs and outputs of the layer: tokens that it changes little count more."""
    moved = np.asarray(after, dtype=np.float64) - np.asarray(before, dtype=np.float64)
    still: Array = -np.linalg.norm(moved, axis=-1)
    return still


def by_distance(hidden: NDArray[Any]) -> Array:
    """(S, T, D) inputs of the layer: mean squared distance to all tokens of the sequence."""
    x = np.asarray(hidden, dtype=np.float64)
    squares = np.square(x).sum(axis=-1)
    crossed = np.einsum("std,sd->st", x, x.mean(axis=1))
    far: Array = squares + squares.mean(axis=1, keepdims=True) - 2 * crossed
    return far


def by_rarity(frequency: NDArray[Any]) -> Array:
    """(S, T) how often each token occurs in the data: rare ones count more."""
    rare: Array = -np.asarray(frequency, dtype=np.float64)
    return rare


def spread(scores: Array, low: float, high: float) -> Array:
    """Stretch the scores of each sequence from ``low`` to ``high``."""
    least, most = scores.min(axis=1, keepdims=True), scores.max(axis=1, keepdims=True)
    share = (scores - least) / np.maximum(most - least, np.finfo(np.float64).tiny)
    stretched: Array = share * (high - low) + low
    return stretched


def chunks(n_tokens: int, kept: tuple[int, ...], n_chunks: int) -> Array:
    """(T,) 1 in the kept ones of ``n_chunks`` equal runs of positions, 0 elsewhere."""
    run = np.arange(n_tokens) * n_chunks // n_tokens
    return np.isin(run, kept).astype(np.float64)


def normalised(weights: Array) -> Array:
    """Divide by the mean over each sequence, so that every sequence counts the same."""
    even: Array = weights / weights.mean(axis=-1, keepdims=True)
    return even


__all__ = [
    "by_attention",
    "by_distance",
    "by_norm",
    "by_rarity",
    "by_stability",
    "chunks",
    "normalised",
    "spread",
]
