"""CFSP: layers that change their input much keep more FFN channels, the most active ones.

Source: Wang et al., CFSP: An Efficient Structured Pruning Framework for LLMs with Coarse-to-Fine
Activation Information, COLING 2025, arXiv:2409.13199; defaults as in wyxscir/CFSP.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from secateur.calibration.importance.core import CRITERIA, Context, Scores
from secateur.calibration.importance.gathered import by_unit, readings
from secateur.calibration.importance.wanda import moments
from secateur.graph_passes.groups import Group

Vector: TypeAlias = NDArray[np.float64]
Distance = Literal["angular", "cosine", "mse", "mae"]

_SCALE = 1e4
"""Published divisor; it fits sums of importance over 131072 tokens."""


@CRITERIA.register("cfsp")
def cfsp(group: Group, context: Context) -> Scores:
    """Root mean over samples of a feature's squared length, summed over the unit's features.

    What the published default comes to: its column-normalised weights cancel.
    """
    total = np.zeros(group.size)
    for place, sums in readings(group, context, moments):
        total = total + by_unit(np.sqrt(sums.square / sums.n_samples), place, group)
    return total


def block_importance(
    hidden_in: NDArray[Any],
    hidden_out: NDArray[Any],
    distance: Distance,
    counts: NDArray[Any] | float = 1.0,
) -> float:
    """Sum over all tokens of how far a block moves its (..., D) input, each ``counts`` times."""
    a, b = (np.asarray(x, dtype=np.float64) for x in (hidden_in, hidden_out))
    return float((_distances(a, b, distance) * counts).sum())


def _distances(a: Vector, b: Vector, distance: Distance) -> Vector:
    """(..., D) twice to (...)."""
    found: Vector
    if distance == "mse":
        found = np.square(a - b).mean(axis=-1)
        return found
    if distance == "mae":
        found = np.abs(a - b).mean(axis=-1)
        return found
    lengths = np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)
    cosine = np.clip((a * b).sum(axis=-1) / lengths, -1.0, 1.0)
    found = 1 - cosine if distance == "cosine" else np.arccos(cosine) / np.pi
    return found


def keep_ratios(importance: Vector, ratio: float, sharpness: float = 1.0) -> Vector:
    """Spread the share that stays over the layers; its mean is ``1 - ratio``.

    The result depends on how many tokens were summed: the constant inside fits 131072.
    """
    centred = sharpness * (importance - importance.mean())
    share = 1 / (1 + np.exp(-centred / _SCALE))
    keep: Vector = share / share.mean() * (1 - ratio)
    if keep.max() < 1:
        return keep
    mean = share.mean()
    scale = mean * (1 / (1 - ratio) - 1) / (share.max() - mean) / 1.05
    share = mean + (share - mean) * scale
    spread: Vector = share / share.mean() * (1 - ratio)
    return spread


def activity(inputs: NDArray[Any]) -> Vector:
    """Root mean over sequences of the squared length over tokens, (S, T, in) -> (in,)."""
    squares = np.square(np.asarray(inputs, dtype=np.float64)).sum(axis=1)
    result: Vector = np.sqrt(squares.mean(axis=0))
    return result


def channel_scores(
    weights: Sequence[NDArray[Any]], active: Vector, power: float = 1.0, scale: float = 1.0
) -> Vector:
    """Score FFN channels by ``weights`` laid out (hidden, channels) and their activity.

    Each weight is normalised by column, and the first is weighted by ``active ** power``. A
    column-normalised column has the mean ``1 / hidden``, so the weights cancel: the score is
    the activity up to a constant. It is written out as published all the same.
    """
    total = np.zeros(active.shape)
    for i, weight in enumerate(weights):
        size = np.abs(np.asarray(weight, dtype=np.float64))
        size = size * active**power if i == 0 else size
        total = total + (size / size.sum(axis=0) * active**scale).mean(axis=0)
    return total


def keep_channels(scores: Vector, keep: float, multiple: int = 1) -> NDArray[np.bool_]:
    """Keep scores that reach the one at the published index: one more than ``int(n * keep)``.

    With a ``multiple`` the number kept is the nearest multiple, and exact.
    """
    wanted = len(scores) * keep
    index = int(wanted)
    if multiple > 1:
        index = int((wanted + multiple / 2) / multiple) * multiple - 1
    kept: NDArray[np.bool_] = scores >= np.sort(scores)[::-1][index]
    return kept


__all__ = ["activity", "block_importance", "cfsp", "channel_scores", "keep_channels", "keep_ratios"]
