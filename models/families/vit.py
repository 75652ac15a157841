"""ViT and DeiT: images in, class scores, token features or labels of pixels out."""

from __future__ import annotations

import functools
from pathlib import Path

from torch import Tensor

from secateur.errors import BadInputError
from secateur.models.families import images, segmenter
from secateur.models.families.core import FAMILIES, Adopter, Config, FamilyModel
from secateur.models.families.hugging_face import load_model

_BASE_CLASSES = {"vit": "ViTModel", "deit": "DeiTModel"}


class ImageEncoder(Adopter):
    """A transformers image model that takes pixels only."""

    def forward(self, pixel_values: Tensor) -> dict[str, Tensor]:
        """(B, 3, S, S) to the outputs of the model by name."""
        outputs = self._adopted(pixel_values=pixel_values)
        return {name: value for name, value in outputs.items() if isinstance(value, Tensor)}


@FAMILIES.register(*_BASE_CLASSES)
def load(folder: Path, config: Config, part: str) -> FamilyModel:
    """Load an image classifier, a bare image encoder, or a segmenter (``folder#segmentation``).

    Raises:
        BadInputError: an unknown part; see also ``hugging_face.load_model``.
    """
    if part == segmenter.PART and config["model_type"] == "vit":
        return segmenter.load(folder, config)
    if part:
        raise BadInputError("this model has no parts", where=str(folder), got=part)
    base = _BASE_CLASSES[str(config["model_type"])]
    names = config.get("architectures")
    class_name = str(names[0]) if isinstance(names, list) and names else base
    options = {"add_pooling_layer": False} if class_name == base else {}
    net = ImageEncoder(load_model(folder, class_name, **options)).eval()
    side = int(str(config["image_size"]))
    prepare = functools.partial(images.pixels, images.preprocessing(folder, side))
    return FamilyModel(net, images.example_inputs(side), images.DYNAMIC, prepare, None)


__all__ = ["ImageEncoder", "load"]
