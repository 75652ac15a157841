"""Where the reference run drops tokens, and what it records there."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol

from torch import Tensor

from secateur.models.selectors import Selector, resolve_selector
from secateur.models.selectors.core import Option


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
    """Path of the module whose attention is read, and after which tokens are dropped."""
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
    cut: str = ""
    """Path of the module after which tokens are dropped, where that is not ``site``."""
    given: Mapping[str, Tensor | str] = field(default_factory=dict)
    """Signals that no site has: the tensor, or the name of an input or of a module that
    returns it."""
    around: tuple[int, int] = (0, 0)
    """How many tokens before and behind those that are selected from always stay: a text."""
    among: str = ""
    """Path of the module that returns those that are selected from, in place of ``around``."""
    leaves: str = ""
    """Path of the module that returns what tokens that leave here have where all are put back;
    "" for their hidden state."""
    close_gaps: bool = False
    """Whether tokens that stay are neighbours from there on."""

    @property
    def chosen(self) -> Selector | Scorer:
        """The selector with its options."""
        if isinstance(self.selector, str):
            return resolve_selector(self.selector, self.options)
        return self.selector


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
    stands_by: Tensor | None = None
    """(B, N) what kept tokens are sorted by, the largest first; None where they stay in order."""


__all__ = ["Scorer", "SiteRun", "TokenSite"]
