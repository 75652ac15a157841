"""Drop tokens that are like more important ones, then those of least importance.

Importance is a page rank over the attention map of each head: a token matters as much as those
that look at it. First one step of it splits the tokens into a more and a less important half;
of the less important ones those whose keys are nearest to a more important one go; what is
left is ranked by the whole iteration, and the least important of it go.

Source: Zero-TPrune (Wang et al., CVPR 2024, arXiv:2305.17328), order I'-S-I; no code of the
authors exists. Chosen here where the paper leaves it open: the variance that filters heads is
that of scores with mean 1; without a head inside the bounds all of them count; the keys of all
heads together are compared; ``similar`` is the share of the tokens to drop that go for their
similarity; iterations are a fixed number.
"""

from __future__ import annotations

import torch
from torch import Tensor

from secateur.models.selectors.core import best, selector
from secateur.models.selectors.parts import cosines, patches


@selector(
    "zero_tprune",
    kind="sets",
    source="Zero-TPrune (Wang et al., CVPR 2024, arXiv:2305.17328)",
    cost="the attention map of a layer, a product with it per iteration, all pairs of keys",
)
def score(  # noqa: PLR0913 - signals, and four options by name
    full: Tensor,
    keys: Tensor,
    valid: Tensor,
    count: Tensor,
    protected: int,
    *,
    iterations: int = 5,
    similar: float = 0.5,
    lowest_variance: float = 0.01,
    highest_variance: float = 0.7,
) -> Tensor:
    """Score by importance, (B, N) float32; -1 for tokens dropped for their similarity.

    Args:
        full: (B, H, N, N) attention, axis 2 queries, axis 3 keys.
        keys: (B, Hkv, N, Dh).
        valid: (B, N) bool.
        count: (B,) int64, tokens to keep with the protected ones.
        protected: leading tokens that are never dropped.
        iterations: steps of the page rank in the last stage.
        similar: share of the dropped tokens that go for their similarity.
        lowest_variance: heads whose scores vary less do not count.
        highest_variance: heads whose scores vary more do not count.
    """
    attention = full.float().clamp(min=0)  # rounding must not vote against a token
    bounds = (lowest_variance, highest_variance)
    patch = patches(valid, protected)
    guide = importance(attention, valid, 1, bounds)
    n_patches = patch.sum(dim=1)
    n_dropped = (n_patches + protected - count).clamp(min=0)
    less = best((-guide).masked_fill(~patch, -torch.inf), n_patches // 2) & patch
    nearest = _nearest(keys, less, patch & ~less)
    gone = best(nearest, torch.floor(n_dropped * similar).long()) & less
    alive = valid & ~gone
    return importance(attention, alive, iterations, bounds).masked_fill(gone, -1.0)


def importance(attention: Tensor, alive: Tensor, steps: int, bounds: tuple[float, float]) -> Tensor:
    """Page rank per head, then the root mean square over the heads that count.

    Args:
        attention: (B, H, N, N) float32.
        alive: (B, N) bool, tokens that vote and are voted for.
        steps: iterations.
        bounds: smallest and largest variance of a head's scores, which have mean 1.

    Returns:
        (B, N), 0 on tokens that are not alive.
    """
    mask = alive[:, None, None, :].float()
    n_alive = mask.sum(dim=3, keepdim=True)
    rank = mask.expand(-1, attention.shape[1], -1, -1)
    for _ in range(steps):
        voted = (rank @ attention) * mask
        total = voted.sum(dim=3, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)
        rank = voted / total * n_alive
    variance = ((rank - 1).square() * mask).sum(dim=3, keepdim=True) / n_alive.clamp(min=1)
    inside = (variance >= bounds[0]) & (variance <= bounds[1])
    counted = (inside | ~inside.any(dim=1, keepdim=True)).float()
    squares = (rank.square() * counted).sum(dim=1) / counted.sum(dim=1)
    return squares.sqrt()[:, 0]


def _nearest(keys: Tensor, askers: Tensor, others: Tensor) -> Tensor:
    """(B, H, N, Dh) -> (B, N): largest cosine of an asker to one of the others, -inf else."""
    alike = cosines(keys.transpose(1, 2).flatten(2))
    closest = alike.masked_fill(~others[:, None, :], -torch.inf).amax(dim=2)
    return closest.masked_fill(~askers, -torch.inf)
