"""Image and text encoders of BLIP and CLIP, pruned; the models are Hugging Face's own."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from secateur.errors import BadInputError
from secateur.models.madtp import blocks
from secateur.models.madtp.blocks import Contexts
from secateur.models.madtp.encoder import Branch, Encoded, Pruning, Start, encode


@dataclass(frozen=True, slots=True)
class Text:
    """Padded texts."""

    input_ids: Tensor
    """(B, N) int64."""
    attention_mask: Tensor
    """(B, N), not 0 at tokens."""


def blip_image(
    vision: nn.Module, concepts: Tensor, pixels: Tensor, pruning: Pruning, *, aligned: bool = False
) -> Encoded:
    """Run a ``BlipVisionModel``; (B, 3, H, W) pixels of the size that it was trained on."""
    model = cast("Any", vision)
    _check_size(pixels, model.config.image_size)
    branch = Branch(model.encoder.layers, blocks.BLIP_VISION, concepts)
    made = encode(branch, Start(model.embeddings(pixels)), pruning, aligned=aligned)
    return replace(made, hidden=model.post_layernorm(made.hidden))


def blip_text(
    encoder: nn.Module,
    branch_input: tuple[Text, Contexts],
    concepts: Tensor,
    pruning: Pruning,
    *,
    aligned: bool = False,
) -> Encoded:
    """Run a ``BlipTextModel`` over texts that look at no image, at one, or (twin) at two."""
    model = cast("Any", encoder)
    text, contexts = branch_input
    check_text(text)
    branch = Branch(model.encoder.layer, blocks.BLIP_TEXT, concepts)
    start = Start(model.embeddings(text.input_ids), text.attention_mask != 0, contexts)
    return encode(branch, start, pruning, aligned=aligned)


def clip_image(
    vision: nn.Module,
    branch: tuple[Tensor, nn.ModuleList],
    pixels: Tensor,
    pruning: Pruning,
    *,
    aligned: bool = False,
) -> Encoded:
    """Run a ``CLIPVisionModel``; ``branch`` holds the concepts and the projections to them."""
    model = cast("Any", vision)
    _check_size(pixels, model.config.image_size)
    concepts, queries = branch
    stack = Branch(model.encoder.layers, blocks.CLIP_VISION, concepts, list(queries))
    start = Start(model.pre_layrnorm(model.embeddings(pixels)), floor=1)
    made = encode(stack, start, pruning, aligned=aligned)
    return replace(made, hidden=model.post_layernorm(made.hidden))


def clip_text(
    encoder: nn.Module,
    branch: tuple[Tensor, nn.ModuleList],
    text: Text,
    pruning: Pruning,
    *,
    aligned: bool = False,
) -> Encoded:
    """Run a ``CLIPTextModel``; ``end`` of the result is where the end-of-text token went.

    Padding counts as tokens, as CLIP trains it, and tokens are only pruned while more stay
    than the text has: what goes is mostly padding.
    """
    model = cast("Any", encoder)
    check_text(text)
    concepts, queries = branch
    end = end_of_text(text.input_ids, int(model.config.eos_token_id))
    stack = Branch(
        model.encoder.layers, blocks.CLIP_TEXT, concepts, list(queries), order="position"
    )
    start = Start(model.embeddings(input_ids=text.input_ids), floor=end + 2, end=end)
    made = encode(stack, start, pruning, aligned=aligned)
    return replace(made, hidden=model.final_layer_norm(made.hidden))


def end_of_text(input_ids: Tensor, token: int) -> Tensor:
    """Return where each text ends, (B,) int64: the first end-of-text token of (B, N) ids."""
    if token == 2:  # configurations from before transformers 4.31 name a wrong token
        return input_ids.argmax(dim=1)
    return (input_ids == token).long().argmax(dim=1)


def check_text(text: Text) -> None:
    """Refuse texts that are padding only; a graph cannot, and gives them position 0."""
    if torch.compiler.is_exporting():
        return
    empty = (text.attention_mask != 0).sum(dim=1) == 0
    if bool(empty.any()):
        raise BadInputError(
            "a text is all padding",
            where="attention_mask",
            got=f"no token in sample {int(empty.long().argmax())}",
            wanted="at least the first token of every text",
        )


def _check_size(pixels: Tensor, size: int) -> None:
    if tuple(pixels.shape[-2:]) != (size, size):
        raise BadInputError(
            "the image has another size than the model was trained on",
            where="pixel_values",
            got=f"{pixels.shape[-2]} x {pixels.shape[-1]}",
            wanted=f"{size} x {size}",
            next_step="resize the image, or the position embedding of the model",
        )


__all__ = [
    "Text",
    "blip_image",
    "blip_text",
    "check_text",
    "clip_image",
    "clip_text",
    "end_of_text",
]
