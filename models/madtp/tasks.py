"""Models that MADTP prunes: BLIP for NLVR2, VQA, captions and retrieval, CLIP for retrieval.

Every one is built around the parts of a Hugging Face model, keeps their parameter names below
its own, and takes ``compression``, which says how the two branches are pruned.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from secateur.models.madtp import blocks
from secateur.models.madtp.blocks import Context
from secateur.models.madtp.concepts import Concepts
from secateur.models.madtp.encoder import DENSE, Branch, Encoded, Pruning, Start, encode
from secateur.models.madtp.rules import Rule
from secateur.models.madtp.towers import Text, blip_image, blip_text, clip_image, clip_text


@dataclass(frozen=True, slots=True)
class Compression:
    """How the branches are pruned; the default leaves both dense."""

    image: Pruning = DENSE
    text: Pruning = DENSE

    @staticmethod
    def at(
        temperature: Tensor | float, *, coupled: bool = False, by: Rule = "madtp"
    ) -> Compression:
        """One temperature (or strength of another rule) for both, as published."""
        both = Pruning(temperature, coupled=coupled, by=by)
        return Compression(both, both)


NO_COMPRESSION = Compression()


def _context(image: Encoded) -> Context:
    return Context(image.hidden, image.mask)


class BlipNlvr(nn.Module):
    """Is a sentence true of two images? BLIP's NLVR2 classifier."""

    def __init__(self, vision: nn.Module, text: nn.Module, concepts: Concepts) -> None:
        super().__init__()
        self.vision, self.text, self.concepts = vision, text, concepts
        width = concepts.weight.shape[1]
        self.cls_head = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 2))

    def encode(
        self, pixels: Tensor, text: Text, compression: Compression, *, aligned: bool = False
    ) -> tuple[Encoded, Encoded]:
        """Both branches; (B, 2, 3, H, W) pixels. The images are one batch, first ones first."""
        images = blip_image(
            self.vision,
            self.concepts.weight,
            pixels.transpose(0, 1).flatten(0, 1),
            compression.image,
            aligned=aligned,
        )
        pair = images.hidden.reshape(2, pixels.shape[0], *images.hidden.shape[1:])
        masks: list[Tensor | None] = [None, None]
        if images.mask is not None:
            masks = list(images.mask.reshape(2, pixels.shape[0], -1))
        contexts = tuple(Context(pair[i], masks[i]) for i in (0, 1))
        told = blip_text(
            self.text,
            (text, contexts),
            self.concepts.weight,
            compression.text,
            aligned=aligned,
        )
        return images, told

    def forward(
        self,
        pixel_values: Tensor,
        input_ids: Tensor,
        attention_mask: Tensor,
        compression: Compression = NO_COMPRESSION,
    ) -> dict[str, Tensor]:
        """Return ``logits`` (B, 2) for false and true."""
        _, told = self.encode(pixel_values, Text(input_ids, attention_mask), compression)
        return {"logits": self.cls_head(told.hidden[:, 0])}


class BlipRetrieval(nn.Module):
    """Does a text fit an image? Embeddings of both, and a matching head on their fusion."""

    def __init__(self, model: nn.Module, concepts: Concepts) -> None:
        """Take the parts of a ``BlipForImageTextRetrieval``."""
        super().__init__()
        parts = cast("Any", model)
        self.vision, self.text, self.concepts = parts.vision_model, parts.text_encoder, concepts
        self.vision_proj, self.text_proj = parts.vision_proj, parts.text_proj
        self.itm_head = parts.itm_head

    def forward(
        self,
        pixel_values: Tensor,
        input_ids: Tensor,
        attention_mask: Tensor,
        compression: Compression = NO_COMPRESSION,
    ) -> dict[str, Tensor]:
        """Return ``itm_logits`` (B, 2), ``image_embeds`` and ``text_embeds`` (B, P), unit."""
        concepts, text = self.concepts.weight, Text(input_ids, attention_mask)
        seen = blip_image(self.vision, concepts, pixel_values, compression.image)
        alone = blip_text(self.text, (text, ()), concepts, compression.text)
        fused = blip_text(self.text, (text, (_context(seen),)), concepts, compression.text)
        return {
            "itm_logits": self.itm_head(fused.hidden[:, 0]),
            "image_embeds": F.normalize(self.vision_proj(seen.hidden[:, 0]), dim=-1),
            "text_embeds": F.normalize(self.text_proj(alone.hidden[:, 0]), dim=-1),
        }


class BlipVqa(nn.Module):
    """Answer a question on an image; the decoder of answers is not pruned."""

    def __init__(self, model: nn.Module, concepts: Concepts) -> None:
        """Take the parts of a ``BlipForQuestionAnswering``."""
        super().__init__()
        parts = cast("Any", model)
        self.vision, self.text, self.concepts = parts.vision_model, parts.text_encoder, concepts
        self.text_decoder = parts.text_decoder

    def question(self, pixels: Tensor, text: Text, compression: Compression) -> Encoded:
        """The question after it has seen the image."""
        concepts = self.concepts.weight
        seen = blip_image(self.vision, concepts, pixels, compression.image)
        return blip_text(self.text, (text, (_context(seen),)), concepts, compression.text)

    def forward(
        self,
        pixel_values: Tensor,
        input_ids: Tensor,
        attention_mask: Tensor,
        decoder_input_ids: Tensor,
        compression: Compression = NO_COMPRESSION,
    ) -> dict[str, Tensor]:
        """Return ``logits`` (B, M, vocabulary) of the answer's next tokens."""
        asked = self.question(pixel_values, Text(input_ids, attention_mask), compression)
        return {"logits": _decode(self.text_decoder, decoder_input_ids, asked)}


class BlipCaption(nn.Module):
    """Describe an image; the decoder is not pruned."""

    def __init__(self, model: nn.Module, concepts: Concepts) -> None:
        """Take the parts of a ``BlipForConditionalGeneration``."""
        super().__init__()
        parts = cast("Any", model)
        self.vision, self.text_decoder = parts.vision_model, parts.text_decoder
        self.concepts = concepts

    def forward(
        self,
        pixel_values: Tensor,
        input_ids: Tensor,
        compression: Compression = NO_COMPRESSION,
    ) -> dict[str, Tensor]:
        """Return ``logits`` (B, N, vocabulary) of the caption's next tokens."""
        seen = blip_image(self.vision, self.concepts.weight, pixel_values, compression.image)
        return {"logits": _decode(self.text_decoder, input_ids, seen)}


def _decode(decoder: nn.Module, input_ids: Tensor, source: Encoded) -> Tensor:
    """Run a ``BlipTextLMHeadModel``, dense, over what the other branch left.

    Its layers are called one by one, because the model itself (transformers 5.23) drops the
    mask of what its cross-attention looks at, and would see the filling of pruned samples.
    """
    parts = cast("Any", decoder)
    layers = parts.bert.encoder.layer
    branch = Branch(layers, blocks.BLIP_DECODER, concepts=torch.empty(0))
    start = Start(parts.bert.embeddings(input_ids), contexts=(_context(source),))
    logits: Tensor = parts.cls(encode(branch, start, DENSE).hidden)
    return logits


class ClipRetrieval(nn.Module):
    """Embeddings of images and texts, CLIP's."""

    def __init__(self, model: nn.Module, concepts: Concepts) -> None:
        """Take the parts of a ``CLIPModel``; every block gets a projection to the concepts."""
        super().__init__()
        parts = cast("Any", model)
        self.vision, self.text, self.concepts = parts.vision_model, parts.text_model, concepts
        self.visual_projection = parts.visual_projection
        self.text_projection = parts.text_projection
        width = concepts.weight.shape[1]
        self.image_queries, self.text_queries = (
            nn.ModuleList(nn.Linear(tower.config.hidden_size, width) for _ in tower.encoder.layers)
            for tower in (self.vision, self.text)
        )

    def forward(
        self,
        pixel_values: Tensor,
        input_ids: Tensor,
        attention_mask: Tensor,
        compression: Compression = NO_COMPRESSION,
    ) -> dict[str, Tensor]:
        """Return ``image_embeds`` and ``text_embeds`` (B, P), unit."""
        concepts, text = self.concepts.weight, Text(input_ids, attention_mask)
        seen = clip_image(
            self.vision, (concepts, self.image_queries), pixel_values, compression.image
        )
        told = clip_text(self.text, (concepts, self.text_queries), text, compression.text)
        end = cast("Tensor", told.end)[:, None, None].expand(-1, 1, told.hidden.shape[2])
        last = told.hidden.gather(1, end).squeeze(1)
        return {
            "image_embeds": F.normalize(self.visual_projection(seen.hidden[:, 0]), dim=-1),
            "text_embeds": F.normalize(self.text_projection(last), dim=-1),
        }


__all__ = [
    "NO_COMPRESSION",
    "BlipCaption",
    "BlipNlvr",
    "BlipRetrieval",
    "BlipVqa",
    "ClipRetrieval",
    "Compression",
]
