"""Small models of the kinds that selectors are put into, exported once each."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import onnx_ir as ir
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from secateur.export.source import load
from secateur.export.torch_export import from_torch
from secateur.models.families.vision_mamba import Sizes, VisionMamba

SIDE, WIDTH, HEADS, LAYERS = 6, 32, 4, 4
PATCHES = SIDE * SIDE
PIXELS = 4
"""Edge of a patch."""


@dataclass(frozen=True)
class Target:
    """A model and its places.

    Attributes:
        net: In evaluation mode.
        dense: Its export.
        inputs: Three samples by name.
        sites: Blocks whose attention is read, first to last.
        n_tokens: Tokens that a selector sees, class token included where there is one.
        protected: Leading ones of them that stay.
        cut: Where tokens leave: behind the block, or behind a module.
        later: In a method of several sites, where the second one stands and cuts; () for the
            block that the method names.
        among: The value whose tokens are selected from; "" for all at the cut.
        followed: Tokens that stay because the model reads them by their place.
        scans: Whether nothing attends and tokens that stay become neighbours.
        ranges: Least, usual and largest size of every named dimension, for engines.
    """

    net: nn.Module
    dense: ir.Model
    inputs: Mapping[str, Tensor]
    sites: tuple[str, ...]
    n_tokens: int
    protected: int = 1
    cut: str = "block"
    later: tuple[str, ...] = ()
    among: str = ""
    around: tuple[int, int] = (0, 0)
    followed: tuple[int, ...] = ()
    scans: bool = False
    ranges: Mapping[str, tuple[int, int, int]] = field(default_factory=lambda: {"batch": (1, 2, 4)})


class Block(nn.Module):
    """Pre-norm, as in ViT and DeiT."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(2 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        made = self.qkv(self.first(x)).reshape(x.shape[0], x.shape[1], 3, HEADS, WIDTH // HEADS)
        query, key, value = made.permute(2, 0, 3, 1, 4).unbind(0)
        mixed = F.scaled_dot_product_attention(query, key, value)
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.second(x))))


class Vit(nn.Module):
    """Patches of a picture, a class token, blocks, scores of classes."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, WIDTH, PIXELS, PIXELS)
        self.token = nn.Parameter(torch.zeros(1, 1, WIDTH))
        self.places = nn.Parameter(torch.zeros(1, PATCHES + 1, WIDTH))
        self.blocks = nn.ModuleList(Block() for _ in range(LAYERS))
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 5)

    def forward(self, pixel_values: Tensor) -> Tensor:
        patches = self.embed(pixel_values).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(patches.shape[0], -1, -1), patches], dim=1) + self.places
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x)[:, 0])


def seeded(build: Callable[[], nn.Module]) -> nn.Module:
    """Give every parameter values of its own, large enough that attention is uneven."""
    with torch.random.fork_rng():
        torch.manual_seed(4)
        net = build()
    generator = torch.Generator().manual_seed(5)
    for parameter in net.parameters():
        parameter.requires_grad_(False)
        spread = 0.1 if parameter.dim() < 2 else 1.5 / parameter.shape[-1] ** 0.5
        parameter.add_(spread * torch.randn(parameter.shape, generator=generator))
    return net.eval()


def pictures(side: int, n: int = 3) -> Tensor:
    return torch.randn(n, 3, side, side, generator=torch.Generator().manual_seed(9))


@functools.cache
def vit() -> Target:
    inputs = {"pixel_values": pictures(SIDE * PIXELS)}
    net = seeded(Vit)
    dense = from_torch(net, inputs, {"pixel_values": {0: "batch"}})
    blocks = tuple(f"blocks.{i}" for i in range(LAYERS))
    return Target(net, dense, inputs, blocks, PATCHES + 1)


@functools.cache
def clip() -> Target:
    import transformers

    sizes = {"hidden_size": WIDTH, "num_attention_heads": HEADS, "intermediate_size": 48}
    config = transformers.CLIPConfig(
        vision_config={
            **sizes,
            "num_hidden_layers": LAYERS,
            "image_size": SIDE * PIXELS,
            "patch_size": PIXELS,
        },
        text_config={
            **sizes,
            "num_hidden_layers": 1,
            "vocab_size": 20,
            "bos_token_id": 1,
            "eos_token_id": 2,
        },
        projection_dim=24,
    )
    with tempfile.TemporaryDirectory() as folder:
        seeded(lambda: transformers.CLIPModel(config)).save_pretrained(folder)
        loaded = load(f"{Path(folder)}#vision")
    assert loaded.net is not None
    inputs = {"pixel_values": pictures(SIDE * PIXELS)}
    dense = from_torch(loaded.net, inputs, loaded.dynamic)
    blocks = tuple(f"vision_model.encoder.layers.{i}" for i in range(LAYERS))
    return Target(loaded.net, dense, inputs, blocks, PATCHES + 1)


@functools.cache
def llava() -> Target:
    """A picture between words; tokens leave in front of the language model."""
    import transformers

    sizes = {"hidden_size": WIDTH, "num_attention_heads": HEADS, "intermediate_size": 48}
    vision = transformers.CLIPVisionConfig(
        **sizes, num_hidden_layers=LAYERS, image_size=SIDE * PIXELS, patch_size=PIXELS
    )
    words = {"vocab_size": 30, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    text = transformers.LlamaConfig(**sizes, **words, num_key_value_heads=2, num_hidden_layers=2)
    config = transformers.LlavaConfig(vision_config=vision, text_config=text, image_token_index=29)
    with tempfile.TemporaryDirectory() as folder:
        seeded(lambda: transformers.LlavaForConditionalGeneration(config)).save_pretrained(folder)
        save_words(Path(folder))
        loaded = load(folder)
    assert loaded.net is not None
    inputs = {name: torch.cat([x, x.flip(0)[:1]]) for name, x in loaded.inputs.items()}
    inputs["pixel_values"] = pictures(SIDE * PIXELS)
    dense = from_torch(loaded.net, inputs, loaded.dynamic)
    return Target(
        loaded.net,
        dense,
        inputs,
        tuple(f"model.vision_tower.encoder.layers.{i}" for i in range(LAYERS - 1)),
        PATCHES,
        protected=0,
        cut="joined",
        later=("model.language_model.layers.0", "block"),
        among="model.multi_modal_projector",
        around=(3, 5),
        ranges={"batch": (1, 2, 4), "words_before": (1, 3, 8), "words_behind": (1, 5, 8)},
    )


@functools.cache
def vision_mamba() -> Target:
    """A state-space model: tokens leave in their order, and close up."""
    sizes = Sizes(
        image_size=SIDE * PIXELS,
        patch_size=PIXELS,
        hidden_size=WIDTH // 2,
        num_hidden_layers=LAYERS,
        num_labels=5,
        state_size=4,
        time_step_rank=2,
    )
    net = seeded(lambda: VisionMamba(sizes))
    inputs = {"pixel_values": pictures(SIDE * PIXELS)}
    dense = from_torch(net, inputs, {"pixel_values": {0: "batch"}})
    blocks = tuple(f"layers.{i}" for i in range(LAYERS))
    return Target(
        net, dense, inputs, blocks, PATCHES + 1, protected=0, followed=(PATCHES // 2,), scans=True
    )


def save_words(folder: Path) -> None:
    """A tokenizer of a few words."""
    import transformers

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "what", "is", "this", "a", "cat", "?"]
    (folder / "vocab.txt").write_text("\n".join(words))
    transformers.BertTokenizer(str(folder / "vocab.txt")).save_pretrained(folder)


TARGETS = {"vit": vit, "clip": clip, "llava": llava, "mamba": vision_mamba}
