"""Rank inputs by how much a prediction suffers when they are replaced; needs no attention.

Token by token nothing of the model is read but a probability: a random part of the input is
replaced, and what was replaced gains, what was left loses, by as much as the prediction fell.

Source: ReAGent (Zhao and Shan, AAAI 2024 workshop, arXiv:2402.00794), algorithm 1, code
casszhao/ReAGent @ 7809773. Replacements are drawn uniformly from the vocabulary here, where the
paper has a language model propose them.

As a selector it keeps what an importance found beforehand says: it takes many runs of the model to
find, so that it serves reports, schedules and fixed prompts, not every input.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from secateur.errors import BadInputError
from secateur.models.selectors.core import selector

_EPSILON = 1e-6
"""A probability that falls from 1 to 0 still has a finite logit."""

Predict = Callable[[Tensor], Tensor]
"""(B, N) int64 token ids to (B, V) probabilities of what comes next."""


@dataclass(frozen=True, slots=True)
class Search:
    """How importance is looked for.

    Attributes:
        vocabulary: replacements are drawn from ids below this.
        replaced_share: chance of each token to be replaced in a step.
        top_k: a sample is done when its target is among this many best predictions
        kept_share: while all tokens but this share, the most important ones, are replaced.
        max_steps: where a sample stops anyway.
        seed: of everything that is drawn.
    """

    vocabulary: int
    replaced_share: float = 0.3
    top_k: int = 3
    kept_share: float = 0.3
    max_steps: int = 200
    seed: int = 0

    def __post_init__(self) -> None:
        shares = (self.replaced_share, self.kept_share)
        if not all(0.0 < share < 1.0 for share in shares):
            raise BadInputError(
                "a share of tokens is not between 0 and 1",
                got=f"replaced_share={shares[0]}, kept_share={shares[1]}",
            )
        if min(self.vocabulary, self.top_k, self.max_steps) < 1:
            raise BadInputError(
                "a search needs at least one of everything",
                got=f"vocabulary={self.vocabulary}, top_k={self.top_k}, max_steps={self.max_steps}",
            )


@selector(
    "reagent",
    source="ReAGent (Zhao and Shan, 2024, arXiv:2402.00794), algorithm 1",
    cost="nothing at the site; hundreds of runs of the model beforehand",
    given={"importance": ("batch", "tokens")},
)
def score(importance: Tensor) -> Tensor:
    """Return the importance as it is, (B, N) -> (B, N) float32."""
    return importance.float()


def update(logits: Tensor, replaced: Tensor, p_original: Tensor, p_replaced: Tensor) -> Tensor:
    """One step: what was replaced gains what the prediction lost, the others lose it.

    The loss d, in (-1, 1), counts as logit((1 + d) / 2) = 2 artanh(d), so that a sure change of
    mind outweighs many small ones.

    Args:
        logits: (B, N) float, importance before the softmax.
        replaced: (B, N) bool.
        p_original: (B,) probability of the target on the whole input.
        p_replaced: (B,) the same on the replaced input.

    Returns:
        (B, N), ``logits`` after the step; its softmax over N is the importance.
    """
    change = ((p_original - p_replaced + 1.0) / 2.0).logit(eps=_EPSILON)[:, None]
    return logits + torch.where(replaced, change, -change)


def find_importance(predict: Predict, ids: Tensor, target: Tensor, search: Search) -> Tensor:
    """Importance of each token for a prediction, (B, N) float32 whose rows sum to 1.

    What is drawn for a sample depends on the seed and the step alone, so that a sample gets the
    same importance alone and in a batch.

    Args:
        predict: token ids (B, N) to probabilities (B, V) of the next token.
        ids: (B, N) int64.
        target: (B,) int64, the prediction to explain.
        search: how long, and with what.

    Raises:
        BadInputError: a prediction that is no number.
    """
    seeded = torch.Generator().manual_seed(search.seed)
    n_tokens = ids.shape[1]
    logits = torch.rand(n_tokens, generator=seeded).expand(ids.shape[0], -1)
    original = _probability(predict(ids), target)
    running = torch.ones_like(target, dtype=torch.bool)
    n_kept = max(1, round(n_tokens * search.kept_share))
    for _ in range(search.max_steps):
        drawn = torch.randint(search.vocabulary, (n_tokens,), generator=seeded)
        replaced = torch.rand(n_tokens, generator=seeded) < search.replaced_share
        changed = _probability(predict(torch.where(replaced, drawn, ids)), target)
        stepped = update(logits, replaced.expand_as(ids), original, changed)
        logits = torch.where(running[:, None], stepped, logits)
        kept = torch.zeros_like(ids).scatter(1, logits.topk(n_kept, dim=1).indices, 1) > 0
        best = predict(torch.where(kept, ids, drawn)).topk(search.top_k, dim=1).indices
        running = running & ~(best == target[:, None]).any(dim=1)
        if not bool(running.any()):
            break
    return logits.softmax(dim=1)


def _probability(predicted: Tensor, target: Tensor) -> Tensor:
    """(B, V), (B,) -> (B,) float32."""
    found = predicted.float().gather(1, target[:, None])[:, 0]
    if not bool(found.isfinite().all()):
        raise BadInputError(
            "the model predicts what is no number",
            got=str(found.tolist()),
            next_step="check the model's weights and inputs for NaN or overflow",
        )
    return found


__all__ = ["Predict", "Search", "find_importance", "score", "update"]
