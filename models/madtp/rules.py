"""What a layer prunes by: MADTP, and what it is compared with.

All of them keep the best tokens and merge the others into one; they differ in what makes a token
good and in how many stay. ``strength`` is the one number that says how much is pruned: larger
prunes more, 0 nothing.
"""

from __future__ import annotations

from typing import Literal, cast

import torch
from torch import Tensor

from secateur.errors import BadInputError
from secateur.models.madtp.attention import Attended
from secateur.models.madtp.budget import Adaptive, Budget, Relative, Share
from secateur.models.madtp.importance import class_score, importance, received_score

Rule = Literal["madtp", "attention", "class", "random"]
"""``madtp``: three terms, threshold over concepts; the strength is the temperature.
``attention``: MADTP without its concepts, i.e. without alignment guidance: the two terms of
attention, threshold at the strength times their mean.
``class``: the attention of position 0, mean of heads; keeps one token in 1 + strength.
``random``: chance; keeps one token in 1 + strength."""

RULES: tuple[Rule, ...] = ("madtp", "attention", "class", "random")


def budget_of(
    rule: Rule, strength: Tensor | float, *, coupled: bool, floor: Tensor | int
) -> Budget:
    """How many tokens a layer keeps.

    Raises:
        BadInputError: a negative strength.
    """
    if rule == "madtp":
        return Adaptive(strength, coupled=coupled, floor=floor)
    if not torch.compiler.is_exporting() and float(strength) < 0:
        raise BadInputError("negative strength", got=f"{float(strength):g}", wanted="0 or more")
    return Relative(strength) if rule == "attention" else Share(1 / (1 + strength))


def judged(rule: Rule, attended: Attended, scores: Tensor | None, alive: Tensor) -> Tensor:
    """Return how much every token matters, (B, L) float32; 0 where it is not alive.

    Args:
        rule: which.
        attended: of the layer.
        scores: (B, L, T) concept scores; only MADTP reads them.
        alive: (B or 1, L) bool, the tokens that count.
    """
    probabilities = attended.probabilities
    if rule == "random":
        return torch.rand_like(probabilities[:, 0, 0].float()) * alive
    if rule == "class":
        return probabilities[:, :, 0].float().mean(dim=1) * alive
    classes = class_score(probabilities, attended.heads)
    if rule == "attention":
        return (received_score(probabilities, alive) + classes.float()) / 2 * alive
    return importance(probabilities, classes, cast("Tensor", scores), alive=alive)


__all__ = ["RULES", "Rule", "budget_of", "judged"]
