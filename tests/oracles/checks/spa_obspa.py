"""OBSPA's public precursor: Hessian, scores and sweep of one layer, gathered on a graph."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from secateur.calibration.compensation.obspa import closed_form, fastest_columns, sweep
from secateur.calibration.importance.obspa import weight_scores
from secateur.calibration.statistics import Gram, all_places, gather
from secateur.graph_passes.groups import analyse

LEFT_OUT: dict[str, str] = {}


def check(case) -> None:
    arrays = case.arrays
    weight, damping = arrays["W"].astype(np.float64), float(arrays["percdamp"])
    sums = _gathered(arrays["W"], arrays["X"])
    np.testing.assert_allclose(sums.hessian, arrays["H"], rtol=1e-3, atol=1e-3)
    scores = weight_scores(weight, sums.hessian, damping)
    np.testing.assert_allclose(scores, arrays["scores"], rtol=2e-3, atol=1e-5)
    kept = np.ones(weight.shape[1], dtype=bool)
    kept[arrays["in_idx"]] = False
    swept = sweep(weight, kept, sums.hessian, damping)
    swept[arrays["out_idx"]] = 0.0  # rows just go
    np.testing.assert_allclose(swept, arrays["W_updated"], rtol=2e-3, atol=1e-4)
    faster = fastest_columns(
        weight, sums.hessian, float(arrays["fast_sparsity"]), int(arrays["blocksize"]), damping
    )
    np.testing.assert_allclose(faster, arrays["W_fastercols"], rtol=2e-3, atol=1e-4)
    _check_errors(case, kept, sums)


def _check_errors(case, kept: np.ndarray, sums: Gram) -> None:
    """The closed form is never worse than the published sweep on the inputs themselves."""
    arrays, rows = case.arrays, case.arrays["X"].reshape(-1, case.arrays["X"].shape[-1])

    def error(weight: np.ndarray) -> float:
        return float(np.square(rows @ (arrays["W"] - weight).T).sum())

    np.testing.assert_allclose(error(arrays["W_updated"]), arrays["err_updated"], rtol=1e-3)
    if not len(arrays["out_idx"]):
        closed = closed_form(arrays["W"].astype(np.float64), kept, sums).weight
        assert error(closed) <= float(arrays["err_updated"])


def _gathered(weight: np.ndarray, x: np.ndarray) -> Gram:
    model = linear(weight)
    (place,) = all_places(analyse(model))
    sums = Gram()
    gather(model, [(place, sums)], [{"x": sequence[None]} for sequence in x])
    return sums


def linear(weight: np.ndarray) -> ir.Model:
    """y = x W^T as a graph."""
    out, into = weight.shape
    text = f"""
    <ir_version: 10, opset_import: ["" : 20]>
    linear (float[batch, tokens, {into}] x) => (float[batch, tokens, {out}] y) {{
        y = MatMul(x, w)
    }}
    """
    model = ir.from_onnx_text(text)
    value = ir.Value(name="w", const_value=ir.tensor(weight.T.copy(), name="w"))
    node = model.graph[0]
    value.shape, value.type = ir.Shape([into, out]), ir.TensorType(ir.DataType.FLOAT)
    node.replace_input_with(1, value)
    node.name = "linear"
    model.graph.register_initializer(value)
    return model
