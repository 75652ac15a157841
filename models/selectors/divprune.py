"""Keep tokens that are far from each other: greedy max-min under the cosine distance.

The first pick is the token whose nearest neighbour is farthest; each next one is farthest from
its nearest pick. Ties go to the lower position.

Source: DivPrune (Alvar et al., CVPR 2025, arXiv:2503.02175), code vbdi/divprune at 799e2d9.
Departures: a token is picked at most once (published code repeats picks when only duplicates
are left; ``faithful`` does too, and then keeps fewer distinct tokens); every sample is picked
from by itself (published code uses the picks of the first one for all).
"""

from __future__ import annotations

import torch
from torch import Tensor

from secateur.models.selectors.core import Selection, selector
from secateur.models.selectors.parts import State, cosines, patches, repeat_while


@selector(
    "divprune",
    kind="greedy",
    source="DivPrune (Alvar et al., CVPR 2025, arXiv:2503.02175)",
    cost="all pairs of tokens, then one sequential step per kept token",
)
def score(
    hidden: Tensor, valid: Tensor, count: Tensor, protected: int, *, faithful: bool = False
) -> Selection:
    """Number the picks downwards, 0 where a token was not picked.

    Args:
        hidden: (B, N, D), visual tokens after the projector.
        valid: (B, N) bool.
        count: (B,) int64, tokens to keep with the protected ones.
        protected: leading tokens that are not picked from.
        faithful: allow picks to repeat, as the published code does.
    """
    patch = patches(valid, protected)
    order = farthest_first(1 - cosines(hidden), patch, count - protected, repeats=faithful)
    n_patches = patch.sum(dim=1, keepdim=True)  # not N: padding is none of a sample's business
    ranked = torch.where(order >= 0, n_patches - order, 0).float()
    if not faithful:
        return Selection(ranked)
    return Selection(ranked, count=(order >= 0).sum(dim=1) + protected)


def farthest_first(
    distance: Tensor, patch: Tensor, n_picks: Tensor, *, repeats: bool = False
) -> Tensor:
    """Return at which step each token was picked first, -1 for never.

    Args:
        distance: (B, N, N) float32.
        patch: (B, N) bool, who may be picked.
        n_picks: (B,) int64, at most the number of patches.
        repeats: whether picked tokens may be picked again.

    Returns:
        (B, N) int64.
    """
    position = torch.arange(patch.shape[1], device=patch.device)
    sample = torch.arange(patch.shape[0], device=patch.device)
    pairs = patch[:, None, :] & (position[:, None] != position)
    lonely = distance.masked_fill(~pairs, torch.inf).amin(dim=2).masked_fill(~patch, -torch.inf)

    def body(value: Tensor, nearest: Tensor, order: Tensor, step: Tensor) -> State:
        pick = value.argmax(dim=1)
        row = distance[sample, pick]
        nearer = torch.minimum(nearest, row)
        fresh = (position == pick[:, None]) & patch & (order < 0) & (step < n_picks)[:, None]
        order = torch.where(fresh, step[:, None], order)
        open_ = patch if repeats else patch & (order < 0)
        return nearer.masked_fill(~open_, -torch.inf), nearer, order, step + 1

    def proceed(*state: Tensor) -> Tensor:
        return state[3].amax(dim=0) < n_picks.amax(dim=0)

    state = (
        lonely,
        torch.full_like(lonely, torch.inf),
        torch.full_like(patch, -1, dtype=torch.int64),
        torch.zeros_like(n_picks),
    )
    return repeat_while(proceed, body, state)[2]
