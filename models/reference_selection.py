"""Choosing tokens in the reference run: signals, budget, best tokens, margins.

Written a second time on purpose: the graph passes have their own, and parity compares them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal, Protocol

import torch
from torch import Tensor

from secateur.errors import BadInputError
from secateur.models.selectors import Selection, Selector, resolve_selector
from secateur.models.selectors.core import Option
from secateur.models.token_mode import Attention

_PER_HEAD = frozenset({"q", "k", "v", "keys", "values"})


class Scorer(Protocol):
    """The least that the reference needs of a selector: a score of signals."""

    @property
    def signals(self) -> tuple[str, ...]:
        """Names of the signals it reads."""

    @property
    def score(self) -> Callable[..., Tensor]:
        """Function of these signals that returns (B, N), larger is kept."""


@dataclass(frozen=True, slots=True)
class TokenSite:
    """Where tokens are dropped, by what, and how many stay."""

    site: str
    """Path of the module after which tokens are dropped."""
    selector: str | Selector | Scorer
    """Name in ``secateur.models.selectors.SELECTORS``, or a selector itself."""
    kind: Literal["permille", "count"] = "permille"
    """A share of each sample's tokens still alive, or an absolute number of them."""
    amount: int | Tensor = 600
    """The budget, one for all samples or (B,) integers."""
    protected: int = 1
    """Leading tokens that are always kept."""
    heads: tuple[int, ...] = ()
    """Key-value heads that were not removed, whose attention is all a selector sees; () = all."""
    queries: tuple[int, ...] = ()
    """Query heads that were not removed, of those that share a key-value head; () = all."""
    options: Mapping[str, Option] = field(default_factory=dict)
    """Options of the selector that are not left at their default."""


@dataclass(frozen=True, slots=True)
class SiteRun:
    """What happened at one site. Positions are those of the model's input."""

    score: Tensor
    """(B, N) the selector's score, -inf on tokens that were not eligible."""
    eligible: Tensor
    """(B, N) bool: alive before the site and no padding."""
    kept: Tensor
    """(B, K) int64 ascending positions, -1 behind a sample's count."""
    count: Tensor
    """(B,) int64"""
    margin: Tensor
    """(B,) lowest score kept on merit minus highest score dropped, +inf without either."""
    state: Tensor | None = None
    """(B, N) what the selector hands to the next site, where it does."""


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
    least = max(site.protected, 1) + (0 if pointed is None else pointed.shape[1])
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
    )
    return record, alive


def _decide(site: TokenSite, signal: Callable[[str], Tensor], count: Tensor) -> Selection:
    named = site.selector
    chosen = resolve_selector(named, site.options) if isinstance(named, str) else named
    signals = {name: signal(name) for name in chosen.signals}
    if isinstance(chosen, Selector):
        return chosen.decide(signals, count, site.protected)
    return Selection(chosen.score(**signals))


def _valid(eligible: Tensor) -> Tensor:
    return eligible.sum(dim=1)


def attention_signals(
    site: TokenSite,
    seen: Attention,
    hidden: Tensor,
    valid: Tensor,
    *,
    carried: Tensor | None = None,
) -> Callable[[str], Tensor]:
    """Build signals from what an attention block was seen to read.

    Args:
        site: says which heads were not removed.
        seen: the attention block of the site.
        hidden: (B, N, D) rows of the residual stream at the cut.
        valid: (B, N) bool, alive and no padding.
        carried: (B, N) what the site before handed on; None for nothing.
    """
    seen = _left_heads(site, seen)

    def signal(name: str) -> Tensor:
        if name == "accumulated":
            return torch.zeros(valid.shape) if carried is None else carried
        if name not in _SIGNALS:
            raise BadInputError(
                f"the reference cannot build the signal {name!r}",
                wanted="one of " + ", ".join(_SIGNALS),
            )
        return _SIGNALS[name](seen, hidden, valid)

    return signal


def left_heads(site: TokenSite, signals: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Take removed heads out of signals by name: a mean over heads must not see them.

    Args:
        site: says which heads are left.
        signals: those with a head axis are ``q``, ``k``, ``v``, ``keys`` and ``values``,
            (B, H, N, Dh).
    """
    per_head = {name: x for name, x in signals.items() if name in _PER_HEAD}
    if not per_head or not (site.heads or site.queries):
        return dict(signals)
    fewest = min(x.shape[1] for x in per_head.values())
    most = max(x.shape[1] for x in per_head.values())
    keys, queries = _left(site, fewest, most // fewest)
    left = {name: x[:, queries if name == "q" else keys] for name, x in per_head.items()}
    return {**signals, **left}


def _left_heads(site: TokenSite, seen: Attention) -> Attention:
    """The same for what an attention block was seen to read."""
    if not site.heads and not site.queries:
        return seen
    n_keys = seen.key.shape[1]
    keys, queries = _left(site, n_keys, seen.query.shape[1] // n_keys)
    return replace(
        seen,
        query=seen.query[:, queries],
        key=seen.key[:, keys],
        value=None if seen.value is None else seen.value[:, keys],
        probabilities=seen.probabilities[:, queries],
    )


def _left(site: TokenSite, n_keys: int, n_queries: int) -> tuple[list[int], list[int]]:
    """Positions of the key heads and of the query heads that were not removed."""
    keys = list(site.heads or range(n_keys))
    return keys, [k * n_queries + q for k in keys for q in site.queries or range(n_queries)]


def _class_row(seen: Attention, _hidden: Tensor, valid: Tensor) -> Tensor:
    """The row of the first valid query, which is not the first row under left padding."""
    position = valid.int().argmax(dim=1)
    batch = torch.arange(valid.shape[0])
    return seen.probabilities[batch, :, position].mean(dim=1)


def _last_row(seen: Attention, _hidden: Tensor, valid: Tensor) -> Tensor:
    """The row of the last valid query, which is not the last row under right padding."""
    position = torch.arange(valid.shape[1]).masked_fill(~valid, -1).amax(dim=1)
    batch = torch.arange(valid.shape[0])
    return seen.probabilities[batch, :, position].mean(dim=1)


def _column_mean(seen: Attention, _hidden: Tensor, valid: Tensor) -> Tensor:
    per_query = seen.probabilities.mean(dim=1).masked_fill(~valid[:, :, None], 0.0)
    return per_query.sum(dim=1) / valid.sum(dim=1, keepdim=True)


def _values(seen: Attention, _hidden: Tensor, _valid: Tensor) -> Tensor:
    if seen.value is None:
        raise BadInputError(
            "the values of this attention were not seen", wanted="probabilities @ v"
        )
    return seen.value


_SIGNALS: dict[str, Callable[[Attention, Tensor, Tensor], Tensor]] = {
    "class_row": _class_row,
    "last_row": _last_row,
    "column_mean": _column_mean,
    "full": lambda seen, _hidden, _valid: seen.probabilities,
    "class_value": lambda seen, hidden, valid: _values(seen, hidden, valid)[:, :, 0],
    "keys": lambda seen, _hidden, _valid: seen.key,
    "values": _values,
    "hidden": lambda _seen, hidden, _valid: hidden,
    "valid": lambda _seen, _hidden, valid: valid,
}


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


__all__ = ["Scorer", "SiteRun", "TokenSite", "attention_signals", "left_heads", "select"]
