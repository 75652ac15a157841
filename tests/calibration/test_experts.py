"""EASY-EP on graphs: experts that are gathered by choice, and experts that all run."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
import torch
from tests.parity import tiny
from torch import Tensor, nn

from secateur.calibration.allocation import Allocation
from secateur.calibration.importance import Context, rank
from secateur.calibration.importance.easyep import Routing, expert_scores, token_contribution
from secateur.calibration.planning import Ranking, plan
from secateur.errors import BadInputError, PreconditionError
from secateur.export.torch_export import from_torch
from secateur.graph_passes.groups import analyse
from secateur.graph_passes.removal import remove

N, WIDTH, INNER, TAKEN = 6, 8, 12, 2
X = np.random.default_rng(0).standard_normal((5, 4, WIDTH)).astype(np.float32)


class Experts(nn.Module):
    """A stream, a router with weights that are renormalised, experts, and a shared expert."""

    def __init__(self, *, gathered: bool) -> None:
        super().__init__()
        self.gathered = gathered
        self.router = nn.Linear(WIDTH, N, bias=False)
        self.up = nn.Parameter(torch.randn(N, WIDTH, INNER))
        self.down = nn.Parameter(torch.randn(N, INNER, WIDTH))
        self.shared, self.head = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 3)

    def routing(self, x: Tensor) -> tuple[Tensor, Tensor]:
        gate, chosen = self.router(x).sigmoid().topk(TAKEN)
        return gate / gate.sum(-1, keepdim=True), chosen

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(0, 1)
        gate, chosen = self.routing(flat)
        if self.gathered:
            hidden = nn.functional.gelu(torch.einsum("td,tkdf->tkf", flat, self.up[chosen]))
            made = torch.einsum("tkf,tkfd->tkd", hidden, self.down[chosen])
            routed = (made * gate[:, :, None]).sum(1)
        else:
            dense = torch.zeros(len(flat), N).scatter(1, chosen, gate)
            hidden = nn.functional.gelu(torch.einsum("td,edf->tef", flat, self.up))
            made = torch.einsum("tef,efd->ted", hidden, self.down)
            routed = torch.einsum("ted,te->td", made, dense)
        return self.head(x + (routed + self.shared(flat)).unflatten(0, x.shape[:2]))


class Grouped(Experts):
    """The best of two groups is picked first, as in DeepSeek's router."""

    def routing(self, x: Tensor) -> tuple[Tensor, Tensor]:
        each = self.router(x).sigmoid().unflatten(1, (2, N // 2))
        best = each.amax(-1).topk(1).indices
        mask = torch.zeros_like(each[..., 0]).scatter(1, best, 1.0)
        gate, chosen = (each * mask[..., None]).flatten(1).topk(TAKEN)
        return gate / gate.sum(-1, keepdim=True), chosen


def exported(*, gathered: bool) -> tuple[Experts, ir.Model]:
    net = tiny.seeded(lambda: Experts(gathered=gathered))
    return net, from_torch(net, {"x": torch.from_numpy(X)}, {})


def published(net: Experts, x: np.ndarray) -> np.ndarray:
    """The score by the formula of the paper, from the module's own weights."""
    flat = torch.from_numpy(x).flatten(0, 1)
    with torch.no_grad():
        gate, chosen = net.routing(flat)
        hidden = nn.functional.gelu(torch.einsum("td,tkdf->tkf", flat, net.up[chosen]))
        made = torch.einsum("tkf,tkfd->tkd", hidden, net.down[chosen])
    turned = token_contribution(flat.numpy(), (made * gate[:, :, None]).sum(1).numpy())
    routing = Routing(chosen.numpy(), gate.numpy(), made.norm(dim=2).numpy())
    return expert_scores(routing, turned, N)


@pytest.mark.parametrize("gathered", [True, False])
def test_experts_are_scored_by_the_published_formula(*, gathered: bool) -> None:
    net, model = exported(gathered=gathered)
    analysis = analyse(model)
    (got,) = rank("easyep", Context(analysis, analysis.by_role("experts"), [{"x": X}])).values()
    np.testing.assert_allclose(got, published(net, X), rtol=1e-4)


@pytest.mark.parametrize("gathered", [True, False])
def test_a_group_of_experts_has_the_sum_of_their_scores(*, gathered: bool) -> None:
    net = tiny.seeded(lambda: Grouped(gathered=gathered))
    analysis = analyse(from_torch(net, {"x": torch.from_numpy(X)}, {}))
    (got,) = rank("easyep", Context(analysis, analysis.by_role("experts"), [{"x": X}])).values()
    np.testing.assert_allclose(got, published(net, X).reshape(2, -1).sum(1), rtol=1e-4)


def test_the_experts_with_the_lowest_scores_go() -> None:
    net, model = exported(gathered=True)
    made = plan(model, "experts", Allocation(0.5), Ranking("easyep", [{"x": X}]))
    (kept,) = made.keep.values()
    assert set(kept) == set(np.argsort(-published(net, X))[:3].tolist())
    small = remove(model, made)
    shapes = [w.shape.numpy() for w in small.graph.initializers.values() if len(w.shape) == 3]
    assert {shape[0] for shape in shapes} == {3}


def test_units_that_no_router_picks_are_refused() -> None:
    analysis = analyse(tiny.exported())
    with pytest.raises(PreconditionError, match="no TopK"):
        rank("easyep", Context(analysis, analysis.by_role("ffn"), [tiny.BATCH]))


@pytest.mark.parametrize(
    ("data", "message"), [([], "needs data"), ([{"x": X * np.inf}], "NaN or infinities")]
)
def test_data_that_cannot_be_used_is_refused(data: list, message: str) -> None:
    analysis = analyse(exported(gathered=True)[1])
    with pytest.raises(BadInputError, match=message):
        rank("easyep", Context(analysis, analysis.by_role("experts"), data))
