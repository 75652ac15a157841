"""Attention that is told to be causal, by a flag and not by a mask, with any number of tokens."""

from __future__ import annotations

import json

import numpy as np
import onnx_ir as ir
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from secateur.export.torch_export import from_torch
from secateur.export.verify import run
from secateur.models import reference
from secateur.models.reference import TokenSite
from secateur.workflow.selecting import Select, select_tokens

WIDTH, HEADS = 16, 4


class Block(nn.Module):
    """Pre-norm attention and nothing else."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        made = self.qkv(self.norm(x)).reshape(x.shape[0], x.shape[1], 3, HEADS, WIDTH // HEADS)
        query, key, value = made.permute(2, 0, 3, 1, 4).unbind(0)
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        return x + self.out(mixed.transpose(1, 2).flatten(2))


class Causal(nn.Module):
    """Two blocks; returns the mean of what is left."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block() for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return x.mean(dim=1)


@pytest.fixture(scope="module")
def net() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Causal().eval()


def exported(net: nn.Module, opset: int) -> ir.Model:
    return from_torch(
        net, {"x": torch.randn(2, 7, WIDTH)}, {"x": {0: "batch", 1: "n"}}, opset=opset
    )


@pytest.mark.parametrize("opset", [20, pytest.param(23, marks=pytest.mark.sweep)])
def test_it_is_exported_and_equal_at_other_lengths(net: nn.Module, opset: int) -> None:
    found = json.loads(exported(net, opset).metadata_props["secateur.export"])
    assert len({check["sizes"]["n"] for check in found["checks"]}) == 2
    assert all(error < 1e-5 for check in found["checks"] for error in check["errors"].values())


def test_tokens_leave_behind_a_causal_block(net: nn.Module) -> None:
    model = select_tokens(exported(net, 20), [Select("blocks.0", "key_norm", 0.5, 1)])
    x = torch.randn(3, 9, WIDTH, generator=torch.Generator().manual_seed(3))
    got = run(model, {"x": x.numpy(), "blocks.0.permille": np.array([500])})
    want = reference.run(net, {"x": x}, [TokenSite("blocks.0", "key_norm", amount=500)])
    assert got["blocks.0.kept"].tolist() == want.sites["blocks.0"].kept.tolist()
    np.testing.assert_allclose(got["output"], want.outputs["output"].numpy(), rtol=1e-4, atol=1e-5)
