"""Whole residual blocks: found, chosen, removed, and held against zeros in their place."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from tests.laws.small_models import network, run, shapes

from secateur.calibration.allocation import Allocation
from secateur.calibration.planning import Ranking, combine, plan
from secateur.errors import BadInputError
from secateur.graph_passes.blocks import find_blocks
from secateur.graph_passes.groups import analyse
from secateur.graph_passes.masking import mask
from secateur.graph_passes.plan import Plan, make_plan
from secateur.graph_passes.removal import remove

_TEXT = """
stack (float[batch, 4] x) => (float[batch, 4] y, float[batch, 4] h) {
    a = MatMul(x, up0)
    b = Relu(a)
    c = MatMul(b, down0)
    h = Add(x, c)
    d = MatMul(h, up1)
    e = Relu(d)
    f = MatMul(e, down1)
    i = Add(f, h)
    j = MatMul(i, up2)
    k = Relu(j)
    l = MatMul(k, down2)
    y = Add(i, l)
}
"""
_WEIGHTS = {
    f"{way}{i}": shape for i in range(3) for way, shape in (("up", (4, 6)), ("down", (6, 4)))
}


@pytest.fixture
def model() -> ir.Model:
    return network(_TEXT, _WEIGHTS)


def names(model: ir.Model) -> list[str]:
    return [block.name for block in find_blocks(analyse(model).model)]


def without(model: ir.Model, removal: Plan) -> ir.Model:
    """The smaller model, valid and equal to the masked one."""
    smaller = remove(model, removal)
    onnx.checker.check_model(ir.to_proto(smaller), full_check=True)
    for got, wanted in zip(run(smaller), run(mask(model, removal)), strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-6)
    return smaller


def test_every_addition_of_a_function_of_the_stream_is_a_block(model: ir.Model) -> None:
    assert len(names(model)) == 3


@pytest.mark.parametrize("which", [(0,), (1,), (2,), (0, 2), (0, 1, 2)])
def test_a_block_goes_with_its_weights_and_the_outputs_keep_their_names(
    model: ir.Model, which: tuple[int, ...]
) -> None:
    chosen = tuple(names(model)[i] for i in which)
    smaller = without(model, make_plan(analyse(model), {}, blocks=chosen))
    assert [value.name for value in smaller.graph.outputs] == ["y", "h"]
    assert sorted(shapes(smaller)) == sorted(
        f"{way}{i}" for i in range(3) if i not in which for way in ("up", "down")
    )


def test_a_block_goes_while_another_is_cut(model: ir.Model) -> None:
    analysis = analyse(model)
    hidden = next(
        g.name for g in analysis.groups if g.removable and g.weights[0].initialiser == "up2"
    )
    removal = make_plan(analysis, {hidden: (0, 1)}, blocks=(names(model)[0],))
    assert shapes(without(model, removal))["up2"] == (4, 2)


def test_a_block_that_nothing_reads_may_be_removed_beside_a_cut() -> None:
    text = """
    idle (float[batch, 4] x) => (float[batch, 4] y) {
        a = MatMul(x, up)
        y = MatMul(a, down)
        b = MatMul(x, w)
        c = Add(x, b)
    }
    """
    model = network(text, {"up": (4, 6), "down": (6, 4), "w": (4, 4)})
    analysis = analyse(model)
    (idle,) = names(model)
    hidden = next(g.name for g in analysis.groups if g.removable)
    without(model, make_plan(analysis, {hidden: (0, 1)}, blocks=(idle,)))


def test_the_block_with_the_smallest_weights_goes_first(model: ir.Model) -> None:
    for name in ("up1", "down1"):
        value = model.graph.initializers[name]
        value.const_value = ir.tensor(value.const_value.numpy() * 0.1, name=name)
    for importance in ("l1", "l2"):
        made = plan(model, "blocks", Allocation(0.33), Ranking(importance))
        assert made.blocks == (names(model)[1],)
    without(model, made)


def test_blocks_drawn_at_random_depend_on_the_seed(model: ir.Model) -> None:
    drawn = {
        plan(model, "blocks", Allocation(0.33), Ranking("random", seed=seed)).blocks
        for seed in range(8)
    }
    assert len(drawn) > 1


def test_blocks_are_ranked_by_weights_alone(model: ir.Model) -> None:
    with pytest.raises(BadInputError, match="blocks are not ranked by 'output_norm'"):
        plan(model, "blocks", Allocation(0.33), Ranking("output_norm"))


def test_a_ratio_that_removes_every_block_is_refused(model: ir.Model) -> None:
    with pytest.raises(BadInputError, match="would remove all of the blocks"):
        plan(model, "blocks", Allocation(0.9), Ranking("l1"))


def test_a_model_without_blocks_says_so() -> None:
    chain = network(
        "c (float[batch, 4] x) => (float[batch, 4] y) { y = MatMul(x, w) }", {"w": (4, 4)}
    )
    with pytest.raises(BadInputError, match="no residual block"):
        plan(chain, "blocks", Allocation(0.5), Ranking("l1"))


def test_an_unknown_block_is_refused_with_the_known_ones(model: ir.Model) -> None:
    with pytest.raises(BadInputError, match="no residual block 'nowhere'") as refused:
        make_plan(analyse(model), {}, blocks=("nowhere",))
    assert names(model)[0] in refused.value.wanted


def test_a_block_that_stands_twice_is_refused(model: ir.Model) -> None:
    first = names(model)[0]
    with pytest.raises(BadInputError, match="stands twice"):
        make_plan(analyse(model), {}, blocks=(first, first))
    once = make_plan(analyse(model), {}, blocks=(first,))
    with pytest.raises(BadInputError, match="stands twice"):
        combine(analyse(model), [once, once])


def test_a_cut_inside_a_block_that_goes_whole_is_refused(model: ir.Model) -> None:
    analysis = analyse(model)
    hidden = next(
        g.name for g in analysis.groups if g.removable and g.weights[0].initialiser == "up0"
    )
    with pytest.raises(BadInputError, match=r"removes the block .* around it"):
        make_plan(analysis, {hidden: (0, 1)}, blocks=(names(model)[0],))


def test_a_block_inside_a_block_that_goes_whole_is_refused() -> None:
    text = """
    nested (float[batch, 4] x) => (float[batch, 4] y) {
        a = MatMul(x, w1)
        b = MatMul(a, w2)
        c = Add(a, b)
        y = Add(x, c)
    }
    """
    analysis = analyse(network(text, {"w1": (4, 4), "w2": (4, 4)}))
    both = tuple(block.name for block in find_blocks(analysis.model))
    assert len(both) == 2
    with pytest.raises(BadInputError, match=r"removes the block .* around it"):
        make_plan(analysis, {}, blocks=both)
