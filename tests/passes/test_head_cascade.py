"""Heads that leave while the model runs, against the same in PyTorch."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from tests.passes.selection.models import Variant, write
from tests.passes.selection.vit import HEADS, LAYERS, PATCHES, Vit

from secateur.errors import BadInputError, PreconditionError
from secateur.export.torch_export import from_torch
from secateur.export.verify import run
from secateur.graph_passes.attention import find_sites
from secateur.graph_passes.head_cascade import cascade_heads
from secateur.models.selectors import spatten

KEEP = {"blocks.0": 2, "blocks.1": 1}


@pytest.fixture(scope="module")
def net() -> Vit:
    return Vit().eval()


@pytest.fixture(scope="module")
def dense(net: Vit) -> ir.Model:
    return from_torch(net, {"x": patches()}, {"x": {0: "batch"}})


def patches() -> torch.Tensor:
    x = torch.randn(6, PATCHES, 6, generator=torch.Generator().manual_seed(3))
    return x * torch.arange(6)[:, None, None]  # samples whose heads differ


@torch.no_grad()
def by_hand(net: Vit, x: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
    hidden, total = net.tokens(x), torch.zeros(len(x), HEADS)
    alive, told = torch.ones(len(x), HEADS, dtype=torch.bool), []
    everyone = torch.ones(hidden.shape[:2], dtype=torch.bool)
    for i, block in enumerate(net.blocks):
        q, k, v = block.heads(hidden)
        made = (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).softmax(-1) @ v
        made = made * alive[:, :, None, None]
        importance = spatten.head_importance(made, everyone)
        keep = KEEP.get(f"blocks.{i}", int(alive[0].sum()))
        total, alive = spatten.cascade_heads(total, importance, alive, keep=keep)
        told += [alive] if f"blocks.{i}" in KEEP else []
        hidden = hidden + block.out(made.transpose(1, 2).flatten(2))
        hidden = hidden + block.down(torch.nn.functional.gelu(block.up(block.second(hidden))))
    return net.head(hidden[:, 0]), told


def test_a_head_once_dropped_stays_dropped_and_puts_out_nothing(net: Vit, dense: ir.Model) -> None:
    model = cascade_heads(dense, KEEP)
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    got = run(model, {"x": patches().numpy()})
    want, told = by_hand(net, patches())
    for name, alive in zip(KEEP, told, strict=True):
        assert (got[f"{name}.heads"] == alive.numpy()).all()
    assert got["blocks.0.heads"].all()
    assert (got["blocks.1.heads"].sum(axis=1) == 1).all()
    assert len({tuple(row) for row in got["blocks.1.heads"].tolist()}) == 2, "samples agree"
    answer = next(x for name, x in got.items() if not name.endswith(".heads"))
    np.testing.assert_allclose(answer, want, rtol=1e-4, atol=1e-5)
    assert len(find_sites(model)) == LAYERS


@pytest.mark.parametrize(
    "variant",
    [
        pytest.param(Variant(), id="decomposed"),
        pytest.param(Variant(form="fused", opset=23), id="fused"),
        pytest.param(Variant(form="microsoft"), id="microsoft"),
    ],
)
def test_padding_counts_for_no_head(variant: Variant) -> None:
    dense = ir.from_proto(onnx.shape_inference.infer_shapes(write(variant)[0]))
    mask = next(str(v.name) for v in dense.graph.inputs if "mask" in str(v.name))
    names = [site.name for site in find_sites(dense)]
    model = cascade_heads(dense, {names[0]: 1}, valid=mask)
    together = feeds(dense, 9)
    alone = {name: x[:1, :5] for name, x in together.items()}
    padded = {name: x.copy() for name, x in together.items()}
    padded[mask][0, 5:] = 0
    key = f"{names[0]}.heads"
    assert run(model, padded)[key][0].tolist() == run(model, alone)[key][0].tolist()


def test_heads_in_one_axis_with_the_batch_are_refused() -> None:
    dense = ir.from_proto(write(Variant(form="folded"))[0])
    with pytest.raises(PreconditionError, match="one axis with the batch"):
        cascade_heads(dense, {find_sites(dense)[0].name: 1})


def feeds(model: ir.Model, length: int) -> dict[str, np.ndarray]:
    rng, made = np.random.default_rng(0), {}
    for value in model.graph.inputs:
        assert value.shape is not None
        assert value.dtype is not None
        width = (value.shape[2],) if len(value.shape) == 3 else ()
        numbers = rng.standard_normal((3, length, *width)) if width else np.ones((3, length))
        made[str(value.name)] = numbers.astype(value.dtype.numpy())
    return made


@pytest.mark.parametrize(
    ("keep", "valid", "message"),
    [
        ({"blocks.0": 3}, "", "no cascade of heads"),
        ({"blocks.0": 0}, "", "no cascade of heads"),
        ({"blocks.0": 1, "blocks.1": 2}, "", "no cascade of heads"),
        ({}, "", "cannot go in a cascade"),
        ({"blocks.9": 1}, "", "unknown site 'blocks.9'"),
        ({"blocks.0": 1}, "mask", "no input 'mask'"),
    ],
)
def test_what_is_no_cascade_is_refused(
    dense: ir.Model, keep: dict[str, int], valid: str, message: str
) -> None:
    with pytest.raises(BadInputError, match=message):
        cascade_heads(dense, keep, valid=valid)
