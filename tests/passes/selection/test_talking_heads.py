"""CaiT: heads mixed before and behind the softmax, and a class token that comes last."""

from __future__ import annotations

import functools

import onnx_ir as ir
import pytest
import torch
from tests.passes.selection.models import H, Variant, write
from tests.passes.selection.support import check, insert, selections, site
from tests.passes.selection.vit import HEADS, PATCHES, WIDTH, pictures
from torch import Tensor, nn

from secateur.errors import PreconditionError
from secateur.export.torch_export import from_torch
from secateur.graph_passes.attention import find_sites
from secateur.graph_passes.force_selection import force
from secateur.graph_passes.groups import analyse
from secateur.graph_passes.plan import make_plan
from secateur.graph_passes.removal import remove
from secateur.runtime.compare import relative_error
from secateur.workflow.golden import Golden, budget_feeds, golden_from_torch, token_sites
from secateur.workflow.model_session import open_model
from secateur.workflow.onnx_reference import golden_from_onnx
from secateur.workflow.parity import Options
from secateur.workflow.parity import check as check_forced
from secateur.workflow.selecting import Select, select_tokens

LAYERS, EXACT, SEEN = 2, 1e-5, 1e-3
LATE = Variant(form="talking", mask="none", guard=True, pool="late", tokens=9)

# --- written by hand ----------------------------------------------------------------------


@pytest.mark.parametrize("signal", ["class_row", "column_mean"])
def test_a_class_token_may_join_the_tokens_that_are_left(signal: str) -> None:
    check(LATE, (0, 1), (9, 9, 9), signal=signal, permille=(700, 600))


def test_a_mean_of_padded_tokens_and_a_late_class_token_is_refused() -> None:
    model = write(Variant(form="talking", pool="late", tokens=9))[0]
    with pytest.raises(PreconditionError, match="tokens and more"):
        insert(model, selections((0, 1)))


def test_a_matrix_over_other_axes_than_heads_is_no_mixing() -> None:
    """The same nodes with the queries as the last axis: no site is left in that block."""
    model = ir.from_proto(write(LATE)[0])
    turned = [node for node in model.graph if node.op_type == "Softmax"]
    path = turned[0].inputs[0].producer()
    assert path.op_type == "Transpose"
    path.attributes["perm"] = ir.AttrInt64s("perm", [0, 3, 2, 1])
    assert [one.name for one in find_sites(model)] == [site(1), site(2)]


@pytest.mark.parametrize("role", ["heads at the softmax", "heads of the values"])
def test_heads_can_be_removed_before_tokens_are_selected(role: str) -> None:
    size = 3 if role == "heads at the softmax" else H
    dense = ir.from_proto(write(Variant(form="talking"))[0])
    groups = [one for one in analyse(dense).groups if one.role == "heads" and one.size == size]
    assert groups
    keep = {one.name: [i for i in range(size) if i] for one in groups}
    small = remove(dense, make_plan(analyse(dense), keep))
    found = find_sites(small)
    assert [one.name for one in found] == [site(layer) for layer in range(3)]
    select_tokens(small, [Select(site(0), "class_row", 0.6, 1)])


# --- CaiT in PyTorch ----------------------------------------------------------------------


class _Talking(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.before, self.behind = nn.Linear(HEADS, HEADS), nn.Linear(HEADS, HEADS)

    def forward(self, x: Tensor) -> Tensor:
        made = self.qkv(x).reshape(*x.shape[:2], 3, HEADS, -1).permute(2, 0, 3, 1, 4)
        q, k, v = made * made.new_tensor([(WIDTH / HEADS) ** -0.5, 1, 1]).view(3, 1, 1, 1, 1)
        scores = (q @ k.transpose(-2, -1)).permute(0, 2, 3, 1)
        weights = self.before(scores).permute(0, 3, 1, 2).softmax(dim=-1)
        weights = self.behind(weights.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return self.out((weights @ v).transpose(1, 2).reshape(x.shape))


class _OfClass(nn.Module):
    """The class token asks, itself and the patches answer."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(WIDTH, WIDTH) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        q = self.q(x[:, :1]).reshape(x.shape[0], 1, HEADS, -1).transpose(1, 2)
        k, v = (f(x).reshape(*x.shape[:2], HEADS, -1).transpose(1, 2) for f in (self.k, self.v))
        made = nn.functional.scaled_dot_product_attention(q, k, v)
        return made.transpose(1, 2).reshape(x.shape[0], 1, WIDTH)


class _Block(nn.Module):
    def __init__(self, attention: nn.Module) -> None:
        super().__init__()
        self.first, self.second = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(2 * WIDTH, WIDTH)
        self.scale = nn.Parameter(torch.ones(WIDTH))
        self.attention = attention

    def forward(self, x: Tensor, token: Tensor | None = None) -> Tensor:
        seen = x if token is None else torch.cat([token, x], dim=1)
        x = (x if token is None else token) + self.scale * self.attention(self.first(seen))
        return x + self.down(nn.functional.gelu(self.up(self.second(x))))


class Cait(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Linear(6, WIDTH), nn.Linear(WIDTH, 5)
        self.places = nn.Parameter(torch.randn(1, PATCHES, WIDTH))
        self.token = nn.Parameter(torch.randn(1, 1, WIDTH))
        self.norm = nn.LayerNorm(WIDTH)
        self.blocks = nn.ModuleList(_Block(_Talking()) for _ in range(LAYERS + 1))
        self.late = nn.ModuleList(_Block(_OfClass()) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.embed(x) + self.places
        for block in self.blocks:
            hidden = block(hidden)
        token = self.token.expand(x.shape[0], -1, -1)
        for block in self.late:
            token = block(hidden, token)
        return self.head(self.norm(torch.cat([token, hidden], dim=1))[:, 0])


@functools.cache
def exported() -> tuple[Cait, ir.Model]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = Cait().eval()
        with torch.no_grad():
            for parameter in net.parameters():
                parameter.add_(0.2 * torch.randn_like(parameter))
    return net, from_torch(net, {"x": pictures(3)}, {"x": {0: "batch"}})


def _selecting(by: str) -> ir.Model:
    return select_tokens(exported()[1], [Select(f"blocks.{i}", by, 0.5, 1) for i in range(LAYERS)])


def _agrees(model: ir.Model, golden: Golden) -> None:
    with open_model(force(model)) as twin:
        report = check_forced([golden], twin, free=None, options=Options())
    assert report.passed, [(row.subject, row.note) for row in report.rows() if not row.passed]
    assert len(report.sites) == LAYERS


every_signal = pytest.mark.parametrize("by", ["value_norm", "column_mean"])


@pytest.mark.sweep
@every_signal
def test_cait_agrees_with_pytorch_and_with_its_own_file(by: str) -> None:
    net, dense = exported()
    model, batch = _selecting(by), {"x": pictures(3).numpy()}
    sites, feeds = token_sites(model, {}), budget_feeds(model, {})
    _agrees(model, golden_from_torch(net, batch, sites, feeds=feeds))
    _agrees(model, golden_from_onnx(dense, batch, sites, feeds=feeds))


@pytest.mark.sweep
@every_signal
def test_an_image_in_a_batch_gives_what_it_gives_alone(by: str) -> None:
    net, _ = exported()
    model, x = _selecting(by), pictures(3)
    asked = {
        key: array for feeds in budget_feeds(model, {}).values() for key, array in feeds.items()
    }
    with open_model(model) as call:
        whole, *apart = [
            next(iter(call({"x": part.numpy()} | asked).values())) for part in (x, *x.split(1))
        ]
    for i, alone in enumerate(apart):
        assert relative_error(alone, whole[i : i + 1]) < EXACT
    with torch.no_grad():
        assert relative_error(whole, net(x).numpy()) > SEEN
