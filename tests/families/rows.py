"""The table: families with what is known of them, and the forms in which a file is written.

A new family is one entry of ``FAMILIES``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import pytest
import torch
import transformers
from _pytest.mark import ParameterSet
from torch import Tensor, nn

LENGTHS = (9, 4, 7)
"""Tokens of the three samples of the ragged batch."""

LAYERS, HEADS, HEAD_WIDTH, FFN = 2, 4, 8, 48
WIDTH = HEADS * HEAD_WIDTH
WORDS, PAD, END = 40, 0, 39
PATCHES_ACROSS, PIXELS_ACROSS = 4, 16

_SIZES = {
    "hidden_size": WIDTH,
    "num_attention_heads": HEADS,
    "num_hidden_layers": LAYERS,
    "intermediate_size": FFN,
}
_TEXT = _SIZES | {"vocab_size": WORDS, "max_position_embeddings": 24, "pad_token_id": PAD}
_CLIP_TEXT = _TEXT | {"bos_token_id": 1, "eos_token_id": END}
_IMAGE = _SIZES | {
    "image_size": PIXELS_ACROSS,
    "patch_size": PIXELS_ACROSS // PATCHES_ACROSS,
}


@dataclass(frozen=True)
class Form:
    """Who writes the file, at which opset, from which implementation of attention."""

    exporter: str
    opset: int
    attention: str


FORMS: dict[str, Form] = {
    "legacy-17-sdpa": Form("legacy", 17, "sdpa"),
    "legacy-17-eager": Form("legacy", 17, "eager"),
    "from_torch-20-sdpa": Form("from_torch", 20, "sdpa"),
    "from_torch-23-sdpa": Form("from_torch", 23, "sdpa"),
}


@dataclass(frozen=True)
class Tower:
    """One stack of layers in a network.

    ``sites`` are the names of its blocks, ``tokens`` the number of tokens as the graph spells
    it, ``special`` how many leading ones are no patches, ``selector`` the one that is tried,
    ``pointed_at`` how many tokens the network reads at a computed position (the end of a text).
    """

    sites: tuple[str, ...]
    heads: int = HEADS
    head_width: int = HEAD_WIDTH
    ffn: int = FFN
    tokens: int | str = "tokens"
    special: int = 1
    selector: str = "class_row"
    pointed_at: int = 0

    @property
    def width(self) -> int:
        """Width of the residual stream."""
        return self.heads * self.head_width


@dataclass(frozen=True)
class Family:
    """A network, its batch, and what has to be found in it.

    ``outputs`` are those with a row per sample: the first axis of a similarity of all texts
    with all images is none. ``forms`` are those it is tried in; in the ones named by
    ``fixed_in`` the exporter writes the traced number of tokens into the file. ``refused``
    says, by form and tower, why tokens cannot be selected there. ``pooling`` has, by role, what
    else is found: a head that pools tokens has heads, an FFN and a residual stream of its own.
    """

    build: Callable[[], nn.Module]
    batch: Callable[[], dict[str, Tensor]]
    towers: tuple[Tower, ...]
    outputs: tuple[str, ...]
    forms: tuple[str, ...] = tuple(FORMS)
    fixed_in: tuple[str, ...] = ()
    refused: Mapping[tuple[str, int], str] = field(default_factory=dict)
    pooling: Mapping[str, Mapping[str, int]] = field(default_factory=dict)


def texts() -> dict[str, Tensor]:
    """Three padded texts; the last token of each is the end of text, as CLIP needs it."""
    seeded = torch.Generator().manual_seed(1)
    ids = torch.randint(3, END, (len(LENGTHS), max(LENGTHS)), generator=seeded)
    mask = torch.arange(max(LENGTHS)) < torch.tensor(LENGTHS)[:, None]
    ids[torch.arange(len(LENGTHS)), torch.tensor(LENGTHS) - 1] = END
    return {"input_ids": ids.where(mask, PAD), "attention_mask": mask.long()}


def images() -> dict[str, Tensor]:
    """Three images of noise."""
    seeded = torch.Generator().manual_seed(2)
    return {"pixel_values": torch.randn(3, 3, PIXELS_ACROSS, PIXELS_ACROSS, generator=seeded)}


def sequences() -> dict[str, Tensor]:
    """Three padded sequences of vectors, with the mask that nn.TransformerEncoder takes."""
    seeded = torch.Generator().manual_seed(3)
    is_padding = torch.arange(max(LENGTHS)) >= torch.tensor(LENGTHS)[:, None]
    return {
        "src": torch.randn(len(LENGTHS), max(LENGTHS), WIDTH, generator=seeded),
        "src_key_padding_mask": is_padding,
    }


def _blocks(path: str) -> tuple[str, ...]:
    return tuple(f"{path}.{i}" for i in range(LAYERS))


def _minilm() -> nn.Module:
    sizes = {"hidden_size": 48, "num_attention_heads": 12, "intermediate_size": 192}
    config = transformers.BertConfig(**(_TEXT | sizes))
    return transformers.BertModel(config, add_pooling_layer=False)


def _distilbert() -> nn.Module:
    config = transformers.DistilBertConfig(
        dim=WIDTH,
        n_heads=HEADS,
        n_layers=LAYERS,
        hidden_dim=FFN,
        vocab_size=WORDS,
        max_position_embeddings=24,
        pad_token_id=PAD,
    )
    return transformers.DistilBertModel(config)


def _clip() -> nn.Module:
    config = transformers.CLIPConfig(
        text_config=_CLIP_TEXT, vision_config=_IMAGE, projection_dim=24
    )
    return transformers.CLIPModel(config)


def _torch_encoder() -> nn.Module:
    layer = nn.TransformerEncoderLayer(WIDTH, HEADS, FFN, batch_first=True)
    return nn.TransformerEncoder(layer, LAYERS, enable_nested_tensor=False)


# The TorchScript exporter reads the end of a text from rows of all texts in a line, at
# sample * N + position: with fewer tokens that is another row.
_IN_A_LINE = dict.fromkeys(
    ("legacy-17-sdpa", "legacy-17-eager"), "the number of tokens is used as data"
)

_PATCHES = PATCHES_ACROSS**2
_HIDDEN = ("last_hidden_state",)
# Attention of the text tower is causal: the first token sees itself only.
_CLIP_TEXT_TOWER = Tower(_blocks("text_model.encoder.layers"), selector="column_mean", pointed_at=1)
# No token leads, none looks at the others for all: the head that pools is no site.
_SIGLIP_TOWER = Tower(_blocks("encoder.layers"), tokens=_PATCHES, special=0, selector="column_mean")
_CLIP_IMAGE_TOWER = Tower(_blocks("vision_model.encoder.layers"), tokens=_PATCHES + 1)

FAMILIES: dict[str, Family] = {
    "bert": Family(
        lambda: transformers.BertModel(transformers.BertConfig(**_TEXT), add_pooling_layer=False),
        texts,
        (Tower(_blocks("encoder.layer")),),
        _HIDDEN,
    ),
    "roberta": Family(
        lambda: transformers.RobertaModel(
            transformers.RobertaConfig(**_TEXT), add_pooling_layer=False
        ),
        texts,
        (Tower(_blocks("encoder.layer")),),
        _HIDDEN,
    ),
    "distilbert": Family(_distilbert, texts, (Tower(_blocks("transformer.layer")),), _HIDDEN),
    "minilm": Family(
        _minilm,
        texts,
        (Tower(_blocks("encoder.layer"), heads=12, head_width=4, ffn=192),),
        _HIDDEN,
    ),
    "vit": Family(
        lambda: transformers.ViTForImageClassification(transformers.ViTConfig(**_IMAGE)),
        images,
        (Tower(_blocks("vit.layers"), tokens=_PATCHES + 1),),
        ("logits",),
    ),
    "deit": Family(
        lambda: transformers.DeiTForImageClassification(transformers.DeiTConfig(**_IMAGE)),
        images,
        (Tower(_blocks("deit.layers"), tokens=_PATCHES + 2, special=2),),
        ("logits",),
    ),
    "clip-text": Family(
        lambda: transformers.CLIPTextModelWithProjection(transformers.CLIPTextConfig(**_CLIP_TEXT)),
        texts,
        (_CLIP_TEXT_TOWER,),
        ("text_embeds", "last_hidden_state"),
        refused={(form, 0): reason for form, reason in _IN_A_LINE.items()},
    ),
    "clip-vision": Family(
        lambda: transformers.CLIPVisionModelWithProjection(transformers.CLIPVisionConfig(**_IMAGE)),
        images,
        (_CLIP_IMAGE_TOWER,),
        ("image_embeds", "last_hidden_state"),
    ),
    "siglip": Family(
        lambda: transformers.SiglipVisionModel(transformers.SiglipVisionConfig(**_IMAGE)),
        images,
        (_SIGLIP_TOWER,),
        ("pooler_output", "last_hidden_state"),
        pooling={
            "heads": {"head.attention": HEADS},
            "ffn": {"head.mlp.fc1": FFN},
            "residual": {"head": WIDTH},
        },
    ),
    "clip": Family(
        _clip,
        lambda: texts() | images(),
        (_CLIP_TEXT_TOWER, _CLIP_IMAGE_TOWER),
        ("text_embeds", "image_embeds"),
        refused={(form, 0): reason for form, reason in _IN_A_LINE.items()},
    ),
    "nn.TransformerEncoder": Family(
        _torch_encoder,
        sequences,
        (Tower(_blocks("layers")),),
        ("output",),
        forms=("legacy-17-sdpa", "from_torch-20-sdpa", "from_torch-23-sdpa"),
        fixed_in=("legacy-17-sdpa",),
        refused={("legacy-17-sdpa", 0): "axis that is made of tokens and more"},
    ),
}

_LONG = {
    (family, "from_torch-20-sdpa")
    for family in FAMILIES.keys() - {"bert", "vit", "nn.TransformerEncoder"}
} | {("siglip", "legacy-17-sdpa"), ("siglip", "legacy-17-eager")}
"""Near relatives of other cells of the table; `make sweep` runs them."""

CELLS = [(family, form) for family, row in FAMILIES.items() for form in row.forms]
TOWERS = [
    (family, form, tower) for family, form in CELLS for tower in range(len(FAMILIES[family].towers))
]
REFUSED = {
    (family, form, tower): row.refused[form, tower]
    for family, row in FAMILIES.items()
    for form, tower in row.refused
}
SELECTIONS = [
    (*cell, n_sites) for cell in TOWERS if cell not in REFUSED for n_sites in range(1, LAYERS + 1)
]


def marked(cells: Iterable[Sequence[object]]) -> list[ParameterSet]:
    """Parameters of a test from cells of the table, the long ones marked as such."""
    return [
        pytest.param(*cell, marks=[pytest.mark.sweep] if tuple(cell[:2]) in _LONG else [])
        for cell in cells
    ]
