"""Keep the patches, or the rows of patches, that matter most to the other patches.

The mean over heads of the attention between patches is averaged over queries (attention
received) and over keys; the average that varies more is the significance.

Source: FoPru (Jiang et al., 2024, arXiv:2411.14164); no code of the authors was found, so the
details are those of a serving engine, dongxianzhe/hydrainfer at d4d5f4f. That code reads scores
before the softmax; the paper speaks of attention, which is what is read here. With rows of
attention that sum to one the second average hardly varies. Departure: where less than one row
may stay, the first patches of the best row do.
"""

from __future__ import annotations

import torch
from torch import Tensor

from secateur.errors import BadInputError
from secateur.models.selectors.core import Selection, selector
from secateur.models.selectors.parts import grid_width as width_of
from secateur.models.selectors.parts import ordinals, patches

STRATEGIES = ("rank", "row")


@selector("fopru", source="FoPru (Jiang et al., 2024, arXiv:2411.14164)", kind="top_k")
def score(  # noqa: PLR0913 - signals, and two options by name
    full: Tensor,
    valid: Tensor,
    count: Tensor,
    protected: int,
    *,
    strategy: str = "rank",
    grid_width: int = 0,
) -> Selection:
    """Score patches by significance, or by the sum over their row of the grid.

    Args:
        full: (B, H, N, N), axis 2 queries, axis 3 keys.
        valid: (B, N) bool.
        count: (B,) int64, tokens to keep with the protected ones.
        protected: leading tokens that are no patches.
        strategy: ``rank`` keeps single patches, ``row`` whole rows, as many as fit.
        grid_width: patches in a row; 0 for a square grid.

    Raises:
        BadInputError: unknown strategy, or the patches fill no grid.
    """
    if strategy not in STRATEGIES:
        raise BadInputError(
            "unknown strategy",
            where="selector 'fopru'",
            got=strategy,
            wanted=" or ".join(STRATEGIES),
        )
    patch = patches(valid, protected)
    significance = _significance(full.float().mean(dim=1), patch)
    if strategy == "rank":
        return Selection(significance)
    width = width_of(full.shape[2] - protected, grid_width, method="fopru")
    budget = count - protected
    rows = budget // width
    kept = torch.where(rows > 0, rows * width, budget)
    return Selection(_row_sums(significance, patch, width), count=kept + protected)


def _significance(attention: Tensor, patch: Tensor) -> Tensor:
    """(B, N, N), (B, N) -> (B, N): the average that varies more, 0 where there is no patch."""
    share = patch.float() / patch.sum(dim=1, keepdim=True).clamp(min=1)
    received = (share[:, None, :] @ attention)[:, 0]
    given = (attention @ share[:, :, None])[:, :, 0]
    use_given = _variance(given, share) > _variance(received, share)
    return torch.where(use_given, given, received) * patch


def _variance(x: Tensor, share: Tensor) -> Tensor:
    mean = (x * share).sum(dim=1, keepdim=True)
    return ((x - mean).square() * share).sum(dim=1, keepdim=True)


def _row_sums(significance: Tensor, patch: Tensor, width: int) -> Tensor:
    """(B, N) -> (B, N): every patch has the sum of its row of the grid."""
    row = torch.div(ordinals(patch).clamp(min=0), width, rounding_mode="floor")
    n_rows = (patch.shape[1] + width - 1) // width
    member = (row[:, :, None] == torch.arange(n_rows, device=row.device)) & patch[:, :, None]
    inside = member.float()
    sums = significance[:, None, :] @ inside
    return (inside @ sums.transpose(1, 2))[:, :, 0]
