"""Attention that shows its probabilities and the output of each head.

Fused attention shows neither, and the importance of a token is made of both.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

MASKED = -1e4
"""Logit of a key that must not be seen; fits float16, and its exponential is exactly 0."""


@dataclass(frozen=True, slots=True)
class Attended:
    """What one attention did."""

    output: Tensor
    """(B, Nq, H * Dh), heads side by side, before the output projection."""
    probabilities: Tensor
    """(B, H, Nq, Nk), without dropout."""
    heads: Tensor
    """(B, H, Nq, Dh)."""


@dataclass(frozen=True, slots=True)
class Visible:
    """Which keys a query may look at."""

    mask: Tensor | None = None
    """(B, Nk) bool; None when every key may be seen."""
    causal: bool = False


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    visible: Visible,
    dropout: Callable[[Tensor], Tensor] | None = None,
) -> Attended:
    """Return softmax(q k^T / sqrt(Dh)) v and what it is made of.

    Args:
        query: (B, H, Nq, Dh).
        key: (B, H, Nk, Dh).
        value: (B, H, Nk, Dh).
        visible: the keys that count.
        dropout: applied to the probabilities on their way to the output.
    """
    logits = (query / math.sqrt(query.shape[-1])) @ key.transpose(-1, -2)
    if visible.mask is not None:
        logits = logits.masked_fill(~visible.mask[:, None, None, :], MASKED)
    if visible.causal:
        place = torch.arange(key.shape[2], device=key.device)
        logits = logits.masked_fill(place[None, :] > place[:, None], MASKED)
    probabilities = logits.softmax(dim=-1)
    heads = (probabilities if dropout is None else dropout(probabilities)) @ value
    return Attended(heads.transpose(1, 2).flatten(2), probabilities, heads)


def split_heads(tensor: Tensor, heads: int) -> Tensor:
    """(B, N, H * Dh) -> (B, H, N, Dh)."""
    parts = tensor.reshape(*tensor.shape[:2], heads, -1)
    return parts.transpose(1, 2)


__all__ = ["Attended", "Visible", "attend", "split_heads"]
