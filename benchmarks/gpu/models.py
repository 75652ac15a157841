"""The models of the GPU programme: the usual architectures with random weights, offline."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

Inputs = dict[str, Tensor]


@dataclass(frozen=True)
class Case:
    """A model at one size, and how to make inputs for a batch of it."""

    name: str
    make: Callable[[], nn.Module]
    inputs: Callable[[int], Inputs]
    dynamic: dict[str, dict[int, str]]


class _First(nn.Module):
    """The class token behind an encoder."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder


class _Picture(_First):
    def forward(self, pixel_values: Tensor) -> Tensor:
        return self.encoder(pixel_values=pixel_values).last_hidden_state[:, 0]


class _Text(_First):
    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        out = self.encoder(input_ids=input_ids, attention_mask=attention_mask)
        return out.last_hidden_state[:, 0]


def _vit(size: int, tiny: bool) -> nn.Module:
    from transformers import ViTConfig, ViTModel

    width = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4} if tiny else {}
    more = {"intermediate_size": 64} if tiny else {}
    config = ViTConfig(image_size=size, patch_size=16, **width, **more)
    return _Picture(ViTModel(config, add_pooling_layer=False))


def _clip(size: int, tiny: bool) -> nn.Module:
    from transformers import CLIPVisionConfig, CLIPVisionModel

    large = {
        "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24,
        "num_attention_heads": 16, "patch_size": 14,
    }  # fmt: skip
    small = {
        "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4,
        "num_attention_heads": 4, "patch_size": 14,
    }  # fmt: skip
    return _Picture(
        CLIPVisionModel(CLIPVisionConfig(image_size=size, **(small if tiny else large)))
    )


def _bert(tiny: bool) -> nn.Module:
    from transformers import BertConfig, BertModel

    small = {
        "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4,
        "num_attention_heads": 4, "vocab_size": 30522,
    }  # fmt: skip
    return _Text(BertModel(BertConfig(**(small if tiny else {})), add_pooling_layer=False))


def _pictures(size: int) -> Callable[[int], Inputs]:
    return lambda batch: {"pixel_values": torch.rand(batch, 3, size, size)}


def _texts(tokens: int) -> Callable[[int], Inputs]:
    return lambda batch: {
        "input_ids": torch.randint(5, 30000, (batch, tokens)),
        "attention_mask": torch.ones(batch, tokens, dtype=torch.int64),
    }


def cases(*, tiny: bool) -> tuple[Case, ...]:
    """Every model of the programme; ``tiny`` ones have its code paths and no weight."""
    pixel = {"pixel_values": {0: "batch"}}
    ids = {name: {0: "batch"} for name in ("input_ids", "attention_mask")}
    sizes = (32, 48, 16, 24, 28) if tiny else (224, 384, 128, 512, 224)
    small, large, short, long, clip = sizes
    return (
        Case(f"vit_b16_{small}", lambda: _vit(small, tiny), _pictures(small), pixel),
        Case(f"vit_b16_{large}", lambda: _vit(large, tiny), _pictures(large), pixel),
        Case(f"bert_base_{short}", lambda: _bert(tiny), _texts(short), ids),
        Case(f"bert_base_{long}", lambda: _bert(tiny), _texts(long), ids),
        Case(f"clip_l14_{clip}", lambda: _clip(clip, tiny), _pictures(clip), pixel),
    )


__all__ = ["Case", "Inputs", "cases"]
