"""Fused q, k and v, grouped queries, folded batch norms: ranked, made up for and cut as others."""

from __future__ import annotations

from functools import cache, partial

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
from secateur.errors import PreconditionError
from secateur.export.torch_export import from_torch
from secateur.graph_passes.groups import Analysis, Group, analyse
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


class Normed(nn.Module):
    """A convolution whose batch norm can be folded, and one that reads it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.last = nn.Conv2d(6, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.relu(self.norm(self.first(x))))


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


@cache
def normed(*, folded: bool) -> tuple[Analysis, tuple[Group, ...]]:
    net = tiny.seeded(Normed)
    with torch.no_grad():
        net.norm.weight.copy_(torch.tensor([0.1, 3.0, -1.0, 0.5, 2.0, -0.2]))
        net.norm.running_var.fill_(0.3)
    x = torch.randn(2, 3, 5, 5)
    analysis = analyse(from_torch(net, {"x": x}, {"x": {0: "batch"}}, for_training=not folded))
    return analysis, removable(analysis, "channels")


@pytest.mark.parametrize("importance", ["wanda", "flap", "obs", "tyr", "output_norm"])
def test_criteria_of_what_is_read_do_not_see_a_folded_batch_norm(importance: str) -> None:
    data = [{"x": np.random.default_rng(0).standard_normal((9, 3, 5, 5)).astype(np.float32)}]
    found = []
    for folded in (True, False):
        analysis, groups = normed(folded=folded)
        (scores,) = rank(importance, Context(analysis, groups, data)).values()
        found.append(scores)
    np.testing.assert_allclose(found[0], found[1], rtol=1e-3)


def test_criteria_of_weights_do_and_one_says_what_to_do() -> None:
    kept, groups = normed(folded=False)
    (before,) = rank("bn_scale", Context(kept, groups)).values()
    np.testing.assert_allclose(before, [0.1, 3.0, 1.0, 0.5, 2.0, 0.2])
    folded, groups = normed(folded=True)
    with pytest.raises(PreconditionError, match="for_training"):
        rank("bn_scale", Context(folded, groups))
    l1 = [next(iter(rank("l1", Context(*normed(folded=f))).values())) for f in (True, False)]
    assert not np.allclose(l1[0], l1[1], rtol=0.1)
