"""Which products should not be rounded: found one at a time."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from tests.laws.small_models import network

from secateur.calibration.quantisation.graph import quantise
from secateur.calibration.quantisation.scheme import Scheme
from secateur.calibration.quantisation.sensitivity import sensitivity

_TEXT = """
mlp (float[batch, 4, 16] x) => (float[batch, 4, 3] y) {
    a = MatMul(x, w1)
    b = Relu(a)
    y = MatMul(b, w2)
}
"""


def test_the_layer_with_an_outlier_is_kept_and_the_other_rounded() -> None:
    model = network(_TEXT, {"w1": (16, 8), "w2": (8, 3)})
    x = np.random.default_rng(0).standard_normal((16, 4, 16)).astype(np.float32)
    x[..., 0] *= 1000  # rounds everything else of the first input away
    silent = model.graph.initializers["w1"]
    array = silent.const_value.numpy().copy()
    array[0] = 0.0
    silent.const_value = ir.tensor(array, name="w1")
    found = sensitivity(model, Scheme("int8", ranges="minmax"), [{"x": x}], bound=0.05)
    assert [(one.layer, one.verdict) for one in found] == [("w1", "keep"), ("w2", "quantise")]
    keep = [one.layer for one in found if one.verdict == "keep"]
    assert quantise(model, Scheme("int8", ranges="minmax"), [{"x": x}], keep=keep)


def test_every_layer_may_be_kept() -> None:
    model = network(_TEXT, {"w1": (16, 8), "w2": (8, 3)})
    x = np.random.default_rng(0).standard_normal((8, 4, 16)).astype(np.float32)
    found = sensitivity(model, Scheme("int8"), [{"x": x}], bound=0.0)
    assert {one.verdict for one in found} == {"keep"}
