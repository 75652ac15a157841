"""What goes to half precision and what does not, on graphs that are seen at a glance."""

from __future__ import annotations

import json

import numpy as np
import onnx_ir as ir
import pytest
from tests.precision.graphs import BLOCK, block, computed_in, error, graph, lowered, run, types

from secateur.errors import BadInputError
from secateur.graph_passes.precision.decisions import Precision
from secateur.graph_passes.precision.lower import lower_precision, precision_record
from secateur.graph_passes.precision.rounded import rounded_twin

HALF = [ir.DataType.FLOAT16, ir.DataType.BFLOAT16]
EYE = np.eye(4, dtype=np.float32)


def test_products_are_half_and_masks_and_softmax_are_not() -> None:
    model, _ = block()
    made = lowered(model)
    assert computed_in(made, "MatMul") == ["FLOAT16", "FLOAT16", "FLOAT16"]
    assert types(made)["additive"] == "FLOAT"
    assert types(made)["scores"] == "FLOAT"
    assert computed_in(made, "Softmax") == ["FLOAT"]


def test_inputs_outputs_and_names_stay() -> None:
    model, _ = block()
    made = lowered(model)
    assert [(v.name, v.dtype) for v in made.graph.inputs] == [
        (v.name, v.dtype) for v in model.graph.inputs
    ]
    assert [(v.name, v.dtype) for v in made.graph.outputs] == [("y", ir.DataType.FLOAT)]
    assert made.graph.initializers["w"].dtype == ir.DataType.FLOAT16
    assert set(types(model)) <= set(types(made))


def test_the_model_that_is_lowered_stays_as_it_is() -> None:
    model, arrays = block()
    before = run(model, arrays)["y"]
    lowered(model)
    assert model.graph.initializers["w"].dtype == ir.DataType.FLOAT
    np.testing.assert_array_equal(run(model, arrays)["y"], before)


@pytest.mark.parametrize("dtype", HALF, ids=lambda dtype: dtype.name.lower())
def test_the_numbers_stay_within_the_rounding_of_the_type(dtype: ir.DataType) -> None:
    model, arrays = block()
    twin = rounded_twin(lowered(model, Precision(dtype)))
    found = error(run(twin, arrays)["y"], run(model, arrays)["y"])
    rounding = 2.0**-11 if dtype == ir.DataType.FLOAT16 else 2.0**-8
    assert rounding / 16 < found < 8 * rounding


def test_the_rounded_twin_computes_what_the_lowered_model_computes() -> None:
    model, arrays = block()
    made = lowered(model)
    twin = rounded_twin(made)
    assert computed_in(twin, "MatMul") == ["FLOAT"] * 3
    assert error(run(twin, arrays)["y"], run(made, arrays)["y"]) < 2.0**-10


ADD_EPSILON = """
<ir_version: 10, opset_import: ["" : 20]>
g (float[2, 4] x) => (float[2, 4] y)
<float[4, 4] w = {WEIGHT}, float epsilon = {1e-12}>
{ h = MatMul(x, w) r = Relu(h) d = Add(r, epsilon) y = Div(r, d) }
"""


def test_an_epsilon_that_would_vanish_keeps_its_sum_in_float32() -> None:
    made = lowered(graph(ADD_EPSILON, WEIGHT=EYE))
    assert types(made)["r"] == "FLOAT16"
    assert types(made)["d"] == "FLOAT"
    arrays = {"x": np.zeros((2, 4), np.float32)}
    assert not np.isnan(run(made, arrays)["y"]).any()


ONE_PRODUCT = """
<ir_version: 10, opset_import: ["" : 20]>
g (float[2, 4] x) => (float[2, 4] y) <float[4, 4] w = {WEIGHT}, float[4, 4] v = {OTHER}>
{ h = MatMul(x, w) y = MatMul(h, v) }
"""


@pytest.mark.parametrize("scale", [1e5, 1e-6])
def test_a_weight_that_does_not_fit_keeps_its_product_in_float32(scale: float) -> None:
    made = lowered(graph(ONE_PRODUCT, WEIGHT=EYE * scale, OTHER=EYE))
    assert types(made)["h"] == "FLOAT"
    assert made.graph.initializers["v"].dtype == ir.DataType.FLOAT16
    assert precision_record(made)["kept"] == [
        {"module": "", "node": "MatMul:h", "reason": "a constant does not fit"}
    ]


@pytest.mark.parametrize("largest", [20_000.0, float("inf"), float("nan")])
def test_what_overflowed_or_came_near_on_the_data_stays_in_float32(largest: float) -> None:
    text = ONE_PRODUCT.replace("y = MatMul(h, v)", "z = MatMul(h, v) y = MatMul(z, v)")
    model = graph(text, WEIGHT=EYE, OTHER=EYE)
    made = lowered(model, Precision(ranges={"x": 1.0, "h": largest, "y": 1.0}))
    assert types(made)["z"] == "FLOAT"
    assert computed_in(made, "MatMul")[2] == "FLOAT16"
    assert precision_record(made)["float32"] == {"values would overflow": 2}


def test_bfloat16_takes_what_float16_cannot() -> None:
    model = graph(ONE_PRODUCT, WEIGHT=EYE * 1e5, OTHER=EYE)
    made = lowered(model, Precision(ir.DataType.BFLOAT16, ranges={"h": 1e6}))
    assert types(made)["h"] == "BFLOAT16"


def test_a_node_that_the_user_names_stays_in_float32() -> None:
    model, _ = block()
    model.graph[4].name = "layer.0/q"
    made = lowered(model, Precision(keep=("layer.0*",)))
    assert types(made)["q"] == "FLOAT"
    assert computed_in(made, "MatMul")[1:] == ["FLOAT16", "FLOAT16"]


def test_a_pattern_that_fits_nothing_is_refused() -> None:
    model, _ = block()
    with pytest.raises(BadInputError, match="no module or node fits 'layre"):
        lower_precision(model, Precision(keep=("layre.0*",)))


def test_a_model_is_lowered_once_only() -> None:
    model, _ = block()
    with pytest.raises(BadInputError, match="lowered already"):
        lower_precision(lowered(model), Precision())


def test_a_model_without_anything_to_lower_is_refused() -> None:
    model = graph(
        '<ir_version: 10, opset_import: ["" : 20]> g (float[2] x) => (float[2] y) { y = Exp(x) }'
    )
    with pytest.raises(BadInputError, match="nothing in the model"):
        lower_precision(model, Precision())


def test_float64_is_no_half_precision() -> None:
    model, _ = block()
    with pytest.raises(BadInputError, match="double is no half precision"):
        lower_precision(model, Precision(ir.DataType.DOUBLE))


CONVOLUTION = """
<ir_version: 10, opset_import: ["" : OPSET]>
g (float[1, 4, 6, 6] x) => (float[1, 4, 6, 6] y) <float[4, 4, 1, 1] w = {WEIGHT}>
{ h = Conv(x, w) i = Relu(h) z = Transpose(i) o = Transpose(z) y = MatMul(i, o) }
"""


@pytest.mark.parametrize(("opset", "wanted"), [(20, "FLOAT"), (22, "BFLOAT16")])
def test_a_type_that_the_opset_lacks_for_an_operator_is_not_used(opset: int, wanted: str) -> None:
    text = CONVOLUTION.replace("OPSET", str(opset))
    made = lowered(graph(text, WEIGHT=EYE), Precision(ir.DataType.BFLOAT16))
    assert computed_in(made, "Conv") == [wanted]


DECISION = """
<ir_version: 10, opset_import: ["" : 20]>
g (float[2, 6, 4] x) => (float[2, 3, 4] y) <float[4, 1] w = {SCORE}, float[4, 4] v = {WEIGHT}>
{
    score = MatMul(x, w)
    k = Constant<value_ints=[3]>()
    top, index = TopK<axis=1>(score, k)
    last = Constant<value_ints=[2]>()
    flat = Squeeze(index, last)
    where = Unsqueeze(flat, last)
    h = MatMul(x, v)
    y = GatherND<batch_dims=1>(h, where)
}
"""


def test_what_only_decides_is_computed_in_float32() -> None:
    made = lowered(graph(DECISION, SCORE=EYE[:, :1], WEIGHT=EYE))
    assert types(made)["score"] == "FLOAT"
    assert types(made)["h"] == "FLOAT16"
    assert computed_in(made, "GatherND") == ["FLOAT16"]


ANGLES = """
<ir_version: 10, opset_import: ["" : 20]>
g (int64[n] position, float[n, 4] x) => (float[n, 4] y)
<float[1, 4] frequency = {1.0, 0.1, 0.01, 0.001}, float[4, 4] w = {WEIGHT}>
{
    p = Cast<to=1>(position)
    axes = Constant<value_ints=[1]>()
    column = Unsqueeze(p, axes)
    angle = MatMul(column, frequency)
    c = Cos(angle)
    h = MatMul(x, w)
    y = Mul(h, c)
}
"""


def test_an_angle_is_not_rounded() -> None:
    model = graph(ANGLES, WEIGHT=EYE)
    made = lowered(model)
    assert types(made)["angle"] == "FLOAT"
    arrays = {"position": np.arange(3000, 3008), "x": np.ones((8, 4), np.float32)}
    assert error(run(made, arrays)["y"], run(model, arrays)["y"]) < 1e-3


BODY = """
<ir_version: 10, opset_import: ["" : 20]>
g (float[2, 4] x, bool c) => (float[2, 4] y) <float[4, 4] w = {WEIGHT}>
{
    h = MatMul(x, w)
    z = If (c) <
        then_branch = t () => (float[2, 4] a) { a = Relu(h) },
        else_branch = e () => (float[2, 4] b) { b = Neg(h) }
    >
    y = MatMul(z, w)
}
"""


def test_a_body_reads_float32_whatever_its_surroundings_compute_in() -> None:
    model = graph(BODY, WEIGHT=EYE)
    made = lowered(model)
    assert computed_in(made, "MatMul") == ["FLOAT16", "FLOAT16"]
    arrays = {"x": np.ones((2, 4), np.float32), "c": np.array(False)}
    np.testing.assert_allclose(run(made, arrays)["y"], run(model, arrays)["y"], rtol=1e-3)


LIKE = """
<ir_version: 10, opset_import: ["" : 20]>
g (float[2, 4] x, bool[2, 4] m) => (float[2, 4] y) <float[4, 4] w = {WEIGHT}>
{ h = MatMul(x, w) f = CastLike(m, h) y = Mul(h, f) }
"""


def test_a_cast_like_another_value_follows_it() -> None:
    made = lowered(graph(LIKE, WEIGHT=EYE))
    assert types(made)["f"] == "FLOAT16"
    assert computed_in(made, "Mul") == ["FLOAT16"]


ATTENTION = """
<ir_version: 10, opset_import: ["" : 23]>
g (float[1, 2, 3, 4] q, bool[1, 1, 1, 3] m) => (float[1, 2, 3, 4] y)
<float lowest = {-3.4e38}, float zero = {0.0}, float[4, 4] w = {WEIGHT}>
{
    bias = Where(m, zero, lowest)
    shape = Constant<value_ints=[1, 1, 3, 3]>()
    full = Expand(bias, shape)
    k = MatMul(q, w)
    y = Attention(q, k, q, full)
}
"""


def test_the_mask_of_a_fused_attention_is_cut_to_what_the_type_holds() -> None:
    model = graph(ATTENTION, WEIGHT=EYE)
    made = lowered(model)
    assert computed_in(made, "Attention") == ["FLOAT16"]
    x = np.random.default_rng(0).standard_normal((1, 2, 3, 4)).astype(np.float32)
    nothing_to_see = {"q": x, "m": np.zeros((1, 1, 1, 3), bool)}
    assert not np.isnan(run(made, nothing_to_see)["y"]).any()
    some = {"q": x, "m": np.array([True, False, True]).reshape(1, 1, 1, 3)}
    assert error(run(made, some)["y"], run(model, some)["y"]) < 2e-3


def test_a_weight_with_readers_in_both_types_is_kept_twice() -> None:
    text = BLOCK.replace("q = MatMul(x, w)", "e = Exp(w) q = MatMul(x, w)")
    model = graph(
        text.replace("y = MatMul(p, q)", "z = MatMul(p, q) y = MatMul(z, e)"),
        WEIGHT=np.ones((8, 8), np.float32),
    )
    model.metadata_props["secateur.parameters"] = json.dumps(
        {"w": {"name": "layer.weight", "transpose": None}}
    )
    made = lowered(model)
    held = made.graph.initializers
    assert held["w"].dtype == ir.DataType.FLOAT
    assert held["w.float16"].dtype == ir.DataType.FLOAT16
    recorded = json.loads(made.metadata_props["secateur.parameters"])
    assert recorded["w.float16"]["name"] == "layer.weight"


def test_the_record_says_how_much_is_lowered_and_why_not_the_rest() -> None:
    model, _ = block()
    record = precision_record(lowered(model))
    assert record["dtype"] == "float16"
    assert record["nodes"] == 4
    assert record["float32"] == {
        "a constant does not fit": 1,
        "feeds a softmax": 1,
        "operator stays in float32": 1,
        "values would overflow": 1,
    }
    assert precision_record(model) == {"dtype": "float32"}
