"""Choosing tokens in the reference run: budget, best tokens, margins.

Written a second time on purpose: the graph passes have their own, and parity compares them.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from secateur.errors import BadInputError
from secateur.models.reference_signals import attention_signals, left_heads, signals_at
from secateur.models.reference_sites import Scorer, SiteRun, TokenSite
from secateur.models.selectors import Selection, Selector


def select(
    site: TokenSite,
    signal: Callable[[str], Tensor],
    eligible: Tensor,
    *,
    forced: Tensor | None = None,
    pointed: Tensor | None = None,
) -> tuple[SiteRun, Tensor]:
    """Score the tokens at a site and choose among the eligible ones.

    Args:
        site: selector and budget.
        signal: gives a signal by name, such as ``attention_signals``.
        eligible: (B, N) bool, alive and no padding.
        forced: (B, K) positions to keep instead of the best ones, -1 for none.
        pointed: (B, P) positions that the module reads later, always kept.

    Returns:
        The record, and the tokens that stay alive, (B, N) bool.
    """
    least = max(site.protected + (0 if pointed is None else pointed.shape[1]), 1)
    count = torch.maximum(_count(site, eligible), _valid(eligible).clamp(max=least))
    made = _decide(site, signal, count)
    if bool(made.score.isnan().logical_and(eligible).any()):
        raise BadInputError(f"{site.selector!r} gave NaN scores", where=site.site)
    if made.count is not None:
        count = torch.minimum(torch.clamp(made.count, min=least), _valid(eligible))
    score = made.score if pointed is None else made.score.scatter(1, pointed, torch.inf)
    merit = _merit(score, eligible, site.protected)
    alive = _top(merit, count) if forced is None else _scatter(forced, eligible)
    record = SiteRun(
        score=score.masked_fill(~eligible, -torch.inf),
        eligible=eligible,
        kept=_positions(alive),
        count=alive.sum(dim=1),
        margin=_margin(merit, alive, eligible),
        state=made.state,
        stands_by=made.score if made.order == "score" else None,
    )
    return record, alive


def _decide(site: TokenSite, signal: Callable[[str], Tensor], count: Tensor) -> Selection:
    chosen = site.chosen
    signals = {name: signal(name) for name in chosen.signals}
    if isinstance(chosen, Selector):
        return chosen.decide(signals, count, site.protected)
    return Selection(chosen.score(**signals))


def _valid(eligible: Tensor) -> Tensor:
    return eligible.sum(dim=1)


def _count(site: TokenSite, eligible: Tensor) -> Tensor:
    """Tokens that each sample keeps: its share or the number asked for, within what it has."""
    n_valid = _valid(eligible)
    amount = torch.as_tensor(site.amount)
    wanted = (n_valid * amount + 999) // 1000 if site.kind == "permille" else amount
    return torch.minimum(torch.clamp(wanted, min=site.protected), n_valid)


def _merit(score: Tensor, eligible: Tensor, protected: int) -> Tensor:
    """Scores with protected tokens at +inf and tokens that cannot be kept at -inf."""
    first = eligible.cumsum(dim=1) <= protected  # the first valid ones, also behind padding
    return score.masked_fill(first, torch.inf).masked_fill(~eligible, -torch.inf)


def _top(merit: Tensor, count: Tensor) -> Tensor:
    """(B, N) bool of each sample's best tokens; the earlier of two equal ones wins."""
    order = torch.sort(merit, dim=1, descending=True, stable=True).indices
    rank = torch.argsort(order, dim=1)
    return rank < count[:, None]


def _scatter(kept: Tensor, eligible: Tensor) -> Tensor:
    """(B, K) positions, -1 for none -> (B, N) bool."""
    n_tokens = eligible.shape[1]
    alive = torch.zeros(kept.shape[0], n_tokens + 1, dtype=torch.bool)
    alive.scatter_(1, torch.where(kept < 0, n_tokens, kept), True)
    return alive[:, :n_tokens]


def _positions(alive: Tensor) -> Tensor:
    """(B, N) bool -> (B, K) ascending positions, -1 behind a sample's count."""
    n_tokens = alive.shape[1]
    position = torch.arange(n_tokens).expand_as(alive).masked_fill(~alive, n_tokens)
    kept = torch.sort(position, dim=1).values[:, : int(alive.sum(dim=1).max())]
    return kept.masked_fill(kept == n_tokens, -1)


def _margin(merit: Tensor, alive: Tensor, eligible: Tensor) -> Tensor:
    lowest = merit.masked_fill(~alive, torch.inf).amin(dim=1)
    highest = merit.masked_fill(alive | ~eligible, -torch.inf).amax(dim=1)
    return (lowest - highest).nan_to_num(nan=torch.inf, posinf=torch.inf)


__all__ = [
    "Scorer",
    "SiteRun",
    "TokenSite",
    "attention_signals",
    "left_heads",
    "select",
    "signals_at",
]
