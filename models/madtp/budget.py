"""How many tokens a layer keeps: by its threshold, or by a schedule.

*Source: Cao et al., CVPR 2024, dynamic token pruning (DTP).*
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from secateur.errors import BadInputError


@dataclass(frozen=True, slots=True)
class Adaptive:
    """Keep the tokens above a threshold that their own layer computes."""

    temperature: Tensor | float
    """Larger prunes more. A tensor (scalar) where it is an input of an exported graph."""
    coupled: bool = False
    """True: one count for the batch, its largest, as published. False: each sample its own."""
    floor: Tensor | int = 0
    """No cut where the threshold leaves this many tokens or fewer; a number or (B,)."""

    def __post_init__(self) -> None:
        if torch.compiler.is_exporting():
            return
        if float(self.temperature) <= 0:
            raise BadInputError(
                "the temperature divides the concept scores",
                got=f"{float(self.temperature):g}",
                wanted="more than 0",
                next_step="leave the budget out to run without pruning",
            )


@dataclass(frozen=True, slots=True)
class Scheduled:
    """Keep ``count`` tokens of every sample, or all of a sample that has no more."""

    count: Tensor
    """() or (1,) int64."""


@dataclass(frozen=True, slots=True)
class Relative:
    """Keep the tokens whose importance is above ``factor`` times the mean, at least one."""

    factor: Tensor | float


@dataclass(frozen=True, slots=True)
class Share:
    """Keep this share of every sample's tokens, rounded up."""

    keep: Tensor | float


Budget = Adaptive | Scheduled | Relative | Share


def threshold(
    scores: Tensor, importance: Tensor, temperature: Tensor | float, *, alive: Tensor
) -> Tensor:
    """Return the lowest mean importance that any concept sees, (B,) float32.

    Each concept weighs the tokens by the softmax, over tokens, of its scores divided by the
    temperature.

    Args:
        scores: (B, L, T) from ``concept_scores``.
        importance: (B, L).
        temperature: more than 0.
        alive: (B or 1, L) bool, the tokens that count.
    """
    logits = (scores / temperature).masked_fill(~alive[:, :, None], _LOWEST)
    seen = importance[:, None, :] @ logits.softmax(dim=1)
    return seen.squeeze(1).amin(dim=1)


def kept_counts(
    scores: Tensor | None, importance: Tensor, budget: Budget, *, alive: Tensor
) -> tuple[Tensor, Tensor]:
    """Return how many tokens each sample keeps and how many it has, both (B,) int64.

    Position 0 is not counted. Both are equal where the layer does not prune: too few would
    stay, or at most one would go. A token whose importance equals the threshold goes.

    Args:
        scores: (B, L, T) concept scores; only an adaptive budget reads them.
        importance: (B, L).
        budget: the rule.
        alive: (B or 1, L) bool, the tokens that count.
    """
    available = alive.sum(dim=1).expand(importance.shape[0])
    floor = torch.zeros_like(available)
    if isinstance(budget, Scheduled):
        count = budget.count.reshape(1)
    elif isinstance(budget, Share):
        count = (available * budget.keep).ceil().long()
    elif isinstance(budget, Relative):
        mean = importance.sum(dim=1) / available.clamp(min=1)
        count = _above(importance, budget.factor * mean, alive).clamp(min=1)
    else:
        lowest = threshold(cast("Tensor", scores), importance, budget.temperature, alive=alive)
        count, floor = _above(importance, lowest, alive), floor + budget.floor
        if budget.coupled:
            count, floor = count.amax(dim=0, keepdim=True), floor.amax(dim=0, keepdim=True)
    prunes = (count > floor) & (available - count > 1)
    return torch.where(prunes, count, available), available


def _above(importance: Tensor, lowest: Tensor, alive: Tensor) -> Tensor:
    return ((importance > lowest[:, None]) & alive).sum(dim=1)


_LOWEST = torch.finfo(torch.float32).min

__all__ = ["Adaptive", "Budget", "Relative", "Scheduled", "Share", "kept_counts", "threshold"]
