"""Pictures as inputs: how a folder wants them scaled, and noise to trace with."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from secateur.errors import BadInputError
from secateur.models.families.core import Arrays
from secateur.models.families.hugging_face import read_json

DYNAMIC = {"pixel_values": {0: "batch"}}
_BILINEAR = 2


def example_inputs(side: int) -> dict[str, Tensor]:
    """Two images of noise, (2, 3, side, side)."""
    seeded = torch.Generator().manual_seed(0)
    return {"pixel_values": torch.randn(2, 3, side, side, generator=seeded)}


@dataclass(frozen=True, slots=True)
class Preprocessing:
    """How an image becomes ``pixel_values``; ``resample`` is Pillow's number."""

    side: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    resample: int


def preprocessing(folder: Path, side: int) -> Preprocessing:
    """Read how images are scaled; ViT's own values where the folder does not say."""
    path = folder / "preprocessor_config.json"
    settings = read_json(path) if path.is_file() else {}
    return Preprocessing(
        side,
        tuple(settings.get("image_mean", (0.5, 0.5, 0.5))),
        tuple(settings.get("image_std", (0.5, 0.5, 0.5))),
        int(settings.get("resample", _BILINEAR)),
    )


def pixels(settings: Preprocessing, images: list[object]) -> Arrays:
    """Resize and normalise images, (H, W, 3) uint8 arrays or PIL images, to ``pixel_values``.

    Raises:
        BadInputError: no image, something that is not one, or one without pixels.
    """
    from PIL import Image

    if not images:
        raise BadInputError("no image", wanted="at least one (H, W, 3) uint8 array or PIL image")

    mean = np.asarray(settings.mean, np.float32)
    std = np.asarray(settings.std, np.float32)
    rows = []
    for image in images:
        if isinstance(image, np.ndarray) and image.dtype != np.uint8:
            raise BadInputError(
                "an image has to be uint8", got=str(image.dtype), wanted="(H, W, 3) uint8"
            )
        if isinstance(image, np.ndarray) and not image.size:
            raise _empty(str(image.shape))
        picture = Image.fromarray(image) if isinstance(image, np.ndarray) else image
        if not isinstance(picture, Image.Image):
            raise BadInputError(
                "not an image", got=type(image).__name__, wanted="array or PIL image"
            )
        if 0 in picture.size:
            raise _empty(str(picture.size))
        sized = picture.convert("RGB").resize((settings.side, settings.side), settings.resample)
        scaled = (np.asarray(sized, np.float32) / np.float32(255) - mean) / std
        rows.append(scaled.transpose(2, 0, 1))
    return {"pixel_values": np.ascontiguousarray(np.stack(rows))}


def _empty(shape: str) -> BadInputError:
    return BadInputError("an image without pixels", got=shape, wanted="at least one pixel")


__all__ = ["DYNAMIC", "Preprocessing", "example_inputs", "pixels", "preprocessing"]
