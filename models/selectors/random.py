"""The control: an order of the tokens that knows nothing about the input.

The numbers are a fixed bijection of the place among the tokens that are there, so that a sample
gets the same ones alone and in a batch, behind padding and behind an earlier selection, in
PyTorch and in every backend, and no two tokens tie.

Source: x * (2x + 1) modulo a power of two is a permutation, and its high bits depend on all
bits of x (Rivest et al., The RC6 Block Cipher, 1998, section 3).
"""

from __future__ import annotations

import torch
from torch import Tensor

from secateur.models.selectors.core import selector

_MODULUS = 1 << 24
"""Positions below this have different scores, all exact in float32."""

_ROUNDS = ((0x9E3779, 0x3C6EF3), (0x85EBCB, 0xC2B2AE))
"""An odd factor and an offset per round: modulo a power of two nothing is lost."""


@selector("random", source="none: a control")
def score(valid: Tensor) -> Tensor:
    """Hash the place among valid tokens, (B, N) -> (B, N) float32 in [0, 1)."""
    mixed = valid.to(torch.int64).cumsum(dim=1) - 1
    for factor, offset in _ROUNDS:
        mixed = (mixed * factor + offset) % _MODULUS
        mixed = (mixed * (2 * mixed + 1)) % _MODULUS
    return mixed.float() / _MODULUS
