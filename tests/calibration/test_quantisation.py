"""Q/DQ graphs: what is rounded, what is not, and how close the result is."""

from __future__ import annotations

import json

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from tests.laws.small_models import network
from tests.parity import tiny

from secateur.calibration.activations import observe
from secateur.calibration.quantisation.gptq import Rounding, gptq
from secateur.calibration.quantisation.graph import METADATA_KEY, quantise
from secateur.calibration.quantisation.histogram import Histogram
from secateur.calibration.quantisation.ranges import RANGES
from secateur.calibration.quantisation.scheme import Scheme
from secateur.calibration.quantisation.weights import Layout, block_of, store
from secateur.errors import BadInputError, PreconditionError
from secateur.graph_passes.groups import analyse
from secateur.graph_passes.plan import make_plan
from secateur.graph_passes.removal import remove
from secateur.workflow.selecting import Select, select_tokens

_CONV = """
cnn (float[batch, 2, 6, 5] x) => (float[batch, 3, h, w] y) {
    a = Conv <pads = [1, 1, 1, 1]> (x, w1)
    b = Relu(a)
    y = Conv <strides = [2, 1]> (b, w2)
}
"""
_BOUNDS = {"int8": 0.05, "fp8": 0.1, "int4": 0.2}
DATA = [
    {
        "input_ids": np.random.default_rng(i).integers(0, 40, (4, 12)),
        "attention_mask": (np.arange(12) < np.array([[12], [7], [5], [9]])).astype(np.int64),
    }
    for i in range(4)
]


def pooled(model: ir.Model, batch: dict[str, np.ndarray]) -> np.ndarray:
    onnx.checker.check_model(ir.to_proto(model))
    ((_, seen),) = observe(model, ["pooled"], [batch])
    return seen["pooled"].astype(np.float64)


def distance(model: ir.Model, dense: ir.Model, batch: dict[str, np.ndarray]) -> float:
    want = pooled(dense, batch)
    return float(np.abs(pooled(model, batch) - want).max() / np.abs(want).max())


def nodes(model: ir.Model, op: str) -> list[ir.Node]:
    return [node for node in model.graph if node.op_type == op]


@pytest.mark.parametrize("weights", ["nearest", "gptq"])
@pytest.mark.parametrize("kind", list(_BOUNDS))
def test_a_quantised_transformer_stays_close(kind: str, weights: str) -> None:
    model = quantise(tiny.exported(), Scheme(kind, weights=weights, block=16), DATA)
    assert 0 < distance(model, tiny.exported(), DATA[0]) < _BOUNDS[kind]
    record = json.loads(model.metadata_props[METADATA_KEY])
    n_products = 3 * (6 if kind != "int4" else 5)  # 24 inputs make no blocks of 16
    assert len(record["layers"]) == n_products
    assert all(node.op_type != "QuantizeLinear" for node in model.graph) == (kind == "int4")


def test_every_zero_point_is_0_and_weights_have_a_scale_per_channel() -> None:
    model = quantise(tiny.exported(), Scheme("int8"), DATA)
    for node in nodes(model, "DequantizeLinear") + nodes(model, "QuantizeLinear"):
        assert not node.inputs[2].const_value.numpy().any()
        codes = node.inputs[0].const_value
        if codes is not None:
            axis = node.attributes.get_int("axis", 99)
            assert node.inputs[1].const_value.numpy().shape == (codes.shape[axis],)
            assert codes.numpy().min() >= -127


def test_int8_weights_are_those_of_onnx_runtimes_own_quantiser() -> None:
    from onnxruntime.quantization.quant_utils import QuantType, quantize_data

    model = quantise(tiny.exported(), Scheme("int8"), DATA)
    codes = model.graph.initializers
    name = next(n for n in codes if n.endswith(".codes"))
    dense = tiny.exported().graph.initializers[name.removesuffix(".codes")].const_value.numpy()
    for channel in range(dense.shape[1]):
        onnx_type = QuantType.QInt8.tensor_type
        want = quantize_data(dense[:, channel].copy(), onnx_type, True)[-1]
        np.testing.assert_array_equal(codes[name].const_value.numpy()[:, channel], want)


def test_products_that_share_an_input_share_its_pair() -> None:
    model = quantise(tiny.exported(), Scheme("int8"), DATA)
    assert len(nodes(model, "QuantizeLinear")) == 3 * 4  # qkv, o, up, down


def test_the_selection_stays_in_high_precision_and_still_selects() -> None:
    selecting = select_tokens(tiny.exported(), [Select("layers.0", keep=0.6)])
    budget = {"layers.0.permille": np.array([600], np.int64)}
    data = [batch | budget for batch in DATA]
    model = quantise(selecting, Scheme("int8"), data)
    inside = [node for node in model.graph if node.name.startswith("layers.0/selection/")]
    assert inside
    for node in inside:
        made_by = {v.producer().op_type for v in node.inputs if v is not None and v.producer()}
        assert "DequantizeLinear" not in made_by
    assert distance(model, selecting, data[0]) < 0.3
    ((_, seen),) = observe(model, ["layers.0.kept"], data[:1])
    assert ((seen["layers.0.kept"] >= 0).sum(1) == [8, 5, 3, 6]).all()


def test_a_pruned_graph_can_be_quantised() -> None:
    analysis = analyse(tiny.exported())
    plan = make_plan(analysis, {g.name: (0, 2, 3) for g in analysis.by_role("heads")})
    small = remove(tiny.exported(), plan)
    assert distance(quantise(small, Scheme("int8"), DATA), small, DATA[0]) < _BOUNDS["int8"]


@pytest.mark.parametrize("kind", ["int8", "fp8"])
def test_convolutions_are_quantised_by_output_channel(kind: str) -> None:
    model = network(_CONV, {"w1": (5, 2, 3, 3), "w2": (3, 5, 2, 3)})
    x = np.random.default_rng(0).standard_normal((8, 2, 6, 5)).astype(np.float32)
    rounded = quantise(model, Scheme(kind, weights="gptq"), [{"x": x}])
    ((_, want),) = observe(model, ["y"], [{"x": x}])
    ((_, got),) = observe(rounded, ["y"], [{"x": x}])
    assert 0 < np.abs(got["y"] - want["y"]).max() / np.abs(want["y"]).max() < _BOUNDS[kind]


@pytest.mark.parametrize("tokens", ["uniform", "norm", "distance", "attention"])
def test_gptq_loses_less_than_rounding_on_its_data(tokens: str) -> None:
    def error(scheme: Scheme) -> float:
        found = quantise(dense, scheme, DATA, keep=["*up*", "*down*"])
        return float(np.mean([np.square(pooled(found, b) - pooled(dense, b)).sum() for b in DATA]))

    dense = tiny.exported(fused=False)
    nearest = error(Scheme("int4", block=16))
    assert error(Scheme("int4", weights="gptq", tokens=tokens, block=16)) < nearest


@pytest.mark.parametrize(("kind", "bits", "block"), [("int4", 4, 16), ("int8", 8, 0)])
def test_what_is_stored_is_what_gptq_rounded_to(kind: str, bits: int, block: int) -> None:
    rng = np.random.default_rng(0)
    weight, x = rng.standard_normal((24, 32)), rng.standard_normal((99, 32))
    hessian = (x @ rng.standard_normal((32, 32))).T @ x
    hessian = hessian @ hessian.T
    stored = store(weight, Layout(weight.shape, 1), Scheme(kind, block=16), hessian)
    want = gptq(weight, hessian, Rounding(bits, group=block, search=kind == "int4")).values
    scale = stored.scale.reshape(24, -1).repeat(block or 32, axis=1)
    np.testing.assert_allclose(stored.codes.numpy().astype(float) * scale, want, rtol=1e-5)


def test_attention_that_cannot_be_seen_weighs_no_tokens() -> None:
    model = tiny.exported(opset=23)
    assert nodes(model, "Attention")
    with pytest.raises(PreconditionError, match="no attention probabilities"):
        quantise(model, Scheme("int8", weights="gptq", tokens="attention"), DATA)


def histogram(values: np.ndarray) -> Histogram:
    found = Histogram()
    for part in np.array_split(values, 7):
        found.add([part])
    return found


def test_a_growing_histogram_counts_what_numpy_counts() -> None:
    values = (
        np.random.default_rng(0).standard_normal((4000, 2)) * np.linspace(0.1, 3, 4000)[:, None]
    )
    found = histogram(values)
    assert found.counts.sum() == values.size
    assert found.largest == np.abs(values).max()
    share = np.cumsum(found.counts)[1000] / values.size
    top = found.middles[1000] + found.top / 4096
    assert abs((np.abs(values) <= top).mean() - share) < 0.002


def test_ranges_clip_an_outlier_but_for_minmax() -> None:
    values = np.append(np.random.default_rng(0).standard_normal(50_000), 100.0)[:, None]
    tops = {name: find(histogram(values)) for name, find in RANGES.items()}
    assert tops["minmax"] == 100
    assert 3 < tops["percentile"] < 5
    assert tops["entropy"] < 60
    scale = {name: top / 127 for name, top in tops.items()}
    loss = {
        name: np.square(np.clip(np.round(values / s), -127, 127) * s - values).sum()
        for name, s in scale.items()
    }
    assert loss["mse"] == min(loss.values())


@pytest.mark.parametrize(("inputs", "block"), [(96, 32), (48, 16), (24, 0), (128, 32), (16, 16)])
def test_blocks_divide_the_inputs(inputs: int, block: int) -> None:
    assert block_of(inputs, 32) == block


def test_a_pattern_keeps_layers_and_says_so() -> None:
    model = quantise(tiny.exported(), Scheme("int8"), DATA, keep=["layers.0.*"])
    record = json.loads(model.metadata_props[METADATA_KEY])
    assert not [name for name in record["layers"] if name.startswith("layers.0.")]
    reasons = {one["layer"]: one["reason"] for one in record["left"]}
    assert reasons["layers.0.up.weight"] == "it was asked to be kept"


def test_a_pattern_that_fits_nothing_is_refused() -> None:
    with pytest.raises(BadInputError, match="name of no weight"):
        quantise(tiny.exported(), Scheme(), DATA, keep=["encoder.*"])


def test_nothing_left_to_round_is_refused() -> None:
    with pytest.raises(BadInputError, match="nothing in the model"):
        quantise(tiny.exported(), Scheme(), DATA, keep=["*"])


def test_int8_without_data_is_refused() -> None:
    with pytest.raises(BadInputError, match="needs data"):
        quantise(tiny.exported(), Scheme())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "int2"}, "unknown kind"),
        ({"ranges": "max"}, "unknown ranges"),
        ({"weights": "awq"}, "unknown weights"),
        ({"tokens": "random"}, "unknown tokens"),
        ({"block": 24}, "no size that engines take"),
    ],
)
def test_options_that_do_not_exist_are_refused(options: dict, message: str) -> None:
    with pytest.raises(BadInputError, match=message):
        Scheme(**options)
