"""CLIP: its text tower and its image tower, each as a model of its own."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from secateur.errors import BadInputError
from secateur.models.families import bert_like, images
from secateur.models.families.core import FAMILIES, Config, FamilyModel
from secateur.models.families.hugging_face import load_model, load_tokenizer

PARTS = ("vision", "text")


class ImageTower(nn.Module):
    """Pixels to an image embedding of length 1."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.vision_model = model.get_submodule("vision_model")
        self.visual_projection = model.get_submodule("visual_projection")

    def forward(self, pixel_values: Tensor) -> dict[str, Tensor]:
        """(B, 3, S, S) to ``image_embedding`` (B, D)."""
        pooled = self.vision_model(pixel_values=pixel_values).pooler_output
        return {"image_embedding": F.normalize(self.visual_projection(pooled), dim=-1)}


class TextTower(nn.Module):
    """Ids and a padding mask to a text embedding of length 1.

    Attention is causal; the mask is made here, (B, 1, N, N) True where a query may look,
    instead of by indexing inside transformers.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.text_model = model.get_submodule("text_model")
        self.text_projection = model.get_submodule("text_projection")

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> dict[str, Tensor]:
        """(B, N) ids and mask to ``text_embedding`` (B, D)."""
        position = torch.arange(input_ids.shape[1], device=input_ids.device)
        earlier = position[:, None] >= position[None, :]
        mask = earlier[None, None] & attention_mask.to(torch.bool)[:, None, None]
        pooled = self.text_model(input_ids=input_ids, attention_mask=mask).pooler_output
        return {"text_embedding": F.normalize(self.text_projection(pooled), dim=-1)}


@FAMILIES.register("clip")
def load(folder: Path, config: Config, part: str) -> FamilyModel:
    """Load one tower.

    Raises:
        BadInputError: ``part`` is neither vision nor text; see also ``hugging_face.load_model``.
    """
    if part not in PARTS:
        raise BadInputError(
            "CLIP has two towers",
            where=str(folder),
            got=part or "none named",
            wanted=" or ".join(PARTS),
            next_step=f"write {folder}#vision or {folder}#text",
        )
    model = load_model(folder, "CLIPModel")
    section = config[f"{part}_config"]
    if not isinstance(section, Mapping):
        raise BadInputError(f"no {part}_config", where=str(folder / "config.json"))
    if part == "vision":
        side = int(str(section["image_size"]))
        prepare = functools.partial(images.pixels, images.preprocessing(folder, side))
        net: nn.Module = ImageTower(model).eval()
        return FamilyModel(net, images.example_inputs(side), images.DYNAMIC, prepare, None)
    tokenizer = load_tokenizer(folder)
    limit = int(str(section["max_position_embeddings"]))
    return FamilyModel(
        TextTower(model).eval(),
        bert_like.example_inputs(section),
        bert_like.DYNAMIC,
        functools.partial(bert_like.tokenise, tokenizer, limit),
        tokenizer,
    )


__all__ = ["ImageTower", "TextTower", "load"]
