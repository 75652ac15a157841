"""Model families, one file each; importing this package registers them all."""

from secateur.models.families import (  # noqa: F401
    bert_like,
    clip,
    llava,
    siglip,
    torch_encoder,
    vision_mamba,
    vit,
)
from secateur.models.families.core import FAMILIES, Adopter, FamilyModel, Tokenizer

__all__ = ["FAMILIES", "Adopter", "FamilyModel", "Tokenizer"]
