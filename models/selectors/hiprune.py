"""Keep anchors of a middle layer, their neighbours on the grid, and registers of a deep layer.

Anchors receive most attention in the object layer; buffers stand left, right, above and below
of them; registers receive most attention in the deep layer and fill the budget.

Source: HiPrune (Liu et al., 2025, arXiv:2508.00553), code Danielement321/HiPrune at 6e83a12.
As in the published code, neighbours are counted on the flattened grid: the left one of a row's
first patch is the last patch of the row above, and places outside the grid become its first or
last patch. Departures: anchors and buffers are never chosen twice, whatever the scale of the
scores; where they alone exceed the budget, anchors go first; a batch does not share a budget.
"""

from __future__ import annotations

import torch
from torch import Tensor

from secateur.errors import BadInputError
from secateur.models.selectors.core import best, selector
from secateur.models.selectors.parts import grid_width as width_of
from secateur.models.selectors.parts import ordinals, patches


@selector(
    "hiprune",
    kind="sets",
    source="HiPrune (Liu et al., 2025, arXiv:2508.00553)",
    cost="the attention maps of two layers",
)
def score(  # noqa: PLR0913 - signals, and three options by name
    column_means: Tensor,
    valid: Tensor,
    count: Tensor,
    protected: int,
    *,
    layers: str = "8,-1",
    alpha: float = 0.1,
    grid_width: int = 0,
) -> Tensor:
    """Score registers by the deep layer, buffers above them, anchors above these.

    Args:
        column_means: (B, L, N), attention received; the first layer is the object layer and the
            last one the deep layer.
        valid: (B, N) bool.
        count: (B,) int64, tokens to keep with the protected ones.
        protected: leading tokens that are no patches.
        layers: which layers are read.
        alpha: share of the budget for anchors with four neighbours each.
        grid_width: patches in a row; 0 for a square grid.

    Raises:
        BadInputError: a single layer, or the patches fill no grid.
    """
    if not {",", ":"} & set(layers):
        raise BadInputError(
            "two layers are compared",
            where="selector 'hiprune', option layers",
            got=repr(layers),
            wanted="an object layer and a deep layer, such as '8,-1'",
        )
    n_tokens = column_means.shape[2]
    width = width_of(n_tokens - protected, grid_width, method="hiprune")
    patch = patches(valid, protected)
    middle, deep = column_means[:, 0].float(), column_means[:, -1].float()
    n_anchors = torch.round((count - protected) * (alpha / 5)).long()
    anchor = best(middle.masked_fill(~patch, -torch.inf), n_anchors) & patch
    chosen = anchor | _neighbours(anchor, patch, width)
    step = deep.amax(dim=1, keepdim=True) - deep.amin(dim=1, keepdim=True) + 1
    return deep + step * (chosen.float() + anchor.float())


def _neighbours(anchor: Tensor, patch: Tensor, width: int) -> Tensor:
    """(B, N) bool -> (B, N) bool: who stands beside an anchor, ends of the grid included."""
    place = ordinals(patch)
    last = patch.sum(dim=1, keepdim=True) - 1
    position = torch.arange(anchor.shape[1], device=anchor.device)
    found = torch.zeros_like(anchor)
    for offset in (-1, 1, -width, width):
        source = (position - offset).clamp(0, anchor.shape[1] - 1)
        origin = place - offset
        found = found | (anchor[:, source] & (origin >= 0) & (origin <= last))
        end = 0 if offset < 0 else last
        beyond = anchor & ((place + offset < 0) | (place + offset > last))
        found = found | (beyond.any(dim=1, keepdim=True) & (place == end))
    return found & patch
