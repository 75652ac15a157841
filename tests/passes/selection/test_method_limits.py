"""Methods at their limits: bad scores, counts out of range, missing signals, grids behind."""

from __future__ import annotations

from functools import partial

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from tests.passes.selection.vit import (
    CLASSES,
    CONSTANT,
    HEADS,
    PATCHES,
    WIDTH,
    Vit,
    close,
    cut,
    pictures,
    probabilities,
    traced_in,
)
from torch import Tensor, nn

from secateur.errors import BadInputError, PreconditionError
from secateur.export.selector_graph import Signature, trace
from secateur.export.torch_export import from_torch
from secateur.export.verify import run
from secateur.graph_passes.attention import find_sites
from secateur.graph_passes.selection.budget import Budget
from secateur.graph_passes.sites import site_named
from secateur.graph_passes.token_selection import Selection, insert_selections
from secateur.models.selectors.core import Selection as Decision
from secateur.models.selectors.core import best

traced = partial(traced_in, __name__)


@pytest.fixture(scope="module")
def vit() -> Vit:
    net = Vit().eval()
    for parameter in net.parameters():
        parameter.requires_grad_(False)
    return net


@pytest.fixture(scope="module")
def dense(vit: Vit) -> ir.Model:
    return from_torch(vit, {"x": pictures(2)}, {"x": {0: "batch"}})


# --- bad input -----------------------------------------------------------------------------------


def scored(body: str) -> ir.Model:
    """A selector graph that no tracing has checked."""
    return ir.from_onnx_text(
        '<ir_version: 9, opset_import: ["" : 18]> s (float[b,n] class_row) => (float[b,n] score)'
        f" {{ {body} }}"
    )


def test_infinite_scores_never_beat_protected_tokens_nor_lose_to_padding(
    vit: Vit, dense: ir.Model
) -> None:
    graph = scored(
        "c = Constant<value_float=0.04>() big = Constant<value_float=1e30>() up = Mul(big, big)"
        " down = Neg(up) much = Greater(class_row, c) score = Where(much, up, down)"
    )
    model, x = cut(dense, graph, (1,), CONSTANT), pictures(2)
    got = run(model, {"x": x.numpy()})
    row = probabilities(vit.blocks[1], vit.blocks[0](vit.tokens(x)))[:, :, 0].mean(1)
    for b in range(2):
        rank = (row[b] > 0.04).float()
        rank[0] = 2.0
        want = rank.sort(descending=True, stable=True).indices[:9].sort().values
        assert got["blocks.1.kept"][b].tolist() == want.tolist()
    assert np.isfinite(got["output"]).all()


def test_scores_that_are_no_numbers_rank_last(vit: Vit, dense: ir.Model) -> None:
    root = scored(
        "c = Constant<value_float=0.03>() d = Sub(class_row, c) e = Sqrt(d)"
        " z = Constant<value_float=0.0>() score = Mul(e, z)"
    )
    x = pictures(2)
    got = run(cut(dense, root, (1,), CONSTANT), {"x": x.numpy()})
    row = probabilities(vit.blocks[1], vit.blocks[0](vit.tokens(x)))[:, :, 0].mean(1)
    for b in range(2):
        rank = (row[b] >= 0.03).float()
        rank[0] = 2.0
        want = rank.sort(descending=True, stable=True).indices[:9].sort().values
        assert got["blocks.1.kept"][b].tolist() == want.tolist()


def tied(class_row: Tensor) -> Tensor:
    return class_row * 0.0


def test_equal_scores_keep_the_earlier_tokens(dense: ir.Model) -> None:
    model = cut(dense, traced("tied"), (1,), CONSTANT)
    assert run(model, {"x": pictures(1).numpy()})["blocks.1.kept"].tolist() == [list(range(9))]


@pytest.mark.parametrize(
    ("asked", "kept"), [(0, 1), (-4, 1), (1, 1), (25, 25), (10_000, 25)], ids=str
)
def test_a_count_out_of_range_is_clamped(dense: ir.Model, asked: int, kept: int) -> None:
    model = cut(dense, traced("tied"), (1,), Budget("count", 9))
    feeds = {"x": pictures(2).numpy(), "blocks.1.k": np.array([asked])}
    got = run(model, feeds)
    assert got["blocks.1.kept"].shape == (2, kept)
    assert np.isfinite(got["output"]).all()


def test_a_signal_that_nobody_gives_is_refused_by_name(dense: ir.Model) -> None:
    graph = ir.from_onnx_text(
        '<ir_version: 9, opset_import: ["" : 18]> s (float[b,w] text_embedding, float[b,n] '
        "class_row)"
        " => (float[b,n] score) { score = Identity(class_row) }"
    )
    with pytest.raises(BadInputError, match="'text_embedding'"):
        insert_selections(dense, (Selection("blocks.1", graph, CONSTANT),))


def towards_text(hidden: Tensor, text_embedding: Tensor) -> Tensor:
    return hidden.sum(-1) * text_embedding.sum(-1, keepdim=True)


def test_a_new_input_can_give_the_text_embedding(dense: ir.Model) -> None:
    model = cut(
        dense, traced("towards_text"), (1,), CONSTANT, signals={"text_embedding": "input:6"}
    )
    text = torch.randn(2, 6).numpy()
    one = run(model, {"x": pictures(2).numpy(), "blocks.1.text_embedding": text})
    other = run(model, {"x": pictures(2).numpy(), "blocks.1.text_embedding": -text})
    assert one["blocks.1.kept"].tolist() != other["blocks.1.kept"].tolist()


@pytest.mark.parametrize(
    ("value", "message"), [("nowhere", "no value 'nowhere'"), ("input:wide", "needs its width")]
)
def test_a_source_that_does_not_exist_is_refused(dense: ir.Model, value: str, message: str) -> None:
    chosen = Selection(
        "blocks.1", traced("towards_text"), CONSTANT, signals={"text_embedding": value}
    )
    with pytest.raises(BadInputError, match=message):
        insert_selections(dense, (chosen,))


def test_a_cut_that_does_not_exist_is_refused(dense: ir.Model) -> None:
    with pytest.raises(BadInputError, match="no value and no module 'nowhere'"):
        cut(dense, traced("tied"), (1,), CONSTANT, cut="nowhere")


def of_patches(class_row: Tensor, protected: int) -> Tensor:
    return nn.functional.pad(class_row[:, protected:], (protected, 0))


def test_a_selector_traced_for_other_protected_tokens_is_refused(dense: ir.Model) -> None:
    with pytest.raises(BadInputError, match="another number of protected"):
        cut(dense, traced("of_patches", 0), (1,), CONSTANT)


def test_a_selector_traced_for_another_number_of_tokens_is_refused(dense: ir.Model) -> None:
    graph = trace(f"{__name__}:tied", Signature(HEADS, WIDTH // HEADS, WIDTH, tokens=9))
    with pytest.raises(BadInputError, match="another number of tokens"):
        cut(dense, graph, (1,), CONSTANT)


def full_map(full: Tensor, count: Tensor) -> Tensor:
    """What the best half of the queries look at."""
    received = full.mean(dim=(1, 2))
    return best(received, count).float() + received


def before(hidden: Tensor, hidden_before: Tensor) -> Tensor:
    return (hidden - hidden_before).square().sum(-1)


def at_end(last_row: Tensor) -> Tensor:
    return last_row


@pytest.mark.parametrize("name", ["full_map", "before", "at_end"])
def test_signals_are_those_of_the_layer(vit: Vit, dense: ir.Model, name: str) -> None:
    model, x = cut(dense, traced(name), (1,), CONSTANT), pictures(2)
    start = vit.blocks[0](vit.tokens(x))
    p, hidden = probabilities(vit.blocks[1], start), vit.blocks[1](start)
    want = {
        "full_map": p.mean((1, 2)),
        "before": (hidden - start).square().sum(-1),
        "at_end": p[:, :, -1].mean(1),
    }[name]
    want[:, 0] = torch.inf
    chosen = want.topk(9).indices.sort().values
    assert run(model, {"x": x.numpy()})["blocks.1.kept"].tolist() == chosen.tolist()


# --- tokens that leave and come back -------------------------------------------------------------


class Segmenter(Vit):
    """Labels every patch: a convolution over the grid behind the last block."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Conv2d(WIDTH, CLASSES, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.tokens(x)
        for block in self.blocks:
            hidden = block(hidden)
        grid = hidden[:, 1:].transpose(1, 2).reshape(x.shape[0], WIDTH, 4, PATCHES // 4)
        return self.mix(grid)


@pytest.fixture(scope="module")
def segmenter() -> tuple[Segmenter, ir.Model]:
    net = Segmenter().eval()
    for parameter in net.parameters():
        parameter.requires_grad_(False)
    return net, from_torch(net, {"x": pictures(2)}, {"x": {0: "batch"}})


def test_tokens_that_left_come_back_with_their_state_before_the_grid(
    segmenter: tuple[Segmenter, ir.Model],
) -> None:
    net, dense = segmenter
    graph, x = traced("above_mean"), pictures(3)
    chosen = tuple(Selection(f"blocks.{i}", graph, Budget(), expose_kept=True) for i in (0, 2))
    last = str(site_named(find_sites(dense), "blocks.3").block.name)
    model = insert_selections(dense, chosen, restore=(last,))
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    got = run(model, {"x": x.numpy()})
    for b in range(3):
        hidden, state = net.tokens(x[b : b + 1]), torch.zeros(1, PATCHES + 1, WIDTH)
        places = torch.arange(PATCHES + 1)
        for i, block in enumerate(net.blocks):
            hidden = block(hidden)
            state[:, places] = hidden
            if i in (0, 2):
                row = got[f"blocks.{i}.kept"][b]
                left = torch.from_numpy(row[row >= 0])
                hidden, places = hidden[:, torch.isin(places, left)], left
        grid = state[:, 1:].transpose(1, 2).reshape(1, WIDTH, 4, PATCHES // 4)
        close(got["output"][b : b + 1], net.mix(grid))


def test_without_restore_a_grid_behind_the_cut_is_refused(
    segmenter: tuple[Segmenter, ir.Model],
) -> None:
    with pytest.raises(PreconditionError, match="tokens cannot be selected"):
        cut(segmenter[1], traced("above_mean"), (0,), Budget())


def test_tokens_cannot_come_back_before_they_left(segmenter: tuple[Segmenter, ir.Model]) -> None:
    early = str(site_named(find_sites(segmenter[1]), "blocks.0").block.name)
    chosen = (Selection("blocks.2", traced("above_mean"), Budget()),)
    with pytest.raises(PreconditionError, match="no token has left"):
        insert_selections(segmenter[1], chosen, restore=(early,))


def above_mean(class_row: Tensor, valid: Tensor) -> Decision:
    """Keep what the class token looks at more than on average."""
    n_valid = valid.sum(dim=1)
    return Decision(class_row, count=(class_row * n_valid[:, None] > 1.0).sum(dim=1) + 1)
