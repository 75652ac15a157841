"""A small ViT in PyTorch, its export, and how a method is traced and put into it."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import torch
from torch import Tensor, nn

from secateur.export.selector_graph import Signature, trace
from secateur.graph_passes.selection.budget import Budget
from secateur.graph_passes.token_selection import Selection, insert_selections

LAYERS, HEADS, WIDTH, PATCHES, CLASSES = 4, 2, 16, 24, 5
TOLERANCE = 2e-5


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(2 * WIDTH, WIDTH)

    def heads(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        made = self.qkv(self.first(x)).reshape(x.shape[0], x.shape[1], 3, HEADS, WIDTH // HEADS)
        q, k, v = made.permute(2, 0, 3, 1, 4)
        return q, k, v

    def forward(self, x: Tensor, alive: Tensor | None = None) -> Tensor:
        q, k, v = self.heads(x)
        scores = q @ k.transpose(-1, -2) / (WIDTH // HEADS) ** 0.5
        if alive is not None:
            scores = scores.masked_fill(~alive[:, None, None], -torch.inf)
        mixed = (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)
        x = x + self.out(mixed)
        return x + self.down(nn.functional.gelu(self.up(self.second(x))))


class Vit(nn.Module):
    """Patches of a fixed number, a class token, blocks, a head on the class token."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Linear(6, WIDTH)
        self.token = nn.Parameter(torch.randn(1, 1, WIDTH))
        self.places = nn.Parameter(torch.randn(1, PATCHES + 1, WIDTH) * 0.3)
        self.blocks = nn.ModuleList(Block() for _ in range(LAYERS))
        self.head = nn.Linear(WIDTH, CLASSES)

    def tokens(self, x: Tensor) -> Tensor:
        made = self.embed(x)
        return torch.cat([self.token.expand(x.shape[0], -1, -1), made], 1) + self.places

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.tokens(x)
        for block in self.blocks:
            hidden = block(hidden)
        return self.head(hidden[:, 0])


class Tower(Vit):
    """Gives its patches, behind the last block but one, to what comes after."""

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.tokens(x)
        for block in self.blocks:
            hidden = block(hidden)
        patches = hidden[:, 1:] * 2.0
        return self.head(patches.amax(dim=1))


def pictures(n: int, seed: int = 3) -> Tensor:
    return torch.randn(n, PATCHES, 6, generator=torch.Generator().manual_seed(seed)) * 2


def traced_in(module: str, spec: str, protected: int = 1, **options: object) -> ir.Model:
    sizes = Signature(HEADS, WIDTH // HEADS, WIDTH, protected=protected)
    return trace(f"{module}:{spec}", sizes, options)


def cut(
    model: ir.Model, graph: ir.Model, layers: tuple[int, ...], budget: Budget, **more: object
) -> ir.Model:
    made = insert_selections(
        model,
        tuple(Selection(f"blocks.{i}", graph, budget, expose_kept=True, **more) for i in layers),
    )
    onnx.checker.check_model(ir.to_proto(made), full_check=True)
    return made


CONSTANT = Budget("count", 9, is_input=False)


def close(got: np.ndarray, want: Tensor) -> None:
    assert np.abs(got - want.numpy()).max() < TOLERANCE * float(want.abs().max())


def probabilities(block: Block, x: Tensor, alive: Tensor | None = None) -> Tensor:
    q, k, _ = block.heads(x)
    scores = q @ k.transpose(-1, -2) / (WIDTH // HEADS) ** 0.5
    if alive is not None:
        scores = scores.masked_fill(~alive[:, None, None], -torch.inf)
    return scores.softmax(-1)
