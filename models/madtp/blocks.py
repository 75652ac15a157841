"""One layer of each branch in two halves: up to the point where MADTP cuts, and after it.

The layers are Hugging Face's own modules, called part by part; nothing is copied, so their
checkpoints load as they are.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from secateur.models.madtp.attention import Attended, Visible, attend, split_heads


@dataclass(frozen=True, slots=True)
class Context:
    """Tokens of the other branch, for cross-attention."""

    hidden: Tensor
    """(B, M, D), position 0 included."""
    mask: Tensor | None
    """(B, M) bool or None."""


Contexts = tuple[Context, ...]
"""None of them, one image, or two."""


@dataclass(frozen=True, slots=True)
class Block:
    """The two halves of a family's layer, as functions of the layer.

    ``attend(layer, hidden, mask)`` gives the residual stream at the cut and the attention that
    led there; ``finish(layer, hidden, contexts)`` takes the tokens that are left to the end.
    """

    attend: Callable[[nn.Module, Tensor, Tensor | None], tuple[Tensor, Attended]]
    finish: Callable[[nn.Module, Tensor, Contexts], Tensor]


def _vision_attend(
    layer: nn.Module, hidden: Tensor, mask: Tensor | None
) -> tuple[Tensor, Attended]:
    """A layer of ``BlipVisionModel``."""
    parts = cast("Any", layer)
    attention = parts.self_attn
    mixed = attention.qkv(parts.layer_norm1(hidden)).unflatten(2, (3, attention.num_heads, -1))
    query, key, value = mixed.permute(2, 0, 3, 1, 4).unbind(0)
    made = attend(query, key, value, Visible(mask), attention.dropout)
    return hidden + attention.projection(made.output), made


def _clip_attend(causal: bool) -> Callable[..., tuple[Tensor, Attended]]:
    """A layer of ``CLIPVisionModel``, or, causal, of ``CLIPTextModel``."""

    def attend_clip(
        layer: nn.Module, hidden: Tensor, mask: Tensor | None
    ) -> tuple[Tensor, Attended]:
        parts = cast("Any", layer)
        attention, normed = parts.self_attn, parts.layer_norm1(hidden)
        query, key, value = (
            split_heads(project(normed), attention.num_heads)
            for project in (attention.q_proj, attention.k_proj, attention.v_proj)
        )
        made = attend(query, key, value, Visible(mask, causal))
        return hidden + attention.out_proj(made.output), made

    return attend_clip


def _pre_norm_finish(layer: nn.Module, hidden: Tensor, contexts: Contexts) -> Tensor:
    del contexts
    parts = cast("Any", layer)
    result: Tensor = hidden + parts.mlp(parts.layer_norm2(hidden))
    return result


def _text_attend(causal: bool) -> Callable[..., tuple[Tensor, Attended]]:
    """A layer of ``BlipTextModel``, or, causal, of a decoder."""

    def attend_text(
        layer: nn.Module, hidden: Tensor, mask: Tensor | None
    ) -> tuple[Tensor, Attended]:
        parts = cast("Any", layer).attention
        made = _look(parts.self, hidden, Context(hidden, mask), causal=causal)
        return parts.output(made.output, hidden), made

    return attend_text


def _text_finish(layer: nn.Module, hidden: Tensor, contexts: Contexts) -> Tensor:
    parts = cast("Any", layer)
    if contexts:
        hidden = cross_attend(parts.crossattention, hidden, contexts)
    result: Tensor = parts.feed_forward_chunk(hidden)
    return result


def cross_attend(module: nn.Module, hidden: Tensor, contexts: Contexts) -> Tensor:
    """Let text look at one image, or at two through ``TwinCrossAttention``."""
    parts = cast("Any", module)
    if isinstance(module, TwinCrossAttention):
        first, second = contexts
        seen = (_look(parts.self0, hidden, first), _look(parts.self1, hidden, second))
        merged: Tensor = parts.output(*(made.output for made in seen), hidden)
        return merged
    (context,) = contexts
    result: Tensor = parts.output(_look(parts.self, hidden, context).output, hidden)
    return result


def _look(module: nn.Module, hidden: Tensor, context: Context, *, causal: bool = False) -> Attended:
    parts = cast("Any", module)
    query, key, value = (
        split_heads(project(source), parts.num_attention_heads)
        for project, source in (
            (parts.query, hidden),
            (parts.key, context.hidden),
            (parts.value, context.hidden),
        )
    )
    return attend(query, key, value, Visible(context.mask, causal), parts.dropout)


class TwinOutput(nn.Module):
    """Bring what was seen in two images together, add it to the text, normalise.

    *Source: BLIP, NLVR2 text encoder: the mean of both in the lower layers, a learnt
    projection of both from layer 6 on.*
    """

    def __init__(self, width: int, epsilon: float, *, merges: bool, dropout: float) -> None:
        super().__init__()
        self.LayerNorm = nn.LayerNorm(width, eps=epsilon)
        self.dense0 = nn.Linear(width, width)
        self.dense1 = nn.Linear(width, width)
        self.merge_layer = nn.Linear(2 * width, width) if merges else None
        self.dropout = nn.Dropout(dropout)

    def forward(self, first: Tensor, second: Tensor, hidden: Tensor) -> Tensor:
        """(B, N, D) three times -> (B, N, D)."""
        left, right = self.dense0(first), self.dense1(second)
        if self.merge_layer is None:
            both = (left + right) / 2
        else:
            both = self.merge_layer(torch.cat([left, right], dim=-1))
        result: Tensor = self.LayerNorm(self.dropout(both) + hidden)
        return result


class TwinCrossAttention(nn.Module):
    """Cross-attention of a text layer to two images, with weights of its own for each."""

    def __init__(self, first: nn.Module, second: nn.Module, output: TwinOutput) -> None:
        super().__init__()
        self.self0 = first
        self.self1 = second
        self.output = output


BLIP_VISION = Block(_vision_attend, _pre_norm_finish)
BLIP_TEXT = Block(_text_attend(causal=False), _text_finish)
BLIP_DECODER = Block(_text_attend(causal=True), _text_finish)
CLIP_VISION = Block(_clip_attend(causal=False), _pre_norm_finish)
CLIP_TEXT = Block(_clip_attend(causal=True), _pre_norm_finish)

__all__ = [
    "BLIP_DECODER",
    "BLIP_TEXT",
    "BLIP_VISION",
    "CLIP_TEXT",
    "CLIP_VISION",
    "Block",
    "Context",
    "Contexts",
    "TwinCrossAttention",
    "TwinOutput",
    "cross_attend",
]
