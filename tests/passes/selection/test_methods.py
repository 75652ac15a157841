"""Whole methods in a graph: own counts, merging, carried scores, order, several layers.

Each is the same torch function that a torch model calls, traced and spliced; what it must equal
is a loop in PyTorch over the layers of a small ViT that shares no code with the passes.
"""

from __future__ import annotations

from functools import partial

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from tests.passes.selection.vit import (
    CONSTANT,
    LAYERS,
    PATCHES,
    WIDTH,
    Tower,
    Vit,
    close,
    cut,
    pictures,
    probabilities,
    traced_in,
)
from torch import Tensor

from secateur.errors import BadInputError
from secateur.export.torch_export import from_torch
from secateur.export.verify import run
from secateur.graph_passes.force_selection import force
from secateur.graph_passes.selection.budget import Budget
from secateur.graph_passes.token_selection import Selection, insert_selections
from secateur.models.selectors.core import Merge, selector
from secateur.models.selectors.core import Selection as Decision

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


# --- a count of its own per sample -------------------------------------------------------------


def above_mean(class_row: Tensor, valid: Tensor, *, factor: float = 1.0) -> Decision:
    """Keep what the class token looks at more than on average."""
    n_valid = valid.sum(dim=1)
    return Decision(class_row, count=(class_row * n_valid[:, None] > factor).sum(dim=1) + 1)


def alone(vit: Vit, x: Tensor, layers: tuple[int, ...]) -> tuple[Tensor, list[list[int]]]:
    """One sample through the layers, its tokens really dropped."""
    hidden, places, kept = vit.tokens(x), torch.arange(PATCHES + 1), []
    for i, block in enumerate(vit.blocks):
        row = probabilities(block, hidden)[0, :, 0].mean(0)
        hidden = block(hidden)
        if i in layers:
            n = int((row * len(row) > 1.0).sum()) + 1
            rank = row.clone()
            rank[0] = torch.inf
            chosen = rank.topk(min(n, len(row))).indices.sort().values
            hidden, places = hidden[:, chosen], places[chosen]
            kept.append(places.tolist())
    return vit.head(hidden[:, 0]), kept


def test_a_method_with_its_own_count_keeps_what_each_sample_keeps_alone(
    vit: Vit, dense: ir.Model
) -> None:
    model, x = cut(dense, traced("above_mean"), (0, 2), Budget()), pictures(5)
    got = run(model, {"x": x.numpy()})
    lengths = set()
    for b in range(len(x)):
        want, kept = alone(vit, x[b : b + 1], (0, 2))
        for layer, positions in zip((0, 2), kept, strict=True):
            row = got[f"blocks.{layer}.kept"][b]
            assert row[row >= 0].tolist() == positions
            lengths.add(len(positions))
        close(got["output"][b : b + 1], want)
    assert len(lengths) > 2, "samples that all keep alike prove nothing"


def test_a_method_with_its_own_count_has_no_budget_input(dense: ir.Model) -> None:
    model = cut(dense, traced("above_mean"), (0,), Budget())
    assert [v.name for v in model.graph.inputs if v.name not in model.graph.initializers] == ["x"]


@pytest.mark.parametrize("factor", [0.0, 1e9])
def test_counts_beyond_all_tokens_or_below_the_protected_ones_are_clamped(
    dense: ir.Model, factor: float
) -> None:
    model = cut(dense, traced("above_mean", factor=factor), (1,), Budget())
    kept = run(model, {"x": pictures(2).numpy()})["blocks.1.kept"]
    assert kept.shape[1] == (PATCHES + 1 if factor == 0.0 else 1)


# --- merging -----------------------------------------------------------------------------------


def into_nearest(hidden: Tensor, index: Tensor) -> Merge:
    """Average every dropped token into the kept one nearest by position; append their mean."""
    position = torch.arange(hidden.shape[1])
    one = (index[:, :, None] == position).float()
    gone = 1.0 - one.amax(dim=1, keepdim=True)
    far = (index[:, :, None] - position).abs().argmin(dim=1)
    slots = torch.arange(index.shape[1])
    to = (far[:, None] == slots[None, :, None]).float() * gone
    weights = one + to
    return Merge(
        torch.cat([weights / weights.sum(2, keepdim=True), gone / gone.sum(2)[..., None]], 1)
    )


@selector("test_merge", source="none", kind="merge", combine=into_nearest)
def longest(hidden: Tensor) -> Tensor:
    return torch.linalg.vector_norm(hidden, dim=-1)


def test_merged_tokens_replace_and_follow_the_kept_ones(vit: Vit, dense: ir.Model) -> None:
    model, x = cut(dense, traced("longest"), (1,), CONSTANT), pictures(3)
    got = run(model, {"x": x.numpy()})
    hidden = vit.blocks[1](vit.blocks[0](vit.tokens(x)))
    rank = torch.linalg.vector_norm(hidden, dim=-1)
    rank[:, 0] = torch.inf
    index = rank.topk(9).indices.sort().values
    assert got["blocks.1.kept"].tolist() == index.tolist()
    rows = []
    for b in range(3):
        mine = [[j] for j in index[b].tolist()]
        dropped = [j for j in range(PATCHES + 1) if [j] not in mine]
        for j in dropped:
            min(mine, key=lambda group: abs(group[0] - j)).append(j)
        rows.append(torch.stack([hidden[b, g].mean(0) for g in [*mine, dropped]]))
    close(got["output"], vit.head(vit.blocks[3](vit.blocks[2](torch.stack(rows)))[:, 0]))


# --- scores that go on ---------------------------------------------------------------------------


def running(class_row: Tensor, accumulated: Tensor) -> Decision:
    """Half of what the site before handed on, and what the class token looks at now."""
    total = accumulated * 0.5 + class_row
    return Decision(total, state=total)


def test_the_state_goes_on_with_the_tokens_that_are_left(vit: Vit, dense: ir.Model) -> None:
    graph = traced("running")
    model, x = cut(dense, graph, (0, 1, 2), Budget("permille", 600, is_input=False)), pictures(2)
    got = run(model, {"x": x.numpy()})
    for b in range(2):
        hidden, places = vit.tokens(x[b : b + 1]), torch.arange(PATCHES + 1)
        state = torch.zeros(PATCHES + 1)
        for i, block in enumerate(vit.blocks):
            row = probabilities(block, hidden)[0, :, 0].mean(0)
            hidden = block(hidden)
            if i == LAYERS - 1:
                break
            state = state * 0.5 + row
            rank = state.clone()
            rank[0] = torch.inf
            chosen = rank.topk((len(rank) * 600 + 999) // 1000).indices.sort().values
            hidden, places, state = hidden[:, chosen], places[chosen], state[chosen]
            assert got[f"blocks.{i}.kept"][b].tolist() == places.tolist()
        close(got["output"][b : b + 1], vit.head(hidden[:, 0]))


def test_a_state_that_the_site_before_does_not_hand_on_is_refused(dense: ir.Model) -> None:
    chosen = (
        Selection("blocks.0", traced("above_mean"), CONSTANT),
        Selection("blocks.1", traced("running"), CONSTANT),
    )
    with pytest.raises(BadInputError, match="'accumulated'"):
        insert_selections(dense, chosen)


# --- order, several layers, another cut ----------------------------------------------------------


def by_score(class_row: Tensor) -> Decision:
    return Decision(class_row, order="score")


def test_kept_tokens_can_stand_by_descending_score(vit: Vit, dense: ir.Model) -> None:
    model, x = cut(dense, traced("by_score"), (1,), CONSTANT), pictures(2)
    got = run(model, {"x": x.numpy()})
    row = probabilities(vit.blocks[1], vit.blocks[0](vit.tokens(x)))[:, :, 0].mean(1)
    row[:, 0] = torch.inf
    assert got["blocks.1.kept"].tolist() == row.topk(9).indices.tolist()


def summed(class_rows: Tensor, *, layers: str = ":") -> Tensor:
    return class_rows.sum(dim=1)


@pytest.mark.parametrize(("layers", "read"), [(":", (0, 1, 2)), ("1:", (1, 2)), ("0,-1", (0, 2))])
def test_class_rows_of_the_named_layers_are_read(
    vit: Vit, dense: ir.Model, layers: str, read: tuple[int, ...]
) -> None:
    model, x = cut(dense, traced("summed", layers=layers), (2,), CONSTANT), pictures(2)
    hidden, rows = vit.tokens(x), []
    for block in vit.blocks[:3]:
        rows.append(probabilities(block, hidden)[:, :, 0].mean(1))
        hidden = block(hidden)
    total = torch.stack([rows[i] for i in read]).sum(0)
    total[:, 0] = torch.inf
    want = total.topk(9).indices.sort().values.tolist()
    assert run(model, {"x": x.numpy()})["blocks.2.kept"].tolist() == want


def test_layers_that_do_not_exist_are_refused(dense: ir.Model) -> None:
    with pytest.raises(BadInputError, match="names no layer"):
        cut(dense, traced("summed", layers="7"), (2,), CONSTANT)


@pytest.mark.parametrize("layers", [":", "1:"])
def test_rows_of_layers_before_an_earlier_cut_are_those_of_the_tokens_left(
    dense: ir.Model, layers: str
) -> None:
    model = (
        cut(dense, traced("summed", layers=layers), (0, 2), CONSTANT)
        if layers == ":"
        else (
            insert_selections(
                dense,
                (
                    Selection("blocks.0", traced("by_score"), CONSTANT, expose_kept=True),
                    Selection(
                        "blocks.2", traced("summed", layers=layers), CONSTANT, expose_kept=True
                    ),
                ),
            )
        )
    )
    got = run(model, {"x": pictures(2).numpy()})
    assert got["blocks.2.kept"].shape == (2, 9)


@pytest.fixture(scope="module")
def tower() -> tuple[Tower, ir.Model]:
    net = Tower().eval()
    for parameter in net.parameters():
        parameter.requires_grad_(False)
    return net, from_torch(net, {"x": pictures(2)}, {"x": {0: "batch"}})


def _is_patches(value: ir.Value) -> bool:
    return value.shape is not None and list(value.shape)[1:] == [PATCHES, WIDTH]


def test_the_class_row_selects_behind_the_encoder_where_the_class_token_is_gone(
    tower: tuple[Tower, ir.Model],
) -> None:
    net, dense = tower
    doubled = next(n for n in dense.graph if n.op_type == "Mul" and _is_patches(n.outputs[0]))
    at = str(doubled.outputs[0].name)
    budget = Budget("count", 7, is_input=False, protected=0)
    model = insert_selections(
        dense,
        (Selection("blocks.2", traced("by_score", 0), budget, cut=at, expose_kept=True),),
    )
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    x = pictures(3)
    got = run(model, {"x": x.numpy()})
    hidden = net.tokens(x)
    for i, block in enumerate(net.blocks):
        if i == 2:
            row = probabilities(block, hidden)[:, :, 0, 1:].mean(1)
        hidden = block(hidden)
    index = row.topk(7).indices
    assert got["blocks.2.kept"].tolist() == index.tolist()
    patches = hidden[:, 1:].gather(1, index[:, :, None].expand(-1, -1, WIDTH)) * 2.0
    close(got["output"], net.head(patches.amax(1)))


# --- forced ------------------------------------------------------------------------------------


def test_a_forced_twin_keeps_what_it_is_told_and_says_what_it_would_have_kept(
    dense: ir.Model,
) -> None:
    model, x = cut(dense, traced("above_mean"), (0,), Budget()), pictures(3)
    twin = force(model)
    onnx.checker.check_model(ir.to_proto(twin), full_check=True)
    free = run(model, {"x": x.numpy()})
    told = [[0, 3, 4], [0, 7], [0, 1, 2, 24]]
    bias = np.zeros((3, PATCHES + 1), np.float32)
    for b, row in enumerate(told):
        bias[b, row] = 1e9
    got = run(twin, {"x": x.numpy(), "blocks.0.score_bias": bias})
    assert [row[row >= 0].tolist() for row in got["blocks.0.kept"]] == told
    assert [r[r >= 0].tolist() for r in got["blocks.0.index"]] == [
        r[r >= 0].tolist() for r in free["blocks.0.kept"]
    ]


def test_a_forced_twin_merges_into_what_it_is_told_to_keep(dense: ir.Model) -> None:
    model, x = cut(dense, traced("longest"), (1,), CONSTANT), pictures(2)
    bias = np.zeros((2, PATCHES + 1), np.float32)
    bias[:, 1:10] = 1e9
    got = run(force(model), {"x": x.numpy(), "blocks.1.score_bias": bias})
    assert got["blocks.1.kept"].tolist() == [list(range(9))] * 2
    free = run(model, {"x": x.numpy()})
    assert got["blocks.1.index"].tolist() == free["blocks.1.kept"].tolist()
    assert np.abs(got["output"] - free["output"]).max() > 1e-3
