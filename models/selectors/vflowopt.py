"""Drop what globally attended tokens do not look at, and recycle it cell by cell.

Importance is the attention that a token receives from those tokens that are looked at most, plus a
share of the entropy of its pixels. Of the least important tokens, those in one cell of a coarse
grid become one weighted mean, which stands where the most important of them stood. How many stay
is the budget, less a token per cell, plus the cells that hold something.

Source: VFlowOpt (Yang et al., ICCV 2025, arXiv:2508.05211), code sihany077/VFlowOpt @ 129eeef.
All released settings leave the entropy out, as ``vflowopt`` does; ``vflowopt_entropy`` has it.
At later sites ``vflowopt_stage`` drops by the importance found here, without recycling.

Departures: where no token is looked at more than ``threshold`` times the mean, and the published
importance is no number, the one that is looked at most takes their place. A budget that leaves
all tokens leaves them as they are. At a site, no newline tokens stand between the rows.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from secateur.models.selectors.core import Selection, marked, ranks, selector

_SOURCE = "VFlowOpt (Yang et al., ICCV 2025, arXiv:2508.05211), sections 3.2 and 3.3"
_COST = "the attention map of a layer, and a comparison of every token with every other"
_GREYS = 256
_TINY = 1e-10


@dataclass(frozen=True, slots=True)
class Layout:
    """Where tokens lie: a square base image, then rows of tiles; and the edge of a cell.

    Attributes:
        base: edge of the base image in tokens; the first base * base tokens.
        columns: tokens in a row of the tiles behind it, a newline token among them.
        cell: edge of a cell in tokens, a real number of at least 1.
    """

    base: int
    columns: int
    cell: float


def importance(
    full: Tensor, entropy: Tensor, valid: Tensor, *, threshold: float, entropy_weight: float
) -> Tensor:
    """Attention from the tokens that are looked at most, plus a share of entropy.

    Args:
        full: (B, H, N, N), attention, softmax over axis 3.
        entropy: (B, N) in bits; not read where the weight is 0.
        valid: (B, N) bool.
        threshold: tokens that receive more than this times the mean are looked at most.
        entropy_weight: of the softmax of the entropy over the tokens.

    Returns:
        (B, N) float32, 0 on padding.
    """
    present = valid.float()
    attention = full.float().mean(dim=1) * present[:, :, None] * present[:, None, :]
    n_present = present.sum(dim=1, keepdim=True).clamp(min=1.0)
    received = attention.sum(dim=1) / n_present
    mean = received.sum(dim=1, keepdim=True) / n_present
    position = torch.arange(valid.shape[1], device=valid.device)
    first = position == received.argmax(dim=1, keepdim=True)
    seen = (received > threshold * mean) & valid
    seen = (seen | (first & ~seen.any(dim=1, keepdim=True))).float()
    relevance = (seen[:, None] @ attention)[:, 0] / seen.sum(dim=1, keepdim=True)
    if entropy_weight == 0:
        return relevance
    lowest = torch.finfo(torch.float32).min
    share = entropy.float().masked_fill(~valid, lowest).softmax(dim=1)
    return relevance + entropy_weight * share * present


def patch_entropy(pixels: Tensor, *, patch: int = 14) -> Tensor:
    """Entropy in bits of the grey levels of each patch.

    Args:
        pixels: (B, 3, G * patch, G * patch) float in [0, 1).
        patch: edge of a patch in pixels.

    Returns:
        (B, G * G) float32.
    """
    levels = (pixels.float() * 255).to(torch.uint8).float()
    grey = (levels.sum(dim=1) * 0.3333).round().to(torch.int64)
    batch, side = grey.shape[0], grey.shape[1] // patch
    cut = grey.reshape(batch, side, patch, side, patch).transpose(2, 3)
    cut = cut.reshape(batch, side * side, patch * patch).clamp(0, _GREYS - 1)
    empty = torch.zeros(batch, side * side, _GREYS, device=pixels.device)
    share = empty.scatter_add(2, cut, torch.ones_like(cut, dtype=torch.float32)) / patch**2
    return -(share * share.clamp(min=_TINY).log2()).sum(dim=2)


def cell_numbers(n_tokens: int, layout: Layout, device: torch.device) -> Tensor:
    """(N,) int64, equal where two tokens lie in one cell; base and tiles share none."""
    position = torch.arange(n_tokens, device=device)
    n_base = layout.base * layout.base
    in_tiles = position >= n_base
    width = torch.where(in_tiles, layout.columns, layout.base)
    place = torch.where(in_tiles, position - n_base, position)
    row = ((place // width).float() / layout.cell).floor().to(torch.int64)
    column = ((place % width).float() / layout.cell).floor().to(torch.int64)
    return (in_tiles.to(torch.int64) * n_tokens + row) * n_tokens + column


def survivors(made: Tensor, valid: Tensor, wanted: Tensor, layout: Layout) -> Tensor:
    """Which tokens stay: all but the least important, and of those the best of each cell.

    Args:
        made: (B, N) float32, importance.
        valid: (B, N) bool.
        wanted: (B,) int64, the budget.
        layout: where the tokens lie.

    Returns:
        (B, N) bool.
    """
    n_present = valid.sum(dim=1)
    reduced = (n_present - wanted).clamp(min=0)
    cells = (n_present.float() / layout.cell**2).floor().to(torch.int64)
    n_pool = torch.where(reduced > 0, reduced + cells, 0)
    least_first = ranks(-made.masked_fill(~valid, torch.inf))
    pool = valid & (least_first < n_pool[:, None])
    number = cell_numbers(valid.shape[1], layout, valid.device)
    order = ranks(made)
    n_tokens = valid.shape[1]
    rivals = (number[:, None] == number) & pool[:, None, :]
    foremost = torch.where(rivals, order[:, None, :], n_tokens).amin(dim=2)
    return valid & (~pool | (order == foremost))


def recycling(made: Tensor, valid: Tensor, kept: Tensor, index: Tensor, layout: Layout) -> Tensor:
    """Weights that put what was dropped of a cell into its least important kept token.

    Args:
        made: (B, N) float32, importance.
        valid: (B, N) bool.
        kept: (B, N) bool.
        index: (B, K) int64, positions of the kept tokens.
        layout: where the tokens lie.

    Returns:
        (B, K, N) float32, rows sum to 1.
    """
    number = cell_numbers(valid.shape[1], layout, valid.device)
    order = ranks(made)
    # The kept token of the pool is less important than all others kept in its cell.
    holders = (number[:, None] == number) & kept[:, None, :]
    holder = torch.where(holders, order[:, None, :], -1).amax(dim=2)
    goes_to = torch.where(kept, order, holder).masked_fill(~valid, -1)
    member = goes_to[:, None, :] == order.gather(1, index)[:, :, None]
    weights = member * made[:, None, :]
    total = weights.sum(dim=2, keepdim=True)
    even = member / member.sum(dim=2, keepdim=True).clamp(min=1)
    return torch.where(total == 0, even, weights / torch.where(total == 0, 1.0, total))


def combine(  # noqa: PLR0913 - a signal, what was kept, and options
    full: Tensor,
    valid: Tensor,
    index: Tensor,
    valid_kept: Tensor,
    protected: int,
    *,
    threshold: float = 28.68,
    base: int = 27,
    columns: int = 28,
    cell: float = 11.757,
) -> Tensor:
    """Recycle dropped tokens, (B, K, N) weights float32."""
    members, attention = valid[:, protected:], full[:, :, protected:, protected:]
    made = importance(attention, attention, members, threshold=threshold, entropy_weight=0.0)
    return _weights(made, valid, index, valid_kept, Layout(base, columns, cell))


def _weights(
    made: Tensor, valid: Tensor, index: Tensor, valid_kept: Tensor, layout: Layout
) -> Tensor:
    """Weights over all tokens; protected ones, in front, stay as they are."""
    protected = valid.shape[1] - made.shape[1]
    slot = torch.where(valid_kept, index, 0)
    kept = marked(index, valid_kept, valid)[:, protected:]
    own = (torch.arange(valid.shape[1], device=valid.device) == slot[:, :, None]).float()
    inner = (slot - protected).clamp(min=0)
    mixed = recycling(made, valid[:, protected:], kept, inner, layout)
    mixed = torch.nn.functional.pad(mixed, (protected, 0))
    return torch.where((slot < protected)[:, :, None], own, mixed)


@selector("vflowopt", kind="merge", source=_SOURCE, cost=_COST, combine=combine, on_grid=True)
def score(  # noqa: PLR0913 - a signal, what the budget says, and options
    full: Tensor,
    valid: Tensor,
    count: Tensor,
    protected: int,
    *,
    threshold: float = 28.68,
    base: int = 27,
    columns: int = 28,
    cell: float = 11.757,
) -> Selection:
    """Keep the important tokens, and a place for what is recycled of each cell.

    Args:
        full: (B, H, N, N), attention of the site.
        valid: (B, N) bool.
        count: (B,) int64, the budget, protected tokens among it.
        protected: leading tokens that are no patches.
        threshold: tokens that receive more than this times the mean of attention judge.
        base: edge of the base image in tokens.
        columns: tokens in a row of the tiles behind the base image.
        cell: edge of a cell in tokens.
    """
    members, attention = valid[:, protected:], full[:, :, protected:, protected:]
    made = importance(attention, attention, members, threshold=threshold, entropy_weight=0.0)
    return _selection(made, members, count - protected, protected, Layout(base, columns, cell))


def _selection(
    made: Tensor, valid: Tensor, wanted: Tensor, protected: int, layout: Layout
) -> Selection:
    stays = survivors(made, valid, wanted.clamp(min=0), layout)
    n_patches = valid.sum(dim=1, keepdim=True)
    found = torch.where(stays, 2 * n_patches, n_patches) - ranks(made)
    # A score that is no number stays none, for the caller to refuse.
    found = torch.where(made.isnan(), made, found.float())
    return Selection(
        torch.nn.functional.pad(found, (protected, 0)),
        count=stays.sum(dim=1) + protected,
        state=torch.nn.functional.pad(made, (protected, 0)),
    )


def combine_with_entropy(  # noqa: PLR0913, PLR0917 - signals, what was kept, and options
    full: Tensor,
    patch_entropy: Tensor,
    valid: Tensor,
    index: Tensor,
    valid_kept: Tensor,
    protected: int,
    *,
    threshold: float = 28.68,
    base: int = 27,
    columns: int = 28,
    cell: float = 11.757,
    entropy_weight: float = 0.5,
) -> Tensor:
    """Recycle dropped tokens by an importance that has entropy, (B, K, N) weights float32."""
    made = _with_entropy(
        full, patch_entropy, valid, protected, threshold=threshold, entropy_weight=entropy_weight
    )
    return _weights(made, valid, index, valid_kept, Layout(base, columns, cell))


@selector(
    "vflowopt_entropy",
    kind="merge",
    source=_SOURCE,
    cost=_COST,
    combine=combine_with_entropy,
    on_grid=True,
)
def score_with_entropy(  # noqa: PLR0913 - signals, what the budget says, and options
    full: Tensor,
    patch_entropy: Tensor,
    valid: Tensor,
    count: Tensor,
    protected: int,
    *,
    threshold: float = 28.68,
    base: int = 27,
    columns: int = 28,
    cell: float = 11.757,
    entropy_weight: float = 0.5,
) -> Selection:
    """Keep the important tokens, where patches of uneven pixels matter more.

    Args:
        full: (B, H, N, N), attention of the site.
        patch_entropy: (B, N) in bits, as ``patch_entropy`` computes it of the pixels; that of
            protected tokens is not read.
        valid: (B, N) bool.
        count: (B,) int64, the budget, protected tokens among it.
        protected: leading tokens that are no patches.
        threshold: tokens that receive more than this times the mean of attention judge.
        base: edge of the base image in tokens.
        columns: tokens in a row of the tiles behind the base image.
        cell: edge of a cell in tokens.
        entropy_weight: what the authors search in [-1, 1]; all that they release is 0.
    """
    made = _with_entropy(
        full, patch_entropy, valid, protected, threshold=threshold, entropy_weight=entropy_weight
    )
    members, layout = valid[:, protected:], Layout(base, columns, cell)
    return _selection(made, members, count - protected, protected, layout)


def _with_entropy(  # noqa: PLR0913
    full: Tensor,
    entropy: Tensor,
    valid: Tensor,
    protected: int,
    *,
    threshold: float,
    entropy_weight: float,
) -> Tensor:
    """(B, N - protected) float32."""
    return importance(
        full[:, :, protected:, protected:],
        entropy[:, protected:],
        valid[:, protected:],
        threshold=threshold,
        entropy_weight=entropy_weight,
    )


@selector("vflowopt_stage", kind="cascade", source=_SOURCE, cost="nothing: scores carried on")
def stage(accumulated: Tensor) -> Selection:
    """Keep what was important at the site before, (B, N) -> (B, N) float32."""
    carried = accumulated.float()
    return Selection(carried, state=carried)


__all__ = [
    "Layout",
    "cell_numbers",
    "combine",
    "combine_with_entropy",
    "importance",
    "patch_entropy",
    "recycling",
    "score",
    "score_with_entropy",
    "stage",
    "survivors",
]
