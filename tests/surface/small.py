"""A small trained-like encoder, as a user would hand it over: ``tests.surface.small:encoder``."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from secateur.models.select_tokens import select_tokens

WIDTH, HEADS, FFN, WORDS, POSITIONS = 16, 4, 32, 40, 64


class Layer(nn.Module):
    """Post-norm block with separate projections."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value, self.out = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.up, self.down = nn.Linear(WIDTH, FFN), nn.Linear(FFN, WIDTH)
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        parts = (self.query(x), self.key(x), self.value(x))
        q, k, v = (part.unflatten(-1, (HEADS, -1)).transpose(1, 2) for part in parts)
        mixed = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        x = self.norm1(x + self.out(mixed.transpose(1, 2).flatten(2)))
        return self.norm2(x + self.down(nn.functional.gelu(self.up(x))))


class Encoder(nn.Module):
    """Ids and a padding mask to one vector a text."""

    def __init__(self, layers: int) -> None:
        super().__init__()
        self.words, self.positions = nn.Embedding(WORDS, WIDTH), nn.Embedding(POSITIONS, WIDTH)
        self.layers = nn.ModuleList(Layer() for _ in range(layers))

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> dict[str, Tensor]:
        x = self.words(input_ids) + self.positions(torch.arange(input_ids.shape[1]))
        keep = attention_mask[:, None, None, :] > 0
        for layer in self.layers:
            x = layer(x, keep)
        weight = attention_mask[:, :, None].to(x.dtype)
        return {"vector": (x * weight).sum(1) / weight.sum(1)}


DYNAMIC = {name: {0: "batch", 1: "tokens"} for name in ("input_ids", "attention_mask")}


def encoder() -> tuple[nn.Module, dict[str, Tensor], dict[str, dict[int, str]]]:
    """The model, example inputs and the axes that vary."""
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = Encoder(layers=3).eval()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    ids = torch.randint(0, WORDS, (4, 12), generator=generator)
    mask = torch.ones_like(ids)
    mask[1:, 7:] = 0
    return net, {"input_ids": ids, "attention_mask": mask}, DYNAMIC


class OwnSelection(nn.Module):
    """A small vision transformer that drops tokens in its own forward, after its first block."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Conv2d(1, WIDTH, kernel_size=3, padding=1)
        self.first = nn.Parameter(torch.randn(1, 1, WIDTH))
        self.layers = nn.ModuleList(Layer() for _ in range(2))
        self.head = nn.Linear(WIDTH, 5)

    def forward(self, images: Tensor) -> Tensor:
        pixels = self.embed(images).flatten(2).transpose(1, 2)
        x = torch.cat([self.first.expand(images.shape[0], -1, -1), pixels], dim=1)
        heads = {
            name: layer(x).unflatten(-1, (HEADS, -1)).transpose(1, 2)
            for name, layer in (("q", self.layers[0].query), ("k", self.layers[0].key))
        }
        x = self.layers[0](x)
        x = select_tokens(x, heads, by="class_row", site="layers.0", keep=0.5)
        return self.head(self.layers[1](x)[:, 0])


def own_selection() -> tuple[nn.Module, dict[str, Tensor], dict[str, dict[int, str]]]:
    """A model with pruning logic of its own."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        net = OwnSelection().eval()
        with torch.no_grad():
            for parameter in net.parameters():
                parameter.add_(0.3 * torch.randn(parameter.shape))
        images = torch.rand(3, 1, 6, 6)
    return net, {"images": images}, {"images": {0: "batch"}}


class Perceptron(nn.Module):
    """No attention anywhere."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(8, 16), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.up(x).relu())


def perceptron() -> tuple[nn.Module, dict[str, Tensor], dict[str, dict[int, str]]]:
    """A model without attention, its inputs of one fixed shape."""
    return Perceptron().eval(), {"x": torch.zeros(2, 8)}, {}


def nan_score(hidden: Tensor) -> Tensor:
    """A selector that divides by zero."""
    return hidden.sum(-1).float() * 0.0 / 0.0
