"""Signals in the reference run, from the attention that a module was seen to compute.

Written a second time on purpose: the graph passes have their own, and parity compares them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from secateur.errors import BadInputError
from secateur.models.reference_sites import TokenSite
from secateur.models.selectors.signal_table import SIGNALS
from secateur.models.token_mode import Attention

_PER_HEAD = frozenset({"q", "k", "v", "keys", "values"})


@dataclass(frozen=True, slots=True)
class Around:
    """What a selector may read at a site.

    Attributes:
        blocks: attention up to the site, in the order in which it ran; the last is the site's.
        hidden: (B, N, D) rows of the residual stream at the cut.
        valid: (B, N) bool, alive and no padding.
        first: position, among the tokens of the site, of the first row of ``hidden``.
        before: the residual stream in front of the site's block.
        carried: (B, N) what the site before handed on; None for nothing.
        given: signals that no site has.
        layers: which blocks signals of several layers are of, as Python counts.
    """

    blocks: tuple[Attention, ...]
    hidden: Tensor
    valid: Tensor
    first: int = 0
    before: Tensor | None = None
    carried: Tensor | None = None
    given: Mapping[str, Tensor] = field(default_factory=dict)
    layers: str = ":"

    @property
    def seen(self) -> Attention:
        """The attention of the site itself."""
        return self.blocks[-1]

    @property
    def valid_there(self) -> Tensor:
        """(B, N') bool: the same for all tokens of the site, more than those at the cut."""
        n_there, n_here = self.seen.key.shape[2], self.valid.shape[1]
        if n_there == n_here:
            return self.valid
        behind = n_there - self.first - n_here
        return torch.nn.functional.pad(self.valid, (self.first, behind), value=True)


def attention_signals(
    site: TokenSite,
    seen: Attention,
    hidden: Tensor,
    valid: Tensor,
    *,
    carried: Tensor | None = None,
) -> Callable[[str], Tensor]:
    """Build signals from what one attention block was seen to read; see ``signals_at``."""
    return signals_at(site, Around((seen,), hidden, valid, carried=carried))


def signals_at(site: TokenSite, around: Around) -> Callable[[str], Tensor]:
    """Return a function that builds signals by name.

    Args:
        site: says which heads were not removed.
        around: what is there to read.

    Raises:
        BadInputError: when called, for a signal that nothing there gives.
    """
    around = replace(around, blocks=tuple(_left_heads(site, seen) for seen in around.blocks))

    def signal(name: str) -> Tensor:
        if name in around.given:
            return around.given[name]
        if name not in _SIGNALS:
            raise BadInputError(
                f"the reference cannot build the signal {name!r}",
                wanted="one of " + ", ".join(_SIGNALS),
                next_step="give it by name, in TokenSite(given=...)",
            )
        return _at_cut(name, _SIGNALS[name](around), around)

    return signal


def _at_cut(name: str, made: Tensor, around: Around) -> Tensor:
    """Take away what is not at the cut: a class token in front, a text on both sides."""
    n_tokens = around.valid.shape[1]
    for axis, what in enumerate(SIGNALS[name]):
        if what == "tokens" and made.shape[axis] != n_tokens:
            made = made.narrow(axis, around.first, n_tokens)
    return made


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


# --- one function per signal -----------------------------------------------------------------


def _first_row(seen: Attention, valid: Tensor) -> Tensor:
    """The row of the first valid query, which is not the first row under left padding."""
    position = valid.int().argmax(dim=1)
    batch = torch.arange(valid.shape[0])
    return seen.probabilities[batch, :, position].mean(dim=1)


def _received(seen: Attention, valid: Tensor) -> Tensor:
    per_query = seen.probabilities.mean(dim=1).masked_fill(~valid[:, :, None], 0.0)
    return per_query.sum(dim=1) / valid.sum(dim=1, keepdim=True)


def _last_row(around: Around) -> Tensor:
    """The row of the last valid query, which is not the last row under right padding."""
    valid = around.valid_there
    position = torch.arange(valid.shape[1]).masked_fill(~valid, -1).amax(dim=1)
    batch = torch.arange(valid.shape[0])
    return around.seen.probabilities[batch, :, position].mean(dim=1)


def _values(around: Around) -> Tensor:
    if around.seen.value is None:
        raise BadInputError(
            "the values of this attention were not seen", wanted="probabilities @ v"
        )
    return around.seen.value


def _before(around: Around) -> Tensor:
    if around.before is None:
        raise BadInputError("no (B, N, D) input of the site's module", wanted="hidden states")
    return around.before


def _carried(around: Around) -> Tensor:
    return torch.zeros(around.valid.shape) if around.carried is None else around.carried


def _of_layers(around: Around, row: Callable[[Attention, Tensor], Tensor]) -> Tensor:
    """(B, L, N): rows of the blocks that ``layers`` names."""
    blocks, spec = list(around.blocks), around.layers
    if ":" in spec:
        first, _, stop = spec.partition(":")
        picked = blocks[int(first) if first else None : int(stop) if stop else None]
    else:
        picked = [blocks[int(number)] for number in spec.split(",")]
    return torch.stack([row(seen, around.valid_there) for seen in picked], dim=1)


_SIGNALS: dict[str, Callable[[Around], Tensor]] = {
    "class_row": lambda around: _first_row(around.seen, around.valid_there),
    "class_rows": lambda around: _of_layers(around, _first_row),
    "last_row": _last_row,
    "column_mean": lambda around: _received(around.seen, around.valid_there),
    "column_means": lambda around: _of_layers(around, _received),
    "full": lambda around: around.seen.probabilities,
    "class_value": lambda around: _values(around)[:, :, 0],
    "keys": lambda around: around.seen.key,
    "values": _values,
    "hidden": lambda around: around.hidden,
    "hidden_before": _before,
    "accumulated": _carried,
    "valid": lambda around: around.valid,
}


__all__ = ["Around", "attention_signals", "left_heads", "signals_at"]
