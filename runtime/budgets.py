"""How many tokens reach a site and stay, at the ends of a profile.

Everything here comes in threes: the smallest, the usual and the largest.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TypeAlias

from secateur.errors import BadInputError
from secateur.runtime.backend import ShapeRange
from secateur.runtime.expressions import evaluate
from secateur.runtime.onnx_outline import ModelOutline
from secateur.runtime.sites import Site

Ends: TypeAlias = tuple[int, int, int]

_PER_MILLE = 1000


@dataclass(frozen=True, slots=True)
class Stop:
    """A site, N that reach it, the range of its budget, and K that stay at most."""

    site: Site
    tokens: Ends
    budget: ShapeRange
    kept: Ends


def along(
    sites: Iterable[Site], symbols: Mapping[str, Ends], shape_values: Mapping[str, ShapeRange]
) -> Iterator[Stop]:
    """Follow the sites from first to last; a budget without a range has the default one."""
    upstream: Ends | None = None
    for site in sites:
        tokens = _tokens_at(site, symbols, upstream)
        budget = shape_values.get(site.budget.input) or _default_budget(site, tokens)
        upstream = _kept_at(site, tokens, budget)
        yield Stop(site, tokens, budget, upstream)


def default_shape_values(
    outline: ModelOutline, sites: Iterable[Site], profiles: Mapping[str, ShapeRange]
) -> dict[str, ShapeRange]:
    """Ranges for the budget inputs that follow from the profiles.

    A count runs from the protected tokens over the site's default to the largest N, and the
    usual one never grows from site to site; a share runs from 1 to 1000 permille.
    """
    stops = along(sites, symbol_ranges(outline, profiles), {})
    return {stop.site.budget.input: stop.budget for stop in stops if stop.site.budget.input}


def symbol_ranges(outline: ModelOutline, profiles: Mapping[str, ShapeRange]) -> dict[str, Ends]:
    """Smallest, usual and largest size of every named dimension; names must agree."""
    found: dict[str, Ends] = {}
    origin: dict[str, str] = {}
    for info in outline.inputs:
        span = profiles.get(info.name)
        if span is None or len(span.low) != len(info.shape) or info.optional:
            continue
        for size, *ends in zip(info.shape, span.low, span.usual, span.high, strict=True):
            if not isinstance(size, str) or not size:
                continue
            low, usual, high = map(int, ends)
            first = found.setdefault(size, (low, usual, high))
            if first != (low, usual, high):
                raise BadInputError(
                    f"two profiles give dimension {size!r} different ranges",
                    where=f"inputs {origin[size]!r} and {info.name!r}",
                    got=f"{first} and {(low, usual, high)}",
                    wanted="one range (min, opt, max) for one dimension",
                )
            origin.setdefault(size, info.name)
    return found


def _tokens_at(site: Site, symbols: Mapping[str, Ends], upstream: Ends | None) -> Ends:
    """N at a site.

    Below another site it is at most what that one keeps; the recorded expression decides
    where it can be evaluated with the input dimensions alone.
    """
    low, usual, high = (
        evaluate(site.tokens, {name: ends[end] for name, ends in symbols.items()})
        for end in range(3)
    )
    if low is not None and usual is not None and high is not None:
        a, b, c = upstream or (low, usual, high)
        return min(low, a), min(usual, b), min(high, c)
    if upstream is not None:
        return upstream
    raise BadInputError(
        f"the number of tokens at site {site.name!r} cannot be told from the profiles",
        got=f"N = {site.tokens!r}; ranges for {', '.join(symbols) or 'no dimension'}",
        wanted="a range for every dimension in that expression",
        next_step="give a profile for every dynamic input",
    )


def _default_budget(site: Site, tokens: Ends) -> ShapeRange:
    default = site.budget.default
    if not site.budget.input:
        return ShapeRange.fixed(default)
    if site.budget.kind == "permille":
        return ShapeRange((1,), (default,), (_PER_MILLE,))
    usual = min(max(default, site.protected), tokens[1])
    return ShapeRange((min(max(1, site.protected), usual),), (usual,), (tokens[2],))


def _kept_at(site: Site, tokens: Ends, budget: ShapeRange) -> Ends:
    """K of a site: the share rounded up or the count, clamped to the protected and to N."""

    def kept(n: int, amount: int) -> int:
        wanted = -(-n * amount // _PER_MILLE) if site.budget.kind == "permille" else amount
        return min(max(wanted, site.protected), n)

    low, usual, high = tokens
    return kept(low, budget.low[0]), kept(usual, budget.usual[0]), kept(high, budget.high[0])


__all__ = ["Ends", "Stop", "along", "default_shape_values", "symbol_ranges"]
