"""Ranking by size reads weights in blocks: no copy of a whole weight in double precision."""

from __future__ import annotations

import tracemalloc

import numpy as np
import onnx_ir as ir
import pytest
from tests.laws.small_models import network

from secateur.calibration.importance import Context, rank
from secateur.graph_passes.groups import analyse

_TEXT = """
two_layers (float[batch, 512] x) => (float[batch, 512] y) {
    a = MatMul(x, w1)
    b = Relu(a)
    y = MatMul(b, w2)
}
"""
_SHAPES = {"w1": (512, 4096), "w2": (4096, 512)}


@pytest.fixture(scope="module")
def model() -> ir.Model:
    made = network(_TEXT, _SHAPES)
    for value in made.graph.initializers.values():
        assert value.const_value is not None
        value.const_value = ir.Tensor(value.const_value.numpy(), name=value.name)
    return made


@pytest.mark.parametrize("criterion", ["l1", "l2"])
def test_ranking_by_size_copies_no_weight_whole(model: ir.Model, criterion: str) -> None:
    analysis = analyse(model)
    groups = tuple(group for group in analysis.groups if group.removable)
    tracemalloc.start()
    rank(criterion, Context(analysis, groups))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 8 * 512 * 4096 // 2, "half of one weight in float64"


def test_scores_are_those_of_the_whole_weights_to_float32(model: ir.Model) -> None:
    analysis = analyse(model)
    (group,) = (group for group in analysis.groups if group.removable)
    first, second = (
        np.asarray(analysis.model.graph.initializers[name].const_value, np.float64)
        for name in _SHAPES
    )
    scores = rank("l2", Context(analysis, (group,)))[group.name]
    np.testing.assert_allclose(scores, (first**2).sum(0) + (second**2).sum(1), rtol=1e-6)
