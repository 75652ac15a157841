"""Merge every second token into the neighbour that it is most alike.

Tokens at even places are sources, those at odd places destinations. The sources that are most
like one of the destinations are averaged into it, each destination with all that come to it.

Source: AIM (Zhong et al., ICCV 2025, arXiv:2412.03248), section 3.1, code LaVi-Lab/AIM @ edc24e9,
token_merge.py; the matching is that of ToMe (Bolya et al., ICLR 2023, arXiv:2210.09461).

One round can remove no more than every second token; a smaller budget needs a further site.

Departure: kept tokens stay in their order. The published code puts the sources that remain
first, by descending similarity, and the destinations behind them; ``merge_tokens`` does so.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from secateur.models.selectors.core import Selection, best, marked, ranks, selector

_FAR = -2.0
"""Below every cosine."""


@dataclass(frozen=True, slots=True)
class Match:
    """Who could be merged into whom; all (B, N).

    Attributes:
        is_source: bool, at an even place among the tokens that can be merged.
        is_destination: bool, at an odd one.
        target: int64, position of the destination that a source is most like.
        similarity: float32, the cosine with it, and -2 where there is none.
    """

    is_source: Tensor
    is_destination: Tensor
    target: Tensor
    similarity: Tensor


def match(hidden: Tensor, valid: Tensor, protected: int) -> Match:
    """Find the best destination of each source.

    Args:
        hidden: (B, N, D).
        valid: (B, N) bool; padding is neither source nor destination.
        protected: leading tokens that are neither.
    """
    position = torch.arange(valid.shape[1], device=valid.device)
    member = valid & (position >= protected)
    place = member.to(torch.int64).cumsum(dim=1) - 1
    is_source, is_destination = member & (place % 2 == 0), member & (place % 2 == 1)
    unit = F.normalize(hidden.float(), dim=-1)
    cosine = unit @ unit.transpose(1, 2)
    cosine = cosine.masked_fill(~is_destination[:, None, :], _FAR)
    similarity, target = cosine.max(dim=2)
    return Match(is_source, is_destination, target, similarity)


def combine(
    hidden: Tensor, valid: Tensor, index: Tensor, valid_kept: Tensor, protected: int
) -> Tensor:
    """Average dropped sources into their destinations, (B, K, N) weights float32."""
    found = match(hidden, valid, protected)
    position = torch.arange(valid.shape[1], device=valid.device).expand_as(found.target)
    kept = marked(index, valid_kept, valid)  # who is kept goes to itself
    goes_to = torch.where(kept | ~found.is_source, position, found.target)
    goes_to = goes_to.masked_fill(~valid, -1)
    return group_means(goes_to, torch.where(valid_kept, index, -2))


@selector(
    "aim",
    kind="merge",
    source="AIM (Zhong et al., ICCV 2025, arXiv:2412.03248), section 3.1",
    cost="the cosine of every token with every other",
    combine=combine,
)
def score(hidden: Tensor, valid: Tensor, count: Tensor, protected: int) -> Selection:
    """Keep destinations, and the sources that are least like any of them.

    Args:
        hidden: (B, N, D), tokens and at the same time what is compared.
        valid: (B, N) bool.
        count: (B,) int64; at least the destinations stay, and one source if there is none.
        protected: leading tokens that take no part.
    """
    found = match(hidden, valid, protected)
    made = torch.where(found.is_source, -found.similarity, 3.0)
    n_destinations = found.is_destination.sum(dim=1)
    alone = (n_destinations == 0) & found.is_source.any(dim=1)
    least = protected + n_destinations + alone.to(torch.int64)
    return Selection(made, count=torch.maximum(count, least))


def group_means(goes_to: Tensor, groups: Tensor) -> Tensor:
    """Rows that average the members of each group.

    Args:
        goes_to: (B, N) int64, the group of each token.
        groups: (B, K) int64.

    Returns:
        (B, K, N) float32; a group without members has a row of zeros.
    """
    member = (goes_to[:, None, :] == groups[:, :, None]).float()
    return member / member.sum(dim=2, keepdim=True).clamp(min=1.0)


def merge_tokens(hidden: Tensor, *, removed: int) -> Tensor:
    """One published round: sources that remain by descending similarity, then destinations.

    Args:
        hidden: (B, N, D).
        removed: tokens to remove, at most N // 2.

    Returns:
        (B, N - removed, D).
    """
    valid = torch.ones_like(hidden[:, :, 0], dtype=torch.bool)
    found = match(hidden, valid, 0)
    n_tokens = hidden.shape[1]
    # Descending: sources by similarity, then destinations by place; the first ones merge.
    place = torch.arange(n_tokens, device=hidden.device)
    behind = -place.float() + (_FAR - 1.0)
    first = torch.where(found.is_source, found.similarity, behind)
    rank = ranks(first)
    slots = torch.arange(n_tokens, device=hidden.device).expand_as(rank)
    order = torch.zeros_like(rank).scatter(1, rank, slots)[:, removed:]
    goes_to = torch.where(rank < removed, found.target, slots)
    return group_means(goes_to, order) @ hidden.float()


__all__ = ["Match", "best", "combine", "group_means", "match", "merge_tokens", "score"]
