"""Keep the tokens that are most central in the graph of cosines between tokens.

A random walk goes to a token in proportion to its similarity; centrality is how often it is
there in the long run.

Source: LexRank (Erkan and Radev, JAIR 22, 2004), code crabcamp/lexrank at 07bdd15, without
damping. Similarities are symmetric, so that the long run of a connected graph is known without
iterating: the share of a token's own sum of weights. Separate parts of a graph are ranked
apart, each with mean 1. Departure: negative cosines, which the counts of words there do not
have, weigh nothing.
"""

from __future__ import annotations

import torch
from torch import Tensor

from secateur.errors import BadInputError
from secateur.models.selectors.core import selector
from secateur.models.selectors.parts import State, cosines, repeat_while

WEIGHTS = ("continuous", "threshold")


@selector(
    "lexrank",
    source="LexRank (Erkan and Radev, JAIR 22, 2004)",
    cost="all pairs of tokens",
)
def score(
    hidden: Tensor, valid: Tensor, *, weights: str = "continuous", threshold: float = 0.1
) -> Tensor:
    """Centrality with mean 1 over each connected part, (B, N) float32; 0 on padding.

    Args:
        hidden: (B, N, D).
        valid: (B, N) bool.
        weights: ``continuous`` weighs by cosine, ``threshold`` by 1 from a cosine on.
        threshold: that cosine.

    Raises:
        BadInputError: unknown kind of weights.
    """
    if weights not in WEIGHTS:
        raise BadInputError(
            "unknown weights", where="selector 'lexrank'", got=weights, wanted=" or ".join(WEIGHTS)
        )
    alike = cosines(hidden)
    pairs = valid[:, :, None] & valid[:, None, :]
    if weights == "threshold":
        return centrality((pairs & (alike >= threshold)).float(), valid)
    return centrality(alike.clamp(min=0) * pairs, valid)


def centrality(weight: Tensor, valid: Tensor) -> Tensor:
    """Stationary distribution of the walk over symmetric weights, times the part's size.

    Args:
        weight: (B, N, N) float32, symmetric, at least 0.
        valid: (B, N) bool; weights of padding are 0.
    """
    same_part = _parts(weight > 0) & valid[:, :, None] & valid[:, None, :]
    inside = same_part.float()
    degree = weight.sum(dim=2)
    total = (inside @ degree[:, :, None])[:, :, 0]
    return degree * inside.sum(dim=2) / total.clamp(min=torch.finfo(torch.float32).tiny)


def _parts(linked: Tensor) -> Tensor:
    """(B, N, N) bool -> (B, N, N) bool: whether a path leads from one token to the other.

    Labels spread until every part has one: a token takes the smallest label of its neighbours,
    then the label that stands there.
    """
    first = torch.arange(linked.shape[1], device=linked.device).expand(linked.shape[0], -1).clone()

    def proceed(_label: Tensor, is_changed: Tensor) -> Tensor:
        return is_changed.clone()  # a loop may not hand on what it was given

    def body(label: Tensor, _is_changed: Tensor) -> State:
        lower = torch.where(linked, label[:, None, :], label[:, :, None]).amin(dim=2)
        jumped = lower.gather(1, lower)
        return jumped, (jumped != label).any()

    label = repeat_while(proceed, body, (first, torch.ones((), dtype=torch.bool)))[0]
    return label[:, :, None] == label[:, None, :]


__all__ = ["centrality", "score"]
