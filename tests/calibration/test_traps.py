"""Fused q, k and v, and grouped queries: ranked, made up for and cut like any other heads."""

from __future__ import annotations

from functools import partial

import numpy as np
import onnx_ir as ir
import pytest
import torch
import torch.nn.functional as F
from tests.parity import tiny
from torch import Tensor, nn

from secateur.calibration.activations import observe
from secateur.calibration.allocation import Allocation, allocate
from secateur.calibration.compensation import compensate
from secateur.calibration.importance import Context, rank
from secateur.calibration.planning import removable
from secateur.export.torch_export import from_torch
from secateur.graph_passes.groups import analyse
from secateur.graph_passes.plan import make_plan
from secateur.graph_passes.removal import remove

X = torch.randn(24, 6, 16, generator=torch.Generator().manual_seed(1))


class Grouped(nn.Module):
    """Four query heads over two key-value heads, and a linear reader."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.o = nn.Linear(16, 16), nn.Linear(16, 16)
        self.k, self.v = nn.Linear(16, 8), nn.Linear(16, 8)

    def forward(self, x: Tensor) -> Tensor:
        q = self.q(x).unflatten(-1, (4, 4)).transpose(1, 2)
        k, v = (f(x).unflatten(-1, (2, 4)).transpose(1, 2) for f in (self.k, self.v))
        k, v = (y.repeat_interleave(2, dim=1) for y in (k, v))
        return self.o(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Fused(nn.Module):
    """One projection for q, k and v."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.o = nn.Linear(16, 48), nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (y.unflatten(-1, (4, 4)).transpose(1, 2) for y in self.qkv(x).chunk(3, -1))
        return self.o(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


def exported(build: type[nn.Module]) -> ir.Model:
    net = tiny.seeded(partial(build))
    return from_torch(net, {"x": X[:3]}, {"x": {0: "batch", 1: "tokens"}})


@pytest.mark.parametrize(("build", "units"), [(Grouped, 2), (Fused, 4)])
def test_heads_are_ranked_by_what_the_output_projection_reads(
    build: type[nn.Module], units: int
) -> None:
    model = exported(build)
    analysis, data = analyse(model), [{"x": X.numpy()}]
    groups = removable(analysis, "heads")
    assert [group.size for group in groups] == [units]  # with grouped queries, key-value heads
    for importance in ("wanda", "obspa", "flap"):
        (scores,) = rank(importance, Context(analysis, groups, data)).values()
        assert scores.shape == (units,)
    keep = allocate(rank("wanda", Context(analysis, groups, data)), Allocation(0.5))
    plan = make_plan(analysis, keep)
    name = str(model.graph.outputs[0].name)

    def error(dense: ir.Model) -> float:
        ((_, want),) = observe(model, [name], data)
        ((_, got),) = observe(remove(dense, plan), [name], data)
        return float(np.square(want[name] - got[name]).sum())

    assert error(compensate(model, plan, data)) < 0.9 * error(model)
