"""SigLIP: its image tower, which has no class token and pools by attention of a learned query."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn
from torch.nn import functional as F

from secateur.errors import BadInputError
from secateur.models.families import images
from secateur.models.families.core import FAMILIES, Adopter, Config, FamilyModel
from secateur.models.families.hugging_face import load_model

_BOTH = "siglip"
_VISION_ONLY = "siglip_vision_model"


class ImageTower(nn.Module):
    """Pixels to an image embedding of length 1; features of the patches beside it."""

    def __init__(self, tower: nn.Module) -> None:
        super().__init__()
        self.vision_model = tower

    def forward(self, pixel_values: Tensor) -> dict[str, Tensor]:
        """(B, 3, S, S) to ``image_embedding`` (B, D) and ``last_hidden_state`` (B, N, D)."""
        found = self.vision_model(pixel_values=pixel_values)
        return {
            "image_embedding": F.normalize(found.pooler_output, dim=-1),
            "last_hidden_state": found.last_hidden_state,
        }


class VisionModel(Adopter):
    """The same of a folder that holds nothing else, under the names that it has there."""

    def forward(self, pixel_values: Tensor) -> dict[str, Tensor]:
        """See ``ImageTower``."""
        return ImageTower(self._adopted).forward(pixel_values)


@FAMILIES.register(_BOTH, _VISION_ONLY)
def load(folder: Path, config: Config, part: str) -> FamilyModel:
    """Load the image tower, of a folder of both towers (``folder#vision``) or of it alone.

    Selectors that read a class token are refused at this tower: name no protected token, and one
    that reads hidden states, keys or the whole map.

    Raises:
        BadInputError: the text tower is asked for, or no tower of two, or the tower has no
            pooling head; see also ``hugging_face.load_model``.
    """
    wanted = ("vision",) if config["model_type"] == _BOTH else ("vision", "")
    if part not in wanted:
        raise BadInputError(
            "only the image tower of a SigLIP is known here",
            where=str(folder),
            got=part or "none named",
            wanted="vision",
            next_step=f"write {folder}#vision; a text tower as a module of package.module:function",
        )
    section = _section(config, folder)
    if not section.get("vision_use_head", True):
        raise BadInputError(
            "the image tower has no head that pools its tokens", where=str(folder / "config.json")
        )
    side = int(str(section.get("image_size", 224)))
    prepare = functools.partial(images.pixels, images.preprocessing(folder, side))
    if config["model_type"] == _BOTH:
        tower = load_model(folder, "SiglipModel").get_submodule("vision_model")
        net: nn.Module = ImageTower(tower)
    else:
        net = VisionModel(load_model(folder, "SiglipVisionModel"))
    return FamilyModel(net.eval(), images.example_inputs(side), images.DYNAMIC, prepare, None)


def _section(config: Config, folder: Path) -> Config:
    if config["model_type"] == _VISION_ONLY:
        return config
    section = config.get("vision_config")
    if not isinstance(section, Mapping):
        raise BadInputError("no vision_config", where=str(folder / "config.json"))
    return section


__all__ = ["ImageTower", "load"]
