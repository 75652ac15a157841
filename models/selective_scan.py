"""The two operators of a state-space mixer that read tokens one after the other.

Both are one operator to ``torch.export``, so that the number of tokens stays free: a loop in
Python would be unrolled for the traced one. The scan becomes one ``Scan`` node, the convolution
one ``Conv``. Neither turns its tokens round: what runs backwards reads them from the end.

Source: Mamba (Gu, Dao, COLM 2024, arXiv:2312.00752), section 3; Vision Mamba (Zhu et al., ICML
2024, arXiv:2401.09417), algorithm 1.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


@torch.library.custom_op("secateur::selective_scan", mutates_args=())
def selective_scan(decay: Tensor, update: Tensor, read: Tensor, backward: bool) -> Tensor:
    """Run h[n] = decay[n] * h[n-1] + update[n] from h = 0, and read y[n] = h[n] . read[n].

    Args:
        decay: (B, N, E, S).
        update: (B, N, E, S).
        read: (B, N, S).
        backward: Whether the last token comes first.

    Returns:
        (B, N, E), in the order of the tokens also where the scan runs backwards.
    """
    state = torch.zeros_like(update[:, 0])
    made = []
    places = range(update.shape[1])
    for n in reversed(places) if backward else places:
        state = decay[:, n] * state + update[:, n]
        made.append((state * read[:, n, None]).sum(dim=-1))
    return torch.stack(made[::-1] if backward else made, dim=1)


@selective_scan.register_fake
def _scan_shape(decay: Tensor, update: Tensor, read: Tensor, backward: bool) -> Tensor:
    del decay, read, backward
    return update.new_empty(update.shape[:3])


@torch.library.custom_op("secateur::sequence_convolution", mutates_args=())
def sequence_convolution(x: Tensor, weight: Tensor, bias: Tensor, backward: bool) -> Tensor:
    """Convolve each channel with the k - 1 tokens before it, or behind it where ``backward``.

    Args:
        x: (B, E, N).
        weight: (E, 1, k); its last entry is that of the token itself, either way.
        bias: (E,).
        backward: Whether the last token comes first.

    Returns:
        (B, E, N), in the order of the tokens.
    """
    beside = weight.shape[2] - 1
    padded = F.pad(x, (0, beside) if backward else (beside, 0))
    turned = weight.flip(2) if backward else weight
    return F.conv1d(padded, turned, bias, groups=weight.shape[0])


@sequence_convolution.register_fake
def _convolution_shape(x: Tensor, weight: Tensor, bias: Tensor, backward: bool) -> Tensor:
    del weight, bias, backward
    return torch.empty_like(x)


__all__ = ["selective_scan", "sequence_convolution"]
