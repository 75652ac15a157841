"""Model families, one file each; importing this package registers them all."""

from secateur.models.families import bert_like, clip, llava, torch_encoder, vit  # noqa: F401
from secateur.models.families.core import FAMILIES, Adopter, FamilyModel, Tokenizer

__all__ = ["FAMILIES", "Adopter", "FamilyModel", "Tokenizer"]
