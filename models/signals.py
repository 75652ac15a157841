"""Signals in PyTorch: what a selector reads, from the tensors of one attention layer.

Queries, keys and values are (B, H, N, Dh), ``valid`` is (B, N) and False on padding. Scores
are computed in float32 whatever the model's type.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from secateur.errors import BadInputError


def build(available: Mapping[str, Tensor], wanted: Iterable[str]) -> dict[str, Tensor]:
    """Return the wanted signals: taken where given, computed from q, k and v otherwise.

    Args:
        available: signals by name, and the raw tensors ``q``, ``k``, ``v``, ``hidden``,
            ``valid`` of the layer.
        wanted: names of signals.

    Raises:
        BadInputError: a signal cannot be had from what is there.
    """
    return {name: _signal(name, available) for name in wanted}


def _signal(name: str, available: Mapping[str, Tensor]) -> Tensor:
    if name in available:
        return available[name]
    raw = {"class_row": ("q", "k"), "column_mean": ("q", "k"), "keys": ("k",), "values": ("v",)}
    needed = raw.get(name)
    if needed is None or any(tensor not in available for tensor in needed):
        raise BadInputError(
            f"signal {name!r} cannot be built",
            got=", ".join(sorted(available)) or "nothing",
            wanted=name + (f" or {' and '.join(needed)}" if needed else ""),
            next_step="hand it to select_tokens in `signals`",
        )
    if name == "keys":
        return available["k"]
    if name == "values":
        return available["v"]
    made = class_row if name == "class_row" else column_mean
    return made(available["q"], available["k"], available["valid"])


def class_row(query: Tensor, key: Tensor, valid: Tensor) -> Tensor:
    """Attention of the first valid token, mean over heads, (B, N) float32."""
    first = valid.int().argmax(dim=1)[:, None, None, None]
    row = query.gather(2, first.expand(-1, query.shape[1], 1, query.shape[3]))
    return _attention(row, key, valid)[:, :, 0].mean(dim=1)


def column_mean(query: Tensor, key: Tensor, valid: Tensor) -> Tensor:
    """Attention each token receives, mean over heads and valid queries, (B, N) float32."""
    rows = valid[:, None, :, None].float()
    received = (_attention(query, key, valid) * rows).sum(dim=2).mean(dim=1)
    return received / valid.float().sum(dim=1, keepdim=True).clamp(min=1.0)


def _attention(query: Tensor, key: Tensor, valid: Tensor) -> Tensor:
    scores = query.float() @ key.float().transpose(-1, -2) / math.sqrt(query.shape[-1])
    return scores.masked_fill(~valid[:, None, None, :], torch.finfo(torch.float32).min).softmax(-1)


__all__ = ["build", "class_row", "column_mean"]
