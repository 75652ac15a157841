"""BLIP's text encoder for two images (NLVR2), made of Hugging Face's for one."""

from __future__ import annotations

import copy
from typing import Any, Protocol, cast

from torch import nn

from secateur.models.madtp.blocks import TwinCrossAttention, TwinOutput

FIRST_MERGING_LAYER = 6


class TextSizes(Protocol):
    """What is read of a text configuration."""

    hidden_size: int
    layer_norm_eps: float
    hidden_dropout_prob: float


def make_twin(encoder: nn.Module, config: TextSizes) -> nn.Module:
    """Give every layer of a text encoder one cross-attention per image, in place.

    Both start as copies of the one that was there.

    Args:
        encoder: ``BlipTextEncoder`` with cross-attention, i.e. ``is_decoder`` in its
            configuration.
        config: of the same encoder.
    """
    for i, layer in enumerate(cast("Any", encoder).layer):
        old = layer.crossattention
        output = TwinOutput(
            config.hidden_size,
            config.layer_norm_eps,
            merges=i >= FIRST_MERGING_LAYER,
            dropout=config.hidden_dropout_prob,
        )
        output.LayerNorm.load_state_dict(old.output.LayerNorm.state_dict())
        for dense in (output.dense0, output.dense1):
            dense.load_state_dict(old.output.dense.state_dict())
        layer.crossattention = TwinCrossAttention(
            copy.deepcopy(old.self), copy.deepcopy(old.self), output
        )
    return encoder


__all__ = ["FIRST_MERGING_LAYER", "TextSizes", "make_twin"]
