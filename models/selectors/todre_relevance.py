"""Drop all visual tokens of a sample whose text and image hardly look at each other.

Source: ToDRE (Li et al., 2025, arXiv:2505.18757), stage 2, in the language model after seven
eighths of its layers; no code was found. Attention is averaged over heads. Under a causal mask
images see only the text before them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from secateur.models.selectors.core import Selection, selector
from secateur.models.selectors.parts import patches


@selector(
    "todre_relevance",
    kind="threshold",
    source="ToDRE (Li et al., 2025, arXiv:2505.18757), stage 2",
    cost="the attention map of a layer",
    given={"image": ("batch", "tokens")},
)
def score(
    full: Tensor, image: Tensor, valid: Tensor, protected: int, *, threshold: float = 0.1
) -> Selection:
    """Score text 1 and visual tokens 0, and count the latter out or in.

    Args:
        full: (B, H, N, N), rows sum to 1.
        image: (B, N), not 0 on visual tokens.
        valid: (B, N) bool.
        protected: leading tokens that stay whatever they are.
        threshold: visual tokens go where text gives less than this share of its attention to
            them, and they less than this share of theirs to text.
    """
    seen = valid & (image != 0)
    text = valid & (image == 0)
    attention = full.float().mean(dim=1)
    irrelevant = (_mass(attention, text, seen) < threshold) & (
        _mass(attention, seen, text) < threshold
    )
    stays = text | (valid & ~patches(valid, protected)) | (seen & ~irrelevant[:, None])
    return Selection(text.float(), count=stays.sum(dim=1))


def _mass(attention: Tensor, queries: Tensor, keys: Tensor) -> Tensor:
    """(B, N, N), (B, N), (B, N) -> (B,): share of the queries' attention that keys get."""
    given = (attention @ keys.float()[:, :, None])[:, :, 0]
    whole = attention.sum(dim=2)
    asked = queries.float()
    least = torch.finfo(torch.float32).tiny
    return (given * asked).sum(dim=1) / (whole * asked).sum(dim=1).clamp(min=least)
