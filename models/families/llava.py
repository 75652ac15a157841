"""LLaVA: pictures and a prompt around them to the scores of the next word.

The prompt is given in two parts, what stands before the picture and what stands behind it, so
that the picture's tokens are an axis of their own: ``before + image + behind``. Both parts are
padded on the left. Positions are counted over real tokens, so that a sample in a batch gets what
it gets alone.

Several pictures of one prompt, such as the frames of a video or the crops of a picture, stand one
behind the other there: ``folder#frames=4``, ``folder#crops=2x2`` (the whole picture, then its
crops row by row). The tower sees each by itself.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from secateur.errors import BadInputError
from secateur.models.families import images
from secateur.models.families.core import (
    FAMILIES,
    Adopter,
    Arrays,
    Config,
    FamilyModel,
    Tokenizer,
)
from secateur.models.families.hugging_face import load_model, load_tokenizer
from secateur.models.families.several_pictures import ONE_PICTURE, Layout, layout_of

DYNAMIC = {
    "pixel_values": {0: "batch"},
    "before": {0: "batch", 1: "words_before"},
    "before_mask": {0: "batch", 1: "words_before"},
    "behind": {0: "batch", 1: "words_behind"},
    "behind_mask": {0: "batch", 1: "words_behind"},
}
PLACEHOLDER = "<image>"
STRATEGIES = ("default", "full")


class Joined(nn.Module):
    """The sequence that the language model reads; a selector before it cuts here."""

    def forward(self, before: Tensor, image: Tensor, behind: Tensor) -> Tensor:
        """(B, P, D), (B, N, D), (B, S, D) -> (B, P + N + S, D)."""
        return torch.cat([before, image, behind], dim=1)


class InLine(nn.Module):
    """Several pictures' tokens one behind the other; a selector among them names it."""

    def forward(self, features: Tensor, n_pictures: int) -> Tensor:
        """(B * F, N, D) -> (B, F * N, D)."""
        return features.reshape(-1, n_pictures * features.shape[1], features.shape[2])


class Prefill(Adopter):
    """The first step of a LLaVA: everything up to the first word of the answer."""

    def __init__(
        self, model: nn.Module, *, layer: int, drops_class: bool, n_pictures: int = 1
    ) -> None:
        super().__init__(model)
        self.joined, self.in_line = Joined(), InLine()
        self._layer = layer
        self._drops_class = drops_class
        self._n_pictures = n_pictures

    def forward(
        self,
        pixel_values: Tensor,
        before: Tensor,
        before_mask: Tensor,
        behind: Tensor,
        behind_mask: Tensor,
    ) -> dict[str, Tensor]:
        """Score the next word.

        Args:
            pixel_values: (B, 3, S, S), or (B, F, 3, S, S) for several pictures.
            before: (B, P) int64, the words before the picture, padded on the left.
            before_mask: (B, P) int64, 1 on words, 0 on padding.
            behind: (B, Q) int64, at least one word behind it, padded on the left.
            behind_mask: (B, Q) int64.

        Returns:
            ``logits`` (B, V); ``text_embedding`` (B, D), the mean of the embeddings of all
            words, and ``text_similarity`` (B, N), its cosine with each visual token: what a
            selector that listens to the text may be given.
        """
        model = self._adopted.get_submodule("model")
        words = model.get_submodule("language_model.embed_tokens")
        image = self._image(pixel_values)
        left, right = words(before), words(behind)
        text = _mean_of_words(left, before_mask, right, behind_mask)
        hidden = self.joined(left, image, right)
        there = torch.cat([before_mask, torch.ones_like(image[:, :, 0]).long(), behind_mask], 1)
        position = (there.cumsum(dim=1) - 1).clamp(min=0)
        place = torch.arange(there.shape[1], device=there.device)
        mask = (place[:, None] >= place)[None, None] & there.bool()[:, None, None]
        language = model.get_submodule("language_model")
        last = language(
            inputs_embeds=hidden, attention_mask=mask, position_ids=position, use_cache=False
        ).last_hidden_state[:, -1]
        return {
            "logits": self._adopted.get_submodule("lm_head")(last),
            "text_embedding": text,
            "text_similarity": F.cosine_similarity(image, text[:, None], dim=-1),
        }

    def _image(self, pixel_values: Tensor) -> Tensor:
        """Return (B, N, D), the pictures' tokens as the language model reads them."""
        model = self._adopted.get_submodule("model")
        if self._n_pictures > 1:
            pixel_values = pixel_values.flatten(0, 1)
        tower = model.get_submodule("vision_tower")
        states = tower(pixel_values, output_hidden_states=True).hidden_states
        features = states[self._layer]
        if self._drops_class:
            features = features[:, 1:]
        made: Tensor = model.get_submodule("multi_modal_projector")(features)
        return made if self._n_pictures == 1 else self.in_line(made, self._n_pictures)


def _mean_of_words(
    before: Tensor, before_mask: Tensor, behind: Tensor, behind_mask: Tensor
) -> Tensor:
    """(B, P, D), (B, P), (B, Q, D), (B, Q) -> (B, D)."""
    left, right = before_mask[:, :, None].float(), behind_mask[:, :, None].float()
    total = (before * left).sum(dim=1) + (behind * right).sum(dim=1)
    n_words = left.sum(dim=1) + right.sum(dim=1)
    return total / n_words.clamp(min=1.0)


@FAMILIES.register("llava")
def load(folder: Path, config: Config, part: str) -> FamilyModel:
    """Load a LLaVA with one picture per prompt, or with as many as ``part`` says.

    Raises:
        BadInputError: features of several layers, an unknown way to choose features, a part
            that is neither ``frames=`` nor ``crops=``; see also ``hugging_face.load_model``.
    """
    layout = layout_of(part, folder)
    layer = config.get("vision_feature_layer", -2)
    strategy = str(config.get("vision_feature_select_strategy", "default"))
    if not isinstance(layer, int) or strategy not in STRATEGIES:
        raise BadInputError(
            "a LLaVA whose visual features are not known here",
            where=str(folder / "config.json"),
            got=f"vision_feature_layer {layer}, vision_feature_select_strategy {strategy}",
            wanted="one layer, and 'default' or 'full'",
            next_step="write the prefill as a module and load it as package.module:function",
        )
    model = load_model(folder, "LlavaForConditionalGeneration")
    drops = strategy == "default"
    net = Prefill(model, layer=layer, drops_class=drops, n_pictures=layout.n_pictures).eval()
    vision, text = (_section(config, name, folder) for name in ("vision_config", "text_config"))
    side = int(str(vision["image_size"]))
    n_words = min(
        int(str(text.get(name, 32000)))
        for text, name in ((text, "vocab_size"), (config, "image_token_index"))
    )
    inputs = example_inputs(side, n_words)
    if layout.n_pictures > 1:
        seeded, shape = torch.Generator().manual_seed(0), (2, layout.n_pictures, 3, side, side)
        inputs["pixel_values"] = torch.randn(shape, generator=seeded)
    tokenizer = load_tokenizer(folder)
    scaling = images.preprocessing(folder, side)
    prepare = functools.partial(prompts, scaling, tokenizer, layout=layout)
    return FamilyModel(net, inputs, DYNAMIC, prepare, tokenizer)


def _section(config: Config, name: str, folder: Path) -> Mapping[str, object]:
    section = config.get(name)
    if not isinstance(section, Mapping):
        raise BadInputError(f"no {name}", where=str(folder / "config.json"))
    return section


def example_inputs(side: int, n_words: int) -> dict[str, Tensor]:
    """Two pictures of noise in prompts of 3 and 5 words, the second one shorter."""
    seeded = torch.Generator().manual_seed(0)
    first, last = min(3, n_words - 1), n_words
    before = torch.randint(first, last, (2, 3), generator=seeded)
    behind = torch.randint(first, last, (2, 5), generator=seeded)
    before_mask, behind_mask = torch.ones_like(before), torch.ones_like(behind)
    before_mask[1, :1] = behind_mask[1, :2] = 0
    return {
        "pixel_values": torch.randn(2, 3, side, side, generator=seeded),
        "before": before,
        "before_mask": before_mask,
        "behind": behind,
        "behind_mask": behind_mask,
    }


def prompts(
    settings: images.Preprocessing,
    tokenizer: Tokenizer,
    samples: list[object],
    *,
    layout: Layout = ONE_PICTURE,
) -> Arrays:
    """Turn (picture, prompt) pairs into inputs; the prompt says where the picture stands.

    With frames, the first of a pair is a list of as many pictures.

    Raises:
        BadInputError: a sample that is no pair, another number of frames, or a prompt without
            exactly one ``<image>`` or without a word behind it.
    """
    pictures: list[object] = []
    parts = []
    for sample in samples:
        if not isinstance(sample, tuple) or len(sample) != 2:
            raise BadInputError(
                "not a picture and a prompt", got=type(sample).__name__, wanted="(picture, prompt)"
            )
        picture, prompt = sample
        words = str(prompt).split(PLACEHOLDER)
        if len(words) != 2 or not words[1].strip():
            raise BadInputError(
                f"a prompt has one {PLACEHOLDER} and words behind it", got=repr(str(prompt))
            )
        pictures += layout.pictures(picture, settings.side)
        parts.append(words)
    before = _padded([_ids(tokenizer, left, special=True) for left, _ in parts])
    behind = _padded([_ids(tokenizer, right, special=False) for _, right in parts])
    pixels = images.pixels(settings, pictures)["pixel_values"]
    if layout.n_pictures > 1:
        pixels = pixels.reshape(-1, layout.n_pictures, *pixels.shape[1:])
    return {
        "pixel_values": pixels,
        "before": before[0],
        "before_mask": before[1],
        "behind": behind[0],
        "behind_mask": behind[1],
    }


def _ids(tokenizer: Tokenizer, text: str, *, special: bool) -> list[int]:
    """Ids of one part; what opens a prompt stands before its first word."""
    made = tokenizer([text], add_special_tokens=special)["input_ids"]
    assert isinstance(made, list)
    return list(made[0])


def _padded(rows: list[list[int]]) -> tuple[np.ndarray, np.ndarray]:
    """Ids and mask (B, longest), padded on the left; at least one slot."""
    longest = max(1, *map(len, rows))
    ids = np.zeros((len(rows), longest), np.int64)
    mask = np.zeros_like(ids)
    for b, row in enumerate(rows):
        if row:
            ids[b, -len(row) :], mask[b, -len(row) :] = row, 1
    return ids, mask


__all__ = ["DYNAMIC", "InLine", "Joined", "Prefill", "example_inputs", "load", "prompts"]
