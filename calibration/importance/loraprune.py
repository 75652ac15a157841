"""LoRAPrune: first-order importance of merged weights from the gradients of LoRA factors alone.

Source: Zhang et al., LoRAPrune: Structured Pruning Meets Low-Rank Parameter-Efficient
Fine-Tuning, ACL Findings 2024, arXiv:2305.18403, sections 3.2 and 3.3; as in aim-uofa/LoRAPrune.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Array: TypeAlias = NDArray[np.float64]

_DECAY = 0.9
_TINY = 1e-8


@dataclass(frozen=True, slots=True)
class Adapted:
    """A linear layer with a low-rank adapter, and the gradients of its factors."""

    weight: NDArray[Any]
    """(out, in)"""
    a: NDArray[Any]
    """(rank, in)"""
    b: NDArray[Any]
    """(out, rank)"""
    grad_a: NDArray[Any]
    grad_b: NDArray[Any]
    scale: float
    """alpha / rank"""


def weight_importance(layer: Adapted) -> Array:
    """|gradient * merged weight|, (out, in), the gradient estimated from the factors'."""
    a, b, grad_a, grad_b = (
        np.asarray(x, dtype=np.float64) for x in (layer.a, layer.b, layer.grad_a, layer.grad_b)
    )
    gradient = grad_b @ a + b @ grad_a - grad_b @ grad_a
    merged = layer.weight + layer.scale * (b @ a)
    importance: Array = np.abs(gradient * merged)
    return importance


def unit_scores(importance: Array, units: int) -> Array:
    """Sum (units * width, in) importance by unit and bring it to length 1.

    Pass the transpose for a layer whose *inputs* belong to the units.
    """
    sums = importance.reshape(units, -1).sum(axis=1)
    scores: Array = sums / (np.linalg.norm(sums) + _TINY)
    return scores


def accumulate(before: Array, now: Array) -> Array:
    """Moving average over steps, from zero and without correction; NaN steps are left out."""
    return before if np.isnan(now).any() else _DECAY * before + (1 - _DECAY) * now


def sparsity_at(step: int, total: int, ratio: float, *, ramp: tuple[float, float]) -> float:
    """Cubic schedule from 0 to ``ratio`` between the two ramp shares of all steps."""
    warm_up, cool_down = int(ramp[0] * total), int(ramp[1] * total)
    if step < warm_up:
        return 0.0
    if step >= total - cool_down:
        return ratio
    left = 1 - (step - warm_up) / (total - cool_down - warm_up)
    return ratio - ratio * left**3


__all__ = ["Adapted", "accumulate", "sparsity_at", "unit_scores", "weight_importance"]
