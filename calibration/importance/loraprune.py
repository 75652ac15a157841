"""LoRAPrune: first-order importance of merged weights from the gradients of LoRA factors alone.

Source: Zhang et al., LoRAPrune: Structured Pruning Meets Low-Rank Parameter-Efficient
Fine-Tuning, ACL Findings 2024, arXiv:2305.18403, sections 3.2 and 3.3; as in aim-uofa/LoRAPrune.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from secateur.calibration.importance.core import CRITERIA, Context, Scores
from secateur.calibration.importance.gradients import by_slice
from secateur.calibration.importance.unit_weights import matrices
from secateur.calibration.importance.unit_weights import weight as weight_of
from secateur.calibration.statistics.handed_in import HandedIn
from secateur.errors import BadInputError
from secateur.graph_passes.groups import Group, WeightUse

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


@CRITERIA.register("loraprune")
def loraprune(group: Group, context: Context) -> Scores:
    """Sum over the matrices of a unit of |estimated gradient * weight|, each brought to length 1.

    From ``NAME@lora_a``, ``NAME@lora_b``, their gradients ``NAME@grad_a`` and ``NAME@grad_b``, and
    ``lora.scale`` (alpha over rank); the graph holds the weights before the adapters are merged.

    Raises:
        BadInputError: an array is missing or does not fit.
        PreconditionError: convolutions make or read these units.
    """
    given, total = HandedIn(context.analysis.model, context.arrays), np.zeros(group.size)
    for use in matrices(group, context):
        sums = by_slice(_importance(use, context, given), use, group)
        total = total + sums / (np.linalg.norm(sums) + _TINY)
    return total


def _importance(use: WeightUse, context: Context, given: HandedIn) -> Array:
    """Laid out like the weight in the graph."""
    names = ("lora_a", "lora_b", "grad_a", "grad_b")
    missing = [n for n in names if f"{use.parameter}@{n}" not in context.arrays]
    if missing or "lora.scale" not in context.arrays:
        raise BadInputError(
            f"no array {use.parameter + '@' + missing[0] if missing else 'lora.scale'!r}"
            " was handed in",
            wanted="factors of the adapters, their gradients, and lora.scale",
        )
    a, b, grad_a, grad_b = (context.arrays[f"{use.parameter}@{n}"] for n in names)
    scale = float(context.arrays["lora.scale"])
    transposed = given.is_transposed(use)
    weight = weight_of(use).T if transposed else weight_of(use)
    found = weight_importance(Adapted(weight, a, b, grad_a, grad_b, scale))
    return found.T if transposed else found


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


__all__ = ["Adapted", "accumulate", "loraprune", "sparsity_at", "unit_scores", "weight_importance"]
