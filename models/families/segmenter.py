"""Plain ViT for segmentation: a head behind some layers labels every patch, then every pixel.

The last head gives the answer. Earlier ones say which patches are certain already, so that these
can leave there (selector ``dtop``) and come back with what the early head said of them.

The folder is that of a ViT, with ``segmentation.safetensors`` beside the weights: for each head,
by the number of the layer that it stands behind, ``<layer>.norm``, ``<layer>.mask`` (C, D) and
``<layer>.presence`` (2 C, D), each with ``weight`` and ``bias``. The last layer has one.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from secateur.errors import BadInputError
from secateur.models.families import images
from secateur.models.families.core import Adopter, Config, FamilyModel
from secateur.models.families.hugging_face import load_model
from secateur.models.selectors.dtop import predict

PART = "segmentation"
HEADS_FILE = "segmentation.safetensors"


class Head(nn.Module):
    """Labels tokens: how well each fits each class, and which classes are there at all."""

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.mask = nn.Linear(width, classes)
        self.presence = nn.Linear(width, 2 * classes)

    def forward(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """(B, N, D), class token first, to (B, N, C) and (B, C, 2): there or not."""
        made = self.norm(hidden)
        presence = self.presence(made[:, 0])
        return self.mask(made), presence.reshape(presence.shape[0], -1, 2)


class Segmenter(Adopter):
    """A ViT with heads."""

    def __init__(self, model: nn.Module, heads: Mapping[int, Head]) -> None:
        super().__init__(model)
        self.heads = nn.ModuleDict({str(layer): head for layer, head in sorted(heads.items())})

    def forward(self, pixel_values: Tensor) -> dict[str, Tensor]:
        """(B, 3, S, S) to the answer for every pixel.

        Returns:
            ``prediction`` (B, C, S, S), the probability of each class; for every head but the
            last ``masks_<layer>`` (B, C, N) and ``presence_<layer>`` (B, C, 2): the signals
            ``mask_logits`` and ``class_logits`` of a selection there.
        """
        hidden = self._adopted.get_submodule("embeddings")(pixel_values)
        layers = self._adopted.get_submodule("layers")
        assert isinstance(layers, nn.ModuleList)
        found: dict[str, Tensor] = {}
        masks = presence = hidden
        for i, layer in enumerate(layers):
            hidden = layer(hidden)
            if str(i) not in self.heads:
                continue
            masks, presence = self.heads[str(i)](hidden)
            if i + 1 < len(layers):
                found |= {f"masks_{i}": masks.transpose(1, 2), f"presence_{i}": presence}
        patches = masks[:, 1:].transpose(1, 2)
        side = round(patches.shape[2] ** 0.5)
        grid = patches.reshape(patches.shape[0], patches.shape[1], side, side)
        pixels = F.interpolate(grid, size=pixel_values.shape[2:], mode="bilinear")
        answer = predict(pixels.flatten(2), presence)
        return {"prediction": answer.reshape(pixels.shape), **found}


def load(folder: Path, config: Config) -> FamilyModel:
    """Load a ViT and its heads.

    Raises:
        BadInputError: no heads, heads of another width, or none behind the last layer; see
            also ``hugging_face.load_model``.
    """
    model = load_model(folder, "ViTModel", add_pooling_layer=False)
    heads = read_heads(folder / HEADS_FILE, int(str(config["hidden_size"])))
    last = int(str(config["num_hidden_layers"])) - 1
    if not heads or max(heads) != last:
        raise BadInputError(
            "the last layer has no head to answer with",
            where=str(folder / HEADS_FILE),
            got="heads behind layers " + ", ".join(map(str, sorted(heads))),
            wanted=f"one behind layer {last}, and behind no later one",
        )
    side = int(str(config["image_size"]))
    prepare = functools.partial(images.pixels, images.preprocessing(folder, side))
    net = Segmenter(model, heads).eval()
    return FamilyModel(net, images.example_inputs(side), images.DYNAMIC, prepare, None)


def read_heads(path: Path, width: int) -> dict[int, Head]:
    """Return the heads of a file by the layer that they stand behind.

    Raises:
        BadInputError: no file, or tensors that make no heads of this width.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors = load_file(path)
    except (FileNotFoundError, SafetensorError) as error:
        raise BadInputError(
            "no heads for segmentation", where=str(path), got=str(error)[:200]
        ) from error
    rows: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        layer, _, rest = name.partition(".")
        rows.setdefault(int(layer) if layer.isdigit() else -1, {})[rest] = tensor.float()
    return {layer: _head(state, width, path, layer) for layer, state in rows.items()}


def _head(state: dict[str, Tensor], width: int, path: Path, layer: int) -> Head:
    head = Head(width, len(state.get("mask.bias", torch.zeros(1))))
    try:
        head.load_state_dict(state)
    except RuntimeError as error:
        raise BadInputError(
            f"tensors of layer {layer} make no head of width {width}",
            where=str(path),
            got=str(error)[:300],
        ) from error
    return head


__all__ = ["HEADS_FILE", "PART", "Head", "Segmenter", "load", "read_heads"]
