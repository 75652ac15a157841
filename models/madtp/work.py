"""Multiply-adds of every sample of a batch, from the counts that its cuts report.

The same number as ``macs_per_sample`` of the samples run one by one, without running them so: a
search looks at many temperatures. A test holds the two to each other.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from secateur.models.madtp.cut import Cut
from secateur.models.madtp.encoder import Pruning
from secateur.models.madtp.tasks import BlipNlvr, Compression
from secateur.models.madtp.towers import Text


@dataclass(frozen=True, slots=True)
class _Sizes:
    """Of one branch."""

    width: int
    inner: int
    concepts: int
    """0 where pruning does not look at them."""
    prunes: bool


@torch.no_grad()
def nlvr_macs(
    net: BlipNlvr, inputs: dict[str, Tensor], compression: Compression, *, rows: int = 64
) -> Tensor:
    """Return the multiply-adds of each sample, (B,) float64, run by itself without padding.

    Two images of one sample run side by side, at the length of the longer one.

    Args:
        net: the model, in evaluation mode.
        inputs: what it takes; texts padded behind.
        compression: by which samples do not depend on each other.
        rows: so many samples at a time.
    """
    parts = [
        _some_macs(net, {n: v[at : at + rows] for n, v in inputs.items()}, compression)
        for at in range(0, inputs["input_ids"].shape[0], rows)
    ]
    return torch.cat(parts)


def _some_macs(net: BlipNlvr, inputs: dict[str, Tensor], compression: Compression) -> Tensor:
    text = Text(inputs["input_ids"], inputs["attention_mask"])
    images, told = net.encode(inputs["pixel_values"], text, compression)
    vision = cast("Any", net.vision).config
    patches = int(vision.image_size // vision.patch_size) ** 2
    words = (text.attention_mask != 0).sum(dim=1)
    pairs = _lengths(torch.full_like(words, 1 + patches).repeat(2), images.cuts, net.vision)
    seen = [pair.reshape(2, -1).amax(dim=0) for pair in pairs]
    read = _lengths(words, told.cuts, net.text)
    total: Tensor = 2 * _stack(seen, _sizes(net, net.vision, images.cuts, compression.image))
    total = total + 2 * patches * 3 * vision.patch_size**2 * vision.hidden_size
    total = total + _stack(read, _sizes(net, net.text, told.cuts, compression.text))
    width = int(vision.hidden_size)
    for layer, length in zip(cast("Any", net.text).encoder.layer, read[1:], strict=True):
        total = total + _crossing(length, seen[-1], width)
        if layer.crossattention.output.merge_layer is not None:
            total = total + 2 * length * width**2
    head: int = width**2 + 2 * width
    return (total + head).double()


def _sizes(net: BlipNlvr, tower: nn.Module, cuts: tuple[Cut, ...], pruning: Pruning) -> _Sizes:
    config = cast("Any", tower).config
    concepts = net.concepts.weight.shape[0] if pruning.by == "madtp" else 0
    return _Sizes(config.hidden_size, config.intermediate_size, concepts, prunes=bool(cuts))


def _lengths(start: Tensor, cuts: tuple[Cut, ...], tower: nn.Module) -> list[Tensor]:
    """Tokens with position 0: at the start, and behind every layer."""
    if not cuts:
        return [start] * (cast("Any", tower).config.num_hidden_layers + 1)
    return [start, *(1 + cut.kept + (cut.kept < cut.available).long() for cut in cuts)]


def _stack(lengths: list[Tensor], sizes: _Sizes) -> Tensor:
    """Self-attention on what goes into a layer, its selection, the network on what stays."""
    total = torch.zeros_like(lengths[0])
    width = sizes.width
    for before, after in itertools.pairwise(lengths):
        total = total + 4 * before * width**2 + 2 * before**2 * width
        total = total + 2 * after * width * sizes.inner
        if sizes.prunes:
            total = total + before * (sizes.concepts * (width + 1) + width)
    return total


def _crossing(queries: Tensor, keys: Tensor, width: int) -> Tensor:
    """Cross-attention to two images of the same length."""
    return 4 * queries * width**2 + 4 * keys * width**2 + 4 * queries * keys * width


__all__ = ["nlvr_macs"]
