"""Keep tokens that are unlike each other, starting at the one the class token looks at most.

Source: ToDRE (Li et al., 2025, arXiv:2505.18757), stage 1; no code was found. ``sum`` is the
formula of version 2: each pick has the smallest sum of cosines to the picks so far; ``nearest``
is the greedy k-center that version 1 names: each pick has the smallest cosine to its most
similar pick. Stage 2 is ``todre_relevance``. Not said there and chosen here: heads are
averaged, ties go to the lower position, kept tokens stay in their order.
"""

from __future__ import annotations

import torch
from torch import Tensor

from secateur.errors import BadInputError
from secateur.models.selectors.core import selector
from secateur.models.selectors.parts import State, cosines, patches, repeat_while

DIVERSITIES = ("sum", "nearest")


@selector(
    "todre",
    kind="greedy",
    source="ToDRE (Li et al., 2025, arXiv:2505.18757), stage 1",
    cost="one row of attention, all pairs of tokens, one sequential step per kept token",
)
def score(  # noqa: PLR0913 - signals, and an option by name
    class_row: Tensor,
    hidden: Tensor,
    valid: Tensor,
    count: Tensor,
    protected: int,
    *,
    diversity: str = "sum",
) -> Tensor:
    """Number the picks downwards, 0 where a token was not picked.

    Args:
        class_row: (B, N), its largest entry is the first pick.
        hidden: (B, N, D), visual tokens after the projector.
        valid: (B, N) bool.
        count: (B,) int64, tokens to keep with the protected ones.
        protected: leading tokens that are not picked from.
        diversity: ``sum`` or ``nearest``.

    Raises:
        BadInputError: unknown kind of diversity.
    """
    if diversity not in DIVERSITIES:
        raise BadInputError(
            "unknown diversity",
            where="selector 'todre'",
            got=diversity,
            wanted=" or ".join(DIVERSITIES),
        )
    patch = patches(valid, protected)
    first = class_row.float().masked_fill(~patch, -torch.inf)
    order = _pick(cosines(hidden), first, patch, count - protected, diversity)
    return torch.where(order >= 0, patch.sum(dim=1, keepdim=True) - order, 0).float()


def _pick(alike: Tensor, first: Tensor, patch: Tensor, n_picks: Tensor, diversity: str) -> Tensor:
    """(B, N, N), (B, N), (B, N), (B,) -> (B, N) int64: step of the pick, -1 for never."""
    position = torch.arange(patch.shape[1], device=patch.device)
    sample = torch.arange(patch.shape[0], device=patch.device)

    def body(value: Tensor, closeness: Tensor, order: Tensor, step: Tensor) -> State:
        pick = value.argmax(dim=1)
        row = alike[sample, pick]
        closer = closeness + row if diversity == "sum" else torch.maximum(closeness, row)
        fresh = (position == pick[:, None]) & patch & (order < 0) & (step < n_picks)[:, None]
        order = torch.where(fresh, step[:, None], order)
        return (-closer).masked_fill(~patch | (order >= 0), -torch.inf), closer, order, step + 1

    def proceed(*state: Tensor) -> Tensor:
        return state[3].amax(dim=0) < n_picks.amax(dim=0)

    start = torch.zeros_like(first) if diversity == "sum" else torch.full_like(first, -2.0)
    order = torch.full_like(patch, -1, dtype=torch.int64)
    state = (first, start, order, torch.zeros_like(n_picks))
    return repeat_while(proceed, body, state)[2]
