"""A small vision transformer for 8x8 digits: every pixel with its surroundings is a token."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from secateur.models.select_tokens import select_tokens

Heads = dict[str, Tensor]
"""Queries, keys and values ``q``, ``k``, ``v``, (B, H, N, D / H) each."""


@dataclass(frozen=True, slots=True)
class Config:
    """Sizes of the model; the defaults train in less than two minutes on one core."""

    side: int = 8
    width: int = 64
    heads: int = 8
    depth: int = 4
    hidden: int = 192
    classes: int = 10

    @property
    def tokens(self) -> int:
        """Class token and one token a pixel."""
        return 1 + self.side**2


DEFAULT = Config()
NOTHING: Mapping[int, float] = MappingProxyType({})


class Attention(nn.Module):
    """Multi-head self-attention with one projection each for query, key and value."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.heads = config.heads
        self.query = nn.Linear(config.width, config.width)
        self.key = nn.Linear(config.width, config.width)
        self.value = nn.Linear(config.width, config.width)
        self.output = nn.Linear(config.width, config.width)

    def split(self, x: Tensor) -> Tensor:
        """(B, N, D) to (B, H, N, D / H)."""
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def forward(self, x: Tensor) -> tuple[Tensor, Heads]:
        """(B, N, D) to (B, N, D), and what the heads saw."""
        q, k, v = (self.split(layer(x)) for layer in (self.query, self.key, self.value))
        mixed = F.scaled_dot_product_attention(q, k, v)
        return self.output(mixed.transpose(1, 2).flatten(2)), {"q": q, "k": k, "v": v}


class Block(nn.Module):
    """Pre-norm attention and FFN on the residual stream."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.width)
        self.attention = Attention(config)
        self.norm2 = nn.LayerNorm(config.width)
        self.up = nn.Linear(config.width, config.hidden)
        self.down = nn.Linear(config.hidden, config.width)

    def forward(self, x: Tensor) -> tuple[Tensor, Heads]:
        """(B, N, D) to (B, N, D), and what the heads saw."""
        mixed, heads = self.attention(self.norm1(x))
        x = x + mixed
        return x + self.down(F.gelu(self.up(self.norm2(x)))), heads


class DigitsViT(nn.Module):
    """A classifier of (B, 1, 8, 8) images with values in [0, 1]; gives (B, 10) logits.

    With ``keep`` it drops tokens in its own forward: ``{1: 0.5}`` keeps half of them, by the
    attention that the class token pays, after block 1. The weights are the same either way.
    """

    def __init__(self, config: Config = DEFAULT, keep: Mapping[int, float] = NOTHING) -> None:
        super().__init__()
        self.keep = dict(keep)
        self.embed = nn.Conv2d(1, config.width, kernel_size=3, padding=1)
        self.class_token = nn.Parameter(torch.zeros(1, 1, config.width))
        self.position = nn.Parameter(torch.randn(1, config.tokens, config.width) * 0.02)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.norm = nn.LayerNorm(config.width)
        self.head = nn.Linear(config.width, config.classes)

    def tokens(self, images: Tensor) -> Tensor:
        """(B, 1, 8, 8) to (B, N, D): the class token first, then the pixels row by row."""
        pixels = self.embed(images).flatten(2).transpose(1, 2)
        first = self.class_token.expand(images.shape[0], -1, -1)
        return torch.cat([first, pixels], dim=1) + self.position

    def forward(self, images: Tensor) -> Tensor:
        """(B, 1, 8, 8) to (B, 10)."""
        x = self.tokens(images)
        for number, block in enumerate(self.blocks):
            x, heads = block(x)
            if number in self.keep:
                site, share = f"blocks.{number}", self.keep[number]
                x = select_tokens(x, heads, by="class_row", site=site, keep=share)
        return self.head(self.norm(x)[:, 0])
