"""Merged tokens in the reference run: rows of the full length are rewritten in place."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from secateur.errors import PreconditionError
from secateur.models.reference_sites import SiteRun, TokenSite
from secateur.models.selectors import Selector


def merge(
    site: TokenSite, signal: Callable[[str], Tensor], hidden: Tensor, record: SiteRun
) -> tuple[Tensor, Tensor]:
    """Put merged tokens where they stand; everything else is hidden.

    Args:
        site: names a selector that merges.
        signal: gives a signal by name.
        hidden: (B, N, D) rows at the cut.
        record: what was kept.

    Returns:
        The rows (B, N, D), and which of them are alive, (B, N) bool.

    Raises:
        PreconditionError: two new tokens would stand at one place.
    """
    chosen = site.chosen
    assert isinstance(chosen, Selector)
    n_tokens, used = hidden.shape[1], record.kept >= 0
    index = torch.where(used, record.kept, n_tokens - 1)
    signals = {name: signal(name) for name in chosen.signals}
    made = chosen.merge(signals, index, used, site.protected)
    valid = made.valid
    if valid is None:
        n_appended = made.weights.shape[1] - index.shape[1]
        valid = torch.nn.functional.pad(used, (0, n_appended), value=True)
    # Who is kept stays in place, whatever merges into it; a new token stands by its heaviest part.
    stands = torch.cat([index, made.weights[:, index.shape[1] :].argmax(dim=2)], dim=1)
    place = torch.where(valid, stands, n_tokens)
    _check_places(site, place)
    rows = made.weights @ hidden
    new = torch.nn.functional.pad(hidden, (0, 0, 0, 1))  # one row more, for slots not used
    new = new.scatter(1, place[:, :, None].expand_as(rows), rows)
    alive = torch.zeros(hidden.shape[0], n_tokens + 1, dtype=torch.bool)
    alive.scatter_(1, place, True)
    return new[:, :n_tokens], alive[:, :n_tokens]


def _check_places(site: TokenSite, place: Tensor) -> None:
    n_tokens = int(place.max())
    for row in place:
        there = row[row < n_tokens]
        if len(there) != len(there.unique()):
            raise PreconditionError(
                "two merged tokens stand at one place, so that no full-length run shows them",
                where=site.site,
                next_step="compare by the outputs of the graph in PyTorch",
            )


__all__ = ["merge"]
