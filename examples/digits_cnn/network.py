"""A small convolutional network for 8x8 digits, of the parts that large ones have."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def _normed(convolution: nn.Conv2d) -> nn.Sequential:
    return nn.Sequential(convolution, nn.BatchNorm2d(convolution.out_channels), nn.ReLU())


class Residual(nn.Module):
    """Depthwise and pointwise convolution beside a shortcut: the block of mobile networks."""

    def __init__(self, channels: int, inner: int) -> None:
        super().__init__()
        self.expand = _normed(nn.Conv2d(channels, inner, 1, bias=False))
        self.depthwise = _normed(nn.Conv2d(inner, inner, 3, padding=1, groups=inner, bias=False))
        self.project = nn.Conv2d(inner, channels, 1, bias=False)
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to the same."""
        return torch.relu(x + self.norm(self.project(self.depthwise(self.expand(x)))))


class DigitsCNN(nn.Module):
    """A classifier of (B, 1, 8, 8) images with values in [0, 1]; gives (B, 10) logits."""

    def __init__(self, channels: int = 24, inner: int = 48) -> None:
        super().__init__()
        self.stem = _normed(nn.Conv2d(1, channels, 3, padding=1, bias=False))
        self.first = Residual(channels, inner)
        self.down = _normed(nn.Conv2d(channels, 2 * channels, 3, stride=2, padding=1, bias=False))
        self.second = Residual(2 * channels, inner)
        self.head = nn.Linear(2 * channels, 10)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 1, 8, 8) to (B, 10)."""
        x = self.second(self.down(self.first(self.stem(images))))
        return self.head(x.mean((2, 3)))
