"""How much a token matters: three views of it, averaged.

Position 0 (class or text-start token) is never scored; it takes part in no sum, and comes
out with importance 0. Tokens that are not alive (filling, padding) likewise.

*Source: Cao et al., CVPR 2024, token importance score (TIS).*
"""

from __future__ import annotations

import torch
from torch import Tensor

EPSILON = 1e-8


def class_score(probabilities: Tensor, heads: Tensor) -> Tensor:
    """Return the attention of position 0 to every token, heads weighted by the token, (B, L).

    A head's weight for token n is its share in the norms of all heads' outputs *at n*.

    Args:
        probabilities: (B, H, L, L) attention, rows are queries.
        heads: (B, H, L, Dh) outputs per head, before the output projection.
    """
    norms = torch.linalg.vector_norm(heads.float(), dim=-1)
    weights = norms / divisor(norms.sum(dim=1, keepdim=True))
    score: Tensor = (probabilities[:, :, 0].float() * weights).sum(dim=1)
    return score


def importance(
    probabilities: Tensor, class_scores: Tensor, scores: Tensor, *, alive: Tensor
) -> Tensor:
    """Return the mean of the three terms, (B, L) float32; 0 where a token is not alive.

    The terms are the attention that other tokens give it (largest head, summed over queries)
    and its best concept score, each divided by its sum over the tokens, and ``class_scores``.

    Args:
        probabilities: (B, H, L, L) attention, rows are queries.
        class_scores: (B, L) from ``class_score``.
        scores: (B, L, T) from ``concept_scores``.
        alive: (B or 1, L) bool, the tokens that count; False at position 0.
    """
    aligned = _share(scores.amax(dim=-1), alive)
    total = received_score(probabilities, alive) + aligned + class_scores.float()
    return total / 3 * alive


def received_score(probabilities: Tensor, alive: Tensor) -> Tensor:
    """Return each token's share, (B, L), in the attention that tokens which are alive give."""
    received = (probabilities.float().amax(dim=1) * alive[:, :, None]).sum(dim=1)
    return _share(received, alive)


def _share(values: Tensor, alive: Tensor) -> Tensor:
    values = values * alive
    return values / divisor(values.sum(dim=1, keepdim=True))


def divisor(total: Tensor) -> Tensor:
    """A sum that may be divided by.

    The published code adds ``EPSILON``; torch's exporter takes an addition of so little for one
    of nothing and drops it (torch 2.13), and a graph would divide zero by zero.
    """
    return torch.where(total.abs() < EPSILON, EPSILON, total)


__all__ = ["EPSILON", "class_score", "divisor", "importance", "received_score"]
