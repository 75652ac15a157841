"""Integer arithmetic on constants is folded, and nothing else."""

from __future__ import annotations

import onnx_ir as ir
import pytest

from secateur.graph_passes.axes.visits import visits_of
from secateur.graph_passes.constant_folding import fold_integers
from secateur.graph_passes.prepare import prepare

_HEAD = '<ir_version: 10, opset_import: ["" : 20]>\n'

# What an exporter that does not optimise writes for a convolution without bias.
_BIAS = (
    _HEAD
    + """net (float[1, 1, 4, 4] x) => (float[1, 2, 4, 4] y)
<float[2, 1, 1, 1] w = {1, 2}, float zero = {0}, int64[1] one = {1}> {
    shape = Shape <start = 0, end = 1> (w)
    size = Expand (shape, one)
    bias = Expand (zero, size)
    y = Conv (x, w, bias)
}"""
)


def _ops(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph]


def test_the_shape_of_a_weight_and_what_is_made_of_it_become_constants():
    model = ir.from_onnx_text(_BIAS)
    assert fold_integers(model.graph, visits_of(model.graph))
    assert _ops(model) == ["Expand", "Conv"]
    target = next(iter(model.graph)).inputs[1]
    assert target.const_value.numpy().tolist() == [2]


def test_the_size_of_a_folded_bias_is_inferred():
    model = prepare(ir.from_onnx_text(_BIAS))
    assert next(iter(model.graph)).outputs[0].shape == ir.Shape([2])


def test_the_input_model_stays_as_it_is():
    model = ir.from_onnx_text(_BIAS)
    prepare(model)
    assert _ops(model) == ["Shape", "Expand", "Expand", "Conv"]


def test_a_second_run_changes_nothing():
    model = ir.from_onnx_text(_BIAS)
    fold_integers(model.graph, visits_of(model.graph))
    assert not fold_integers(model.graph, visits_of(model.graph))


@pytest.mark.parametrize(
    "body",
    [
        "(float[2, N] x) => (int64[2] y) { y = Shape (x) }",
        "(int64[2] x) => (int64[2] y) <int64[2] c = {1, 2}> { y = Add (x, c) }",
        "(float[2] x) => (float[2] y) <float[2] c = {1, 2}> { d = Add (c, c) y = Add (x, d) }",
        "(int64[2] x) => (int64[2] y) <int64[2] c = {1, 2}> { y = Add (c, c) }",
    ],
    ids=["shape of an input", "arithmetic on an input", "floats", "a graph output"],
)
def test_left_alone(body):
    model = ir.from_onnx_text(f"{_HEAD}net {body}")
    before = _ops(model)
    assert not fold_integers(model.graph, visits_of(model.graph))
    assert _ops(model) == before


def test_an_initialiser_that_a_caller_may_override_is_no_constant():
    text = "net (int64[2] c = {1, 2}, int64[2] x) => (int64[2] y) { d = Add (c, c) y = Add (x, d) }"
    model = ir.from_onnx_text(_HEAD + text)
    model.graph.inputs[0].const_value = model.graph.inputs[0].const_value or ir.tensor([1, 2])
    assert not fold_integers(model.graph, visits_of(model.graph))
