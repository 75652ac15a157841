"""Where published codes differ from one another at one ratio, and what is meant here instead.

Grouped queries, fused q, k and v and folded norms are in test_traps.py, shared weights in
test_compensation.py, published thresholds and floors against their vectors in tests/oracles.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from tests.laws.small_models import group_of, network

from secateur.calibration.allocation import Allocation, allocate
from secateur.calibration.compensation import compensate
from secateur.calibration.importance import Context, rank
from secateur.calibration.importance.cfsp import keep_channels
from secateur.calibration.importance.flap import keep_globally
from secateur.calibration.quantisation.rotation import rotate
from secateur.graph_passes.groups import Analysis, Group, analyse
from secateur.graph_passes.plan import Plan, make_plan

RNG = np.random.default_rng(0)
_STACK = """
stack (float[batch, tokens, 6] x) => (float[batch, tokens, 4] y) {
    a = MatMul(x, w1)
    b = Relu(a)
    c = MatMul(b, w2)
    d = Relu(c)
    y = MatMul(d, w3)
}
"""
_WEIGHTS = {"w1": (6, 10), "w2": (10, 8), "w3": (8, 4)}
_TURNED = """
turned (float[batch, tokens, 6] x) => (float[batch, tokens, 6] y) {
    a = MatMul(x, w0)
    p = Pow(a, two)
    m = ReduceMean <keepdims = 1> (p, last)
    r = Sqrt(m)
    k = Div(a, r)
    b = MatMul(k, w1)
    c = Relu(b)
    d = MatMul(c, w2)
    s = Add(a, d)
    y = MatMul(s, w3)
}
"""


@pytest.fixture(scope="module")
def stack() -> ir.Model:
    return network(_STACK, _WEIGHTS)


def inner(analysis: Analysis, weight: str) -> Group:
    return group_of(analysis, weight, 0)


def batches(tokens: int, count: int = 6) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(1)
    return [{"x": rng.standard_normal((1, tokens, 6)).astype(np.float32)} for _ in range(count)]


def test_flap_drops_the_unit_at_its_threshold_and_cfsp_keeps_it() -> None:
    scores = np.arange(10.0)
    assert keep_globally(scores, np.ones(10), 0.5).sum() == 4  # those strictly above
    assert keep_channels(scores, 0.5).sum() == 6  # those that reach it


@pytest.mark.parametrize("ratio", [0.1, 0.3, 0.7, 0.9])
def test_a_ratio_removes_the_nearest_number_where_published_floors_differ(ratio: float) -> None:
    size = 10
    tyr_keeps, lora_removes = int(size * (1 - ratio)), int(size * ratio)
    kept = allocate({"a": np.arange(size)}, Allocation(ratio))["a"]
    assert len(kept) == round(size * (1 - ratio)) == size - lora_removes
    assert tyr_keeps in {len(kept), len(kept) - 1}
    if ratio == 0.9:
        assert tyr_keeps == 0  # (1 - 0.9) * 10 is a little less than 1


def test_the_mean_that_flap_adds_is_not_rounded_to_half_precision() -> None:
    text = """
    steady (float[batch, tokens, 2] x) => (float[batch, tokens, 1] y) {
        a = MatMul(x, w1)
        b = Identity(a)
        y = MatMul(b, w2)
    }
    """
    ones = {"w1": np.eye(2, dtype=np.float32), "w2": np.ones((2, 1), np.float32)}
    model = network(text, {}, ones)
    analysis = analyse(model)
    plan = make_plan(analysis, {inner(analysis, "w2").name: (0,)})
    x = np.array([[[0.0, 2049.0]], [[1.0, 2049.0]]], np.float32)  # 2048 in half precision
    fitted = compensate(model, plan, [{"x": x}], method="bias")
    added = [v.const_value.numpy() for n, v in fitted.graph.initializers.items() if "bias" in n]
    np.testing.assert_array_equal(added, [[2049.0]])


def first_and_second(model: ir.Model) -> tuple[Plan, Plan]:
    """A plan for the second layer alone, and one that cuts the first one too."""
    analysis = analyse(model)
    second = {inner(analysis, "w3").name: (0, 1, 2, 3)}
    both = {inner(analysis, "w2").name: (0, 1, 2), **second}
    return make_plan(analysis, second), make_plan(analysis, both)


@pytest.mark.parametrize("propagate", [False, True])
def test_a_later_layer_is_fitted_to_dense_inputs_unless_asked(
    stack: ir.Model, *, propagate: bool
) -> None:
    found = [
        compensate(stack, plan, batches(7), method="obspa", propagate=propagate)
        for plan in first_and_second(stack)
    ]
    alone, behind = (one.graph.initializers["w3"].const_value.numpy() for one in found)
    assert np.allclose(alone, behind, rtol=1e-4, atol=1e-5) != propagate


@pytest.mark.parametrize(("importance", "power"), [("cfsp", 0.5), ("obd", 1.0), ("flap", 0.0)])
def test_longer_samples_raise_scores_that_are_not_standardised_and_never_the_order(
    stack: ir.Model, importance: str, power: float
) -> None:
    analysis = analyse(stack)
    groups, short = (inner(analysis, "w3"),), batches(5)
    long = [{"x": np.tile(one["x"], (1, 3, 1))} for one in short]
    a, b = (
        next(iter(rank(importance, Context(analysis, groups, data)).values()))
        for data in (short, long)
    )
    np.testing.assert_allclose(b, a * 3**power, rtol=1e-3, atol=1e-6)
    np.testing.assert_array_equal(np.argsort(a), np.argsort(b))


def test_a_turned_stream_changes_what_weights_say_of_units_that_it_makes() -> None:
    shapes = {"w0": (6, 8), "w1": (8, 12), "w2": (12, 8), "w3": (8, 6)}
    constants = {"two": np.float32(2), "last": np.array([-1])}
    model = network(_TURNED, shapes, constants)
    found = []
    for one in (model, rotate(model)):
        analysis = analyse(one)
        group = next(g for g in analysis.groups if g.size == 12 and g.weights)
        found.append(next(iter(rank("l1", Context(analysis, (group,))).values())))
    assert not np.allclose(found[0], found[1], rtol=0.01)  # score before rotating
