"""Encoder layers and ViTs of published sizes, with random weights."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

PATCH, PATCHES, CLASSES = 16, 196, 1000


class Block(nn.Module):
    """Pre-norm, FFN of four times the width."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.first, self.second = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, D) -> (B, N, D)."""
        made = self.qkv(self.first(x)).reshape(x.shape[0], x.shape[1], 3, self.heads, -1)
        query, key, value = made.permute(2, 0, 3, 1, 4).unbind(0)
        mixed = F.scaled_dot_product_attention(query, key, value)
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.second(x))))


class Encoder(nn.Module):
    """Layers alone."""

    def __init__(self, width: int, heads: int, layers: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(layers))

    def forward(self, hidden: Tensor) -> Tensor:
        """(B, N, D) -> (B, N, D)."""
        for block in self.blocks:
            hidden = block(hidden)
        return hidden * 1.0


class Vit(nn.Module):
    """Pictures of 224 pixels to scores of classes."""

    def __init__(self, width: int, heads: int, layers: int) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, width, PATCH, PATCH)
        self.token = nn.Parameter(torch.randn(1, 1, width) * 0.02)
        self.places = nn.Parameter(torch.randn(1, PATCHES + 1, width) * 0.02)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(layers))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, CLASSES)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """(B, 3, 224, 224) -> (B, classes)."""
        patches = self.embed(pixel_values).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(patches.shape[0], -1, -1), patches], 1) + self.places
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x)[:, 0])


def encoder_inputs(n_tokens: int, width: int, batch: int = 2) -> dict[str, Tensor]:
    """Random hidden states."""
    seeded = torch.Generator().manual_seed(1)
    return {"hidden": torch.randn(batch, n_tokens, width, generator=seeded)}


__all__ = ["Encoder", "Vit", "encoder_inputs"]
