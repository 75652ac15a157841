"""What goes is shared out over layers: by how far they turn tokens, and by a search."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from tests.laws.small_models import network
from tests.parity import tiny

from secateur.calibration.activations import observe
from secateur.calibration.allocation import Allocation
from secateur.calibration.block_shares import block_shares, layer_ends
from secateur.calibration.compensation import compensate
from secateur.calibration.importance.cfsp import block_importance, keep_ratios
from secateur.calibration.planning import Ranking, plan
from secateur.calibration.search.evolution import Evolution, Layer, evolve
from secateur.calibration.search.journal import Journal
from secateur.errors import BadInputError, PreconditionError
from secateur.graph_passes.groups import Analysis, Group, analyse
from secateur.graph_passes.removal import remove

_WIDTH, _INNER = 16, 32
_STACK = """
stack (float[batch, 5, 16] x) => (float[batch, 5, 4] y) {
    a1 = MatMul(x, u1)
    b1 = Relu(a1)
    c1 = MatMul(b1, d1)
    s1 = Add(x, c1)
    a2 = MatMul(s1, u2)
    b2 = Relu(a2)
    c2 = MatMul(b2, d2)
    s2 = Add(s1, c2)
    y = MatMul(s2, head)
}
"""
X = np.random.default_rng(0).standard_normal((24, 5, _WIDTH)).astype(np.float32)
DATA = [{"x": part} for part in np.split(X, 4)]


@pytest.fixture(scope="module")
def stack() -> ir.Model:
    """Two blocks; half of the units of the second do next to nothing."""
    shapes = {"u1": (16, 32), "d1": (32, 16), "u2": (16, 32), "d2": (32, 16), "head": (16, 4)}
    model = network(_STACK, shapes, {})
    weight = model.graph.initializers["d2"].const_value.numpy().copy()
    weight[8:] *= 1e-3
    model.graph.initializers["d2"].const_value = ir.Tensor(weight, name="d2")
    return model


def loss(model: ir.Model, made) -> float:
    ((_, want),) = observe(model, ["y"], [{"x": X}])
    fitted = compensate(model, made, DATA, method="tyr")
    ((_, got),) = observe(remove(fitted, made), ["y"], [{"x": X}])
    return float(np.square(got["y"] - want["y"]).sum() / np.square(want["y"]).sum())


def groups_of(analysis: Analysis) -> tuple[Group, ...]:
    return tuple(group for group in analysis.groups if group.size == _INNER)


def sizes(made) -> list[int]:
    return [len(kept) for kept in made.keep.values()]


def test_layers_that_turn_tokens_more_keep_more(stack: ir.Model) -> None:
    analysis = analyse(stack)
    groups = groups_of(analysis)
    assert [layer_ends(analysis, group) for group in groups] == [("x", "s1"), ("s1", "s2")]
    ((_, seen),) = observe(stack, ["s1", "s2"], [{"x": X}])
    pairs = [(X, seen["s1"]), (seen["s1"], seen["s2"])]
    turned = np.array([block_importance(a, b, "angular") for a, b in pairs])
    want = 1 - keep_ratios(turned * 131072 / (24 * 5), 0.5)
    got = block_shares(analysis, groups, DATA, 0.5)
    np.testing.assert_allclose(list(got.values()), want, rtol=1e-5)
    assert turned[0] < turned[1]
    assert got[groups[1].name] < 0.5 < got[groups[0].name]
    half = block_shares(analysis, groups, DATA[:2], 0.5)
    np.testing.assert_allclose(list(half.values()), want, atol=0.05)  # not of how much data


def test_the_layers_of_an_encoder_are_whole_and_padding_does_not_count() -> None:
    analysis = analyse(tiny.exported())
    groups = analysis.by_role("ffn")
    assert len({layer_ends(analysis, group) for group in groups}) == len(groups)
    shares = block_shares(analysis, groups, [tiny.BATCH], 0.25)
    filled = {name: array.copy() for name, array in tiny.BATCH.items()}
    filled["input_ids"][filled["attention_mask"] == 0] = 1
    again = block_shares(analysis, groups, [filled], 0.25)
    np.testing.assert_allclose(list(again.values()), list(shares.values()), rtol=1e-4)
    np.testing.assert_allclose(np.mean(list(shares.values())), 0.25)


def test_a_plan_follows_the_shares(stack: ir.Model) -> None:
    made = plan(stack, "channels", Allocation(0.5, "cfsp"), Ranking("l2", DATA))
    analysis = analyse(stack)
    shares = block_shares(analysis, groups_of(analysis), DATA, 0.5)
    assert sizes(made) == [round(_INNER * (1 - share)) for share in shares.values()]
    assert sizes(made)[0] != sizes(made)[1]


def test_units_outside_of_blocks_have_no_layer() -> None:
    text = """
    mlp (float[batch, 4] x) => (float[batch, 3] y) {
        a = MatMul(x, w1)
        b = Relu(a)
        y = MatMul(b, w2)
    }
    """
    model = network(text, {"w1": (4, 6), "w2": (6, 3)}, {})
    analysis = analyse(model)
    with pytest.raises(PreconditionError, match="no residual block"):
        block_shares(analysis, analysis.groups[-1:], [], 0.5)


def test_shares_without_data_are_refused(stack: ir.Model) -> None:
    with pytest.raises(BadInputError, match="need data"):
        plan(stack, "channels", Allocation(0.5, "cfsp"), Ranking("l2"))


@pytest.mark.parametrize("measure", ["error", "kl"])
def test_a_search_moves_units_to_where_they_are_needed(stack: ir.Model, measure: str) -> None:
    search = Evolution(rounds=2, generations=3, offspring=6, measure=measure)
    uniform = plan(stack, "channels", Allocation(0.5), Ranking("tyr", DATA))
    found = plan(stack, "channels", Allocation(0.5, "tyr", search=search), Ranking("tyr", DATA))
    assert sum(sizes(found)) == sum(sizes(uniform)) == _INNER
    assert sizes(found)[0] > sizes(found)[1]
    assert loss(stack, found) < 0.8 * loss(stack, uniform)


def test_limits_and_rounding_hold_in_a_search(stack: ir.Model) -> None:
    search = Evolution(rounds=1, generations=2, offspring=4)
    limits = {groups_of(analyse(stack))[1].name: 0.5}
    allocation = Allocation(0.5, "tyr", round_to=4, limits=limits, search=search)
    stuck = Allocation(0.5, "tyr", round_to=4, limits={"*": 0.5})
    with pytest.raises(BadInputError, match="no units can move"):
        plan(stack, "channels", stuck, Ranking("l2", DATA))
    found = plan(stack, "channels", allocation, Ranking("l2", DATA))
    assert all(size % 4 == 0 for size in sizes(found))
    assert sizes(found)[1] >= _INNER // 2


def test_an_interrupted_search_goes_on_from_its_journal(tmp_path: Path) -> None:
    layers, calls = [Layer(8, 1, 16), Layer(8, 1, 16), Layer(8, 1, 16)], []

    def judge(genes: tuple[int, ...], stage: int) -> float:
        calls.append((genes, stage))
        if len(calls) == stop:
            raise KeyboardInterrupt
        return float(np.square(np.array(genes) - [3, -1, -2]).sum()) + 0.01 * stage

    told: list[str] = []
    options = Evolution(seed=1, progress=told.append)
    stop = 0
    whole = evolve(layers, judge, options, Journal(None, {}))
    in_one_go, told[:] = list(calls), []
    assert whole == ((3, -1, -2), 0.02)
    calls.clear()
    stop = 12
    with pytest.raises(KeyboardInterrupt):
        evolve(layers, judge, options, Journal(tmp_path / "j", {"about": 1}))
    done, stop = calls[: stop - 1], 0
    calls.clear()
    assert evolve(layers, judge, options, Journal(tmp_path / "j", {"about": 1})) == whole
    assert done + calls == in_one_go
    assert len(told) >= options.rounds * options.generations


@pytest.mark.parametrize(
    ("options", "message"), [({"rounds": 0}, "one round"), ({"measure": "guess"}, "measure")]
)
def test_options_of_a_search_that_make_no_sense_are_refused(options: dict, message: str) -> None:
    with pytest.raises(BadInputError, match=message):
        Evolution(**options)


def test_infinite_states_are_named_with_the_layer_they_surround() -> None:
    model = tiny.exported().clone()
    value = next(v for v in model.graph.initializers.values() if v.shape.numpy() == (40, 16))
    value.const_value = ir.tensor(np.full((40, 16), np.inf, np.float32), name=value.name)
    analysis = analyse(model)
    with pytest.raises(BadInputError, match=r"around FFN of layers\.0"):
        block_shares(analysis, analysis.by_role("ffn"), [tiny.BATCH], 0.25)
