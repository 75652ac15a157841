"""The twin of a renormalised cut is valid at opsets that spell ReduceMean in two ways."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper, numpy_helper

from secateur.graph_passes.groups import analyse
from secateur.graph_passes.masking import mask
from secateur.graph_passes.plan import make_plan
from secateur.graph_passes.removal import remove

_KEPT = (0, 2, 3, 5)


def _model(opset: int) -> ir.Model:
    """Linear, LayerNormalization over 6, linear."""
    rng = np.random.default_rng(0)
    weights = {"a": (4, 6), "scale": (6,), "bias": (6,), "b": (6, 2)}
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "a"], ["h"]),
            helper.make_node("LayerNormalization", ["h", "scale", "bias"], ["n"]),
            helper.make_node("MatMul", ["n", "b"], ["y"]),
        ],
        "net",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, (3, 4))],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, (3, 2))],
        [
            numpy_helper.from_array(rng.standard_normal(shape).astype(np.float32), name)
            for name, shape in weights.items()
        ],
    )
    opsets = [helper.make_opsetid("", opset)]
    return ir.from_proto(helper.make_model(graph, opset_imports=opsets, ir_version=8))


def _run(model: ir.Model, x: np.ndarray) -> np.ndarray:
    import onnxruntime as ort

    proto = ir.to_proto(model)
    onnx.checker.check_model(proto, full_check=True)
    session = ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x})[0]


@pytest.mark.parametrize("opset", [17, 18, 20])
def test_a_renormalised_cut_equals_its_twin(opset):
    model = _model(opset)
    analysis = analyse(model)
    (group,) = [group for group in analysis.groups if not group.exact]
    plan = make_plan(analysis, {group.name: _KEPT}, allow_inexact=True)
    x = np.random.default_rng(1).standard_normal((3, 4)).astype(np.float32)
    small, twin = _run(remove(model, plan), x), _run(mask(model, plan), x)
    np.testing.assert_allclose(small, twin, rtol=1e-5, atol=1e-6)
    assert not np.allclose(twin, _run(model, x), atol=1e-3)
